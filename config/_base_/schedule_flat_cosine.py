"""132 epochs as DEIM has them: a quadratic warm-up, flat until 4 epochs after the middle, along a cosine to half, flat."""

schedule = dict(epochs=132, kind='flat_cosine', gamma=0.5, warmup_steps=2000, flat_epochs=70, final_epochs=12)

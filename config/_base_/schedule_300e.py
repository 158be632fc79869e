"""300 epochs, the learning rate falls to a tenth after 200."""

schedule = dict(epochs=300, kind='step', drop=(200, ), gamma=0.1, warmup_steps=0)

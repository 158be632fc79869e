"""50 epochs, the learning rate falls to a tenth after 40."""

schedule = dict(epochs=50, kind='step', drop=(40, ), gamma=0.1, warmup_steps=0)

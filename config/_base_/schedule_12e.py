"""12 epochs, the learning rate falls to a tenth after 11."""

schedule = dict(epochs=12, kind='step', drop=(11, ), gamma=0.1, warmup_steps=0)

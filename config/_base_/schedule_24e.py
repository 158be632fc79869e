"""24 epochs, the learning rate falls to a tenth after 20."""

schedule = dict(epochs=24, kind='step', drop=(20, ), gamma=0.1, warmup_steps=0)

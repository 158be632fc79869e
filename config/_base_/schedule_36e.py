"""36 epochs, the learning rate falls to a tenth after 30."""

schedule = dict(epochs=36, kind='step', drop=(30, ), gamma=0.1, warmup_steps=0)

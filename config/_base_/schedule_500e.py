"""500 epochs, the learning rate falls to a tenth after 400."""

schedule = dict(epochs=500, kind='step', drop=(400, ), gamma=0.1, warmup_steps=0)

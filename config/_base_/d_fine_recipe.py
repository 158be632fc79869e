"""stub"""
schedule = dict(epochs=72, kind='step', drop=(1000, ), gamma=0.1, warmup_steps=0)

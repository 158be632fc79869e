"""What all papers here train with: AdamW, gradient norm clipped to 0.1, no EMA.

Learning rates are meant for total_batch_size images a step, all GPUs together; scale_lr='sqrt' or 'linear' adapts them to
another number. lr_backbone is a rate of its own, where 'backbone' under `scale` is a factor of lr. no_decay lists expressions:
parameters in whose names one is found have no weight decay.
"""

compile = False
checkpointing = ()
optimizer = dict(
    lr=1e-4,
    lr_backbone=None,
    weight_decay=1e-4,
    total_batch_size=16,
    scale_lr=None,
    scale={'backbone': 0.1},
    no_decay=(),
)
training = dict(
    clip_norm=0.1,
    accumulate=1,
    ema=None,
    restart=None,
    sync_bn=False,
    eval_every=1,
    save_every=10,
    save_every_steps=None,
    keep_checkpoints=3,
    patience=10,
    warm_up_step='auto',
    print_every=50,
    wandb=None,
)
aliases = dict(lr_backbone='optimizer.lr_backbone')

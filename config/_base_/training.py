"""What all papers here train with: AdamW, gradient norm clipped to 0.1, no EMA."""

compile = False
checkpointing = ()
optimizer = dict(lr=1e-4, weight_decay=1e-4, scale={'backbone': 0.1})
training = dict(
    clip_norm=0.1,
    accumulate=1,
    ema=None,
    eval_every=1,
    save_every=10,
    save_every_steps=None,
    keep_checkpoints=3,
    patience=10,
    warm_up_step='auto',
    print_every=50,
    wandb=None,
)

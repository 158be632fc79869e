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
    print_every=50,
)

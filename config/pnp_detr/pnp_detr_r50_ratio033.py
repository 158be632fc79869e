"""PnP-DETR, ResNet-50, takes 33 % of the tokens: 41.1 AP as published, after 500 epochs.

torchrun --nproc_per_node=8 main.py -c config/pnp_detr/pnp_detr_r50_ratio033.py

300 epochs is what the paper's code trains by default. One training serves all ratios: each batch draws its own, and
--options model.encoder.ratio=0.5 evaluates the same checkpoint with another.
"""

_base_ = ['../detr/detr_r50.py', '../_base_/schedule_300e.py']

official_keys = 'pnp_detr'
model = dict(
    encoder=dict(
        type='PollAndPool',
        ratio=0.33,
        training_ratios=(1 / 3, 0.8),
        num_pooled=30,
        base=dict(
            type='DenseEncoder',
            num_layers=6,
            layer=dict(type='DenseEncoderLayer', ffn_dim=2048, dropout=0.1),
        ),
    ))
criterion = dict(terms=dict(sample_reg_loss=dict(type='SampleScorePenalty', weight=1e-4)))
optimizer = dict(total_batch_size=16)

"""Sparse DETR, ResNet-50, 50 epochs, updates 10 % of the encoder's tokens: 45.3 AP as published, 46.9 from SCRL.

torchrun --nproc_per_node=8 main.py -c config/sparse_detr/sparse_detr_r50_rho_0.1.py

--options scrl_pretrained_path=FILE_OR_URL starts the backbone from a self-supervised SCRL checkpoint.
"""

_base_ = '../efficient_detr/efficient_detr_r50.py'

official_keys = 'sparse_detr'
model = dict(
    encoder=dict(
        type='SparseEncoder',
        keep_ratio=0.1,
        num_layers=6,
        layer=dict(type='DeformableEncoderLayer', ffn_dim=1024, dropout=0.1),
    ))
criterion = dict(
    supervise=dict(encoder=dict(name='loss_{loss}_enc_{index}')),
    terms=dict(loss_mask_prediction=dict(type='TokenSelectionLoss', weight=1.0)),
    metrics=dict(corr=dict(type='TokenCorrelation')),
)
aliases = dict(rho='model.encoder.keep_ratio', scrl_pretrained_path='model.backbone.pretrained')
optimizer = dict(total_batch_size=16)  # its code also has what scale_lr='sqrt' does

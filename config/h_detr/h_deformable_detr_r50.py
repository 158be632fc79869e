"""H-DETR: Deformable DETR with hybrid matching, mixed selection and look forward twice, ResNet-50, 12 epochs.

torchrun --nproc_per_node=8 main.py -c config/h_detr/h_deformable_detr_r50.py

Switches: model.queries.num_one2many=0 trains without the one-to-many branch, model.queries.init.type=FromBox without
mixed selection, model.decoder.refine=iterative without look forward twice.
"""

_base_ = ['../deformable_detr/deformable_detr_r50_two_stage.py', '../_base_/schedule_12e.py']

official_keys = 'h_detr'
_layer = dict(ffn_dim=2048, dropout=0.0)
model = dict(
    encoder=dict(layer=_layer),
    queries=dict(init=dict(type='FromBoxWithLearnedContent'), num_one2many=1500),
    decoder=dict(layer=_layer, refine='look_forward_twice'),
)
criterion = dict(supervise=dict(one2many=dict(name='loss_{loss}{layer}_one2many', repeat=6, weight=1.0)))
optimizer = dict(total_batch_size=16)

"""What RT-DETRv2 does otherwise than RT-DETR: fresh weights, names of losses, norms spared of weight decay by what they are,
a warm-up, plain images of one size at the end. As for R50. Comes after the model that it changes.
"""

model = dict(decoder=dict(layer=dict(type='PlainDeformableDecoderLayerV2', ffn_dim=1024, dropout=0.0)))
criterion = dict(supervise=dict(proposals=dict(name='loss_{loss}_enc_{index}')))
data = dict(augment=dict(stop_epoch=71), multi_scale=dict(stop_epoch=71))
optimizer = dict(no_decay=(r'^(?!backbone\.).*norm', ))
schedule = dict(warmup_steps=2000)

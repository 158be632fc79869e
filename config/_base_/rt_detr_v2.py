"""What RT-DETRv2 does otherwise than RT-DETR. Comes after the model that it changes."""

model = dict(decoder=dict(layer=dict(type='PlainDeformableDecoderLayerV2', ffn_dim=1024, dropout=0.0)))
criterion = dict(supervise=dict(proposals=dict(name='loss_{loss}_enc_{index}')))

"""Backbones: (B, 3, H, W) -> a list of feature maps, finest first, and `channels`, their widths."""

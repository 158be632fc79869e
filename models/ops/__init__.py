"""Deformable attention, the one operator that PyTorch lacks."""

from models.ops.ms_deform_attn import available_backends, key_aware_deform_attn, ms_deform_attn

__all__ = ["available_backends", "key_aware_deform_attn", "ms_deform_attn"]

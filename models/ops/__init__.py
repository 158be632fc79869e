"""Deformable attention, the one operator that PyTorch lacks, and linear layers, which it has slower on some CPUs."""

from models.ops.linear import describe_products
from models.ops.ms_deform_attn import available_backends, key_aware_deform_attn, ms_deform_attn

__all__ = ["available_backends", "describe_kernels", "key_aware_deform_attn", "ms_deform_attn"]


def describe_kernels() -> list[str]:
    """What computes here, a line for each operation."""
    return [
        f"of deformable attention: {', '.join(available_backends())}",
        f"of linear layers on the CPU: {describe_products()}",
    ]

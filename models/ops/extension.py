"""The compiled extension: importing it is what registers its kernels with PyTorch."""

import importlib

import torch

EXTENSIONS = ("models.ops.leandetr_ops", "leandetr_ops")
"""The extension's module: built in place, installed."""


def load_extension() -> str:
    """Imports the extension, built in place or installed, which registers its kernels. Returns why it is not there."""
    reasons = []
    for name in EXTENSIONS:
        try:
            importlib.import_module(name)
            return ""
        except ImportError as error:
            reasons += [] if isinstance(error, ModuleNotFoundError) else [str(error)]
    return reasons[0] if reasons else "not built"


def has_compiled_kernels(device: str, operator: str = "ms_deform_attn") -> bool:
    """Whether the extension is built and holds kernels of an operator for "CPU" or "CUDA"."""
    load_extension()
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"leandetr::{operator}", device)

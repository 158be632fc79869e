"""What goes from the host to a device, and back, without more waiting than must be."""

from collections.abc import Mapping

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; a GPU gets what stands on the host by way of page-locked memory, and nobody waits for it.

    Where operators are traced, compiled or exported it is a plain `tensor.to(device)`.

    Raises:
        RuntimeError: a CUDA graph is being recorded, which would read the numbers again when they are gone. What makes
            them should be `remembered`.
    """
    if torch.device(device).type != "cuda" or tensor.is_cuda or is_traced():
        return tensor.to(device)
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("numbers of the host cannot enter a CUDA graph that is being recorded")
    return tensor.pin_memory().to(device, non_blocking=True)


def constant_tensor(values, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """Plain numbers, as torch.tensor takes them, on a device; nobody waits for a GPU, see `to_device`."""
    if torch.device(device).type != "cuda" or is_traced():
        return torch.tensor(values, dtype=dtype, device=device)
    return to_device(torch.tensor(values, dtype=dtype), device)


def is_traced() -> bool:
    """Whether operators are traced or compiled just now, and not run."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def read_floats(numbers: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars as plain numbers, rounded to float32, in one copy to the host: here it waits for the device."""
    if not numbers:
        return {}
    stacked = torch.stack([number.detach().float() for number in numbers.values()])
    return dict(zip(numbers, stacked.cpu().tolist(), strict=True))

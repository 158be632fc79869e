"""Numbers of the host on a device, for which the host does not wait."""

import torch
from torch import Tensor


def constant(values, device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers of the host as a tensor on a device.

    From ordinary memory a GPU copies only while the host waits, and the host thereby waits for all that it has launched
    before. So the numbers go through page-locked memory.

    Args:
        values: a number, lists of numbers or a numpy array.
        dtype: by default that of torch.tensor.

    Raises:
        RuntimeError: a CUDA graph is being recorded, which would read the numbers again when they are gone. What makes
            them should be `remembered`.
    """
    watched = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if torch.device(device).type == "cuda" and not watched:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("numbers of the host cannot enter a CUDA graph that is being recorded")
        return torch.tensor(values, dtype=dtype).pin_memory().to(device, non_blocking=True)
    return torch.tensor(values, dtype=dtype, device=device)

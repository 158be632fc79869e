"""In which number format a step computes."""

import contextlib
import logging
import math

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


def emulates_bfloat16() -> bool:
    """Whether this CPU is known to lack instructions for bfloat16, which then is slower than float32, not faster."""
    found = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of PyTorch do not tell
    return found.get("architecture") == "x86_64" and not (found.get("avx512_bf16") or found.get("amx_bf16"))


def allow_tf32(allowed: bool):
    """Whether GPUs may round what float32 products and convolutions multiply to TF32, 10 bits of mantissa.

    Left to itself PyTorch does so in convolutions, and not in products.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


class Precision:
    """float32, or autocast to bfloat16 where the device has it, or to float16 with scaled gradients.

    Args:
        device: "cuda" or "cpu".
        amp: whether to autocast at all.
    """

    def __init__(self, device: str, amp: bool):
        half = device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
        self.device, self.amp = device, amp
        self.dtype = torch.float16 if half else torch.bfloat16
        if amp and device == "cpu" and emulates_bfloat16():
            log.warning("this CPU has no instructions for bfloat16: without --amp all is faster, and more precise")
        self.scaler = torch.amp.GradScaler(device, enabled=amp and half)

    @property
    def name(self) -> str:
        """The format in words."""
        tf32 = self.device == "cuda" and torch.get_float32_matmul_precision() != "highest"
        plain = "float32, products in TF32" if tf32 else "float32"
        return str(self.dtype).removeprefix("torch.") if self.amp else plain

    def autocast(self) -> contextlib.AbstractContextManager:
        """Within this, matrix products and convolutions compute in the chosen format."""
        return torch.autocast(self.device, self.dtype, enabled=self.amp)

    def backward(self, loss: Tensor):
        """Gradients of a loss, scaled if need be."""
        self.scaler.scale(loss).backward()

    def step(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, clip_norm: float | None, sound: Tensor | None = None
    ) -> Tensor:
        """Clips the total gradient norm and steps; with a norm that is not finite it does not step.

        The device decides by itself, if the optimiser is a fused one; others are asked for on the host, which waits.

        Args:
            sound: bool scalar on the device; False keeps it from stepping, too.

        Returns:
            the norm before clipping, a scalar. `adapt` is to follow.
        """
        self.scaler.unscale_(optimizer)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        steps = norm.isfinite() if sound is None else norm.isfinite() & sound
        # Where it does not step, the gradients stay as they are, for who wants to know why: a norm of 0 is not clipped.
        limit = math.inf if clip_norm is None else clip_norm
        nn.utils.clip_grads_with_norm_(model.parameters(), limit, norm.where(steps, 0))
        _step_where(steps, optimizer)
        return norm

    def adapt(self, sound: bool = True):
        """After `step`: lowers the scale of float16 if gradients were not finite, raises it after many that were.

        Args:
            sound: whether the losses were finite. If not, gradients say nothing of the scale, which then stays.
        """
        self.scaler.update(None if sound else self.scaler.get_scale())

    def overflows(self) -> bool:
        """Whether a gradient that is not finite may be float16's doing.

        Scaled gradients overflow until their scale, which is halved every time, is small enough.
        """
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 1


def _step_where(steps: Tensor, optimizer: torch.optim.Optimizer):
    """Steps where a bool scalar is True. A fused optimiser reads that on its device, as GradScaler has it do."""
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        if steps:
            optimizer.step()
        return
    optimizer.grad_scale, optimizer.found_inf = None, (~steps).float()  # type: ignore[attr-defined]  # what fused optimizers read
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]

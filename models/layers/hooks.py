"""Who looks into a module."""

from torch import nn
from torch.nn.modules import module as global_hooks

from util.measuring.flops import is_counted_as_inference


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than its `forward`."""
    # Asked for every layer: a chain takes a third of the time of `any`.
    own = (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )  # fmt: skip
    everywhere = (
        global_hooks._global_forward_hooks
        or global_hooks._global_forward_pre_hooks
        or global_hooks._global_backward_hooks
        or global_hooks._global_backward_pre_hooks
    )
    looked_at = everywhere and not is_counted_as_inference()  # a counter only notes whose operations they are
    return bool(own or looked_at or "forward" in module.__dict__)  # or it is somebody else's `forward`

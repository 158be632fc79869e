"""Who looks into a module."""

from torch import nn
from torch.nn.modules import module as global_hooks

from util.measuring.flops import is_counted_as_inference


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than its `forward`."""
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    everywhere = (
        global_hooks._global_forward_hooks,
        global_hooks._global_forward_pre_hooks,
        global_hooks._global_backward_hooks,
        global_hooks._global_backward_pre_hooks,
    )
    looked_at = any(everywhere) and not is_counted_as_inference()  # a counter only notes whose operations they are
    return any(own) or looked_at or "forward" in vars(module)  # or it is somebody else's `forward`

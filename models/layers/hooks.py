"""Who looks into a module."""

from torch import nn
from torch.nn.modules import module as global_hooks


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than its `forward`."""
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    everywhere = (
        global_hooks._global_forward_hooks,
        global_hooks._global_forward_pre_hooks,
        global_hooks._global_backward_hooks,
        global_hooks._global_backward_pre_hooks,
    )
    return any(own) or any(everywhere) or "forward" in vars(module)  # or it is somebody else's `forward`

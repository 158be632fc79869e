"""What turns hidden vectors into classes and boxes."""

import math

import torch
from torch import Tensor, nn

from models.layers.basic import MLP, inverse_sigmoid
from models.layers.linear import Linear
from models.registry import PARTS
from models.structures import Detections

PRIOR = 0.01
"""Probability of every class before training, so that the focal loss starts calm (Focal Loss, section 3.3)."""


@PARTS.register
class DetectionHead(nn.Module):
    """Class logits, and a box given as what is added to a reference.

    Args:
        d_model, num_classes: channels in, logits out.
        eps: how near to 0 and 1 a reference may come before its logit is cut: 1e-5, in DINO 1e-3.
        activation: of the box branch, "relu" or "silu" (DEIM).
    """

    def __init__(self, d_model: int, num_classes: int, eps: float = 1e-5, activation: str = "relu"):
        super().__init__()
        self.eps = eps
        self.class_embed = Linear(d_model, num_classes)
        self.bbox_embed = MLP(d_model, d_model, d_model, 4, activation=activation)
        nn.init.constant_(self.class_embed.bias, -math.log((1 - PRIOR) / PRIOR))
        self.set_size_bias(0.0)

    def set_size_bias(self, bias: float):
        """Resets the box branch's last layer: zero, but for the bias of width and height."""
        last = self.bbox_embed.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        nn.init.constant_(last.bias[2:], bias)

    @torch.no_grad()
    def start_like(self, other: "DetectionHead"):
        """Takes another head's fresh weights, its size bias aside."""
        self.class_embed.load_state_dict(other.class_embed.state_dict())
        for mine, theirs in zip(self.bbox_embed.layers[:-1], other.bbox_embed.layers[:-1], strict=True):
            mine.load_state_dict(theirs.state_dict())

    def forward(self, hidden: Tensor, reference: Tensor) -> Detections:
        """(..., C) and (..., 2 or 4) in (0, 1) -> logits and boxes."""
        return Detections(self.class_embed(hidden).float(), self.refine(hidden, reference))

    def refine(self, hidden: Tensor, reference: Tensor) -> Tensor:
        """(..., 4) in (0, 1): the reference moved by what the hidden vector says; a point gets its width and height."""
        return self.shift(hidden, inverse_sigmoid(reference.float(), self.eps)).sigmoid()

    def shift(self, hidden: Tensor, logits: Tensor) -> Tensor:
        """(..., 4): the same before the sigmoid, from a reference that is given by its logits."""
        delta = self.bbox_embed(hidden).float()
        if logits.shape[-1] == 4:
            return delta + logits
        return delta + nn.functional.pad(logits, (0, 2))


@PARTS.register
class SoftmaxHead(nn.Module):
    """DETR's head: logits of the classes and, last, of "no object"; a box without any reference (DETR, section 3.2).

    Args:
        d_model: channels in.
        num_classes: classes; there is one logit more.
    """

    def __init__(self, d_model: int, num_classes: int):
        super().__init__()
        self.class_embed = Linear(d_model, num_classes + 1)
        self.bbox_embed = MLP(d_model, d_model, d_model, 4)

    def forward(self, hidden: Tensor) -> Detections:
        """(..., C) -> logits (..., num_classes + 1) and boxes."""
        return Detections(self.class_embed(hidden).float(), self.bbox_embed(hidden).float().sigmoid())


@PARTS.register
class IndependentHead(DetectionHead):
    """A DetectionHead whose fresh weights are its own, as RT-DETR's are, and not a copy of the first one's.

    Args:
        d_model, num_classes, eps, activation: as there.
    """

    def start_like(self, other: DetectionHead):
        """Keeps its own."""


@PARTS.register
class EdgeHead(nn.Module):
    """Class logits, and logits of four distributions of how far the edges of a box move (D-FINE, section 4.1).

    How sharp the distributions are says how well the object is localised, and is added to all class logits (D-FINE,
    appendix A.1, after Generalized Focal Loss V2).

    Args:
        d_model, num_classes: channels in, logits out.
        bins: of a distribution, one more than reg_max in D-FINE's code; an odd number.
        num_best: how many of a distribution's highest probabilities tell of its sharpness, beside their mean.
        activation: of the branches of edges and of sharpness, "relu" or "silu" (DEIM).
    """

    def __init__(self, d_model: int, num_classes: int, bins: int = 33, num_best: int = 4, activation: str = "relu"):
        super().__init__()
        self.bins, self.num_best = bins, num_best
        self.class_embed = Linear(d_model, num_classes)
        self.bbox_embed = MLP(d_model, d_model, d_model, 4 * bins, activation=activation)
        self.quality = MLP(4 * (num_best + 1), 64, 1, activation=activation)
        nn.init.constant_(self.class_embed.bias, -math.log((1 - PRIOR) / PRIOR))
        for last in (self.bbox_embed.layers[-1], self.quality.layers[-1]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def edges(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., 4, bins): what the vector adds to the distributions' logits."""
        return self.bbox_embed(hidden).float().unflatten(-1, (4, self.bins))

    def logits(self, hidden: Tensor, edges: Tensor) -> Tensor:
        """(..., C) and the distributions' logits (..., 4, bins) -> (..., num_classes)."""
        best = edges.softmax(-1).topk(self.num_best, -1).values
        sharpness = torch.cat([best, best.mean(-1, keepdim=True)], -1).flatten(-2)
        return self.class_embed(hidden).float() + self.quality(sharpness).float()

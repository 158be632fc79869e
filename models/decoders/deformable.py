"""The decoder of Deformable DETR, DINO and their children."""

import copy
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from models.layers.basic import MLP, init_xavier, share_initial_biases
from models.layers.position import box_sine_embedding
from models.registry import PARTS
from models.structures import Detections, Pyramid, Queries
from util.measuring.flops import is_counted


def no_refinement(
    head: nn.Module, hidden: Tensor, boxes: Callable[[], Tensor], anchor: Tensor, reference: Tensor
) -> tuple[Tensor, Tensor]:
    """References never move (Deformable DETR). Arguments of all three: the layer's head and what it made of a query,
    what makes its boxes, what they were added to, and what it looked around.
    """
    return anchor, reference


def iterative_refinement(
    head: nn.Module, hidden: Tensor, boxes: Callable[[], Tensor], anchor: Tensor, reference: Tensor
) -> tuple[Tensor, Tensor]:
    """The next layer starts from this one's boxes, without gradient (Deformable DETR, section 4.3)."""
    found = boxes().detach()
    return found, found


def look_forward_twice(
    head: nn.Module, hidden: Tensor, boxes: Callable[[], Tensor], anchor: Tensor, reference: Tensor
) -> tuple[Tensor, Tensor]:
    """As iterative, but the next prediction sends its gradient into this layer's step too (DINO, section 3.5)."""
    moved = head.refine(hidden, reference)
    return moved, moved.detach()


REFINEMENTS = {"none": no_refinement, "iterative": iterative_refinement, "look_forward_twice": look_forward_twice}


@PARTS.register
class BoxPosition(nn.Module):
    """A query's position encoding, read off its box in every layer (DAB-DETR, section 4; DINO writes y before x)."""

    def __init__(self, d_model: int):
        super().__init__()
        self.features = d_model // 2
        self.mlp = MLP(2 * d_model, d_model, d_model)
        init_xavier(self.mlp)

    def forward(self, boxes: Tensor, seen: Tensor) -> Tensor:
        """Boxes (B, Q, 4) relative to the image, and to the padded one, which count in DINO's code -> (B, Q, C)."""
        return self.mlp(box_sine_embedding(seen, order=(1, 0, 2, 3), features=self.features))


@PARTS.register
class BoxMLP(nn.Module):
    """A query's position encoding, two linear layers over the four numbers of its box (RT-DETR, its code).

    Args:
        d_model: channels.
        limit: what the encoding is cut to on both sides; None where it is not. 10 in D-FINE.
        activation: between the layers, "relu" or "silu" (DEIM).
    """

    def __init__(self, d_model: int, limit: float | None = None, activation: str = "relu"):
        super().__init__()
        self.mlp, self.limit = MLP(4, 2 * d_model, d_model, activation=activation), limit
        init_xavier(self.mlp)

    def forward(self, boxes: Tensor, seen: Tensor) -> Tensor:
        """Boxes (B, Q, 4) relative to the image, and to the padded one, which no answer depends on -> (B, Q, C)."""
        encoded = self.mlp(boxes)
        return encoded if self.limit is None else encoded.clamp(-self.limit, self.limit)


@PARTS.register
class DeformableDecoder(nn.Module):
    """Layers that let the queries look at the memory around their references, each followed by a head.

    Args:
        d_model: channels.
        layer: makes one layer.
        head: makes one head.
        num_layers: how many layers.
        refine: "none", "iterative" or "look_forward_twice": what becomes of the references from layer to layer.
        share_head: one head for all layers, or a copy for each.
        size_bias: bias of width and height in the first head before training: -2 where the first references are points,
            whose boxes would else start half an image wide.
        query_pos: makes what derives a query's position from its box; None where the queries bring theirs.
        norm: whether hidden vectors are normed on their way to the heads (not to the next layer).
        start_alike: whether layers start with the biases of the first, and heads as copies of it; RT-DETR's do not.
        answer_layer: the layer, counted from 1, whose predictions are the answer; those after it only help to train
            (RT-DETR's R50-m). None for the last.
    """

    def __init__(
        self,
        d_model: int,
        layer: Callable[[], nn.Module],
        head: Callable[[], nn.Module],
        num_layers: int = 6,
        refine: str = "none",
        share_head: bool = True,
        size_bias: float = 0.0,
        query_pos: Callable[[], nn.Module] | None = None,
        norm: bool = False,
        start_alike: bool = True,
        answer_layer: int | None = None,
    ):
        super().__init__()
        if refine not in REFINEMENTS:
            raise ValueError(f"refine='{refine}' is none of {', '.join(REFINEMENTS)}")
        if answer_layer is not None and not 1 <= answer_layer <= num_layers:
            raise ValueError(f"answer_layer={answer_layer} is none of the {num_layers} layers")
        self.next_reference, self.answer_layer = REFINEMENTS[refine], answer_layer or num_layers
        self.layers = nn.ModuleList(layer() for _ in range(num_layers))
        if start_alike:
            share_initial_biases(self.layers)
        first = head()
        further = (first if share_head else copy.deepcopy(first) if start_alike else head() for _ in self.layers[1:])
        self.heads = nn.ModuleList([first, *further])
        self.heads[0].set_size_bias(size_bias)
        self.query_pos = query_pos() if query_pos else None
        self.norm = nn.LayerNorm(d_model) if norm else nn.Identity()

    def forward(self, queries: Queries, memory: Pyramid, supervised: bool = True) -> tuple[Detections, dict]:
        """Predicts after every layer.

        Args:
            queries, memory: with references; what they look at.
            supervised: whether more than the answer is wanted.

        Returns:
            detections (N, B, Q, ...), N being 1 where nothing is supervised; under "samplings" where each layer's
            cross-attention looked, and under "answered" which of the detections are the answer.
        """
        hidden, mask = queries.content, queries.attention_mask()
        anchor = reference = (
            queries.reference
        )  # a prediction is added to the anchor, a layer looks around the reference
        predictions, samplings = [], []
        layers = self.layers if supervised and not is_counted() else self.layers[: self.answer_layer]
        for layer, head in zip(layers, self.heads, strict=False):
            seen = memory.on_levels(reference)
            pos = queries.pos if self.query_pos is None else self.query_pos(reference, seen[:, :, 0])
            hidden, sampling = layer(hidden, pos, seen, memory, mask)
            samplings.append(sampling)
            is_last, normed = len(samplings) == len(layers), self.norm(hidden)
            boxes = partial(head.refine, normed, anchor)  # type: ignore[misc]  # a method, and no tensor
            if supervised or is_last:
                predictions.append(head(normed, anchor))
                boxes = partial(getattr, predictions[-1], "boxes")
            if not is_last:
                anchor, reference = self.next_reference(head, hidden, boxes, anchor, reference)
        answered = self.answer_layer - 1 if supervised else 0
        return Detections.stack(predictions), {"samplings": samplings, "answered": answered}

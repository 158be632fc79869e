"""The decoder of Deformable DETR, DINO and their children."""

import copy
from collections.abc import Callable

from torch import Tensor, nn

from models.layers.basic import MLP, init_xavier, share_initial_biases
from models.layers.position import box_sine_embedding
from models.registry import PARTS
from models.structures import Detections, Pyramid, Queries


def no_refinement(
    head: nn.Module, hidden: Tensor, boxes: Tensor, anchor: Tensor, reference: Tensor
) -> tuple[Tensor, Tensor]:
    """References never move (Deformable DETR)."""
    return anchor, reference


def iterative_refinement(
    head: nn.Module, hidden: Tensor, boxes: Tensor, anchor: Tensor, reference: Tensor
) -> tuple[Tensor, Tensor]:
    """The next layer starts from this one's boxes, without gradient (Deformable DETR, section 4.3)."""
    return boxes.detach(), boxes.detach()


def look_forward_twice(
    head: nn.Module, hidden: Tensor, boxes: Tensor, anchor: Tensor, reference: Tensor
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

    def forward(self, boxes: Tensor) -> Tensor:
        """(B, Q, 4) -> (B, Q, C)."""
        return self.mlp(box_sine_embedding(boxes, order=(1, 0, 2, 3), features=self.features))


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
    ):
        super().__init__()
        if refine not in REFINEMENTS:
            raise ValueError(f"refine='{refine}' is none of {', '.join(REFINEMENTS)}")
        self.next_reference = REFINEMENTS[refine]
        self.layers = nn.ModuleList(layer() for _ in range(num_layers))
        share_initial_biases(self.layers)
        first = head()
        self.heads = nn.ModuleList(first if share_head else copy.deepcopy(first) for _ in range(num_layers))
        self.heads[0].set_size_bias(size_bias)
        self.query_pos = query_pos() if query_pos else None
        self.norm = nn.LayerNorm(d_model) if norm else nn.Identity()

    def forward(self, queries: Queries, memory: Pyramid) -> tuple[Detections, dict]:
        """Predicts after every layer.

        Returns:
            detections (N, B, Q, ...), and under "samplings" where each layer's cross-attention looked.
        """
        hidden, mask = queries.content, queries.attention_mask()
        anchor = reference = (
            queries.reference
        )  # a prediction is added to the anchor, a layer looks around the reference
        predictions, samplings = [], []
        for layer, head in zip(self.layers, self.heads, strict=True):
            seen = memory.on_levels(reference)
            pos = queries.pos if self.query_pos is None else self.query_pos(seen[:, :, 0])
            hidden, sampling = layer(hidden, pos, seen, memory, mask)
            predictions.append(head(self.norm(hidden), anchor))
            samplings.append(sampling)
            if len(predictions) < len(self.layers):
                anchor, reference = self.next_reference(head, hidden, predictions[-1].boxes, anchor, reference)
        return Detections.stack(predictions), {"samplings": samplings}

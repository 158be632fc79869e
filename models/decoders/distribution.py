"""D-FINE's decoder: layers refine distributions of where the edges of a box lie."""

from collections.abc import Callable

from torch import nn

from models.layers.basic import MLP, inverse_sigmoid
from models.layers.edge_distribution import expected_distances, moved_edges
from models.registry import PARTS
from models.structures import Detections, EdgeDetections, Pyramid, Queries, by_group


@PARTS.register
class DistributionDecoder(nn.Module):
    """Fine-grained distribution refinement (D-FINE, section 4.1).

    The first layer places an initial box; every layer adds to logits of four distributions, of how far each edge of
    that box moves, and the next layer looks around the box that comes out, which may leave the image.

    Args:
        d_model: channels.
        layer: makes one layer.
        head: makes one head, an EdgeHead.
        query_pos: makes what derives a query's position from its box.
        num_layers: how many layers.
        scale, reach: how finely and how far edges move, reg_scale and up in D-FINE's code; see `bin_values`.
        activation: of what places the initial box, "relu" or "silu" (DEIM).
    """

    def __init__(
        self,
        d_model: int,
        layer: Callable[[], nn.Module],
        head: Callable[[], nn.Module],
        query_pos: Callable[[], nn.Module],
        num_layers: int = 3,
        scale: float = 4.0,
        reach: float = 0.5,
        activation: str = "relu",
    ):
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(num_layers))
        self.heads = nn.ModuleList(head() for _ in range(num_layers))
        self.initial_head = MLP(d_model, d_model, d_model, 4, activation=activation)
        self.query_pos = query_pos()
        self.scale, self.reach = scale, reach
        nn.init.zeros_(self.initial_head.layers[-1].weight)
        nn.init.zeros_(self.initial_head.layers[-1].bias)

    def forward(self, queries: Queries, memory: Pyramid, supervised: bool = True) -> tuple[EdgeDetections, dict]:
        """Predicts after every layer, or after the last alone.

        Args:
            queries, memory: with references; what they look at.
            supervised: whether more than the answer is wanted.

        Returns:
            detections (N, B, Q, ...), N being 1 where nothing is supervised; under "samplings" where each layer's
            cross-attention looked; and where something is, under "initial" what the first layer placed and
            scored (1, B, Q, ...), for each further group of queries under "initial_" and its name.
        """
        hidden, reference, mask = queries.content, queries.reference, queries.attention_mask()
        predictions, samplings, traced = [], [], {}
        previous = edges = initial = None
        for layer, head in zip(self.layers, self.heads, strict=True):
            seen = memory.on_levels(reference)
            pos = self.query_pos(reference, seen[:, :, 0])
            hidden, sampling = layer(hidden, pos, seen, memory, mask)
            samplings.append(sampling)
            if initial is None:
                first = (inverse_sigmoid(reference, 1e-5) + self.initial_head(hidden).float()).sigmoid()
                initial = first.detach()
                if supervised:
                    scored = Detections(head.class_embed(hidden).float(), first)[None]
                    traced = {_site(name): part for name, part in by_group(scored, queries.groups).items()}
            moved = head.edges(hidden if previous is None else hidden + previous)
            edges = moved if edges is None else edges + moved
            boxes = moved_edges(initial, expected_distances(edges, self.scale, self.reach), self.scale)
            if supervised or len(samplings) == len(self.layers):
                predictions.append(EdgeDetections(head.logits(hidden, edges), boxes, edges, initial))
            previous, reference = hidden.detach(), boxes.detach()
        return EdgeDetections.stack(predictions), {"samplings": samplings, **traced}


def _site(name: str) -> str:
    return "initial" if name == "matching" else f"initial_{name}"

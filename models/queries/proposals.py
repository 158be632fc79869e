"""Two-stage proposals: tokens of the memory that look most like objects become queries and their references."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.layers.basic import init_xavier
from models.layers.linear import Linear
from models.layers.position import box_sine_embedding
from models.registry import PARTS
from models.structures import Detections, Pyramid, Queries, QueryGroup, gather_tokens

SCORES = {
    "first": lambda logits: logits[..., 0],
    "max": lambda logits: logits.amax(-1),
}


@PARTS.register
class TopKProposals(nn.Module):
    """Two-stage detection: a head scores every token, the best become queries (Deformable DETR, section 4.3).

    Unusable and padded tokens share one score and can be chosen too, as in the papers' code.

    Args:
        num_queries: how many tokens are chosen; all of them where an image has fewer.
        head: makes the head that scores tokens and places their boxes.
        init: makes what turns chosen tokens and their boxes into queries: FromBox, FromMemory, LearnedContent, ...
        features: makes what projects tokens before they are scored.
        score: "first" (the first logit means objectness) or "max" (the best class).
        boxes_of: whose boxes the head computes while training: "all" tokens, or the "chosen" ones alone.
        supervise: whose detections go to the criterion as site "proposals": "all" or "chosen". Needs boxes_of="all" for
            "all".
        num_one2many: how many further tokens are chosen while training, as a group of their own, "one2many", that
            nobody else sees (H-DETR, section 3.2).
    """

    def __init__(
        self,
        num_queries: int,
        head: Callable[[], nn.Module],
        init: Callable[..., nn.Module],
        features: Callable[[], nn.Module],
        score: str = "max",
        boxes_of: str = "all",
        supervise: str = "all",
        num_one2many: int = 0,
    ):
        super().__init__()
        if score not in SCORES:
            raise ValueError(f"score='{score}' is none of {', '.join(SCORES)}")
        if (boxes_of, supervise) not in {("all", "all"), ("all", "chosen"), ("chosen", "chosen")}:
            raise ValueError(
                f"boxes_of='{boxes_of}' with supervise='{supervise}': say 'all' or 'chosen', and box what you supervise"
            )
        self.num_queries, self.num_one2many = num_queries, num_one2many
        self.score, self.boxes_of, self.supervise = SCORES[score], boxes_of, supervise
        self.features = features()
        self.head = head()
        self.init = init(num_queries=num_queries + num_one2many)

    def forward(self, memory: Pyramid, targets: list[dict] | None) -> tuple[Queries, dict]:
        """Chooses the best tokens of each image.

        While training, with targets, or with gradients enabled, the site "proposals" holds what the criterion
        supervises; otherwise only the chosen tokens are looked at.
        """
        anchors, usable = memory.anchors()
        features = self.features(memory.tokens, usable)
        logits = self.head.class_embed(features).float()
        groups = self.groups(logits.shape[1])
        chosen = self.choose(self.score(logits), sum(group.size for group in groups))
        supervised = torch.is_grad_enabled() or targets is not None
        picked = gather_tokens(features, chosen)
        if supervised and self.boxes_of == "all":
            shifted = self.head.shift(features, anchors)
            references = gather_tokens(shifted, chosen)
        else:
            shifted = references = self.head.shift(picked, gather_tokens(anchors, chosen))
        content, pos = self.init(references.detach(), gather_tokens(memory.tokens, chosen), picked)
        queries = Queries(content, pos, references.detach().sigmoid(), groups)
        if not supervised:
            return queries, {}
        if self.supervise == "chosen":
            logits, shifted = gather_tokens(logits, chosen), references
        return queries, {"proposals": Detections(logits, shifted.sigmoid())[None]}

    def groups(self, tokens: int) -> tuple[QueryGroup, ...]:
        """What the chosen ones of so many tokens are there for, best ranks first."""
        matching = min(self.num_queries, tokens)
        if not (self.training and self.num_one2many):
            return (QueryGroup("matching", matching),)
        one2many = min(self.num_one2many, tokens - matching)
        return QueryGroup("matching", matching, private=True), QueryGroup("one2many", one2many, private=True)

    def choose(self, scores: Tensor, size: int) -> Tensor:
        """(B, S) -> (B, size): which tokens become queries, best first."""
        return scores.topk(size, dim=1).indices


class BoxEmbedding(nn.Module):
    """A box's sine encoding, projected and normed.

    Args:
        d_model: channels of the tokens; half of them encode one coordinate.
        width: channels out.
    """

    def __init__(self, d_model: int, width: int):
        super().__init__()
        self.pos_trans = Linear(2 * d_model, width)
        self.pos_trans_norm = nn.LayerNorm(width)
        self.half_width = d_model // 2
        init_xavier(self.pos_trans)

    def embed(self, logits: Tensor) -> Tensor:
        """(B, Q, 4) logits of boxes -> (B, Q, width)."""
        encoded = box_sine_embedding(logits.sigmoid(), order=(0, 1, 2, 3), features=self.half_width)
        return self.pos_trans_norm(self.pos_trans(encoded))


@PARTS.register
class FromBox(BoxEmbedding):
    """Position and content both read off the chosen box (Deformable DETR, section 4.3).

    Args:
        d_model: channels of each.
        num_queries: not needed here; every initialiser is told.
    """

    def __init__(self, d_model: int, num_queries: int):
        super().__init__(d_model, width=2 * d_model)

    def forward(self, logits: Tensor, tokens: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the chosen boxes (B, Q, 4), tokens (B, Q, C) -> content and position, (B, Q, C) each."""
        pos, content = self.embed(logits).chunk(2, -1)
        return content, pos


@PARTS.register
class FromBoxWithLearnedContent(BoxEmbedding):
    """H-DETR's mixed selection: position is read off the chosen box, content is learned; row i goes with rank i.

    As in DINO, section 3.4. The box is embedded as in FromBox and the half that would be content is
    dropped after the norm, which it takes part in.

    Args:
        d_model: channels of each.
        num_queries: how many rows are learned.
    """

    def __init__(self, d_model: int, num_queries: int):
        super().__init__(d_model, width=2 * d_model)
        self.embed_content = nn.Embedding(num_queries, d_model)

    def forward(self, logits: Tensor, tokens: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the chosen boxes (B, Q, 4), tokens (B, Q, C) -> content and position, (B, Q, C) each."""
        pos, _ = self.embed(logits).chunk(2, -1)
        content = self.embed_content.weight[: logits.shape[1]].expand(logits.shape[0], -1, -1)
        return content, pos


@PARTS.register
class FromMemory(BoxEmbedding):
    """Content is the chosen token itself, position is read off its box (Efficient DETR, section 4).

    Args:
        d_model: channels of each.
        num_queries: not needed here; every initialiser is told.
    """

    def __init__(self, d_model: int, num_queries: int):
        super().__init__(d_model, width=d_model)

    def forward(self, logits: Tensor, tokens: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the chosen boxes (B, Q, 4), tokens (B, Q, C) -> content and position, (B, Q, C) each."""
        return tokens, self.embed(logits)


@PARTS.register
class LearnedContent(nn.Module):
    """DINO's mixed selection: boxes are chosen, content is learned; row i goes with rank i (DINO, section 3.4).

    Starts xavier-uniform like every matrix of DINO's transformer, to which its code counts it; H-DETR's does not.

    Args:
        d_model: channels.
        num_queries: how many rows are learned.
    """

    def __init__(self, d_model: int, num_queries: int):
        super().__init__()
        self.embed = nn.Embedding(num_queries, d_model)
        nn.init.xavier_uniform_(self.embed.weight)

    def forward(self, logits: Tensor, tokens: Tensor, features: Tensor) -> tuple[Tensor, None]:
        """(B, Q, 4), (B, Q, C) twice -> content (B, Q, C), and None: the decoder derives positions from the boxes."""
        return self.embed.weight[: logits.shape[1]].expand(logits.shape[0], -1, -1), None


@PARTS.register
class FromFeatures(nn.Module):
    """Content is what the chosen token was scored by, without gradient (RT-DETR, section 4.3).

    Args:
        num_queries: not needed here; every initialiser is told.
    """

    def __init__(self, num_queries: int):
        super().__init__()

    def forward(self, logits: Tensor, tokens: Tensor, features: Tensor) -> tuple[Tensor, None]:
        """(B, Q, 4), (B, Q, C) twice -> content (B, Q, C), and None: the decoder derives positions from the boxes."""
        return features.detach(), None

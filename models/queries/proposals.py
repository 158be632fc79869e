"""Queries chosen from the memory: the tokens that look most like objects become the decoder's references."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.layers.basic import init_xavier
from models.layers.position import box_sine_embedding
from models.registry import PARTS
from models.structures import Detections, Pyramid, Queries, QueryGroup

SCORES = {
    "first": lambda logits: logits[..., 0],
    "max": lambda logits: logits.amax(-1),
}


class ProposalFeatures(nn.Module):
    """Projects tokens for scoring: unusable ones are set to zero first, so all of them become one constant vector."""

    def __init__(self, d_model: int):
        super().__init__()
        self.enc_output = nn.Linear(d_model, d_model)
        self.enc_output_norm = nn.LayerNorm(d_model)
        init_xavier(self.enc_output)

    def forward(self, tokens: Tensor, usable: Tensor) -> Tensor:
        """(B, S, C) and (B, S) bool -> (B, S, C)."""
        return self.enc_output_norm(self.enc_output(tokens.masked_fill(~usable[..., None], 0)))


@PARTS.register
class TopKProposals(nn.Module):
    """Two-stage detection: a head scores every token, the best become queries (Deformable DETR, section 4.3).

    Unusable and padded tokens share one score and can be chosen too, as in the papers' code.

    Args:
        num_queries: how many tokens are chosen; all of them where a picture has fewer.
        d_model: channels.
        head: makes the head that scores tokens and places their boxes.
        init: makes what turns chosen boxes into queries: FromBox, LearnedContent.
        score: "first" (the first logit means objectness) or "max" (the best class).
        boxes_of: whose boxes the head computes while training: "all" tokens, or the "chosen" ones alone.
        supervise: whose detections go to the criterion as site "proposals": "all" or "chosen". Needs boxes_of="all" for
            "all".
    """

    def __init__(
        self,
        num_queries: int,
        d_model: int,
        head: Callable[[], nn.Module],
        init: Callable[..., nn.Module],
        score: str = "max",
        boxes_of: str = "all",
        supervise: str = "all",
    ):
        super().__init__()
        if score not in SCORES:
            raise ValueError(f"score='{score}' is none of {', '.join(SCORES)}")
        if (boxes_of, supervise) not in {("all", "all"), ("all", "chosen"), ("chosen", "chosen")}:
            raise ValueError(
                f"boxes_of='{boxes_of}' with supervise='{supervise}': say 'all' or 'chosen', and box what you supervise"
            )
        self.num_queries, self.score, self.boxes_of, self.supervise = num_queries, SCORES[score], boxes_of, supervise
        self.features = ProposalFeatures(d_model)
        self.head = head()
        self.init = init(num_queries=num_queries)

    def forward(self, memory: Pyramid, targets: list[dict] | None) -> tuple[Queries, dict]:
        """Chooses `num_queries` tokens per picture.

        While training, with targets, or with gradients enabled, the site "proposals" holds what the criterion
        supervises; otherwise only the chosen tokens are looked at.
        """
        anchors, usable = memory.anchors()
        features = self.features(memory.tokens, usable)
        logits = self.head.class_embed(features).float()
        chosen = self.choose(self.score(logits))
        supervised = torch.is_grad_enabled() or targets is not None
        if supervised and self.boxes_of == "all":
            shifted = self.head.shift(features, anchors)
            references = pick(shifted, chosen)
        else:
            shifted = references = self.head.shift(pick(features, chosen), pick(anchors, chosen))
        content, pos = self.init(references.detach(), memory)
        queries = Queries(content, pos, references.detach().sigmoid(), (QueryGroup("matching", chosen.shape[1]),))
        if not supervised:
            return queries, {}
        if self.supervise == "chosen":
            logits, shifted = pick(logits, chosen), references
        return queries, {"proposals": Detections(logits, shifted.sigmoid())[None]}

    def choose(self, scores: Tensor) -> Tensor:
        """(B, S) -> (B, Q): which tokens become queries, best first."""
        return scores.topk(min(self.num_queries, scores.shape[1]), dim=1).indices


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Rows of (B, S, C) by (B, Q) -> (B, Q, C)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


@PARTS.register
class FromBox(nn.Module):
    """Position and content both read off the chosen box (Deformable DETR, section 4.3).

    Args:
        d_model: channels of each.
        num_queries: not needed here; every initialiser is told.
    """

    def __init__(self, d_model: int, num_queries: int):
        super().__init__()
        self.pos_trans = nn.Linear(2 * d_model, 2 * d_model)
        self.pos_trans_norm = nn.LayerNorm(2 * d_model)
        self.features = d_model // 2
        init_xavier(self.pos_trans)

    def forward(self, logits: Tensor, memory: Pyramid) -> tuple[Tensor, Tensor]:
        """(B, Q, 4) logits of the chosen boxes -> content and position, (B, Q, C) each."""
        embedded = box_sine_embedding(logits.sigmoid(), order=(0, 1, 2, 3), features=self.features)
        pos, content = self.pos_trans_norm(self.pos_trans(embedded)).chunk(2, -1)
        return content, pos


@PARTS.register
class LearnedContent(nn.Module):
    """DINO's mixed selection: boxes are chosen, content is learned; row i goes with rank i (DINO, section 3.4)."""

    def __init__(self, d_model: int, num_queries: int):
        super().__init__()
        self.embed = nn.Embedding(num_queries, d_model)

    def forward(self, logits: Tensor, memory: Pyramid) -> tuple[Tensor, None]:
        """(B, Q, 4) -> content (B, Q, C), and None: the decoder derives positions from the boxes."""
        return self.embed.weight[: logits.shape[1]].expand(len(logits), -1, -1), None

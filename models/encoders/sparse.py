"""Sparse DETR's encoder: only the tokens that the decoder is expected to look at are updated."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.layers.basic import share_initial_biases
from models.layers.scoring import TokenScorer
from models.registry import PARTS
from models.structures import Detections, Pyramid, TokenSelection, gather_tokens


@PARTS.register
class SparseEncoder(nn.Module):
    """Deformable attention from the best-scored tokens to all levels (Sparse DETR, sections 3.2 to 3.4).

    An image keeps `keep_ratio` of its own tokens. In a batch all images carry as many asking tokens as the largest
    one keeps; what the surplus ones of smaller images become is supervised but never enters the memory.

    Args:
        d_model: channels.
        layer: makes one layer.
        features: makes what projects tokens before they are scored; Sparse DETR's is the first stage's own.
        head: makes the auxiliary head that follows every layer but the last; None leaves the heads out. They answer
            only with gradients enabled.
        keep_ratio: share of the tokens that are updated (the paper's rho).
        num_layers: how many layers.
    """

    def __init__(
        self,
        d_model: int,
        layer: Callable[[], nn.Module],
        features: Callable[[], nn.Module],
        head: Callable[[], nn.Module] | None,
        keep_ratio: float = 0.1,
        num_layers: int = 6,
    ):
        super().__init__()
        if not 0 < keep_ratio <= 1:
            raise ValueError(f"keep_ratio={keep_ratio} must be more than 0 and at most 1")
        self.keep_ratio = keep_ratio
        self.features = features()
        self.scorer = TokenScorer(d_model)
        self.layers = nn.ModuleList(layer() for _ in range(num_layers))
        share_initial_biases(self.layers)
        first = head() if head else None
        self.heads = nn.ModuleList(copy.deepcopy(first) for _ in range(num_layers - 1) if first)

    def forward(self, pyramid: Pyramid) -> tuple[Pyramid, dict]:
        """Updates the chosen tokens.

        Returns:
            the pyramid; under "selection" what was chosen, and with gradients enabled the site "encoder" (N - 1, B, K,
            ...), which the auxiliary heads find in the chosen tokens.
        """
        anchors, usable = pyramid.anchors()
        selection = self.select(pyramid, usable)
        chosen, kept = selection.chosen, selection.kept
        tokens = untouched = gather_tokens(pyramid.tokens, chosen)
        pos, reference = gather_tokens(pyramid.pos, chosen), pyramid.on_levels(gather_tokens(pyramid.centers(), chosen))
        rows = chosen[..., None].expand_as(tokens)
        answers = []
        for layer in self.layers:
            tokens = layer(tokens, pos, reference, pyramid)
            answers.append(tokens)
            written = torch.where(kept[..., None], tokens, untouched).to(pyramid.tokens.dtype)
            pyramid = pyramid.with_tokens(pyramid.tokens.scatter(1, rows, written))
        if not (self.heads and torch.is_grad_enabled()):
            return pyramid, {"selection": selection}
        return pyramid, {"selection": selection, "encoder": self._detect(answers, gather_tokens(anchors, chosen))}

    def select(self, pyramid: Pyramid, usable: Tensor) -> TokenSelection:
        """Scores all tokens and chooses the best of each image.

        Args:
            usable: (B, S) bool, as from `pyramid.anchors()`.
        """
        scores = self.scorer(self.features(pyramid.tokens + pyramid.pos, usable))
        scores = torch.where(pyramid.padding, scores.min(), scores)
        valid = torch.tensor([sum(h * w for h, w in levels) for levels in pyramid.extents], dtype=torch.float32)
        counts = ((valid * self.keep_ratio).int() + 1).clamp(max=scores.shape[1])
        chosen = scores.topk(int(counts.max()), dim=1).indices
        return TokenSelection(scores, chosen, tuple(counts.tolist()), pyramid.shapes, pyramid.padding)

    def _detect(self, answers: list[Tensor], anchors: Tensor) -> Detections:
        """What the auxiliary heads find in the chosen tokens, whose boxes start from (B, K, 4) logits."""
        found = [
            Detections(head.class_embed(tokens).float(), head.shift(tokens, anchors).sigmoid())
            for head, tokens in zip(self.heads, answers[: len(self.heads)], strict=True)
        ]
        return Detections.stack(found)

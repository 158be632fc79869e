"""PnP-DETR's encoder: the best tokens are taken one by one, the rest is summed up in a few vectors."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers.linear import Linear
from models.registry import PARTS
from models.structures import Pyramid, TokenSet, first_ranks_mask, gather_tokens


@PARTS.register
class PollAndPool(nn.Module):
    """Poll and pool sampling before another encoder (PnP-DETR, section 3).

    The poll sampler scores every token and takes the best; a token's feature is multiplied by its score, which is how
    the scores learn. The pool sampler condenses what was not taken to `num_pooled` weighted sums. What follows reads
    these tokens alone; nothing returns to the grid.

    Args:
        d_model: channels.
        base: makes the encoder that reads the shorter sequence.
        ratio: share of an image's tokens that is taken in evaluation.
        training_ratios: lowest and highest share in training, where every batch draws its own.
        num_pooled: how many vectors the rest becomes.
    """

    def __init__(
        self,
        d_model: int,
        base: Callable[[], nn.Module],
        ratio: float = 1 / 3,
        training_ratios: tuple[float, float] = (1 / 3, 0.8),
        num_pooled: int = 30,
    ):
        super().__init__()
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio={ratio} must be more than 0 and at most 1")
        if not 0 < training_ratios[0] <= training_ratios[1] <= 1:
            raise ValueError(f"training_ratios={training_ratios} must rise and lie between 0 and 1")
        self.ratio, self.training_ratios = ratio, training_ratios
        self.score_pred_net = nn.Sequential(nn.Conv2d(d_model, d_model, 1), nn.ReLU(), nn.Conv2d(d_model, 1, 1))
        self.k_proj = Linear(d_model, num_pooled)
        self.v_proj = Linear(d_model, d_model)
        self.base = base()

    def forward(self, pyramid: Pyramid) -> tuple[TokenSet, dict]:
        """Samples, then encodes.

        Returns:
            K taken tokens and num_pooled sums per image, K being the most that an image of the batch takes; and
            under "sample_scores" and "sample_index" (B, K) the taken tokens' scores and places. In images that take
            fewer, the surplus is padding to what follows.
        """
        counts, scores = self.counts(pyramid), self.scores(pyramid)
        order = scores.detach().masked_fill(pyramid.padding, -1).argsort(dim=1, descending=True)
        taken = first_ranks_mask(tuple(counts), order.shape[1], scores.device)
        ranked = TokenSet(
            gather_tokens(F.layer_norm(pyramid.tokens, pyramid.tokens.shape[-1:]), order),
            gather_tokens(pyramid.pos, order),
            pyramid.padding.gather(1, order),
        )
        polled, first_left = slice(0, max(counts)), slice(min(counts), None)
        sample_scores = scores.gather(1, order[:, polled])
        tokens, pos = self.pool(
            ranked.tokens[:, first_left], ranked.pos[:, first_left], (taken | ranked.padding)[:, first_left]
        )
        sequence = TokenSet(
            torch.cat([ranked.tokens[:, polled] * sample_scores[..., None], tokens], 1),
            torch.cat([ranked.pos[:, polled], pos], 1),
            F.pad(~taken[:, polled], (0, tokens.shape[1])),
        )
        memory, extra = self.base(sequence)
        return memory, {**extra, "sample_scores": sample_scores, "sample_index": order[:, polled]}

    def counts(self, pyramid: Pyramid) -> list[int]:
        """How many tokens of each image are taken: its share, in float32 and cut off, as in the paper's code."""
        ratio = self.ratio
        if self.training:
            ratio = torch.empty(()).uniform_(*self.training_ratios).item()
        valid = torch.tensor([sum(h * w for h, w in levels) for levels in pyramid.extents])
        return (valid * ratio).long().tolist()

    def scores(self, pyramid: Pyramid) -> Tensor:
        """(B, S) in (0, 1), float32: how much a token says about the image."""
        column = pyramid.tokens.transpose(1, 2)[..., None]  # (B, C, S, 1): every token is a pixel to a 1x1 convolution
        return self.score_pred_net(column)[:, 0, :, 0].float().sigmoid()

    def pool(self, tokens: Tensor, pos: Tensor, left_out: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and positions (B, R, C), and which of them do not count (B, R) -> (B, num_pooled, C) of each."""
        logits = self.k_proj(tokens).float()
        # The lowest number, not -inf: where nothing is left to pool, the sums stay finite.
        logits = logits.masked_fill(left_out[..., None], torch.finfo(logits.dtype).min)
        weights = logits.softmax(1).transpose(1, 2)  # (B, num_pooled, R)
        return weights @ self.v_proj(tokens), weights @ pos

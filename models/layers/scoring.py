"""What scores tokens before some of them are chosen."""

import torch
from torch import Tensor, nn

from models.layers.basic import init_xavier
from models.layers.linear import Linear, linear_norm
from models.ops.linear import serves


class ProposalFeatures(nn.Module):
    """Projects tokens for scoring: unusable ones are set to zero first, so all of them become one constant vector."""

    def __init__(self, d_model: int):
        super().__init__()
        self.enc_output = Linear(d_model, d_model)
        self.enc_output_norm = nn.LayerNorm(d_model)
        init_xavier(self.enc_output)

    def forward(self, tokens: Tensor, usable: Tensor) -> Tensor:
        """(B, S, C) and (B, S) bool -> (B, S, C)."""
        if torch.is_grad_enabled() or not serves(tokens):
            return linear_norm(self.enc_output, tokens.masked_fill(~usable[..., None], 0), self.enc_output_norm)
        features = linear_norm(self.enc_output, tokens, self.enc_output_norm)
        features[~usable] = linear_norm(self.enc_output, tokens.new_zeros(1, tokens.shape[-1]), self.enc_output_norm)
        return features


class TokenScorer(nn.Module):
    """How much a decoder will look at each token (Sparse DETR, section 3.3 and appendix A).

    Half of a token's features describe the token, the other half is replaced by its mean over the image's sequence,
    padding included.
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.layer1 = nn.Sequential(nn.LayerNorm(d_model), Linear(d_model, d_model), nn.GELU())
        self.layer2 = nn.Sequential(
            Linear(d_model, d_model // 2),
            nn.GELU(),
            Linear(d_model // 2, d_model // 4),
            nn.GELU(),
            Linear(d_model // 4, 1),
        )
        init_xavier(self)

    def forward(self, features: Tensor) -> Tensor:
        """(B, S, C) -> (B, S) float32 logits."""
        local, shared = self.layer1(features).chunk(2, -1)
        shared = shared.mean(1, keepdim=True).expand_as(local)
        return self.layer2(torch.cat([local, shared], -1))[..., 0].float()

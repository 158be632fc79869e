"""Multi-scale deformable attention and its key-aware form. Both answer the same call, so either fits every layer."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers.linear import Linear, Projecting
from models.ops import key_aware_deform_attn, ms_deform_attn
from models.ops.ms_deform_attn import ms_deform_attn_of_offsets, takes_offsets
from models.registry import PARTS
from models.structures import DeferredSampling, Pyramid, Sampling, Shapes
from util.tensors.cache import cached
from util.tensors.device import constant_tensor


class DeformableAttention(Projecting):
    """What the two kinds share: where to sample, and the projection of what is sampled.

    Called with a query (B, Q, C), position included, reference (B, Q, L, 2 or 4), points or boxes relative to each
    padded map, and the memory that is sampled; returns (B, Q, C) and where it looked.

    Args:
        d_model: channels of queries and memory.
        num_heads: attention heads; divides d_model.
        num_levels: feature maps of the memory.
        num_points: sampling points per head and level.
    """

    projection = "output_proj"

    def __init__(self, d_model: int, num_heads: int, num_levels: int, num_points: int = 4):
        super().__init__()
        if d_model % num_heads:
            raise ValueError(f"d_model={d_model} is not a multiple of num_heads={num_heads}")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = Linear(d_model, num_heads * num_levels * num_points * 2)
        self.value_proj = Linear(d_model, d_model)
        self.output_proj = Linear(d_model, d_model)
        self._reset_offsets()
        self._reset_projection(self.value_proj)
        self._reset_projection(self.output_proj)

    @staticmethod
    def _reset_projection(projection: nn.Linear):
        nn.init.xavier_uniform_(projection.weight)
        nn.init.zeros_(projection.bias)

    def _reset_offsets(self):
        """Every head looks along its own direction of a square ring, point i at distance i (Deformable DETR, A.4)."""
        distance = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        bias = ring(self.num_heads)[:, None, None] * distance[:, None]  # (heads, 1, points, 2)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.num_levels, -1, -1).flatten())

    def values(self, memory: Pyramid) -> Tensor:
        """(B, S, heads, channels): projected memory, zero at padding."""
        values = self.value_proj(memory.tokens)
        if memory.padded:
            values = values.masked_fill(memory.padding[..., None], 0)
        return values.unflatten(-1, (self.num_heads, -1))

    def offsets(self, query: Tensor) -> Tensor:
        """(B, Q, heads, L, points, 2): how far from its reference a query looks."""
        return self.sampling_offsets(query).unflatten(-1, (self.num_heads, self.num_levels, self.num_points, 2))

    def locations(self, offsets: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        """(B, Q, heads, L, points, 2), float32: where to sample, relative to each padded map.

        A point moves by offsets in pixels of the level, a box by offsets in shares of half its size (Deformable DETR,
        equation 2 and appendix A.4).
        """
        offsets = offsets.float()
        reference = reference.float()[:, :, None, :, None]  # (B, Q, 1, L, 1, 2 or 4)
        if reference.shape[-1] == 2:
            # Whole rows of numbers at a time: operators are slow where they repeat numbers by twos.
            pixels = _pixels(shapes, self.num_points, offsets.device)
            points = reference.expand(*reference.shape[:4], *offsets.shape[4:]).flatten(3)
            return (offsets.flatten(3) / pixels).add_(points).view_as(offsets)
        return reference[..., :2] + offsets / self.num_points * reference[..., 2:] * 0.5


def ring(num_heads: int) -> Tensor:
    """(heads, 2): the direction of every head, to the edge of a square."""
    angles = torch.arange(num_heads, dtype=torch.float32) * (2 * math.pi / num_heads)
    directions = torch.stack([angles.cos(), angles.sin()], -1)
    return directions / directions.abs().amax(-1, keepdim=True)


@cached
def _pixels(shapes: Shapes, num_points: int, device) -> Tensor:
    """(L * P * 2,): width and height of every point's map, in pixels."""
    sizes = constant_tensor([(w, h) for h, w in shapes], device, torch.float32)
    return sizes[:, None].expand(-1, num_points, -1).flatten()


@PARTS.register
class MSDeformAttn(DeformableAttention):
    """Deformable DETR's attention: the query alone says where to look and how much each sample weighs (section 4.1)."""

    def __init__(self, d_model: int, num_heads: int, num_levels: int, num_points: int = 4):
        super().__init__(d_model, num_heads, num_levels, num_points)
        self.attention_weights = Linear(d_model, num_heads * num_levels * num_points)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)

    def look_up(self, query: Tensor, reference: Tensor, memory: Pyramid) -> tuple[Tensor, Sampling]:
        """Samples; arguments and result as of the call, but for the projection."""
        values, offsets, shapes = self.values(memory), self.offsets(query), memory.shapes
        logits = self.attention_weights(query).unflatten(-1, (self.num_heads, self.num_levels, self.num_points))

        def look() -> tuple[Tensor, Tensor]:
            weights = logits.flatten(3).softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
            return self.locations(offsets, reference, shapes), weights.view_as(logits)

        if takes_offsets(values, offsets, logits):
            sampled = ms_deform_attn_of_offsets(values, memory.shapes, offsets, logits, reference)
            return sampled, DeferredSampling(look)
        locations, weights = look()
        return ms_deform_attn(values, memory.shapes, locations, weights), Sampling(locations, weights)


@PARTS.register
class DiscreteDeformAttn(MSDeformAttn):
    """MSDeformAttn that reads the nearest pixel instead of interpolating: RT-DETRv2's discrete sampling.

    Where it looks learns nothing: `sampling_offsets` stays as loaded. Places outside the image count as its edge. The
    paper's code bounds columns by the height, too, which is another thing on maps that are not square.
    """

    def __init__(self, d_model: int, num_heads: int, num_levels: int, num_points: int = 4):
        super().__init__(d_model, num_heads, num_levels, num_points)
        self.sampling_offsets.requires_grad_(False)

    def look_up(self, query: Tensor, reference: Tensor, memory: Pyramid) -> tuple[Tensor, Sampling]:
        """Samples; arguments and result as in MSDeformAttn."""
        locations = self.locations(self.offsets(query), reference, memory.shapes).detach()
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        tokens = memory.nearest_tokens(locations.transpose(1, 2))
        values = self.values(memory).transpose(1, 2)  # (B, heads, S, channels)
        index = tokens.flatten(2)[..., None].expand(-1, -1, -1, values.shape[-1])
        found = values.gather(2, index).unflatten(2, (query.shape[1], -1))  # (B, heads, Q, L * points, channels)
        sampled = (found * weights.transpose(1, 2)[..., None].to(found.dtype)).sum(3)
        weights = weights.unflatten(-1, (self.num_levels, self.num_points))
        return sampled.transpose(1, 2).flatten(2), Sampling(locations, weights)


@PARTS.register
class MSDeformAttnWithQueryProj(MSDeformAttn):
    """MSDeformAttn as Lite-DETR's checkpoints store it: beside it lies a query projection that nothing reads.

    The projection is kept so that those checkpoints load strictly, and frozen so that no process group waits for its
    gradient.
    """

    def __init__(self, d_model: int, num_heads: int, num_levels: int, num_points: int = 4):
        super().__init__(d_model, num_heads, num_levels, num_points)
        self.query_proj = Linear(d_model, d_model).requires_grad_(False)
        self._reset_projection(self.query_proj)


@PARTS.register
class KeyAwareDeformAttn(DeformableAttention):
    """Lite-DETR's attention: samples are weighed by how their keys answer the query (section 3.4, equations 4 and 5).

    The sampled values serve as keys. A sample outside the map or on padding is a zero vector: its logit is 0, and it
    keeps its share of the softmax.
    """

    def __init__(self, d_model: int, num_heads: int, num_levels: int, num_points: int = 4):
        super().__init__(d_model, num_heads, num_levels, num_points)
        self.query_proj = Linear(d_model, d_model)
        self._reset_projection(self.query_proj)

    def look_up(self, query: Tensor, reference: Tensor, memory: Pyramid) -> tuple[Tensor, Sampling]:
        """Samples; arguments and result as in MSDeformAttn."""
        values = self.values(memory)
        locations = self.locations(self.offsets(query), reference, memory.shapes)
        asked = self.query_proj(query).unflatten(-1, (self.num_heads, -1))
        sampled = key_aware_deform_attn(asked, values, values, memory.shapes, locations)
        return sampled, Sampling(locations, None)


@PARTS.register
class BareDeformAttn(nn.Module):
    """Deformable attention that samples the memory itself and projects nothing (D-FINE, appendix A.1).

    Called as `DeformableAttention` is; padding is sampled as it is.

    Args:
        d_model, num_heads: channels of queries and memory, and attention heads.
        num_levels: feature maps of the memory.
        num_points: sampling points per head, for every level a number of its own (RT-DETRv2, section 3.1).
    """

    def __init__(self, d_model: int, num_heads: int, num_levels: int, num_points: tuple[int, ...]):
        super().__init__()
        if d_model % num_heads:
            raise ValueError(f"d_model={d_model} is not a multiple of num_heads={num_heads}")
        if len(num_points) != num_levels:
            raise ValueError(f"num_points={num_points} are not the points of num_levels={num_levels} levels")
        self.num_heads, self.num_points = num_heads, tuple(num_points)
        self.sampling_offsets = Linear(d_model, num_heads * sum(num_points) * 2)
        self.attention_weights = Linear(d_model, num_heads * sum(num_points))
        distance = torch.cat([torch.arange(1, points + 1, dtype=torch.float32) for points in num_points])
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((ring(num_heads)[:, None] * distance[:, None]).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)

    def forward(self, query: Tensor, reference: Tensor, memory: Pyramid) -> tuple[Tensor, Sampling]:
        """(B, Q, C), and where it looked: levels of few points are filled up with points of no weight."""
        offsets = self.sampling_offsets(query).unflatten(-1, (self.num_heads, -1, 2))
        logits = self.attention_weights(query).unflatten(-1, (self.num_heads, -1))
        values = memory.tokens.unflatten(-1, (self.num_heads, -1))
        if takes_offsets(values, offsets, logits):
            filled = self._filled(offsets, logits)
            sampled = ms_deform_attn_of_offsets(values, memory.shapes, *filled, reference)
            return sampled, DeferredSampling(lambda: self._look(offsets, logits, reference))
        sampling = Sampling(*self._look(offsets, logits, reference))
        return ms_deform_attn(values, memory.shapes, sampling.locations, sampling.weights), sampling

    def _filled(self, offsets: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets (B, Q, heads, L, points, 2) and logits of as many points on every level; what fills it up is -inf."""
        levels = len(self.num_points), -1
        index, factor, shut = _fillers(self.num_points, logits.dtype, logits.device)
        offsets = offsets.index_select(3, index) * factor  # the op divides by the points that it is given
        return offsets.unflatten(3, levels), (logits.index_select(3, index) + shut).unflatten(3, levels)

    def _look(self, offsets: Tensor, logits: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Locations and weights, of offsets (B, Q, heads, points, 2), logits and boxes (B, Q, L, 4)."""
        weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        reference, most = reference.float()[:, :, None], max(self.num_points)  # (B, Q, 1, L, 4)
        places, shares = [], []
        parts = zip(offsets.float().split(self.num_points, 3), weights.split(self.num_points, 3), strict=True)
        for level, (offset, share) in enumerate(parts):
            points, box = offset.shape[3], reference[:, :, :, level, None]
            place = box[..., :2] + offset / points * box[..., 2:] * 0.5
            places.append(F.pad(place, (0, 0, 0, most - points)))
            shares.append(F.pad(share, (0, most - points)))
        return torch.stack(places, 3), torch.stack(shares, 3)


@cached
def _fillers(num_points: tuple[int, ...], dtype: torch.dtype, device) -> tuple[Tensor, Tensor, Tensor]:
    """Which points stand where levels are filled up to the most points; what offsets (., 1) are multiplied with; and
    what is added to logits, -inf where a point only fills up.
    """
    most, first = max(num_points), [sum(num_points[:level]) for level in range(len(num_points))]
    levels = list(zip(first, num_points, strict=True))
    index = [start + min(i, points - 1) for start, points in levels for i in range(most)]
    factor = [[most / points] for _, points in levels for _ in range(most)]
    shut = [0.0 if i < points else -math.inf for _, points in levels for i in range(most)]
    return constant_tensor(index, device), constant_tensor(factor, device, dtype), constant_tensor(shut, device, dtype)

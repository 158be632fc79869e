"""The handful of types that travel between the parts of a detector.

Letters in shapes: B images, L levels, S tokens of all levels together, Q queries, C channels, K classes, T targets,
N decoder layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from util.tensors.cache import cached
from util.tensors.device import constant_tensor


class computed_once:  # noqa: N801 - reads as the decorator that it is
    """functools.cached_property without the lock that it has before Python 3.12, which torch.compile cannot enter."""

    def __init__(self, function: Callable):
        self.function, self.__doc__ = function, function.__doc__

    def __set_name__(self, owner, name: str):
        self.name = name

    def __get__(self, instance, owner=None):
        value = self.function(instance)
        object.__setattr__(instance, self.name, value)  # found before this descriptor from now on
        return value


Shapes = tuple[tuple[int, int], ...]


@cached
def padding_mask(extents: Shapes, shape: tuple[int, int], device) -> Tensor:
    """(B, H, W) bool, True outside the (h, w) that each image covers of a map of this shape."""
    h, w = constant_tensor(extents, device)[:, :, None, None].unbind(1)
    y, x = torch.arange(shape[0], device=device), torch.arange(shape[1], device=device)
    return (y[:, None] >= h) | (x >= w)


@cached
def first_ranks_mask(counts: tuple[int, ...], size: int, device) -> Tensor:
    """(B, size) bool, True for the first `count` of each row."""
    return torch.arange(size, device=device) < constant_tensor(counts, device)[:, None]


def gather_tokens(values: Tensor, index: Tensor) -> Tensor:
    """Rows of (B, S, C), or of (1, S, C) for all images, by (B, Q) -> (B, Q, C)."""
    values = values.expand(index.shape[0], -1, -1)
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def split_tokens(tokens: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """(B, S, C) -> the first `start` tokens and the rest; two slices would add up two gradients full of zeros."""
    first, rest = tokens.split([start, tokens.shape[1] - start], 1)
    return first, rest


def _sizes(extents: tuple[Shapes, ...], device) -> Tensor:
    """(B, L, 2): width and height of the part of each map that is not padding, in tokens."""
    sizes = [[(w, h) for h, w in levels] for levels in extents]
    return constant_tensor(sizes, device, torch.float32)


@cached
def _map_sizes(shapes: Shapes, device) -> Tensor:
    return constant_tensor([(w, h) for h, w in shapes], device, torch.float32)


@cached
def _starts(shapes: Shapes, device) -> Tensor:
    """(L,) int64: the first token of every level."""
    sizes = [h * w for h, w in shapes]
    return constant_tensor([sum(sizes[:level]) for level in range(len(sizes))], device)


@cached
def _ratios(shapes: Shapes, extents: tuple[Shapes, ...], device) -> Tensor:
    return _sizes(extents, device) / _map_sizes(shapes, device)


def _per_token(per_level: Tensor, shapes: Shapes) -> Tensor:
    """(B, L, X) -> (B, S, X): every token gets its level's row."""
    return torch.cat([per_level[:, i : i + 1].expand(-1, h * w, -1) for i, (h, w) in enumerate(shapes)], 1)


@cached
def _centers(shapes: Shapes, extents: tuple[Shapes, ...], device) -> Tensor:
    maps = []
    for h, w in shapes:
        y = torch.arange(h, device=device, dtype=torch.float32) + 0.5
        x = torch.arange(w, device=device, dtype=torch.float32) + 0.5
        maps.append(torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1).flatten(0, 1))
    return torch.cat(maps) / _per_token(_sizes(extents, device), shapes)


@cached
def _centers_on_levels(shapes: Shapes, extents: tuple[Shapes, ...], device) -> Tensor:
    return _centers(shapes, extents, device)[:, :, None] * _ratios(shapes, extents, device)[:, None]


@cached
def _anchors(shapes: Shapes, extents: tuple[Shapes, ...], device) -> tuple[Tensor, Tensor]:
    sizes = constant_tensor([0.05 * 2.0**level for level in range(len(shapes))], device, torch.float32)
    sizes = _per_token(sizes[None, :, None].expand(len(extents), -1, 2), shapes)
    boxes = torch.cat([_centers(shapes, extents, device), sizes], -1)
    levels = zip(zip(*extents, strict=True), shapes, strict=True)
    padding = torch.cat([padding_mask(extent, shape, device).flatten(1) for extent, shape in levels], 1)
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & ~padding
    logits = torch.log(boxes / (1 - boxes))
    return logits.masked_fill(~usable[..., None], float("inf")), usable


Tokens = TypeVar("Tokens", bound="TokenSet")


@dataclass(frozen=True)
class TokenSet:
    """What a transformer part reads: one sequence of tokens per image.

    Attributes:
        tokens: (B, S, C).
        pos: (B, S, C), the position encoding of every token; never part of `tokens`.
        padding: (B, S) bool, True where the token lies outside its image.
    """

    tokens: Tensor
    pos: Tensor
    padding: Tensor

    def with_tokens(self: Tokens, tokens: Tensor) -> Tokens:
        """The same set with other features."""
        return replace(self, tokens=tokens)


@dataclass(frozen=True)
class Pyramid(TokenSet):
    """Tokens of several feature maps, flattened row by row, finest level first, and the geometry that belongs to them.

    Attributes:
        shapes: ((H, W), ...) of the padded maps; S is the sum of H * W.
        extents: per image and level (h, w), the part of the map that is not padding. Plain numbers, like the shapes:
            whatever follows from them is known without asking the device. Those of one image may stand for all.
    """

    shapes: Shapes
    extents: tuple[Shapes, ...]

    @classmethod
    def of_maps(cls, maps: list[Tensor], pos: Tensor | None, extents: tuple[Shapes, ...]) -> "Pyramid":
        """Flattens maps (B, C, H_l, W_l), finest first; arguments as the attributes, but that no `pos` is zeros."""
        shapes = tuple((x.shape[-2], x.shape[-1]) for x in maps)
        places = zip(zip(*extents, strict=True), shapes, strict=True)
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)
        return cls(
            tokens=tokens,
            pos=(tokens.new_zeros(()) if pos is None else pos).expand_as(tokens),
            padding=torch.cat([padding_mask(*place, maps[0].device).flatten(1) for place in places], 1).expand(
                tokens.shape[0], -1
            ),
            shapes=shapes,
            extents=extents,
        )

    def maps(self) -> list[Tensor]:
        """One (B, C, H_l, W_l) per level, stored channels last."""
        levels = self.tokens.split([h * w for h, w in self.shapes], 1)
        return [x.unflatten(1, shape).permute(0, 3, 1, 2) for x, shape in zip(levels, self.shapes, strict=True)]

    def cleared(self, x: Tensor, level: int) -> Tensor:
        """A map (B, C, H_l, W_l) of one level with zeros at padding."""
        if not self.padded:
            return x
        extents = tuple(levels[level] for levels in self.extents)
        return x.masked_fill(padding_mask(extents, self.shapes[level], x.device)[:, None], 0)

    @property
    def padded(self) -> bool:
        """Whether any token is padding; a plain truth, like the numbers that it follows from."""
        return any(levels != self.shapes for levels in self.extents)

    @property
    def valid_ratios(self) -> Tensor:
        """(B, L, 2): the share of each padded map's width and height that is not padding."""
        return _ratios(self.shapes, self.extents, self.tokens.device)

    def centers(self) -> Tensor:
        """(B, S, 2): x, y of every token's centre, relative to its image's unpadded part of its own level."""
        return _centers(self.shapes, self.extents, self.tokens.device)

    def centers_on_levels(self) -> Tensor:
        """(B, S, L, 2): the same relative to each padded map."""
        return _centers_on_levels(self.shapes, self.extents, self.tokens.device)

    def anchors(self) -> tuple[Tensor, Tensor]:
        """A box per token, 0.05 * 2^level wide and high (Deformable DETR, appendix A.4).

        Returns:
            logits: (B, S, 4), the inverse sigmoid of cx, cy, w, h; +inf for unusable tokens, whose box is (1, 1, 1, 1)
                whatever a head adds.
            usable: (B, S) bool: not padding, and every number of the box strictly inside (0.01, 0.99).
        """
        return _anchors(self.shapes, self.extents, self.tokens.device)

    def on_levels(self, reference: Tensor) -> Tensor:
        """(B, Q, 2 or 4) points or boxes relative to the image -> (B, Q, L, 2 or 4), relative to each padded map."""
        ratios = self.valid_ratios.repeat(1, 1, reference.shape[-1] // 2)
        return reference[:, :, None] * ratios[:, None]

    def nearest_tokens(self, locations: Tensor) -> Tensor:
        """The tokens that points lie in, or those at the edge of their image that they lie beyond.

        Args:
            locations: (B, N, Q, L, P, 2), x and y relative to each padded map.

        Returns:
            (B, N, Q, L, P) int64, of the whole sequence.
        """
        maps, sizes = _map_sizes(self.shapes, locations.device), _sizes(self.extents, locations.device)
        last = (sizes - 1)[:, None, None, :, None]
        # Half up, but for what lies left of or above the map, which the bounds take care of.
        place = torch.minimum((locations * maps[:, None] + 0.5).trunc().clamp(min=0), last).long()
        widths = maps[:, None, 0].long()
        return place[..., 1] * widths + place[..., 0] + _starts(self.shapes, locations.device)[:, None]

    def coarsest(self, levels: int) -> slice:
        """The tokens of the last `levels` levels, those of lowest resolution."""
        return slice(sum(h * w for h, w in self.shapes[: len(self.shapes) - levels]), None)


@dataclass(frozen=True)
class QueryGroup:
    """A run of neighbouring queries that are supervised alike.

    Attributes:
        name: the supervision site ("matching", "denoising", "one2many"); several groups may share it.
        size: how many queries.
        private: only members of this very group may attend to its queries.
    """

    name: str
    size: int
    private: bool = False


@dataclass(frozen=True)
class Queries:
    """What a decoder starts from.

    Attributes:
        content: (B, Q, C).
        pos: (B, Q, C), or None where the decoder derives it from the boxes.
        reference: (B, Q, 2 or 4) in (0, 1), or None in detectors without reference points.
        groups: in the order in which they stand in the sequence.
    """

    content: Tensor
    pos: Tensor | None
    reference: Tensor | None
    groups: tuple[QueryGroup, ...]

    def attention_mask(self) -> Tensor | None:
        """(Q, Q) bool, True where the row's query may not attend to the column's; None where all may see all."""
        if not any(group.private for group in self.groups):
            return None
        return _mask_of_groups(self.groups, self.content.device)


@cached
def _mask_of_groups(groups: tuple[QueryGroup, ...], device) -> Tensor:
    owner = np.repeat(np.arange(len(groups)), [group.size for group in groups])
    private = np.array([group.private for group in groups])[owner]
    return constant_tensor(private & (owner[:, None] != owner), device)


Detected = TypeVar("Detected", bound="Detections")


@dataclass(frozen=True)
class Detections:
    """Class logits (..., Q, K) and boxes (..., Q, 4) as cx, cy, w, h in (0, 1)."""

    logits: Tensor
    boxes: Tensor

    @classmethod
    def stack(cls: type[Detected], layers: list[Detected]) -> Detected:
        """(B, Q, ...) of N layers -> (N, B, Q, ...)."""
        return cls(*(torch.stack([getattr(d, part.name) for d in layers]) for part in fields(layers[0])))

    def __getitem__(self: Detected, index) -> Detected:
        return type(self)(*(getattr(self, part.name)[index] for part in fields(self)))


@dataclass(frozen=True)
class EdgeDetections(Detections):
    """Detections whose boxes are an initial box with its edges moved (D-FINE, section 4.1).

    Attributes:
        edges: (..., Q, 4, bins) logits of the distributions of how far the left, top, right and bottom edge moves.
        initial: (..., Q, 4) the box that all layers move, as cx, cy, w, h; without gradient.
    """

    edges: Tensor
    initial: Tensor


def by_group(detections: Detected, groups: tuple[QueryGroup, ...]) -> dict[str, Detected]:
    """Detections (N, B, Q, ...) of all queries by the names of their groups. Neighbours of one name are one."""
    found, start = {}, 0
    for name, same in groupby(groups, key=lambda group: group.name):
        size = sum(group.size for group in same)
        found[name] = detections[:, :, start : start + size]
        start += size
    return found


@dataclass(frozen=True)
class Sampling:
    """Where a deformable attention looked.

    Attributes:
        locations: (B, Q, heads, L, points, 2), x and y relative to each padded map.
        weights: (B, Q, heads, L, points), or None where they exist only inside the op (key-aware attention).
    """

    locations: Tensor
    weights: Tensor | None

    @property
    def computed(self) -> "Sampling":
        """The same with nothing deferred, for who keeps it or hands it out."""
        return self


class DeferredSampling(Sampling):
    """One that is computed when it is asked for, which an encoder's never is. It stays within a layer.

    Args:
        find: returns the locations and the weights.
    """

    def __init__(self, find: Callable[[], tuple[Tensor, Tensor]]):
        object.__setattr__(self, "find", find)

    @computed_once
    def computed(self) -> Sampling:  # type: ignore[override]
        """As in every sampling."""
        return Sampling(*self.find())

    @property
    def locations(self) -> Tensor:  # type: ignore[override]
        """As in every sampling."""
        return self.computed.locations

    @property
    def weights(self) -> Tensor:  # type: ignore[override]
        """As in every sampling."""
        return self.computed.weights


@dataclass(frozen=True)
class TokenSelection:
    """Which tokens an encoder chose to update (Sparse DETR).

    Attributes:
        scores: (B, S) logits; padding has the lowest score of the batch.
        chosen: (B, K) indices of the best tokens, best first; K is the largest of `counts`.
        counts: how many of them each image keeps. Plain numbers.
        shapes: ((H, W), ...) of the padded maps.
        padding: (B, S) bool.
    """

    scores: Tensor
    chosen: Tensor
    counts: tuple[int, ...]
    shapes: Shapes
    padding: Tensor

    @computed_once
    def kept(self) -> Tensor:
        """(B, K) bool: the ranks that are an image's own, as opposed to those that only fill its row up."""
        return first_ranks_mask(self.counts, self.chosen.shape[1], self.chosen.device)


@dataclass(frozen=True)
class DetectorOutput:
    """What a detector returns.

    Attributes:
        decoder: (N, B, Q, ...), the predictions after every decoder layer for all groups of queries.
        groups: the queries' groups, in order.
        seen: further detections that can be supervised, by site: "proposals" (1, B, Q', ...), "encoder" (N', B, ...).
        aux: tensors and the like by name, for losses that need more than detections and for people who look inside.
        answered: which layer of `decoder` is the detector's answer.
    """

    decoder: Detections
    groups: tuple[QueryGroup, ...]
    seen: dict[str, Detections] = field(default_factory=dict)
    aux: dict = field(default_factory=dict)
    answered: int = -1

    @classmethod
    def of(cls, decoder: Detections, groups: tuple[QueryGroup, ...], *extras: dict) -> "DetectorOutput":
        """Sorts what the parts returned beside their main result: detections to `seen`, everything else to `aux`.

        A decoder whose answer is not its last layer's says so under "answered".
        """
        items = {name: value for extra in extras for name, value in extra.items()}
        answered = items.pop("answered", -1)
        seen = {name: value for name, value in items.items() if isinstance(value, Detections)}
        return cls(decoder, groups, seen, {k: v for k, v in items.items() if k not in seen}, answered)

    def sites(self) -> dict[str, Detections]:
        """{site: (N, B, Q, ...)}: all that can be supervised. Neighbouring groups of one name are one site."""
        return {**by_group(self.decoder, self.groups), **self.seen}

    @property
    def answer(self) -> Detections:
        """(B, Q, ...): the predictions of the matching queries that are what the detector answers."""
        return self.sites()["matching"][self.answered]

    @property
    def logits(self) -> Tensor:
        """(B, Q, K)."""
        return self.answer.logits

    @property
    def boxes(self) -> Tensor:
        """(B, Q, 4) as cx, cy, w, h in (0, 1)."""
        return self.answer.boxes

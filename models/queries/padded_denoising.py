"""Contrastive denoising where empty slots are queries of a class and a place of their own (RT-DETR)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from models.layers.basic import inverse_sigmoid
from models.layers.denoising import noised_corners, with_denoising
from models.registry import PARTS
from models.structures import Pyramid, Queries, QueryGroup, first_ranks_mask
from util.tensors.box_ops import xyxy_to_cxcywh
from util.tensors.device import constant_tensor


@PARTS.register
class WithPaddedDenoising(nn.Module):
    """Puts denoising groups before the queries that another maker makes.

    Each group holds a positive and a negative for every object of the image with most of them. Other images fill theirs
    up with slots that have the last row of `label_embed` as content and a box in the corner, and that their group sees.
    Those alone make one group of a batch without objects, so that every process of a group has all gradients.

    Args:
        base: makes the maker of the matching queries, whose `pos` must be None.
        d_model, num_classes: channels, and labels to draw from.
        dn_number: positives per image, about: as many groups as fit, at least one.
        label_noise_ratio: half of it is the share of labels that are drawn anew.
        box_noise_scale: 1 moves the corners of a positive by up to half the box, those of a negative by up to a whole.
        eps: how near to 0 and 1 a noised coordinate may come.
    """

    def __init__(
        self,
        base: Callable[[], nn.Module],
        d_model: int,
        num_classes: int,
        dn_number: int = 100,
        label_noise_ratio: float = 0.5,
        box_noise_scale: float = 1.0,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.base = base()
        self.label_embed = nn.Embedding(num_classes + 1, d_model, padding_idx=num_classes)
        self.num_classes, self.dn_number, self.eps = num_classes, dn_number, eps
        self.label_noise_ratio, self.box_noise_scale = label_noise_ratio, box_noise_scale

    def forward(self, memory: Pyramid, targets: list[dict] | None) -> tuple[Queries, dict]:
        """The base's queries; in training, when there are targets, with the noised ones before them."""
        queries, proposed = self.base(memory, targets)
        if not self.training or targets is None:
            return queries, proposed
        return with_denoising(queries, *self.noised(targets)), proposed

    def noised(self, targets: list[dict]) -> tuple[Tensor, Tensor, tuple[QueryGroup, ...]]:
        """Content (B, R, C), boxes (B, R, 4) in (0, 1) and groups of the denoising queries.

        With most objects m in an image and G groups, R = 2 * G * m. Object j of an image has its positive of group g
        at 2 * g * m + j, its negative m further.
        """
        counts = tuple(len(target["labels"]) for target in targets)
        longest, groups = max(1, *counts), max(1, self.dn_number // max(counts)) if any(counts) else 1
        labels, boxes = self._in_slots(targets, counts, longest)
        real = first_ranks_mask(counts, longest, boxes.device)
        labels, boxes, real = (x.repeat(1, 2 * groups, *[1] * (x.dim() - 2)) for x in (labels, boxes, real))

        replaced = real & (torch.rand_like(boxes[..., 0]) < self.label_noise_ratio * 0.5)
        labels = torch.where(replaced, torch.randint_like(labels, 0, self.num_classes), labels)
        negative = torch.arange(2 * groups, device=boxes.device).remainder(2).repeat_interleave(longest)
        noised = self._boxes_between(noised_corners(boxes, negative[:, None], self.box_noise_scale))
        reference = inverse_sigmoid(noised, self.eps).sigmoid()
        return self.label_embed(labels), reference, (QueryGroup("denoising", 2 * longest, private=True),) * groups

    def _in_slots(self, targets: list[dict], counts: tuple[int, ...], longest: int) -> tuple[Tensor, Tensor]:
        """Labels (B, longest), and boxes (B, longest, 4); those of empty slots are `num_classes`, and 0."""
        place = np.concatenate([np.arange(count) for count in counts])  # of an object within its image
        rows = np.stack([np.repeat(np.arange(len(counts)), counts), place.astype(np.int64)])
        labels, boxes = (torch.cat([target[part] for target in targets]) for part in ("labels", "boxes"))
        image, slot = constant_tensor(rows, boxes.device)
        empty = labels.new_full((len(counts), longest), self.num_classes)
        return (
            empty.index_put((image, slot), labels),
            boxes.new_zeros(len(counts), longest, 4).index_put((image, slot), boxes),
        )

    def _boxes_between(self, corners: Tensor) -> Tensor:
        """Boxes as cx, cy, w, h; sizes are negative where noise put a corner beyond its opposite."""
        return xyxy_to_cxcywh(corners)


@PARTS.register
class WithFoldedDenoising(WithPaddedDenoising):
    """The same, where boxes that noise turned inside out keep their size (D-FINE)."""

    def _boxes_between(self, corners: Tensor) -> Tensor:
        return xyxy_to_cxcywh(corners).abs()

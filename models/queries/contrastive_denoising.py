"""Contrastive denoising: noised copies of the true boxes as extra queries in training (DINO, section 3.3)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from models.layers.basic import inverse_sigmoid
from models.layers.denoising import noised_corners, with_denoising
from models.registry import PARTS
from models.structures import Pyramid, Queries, QueryGroup
from util.tensors.box_ops import xyxy_to_cxcywh
from util.tensors.device import constant_tensor


@PARTS.register
class WithDenoising(nn.Module):
    """Puts denoising groups before the queries that another maker makes.

    Each group holds, for every object of the image, a positive (little noise, to be restored) and a negative (more
    noise, to be rejected). A group is as long as the image with most objects needs; the slots of the others stay
    empty and are, as in DINO, seen by their group all the same.

    Args:
        base: makes the maker of the matching queries, whose `pos` must be None.
        d_model, num_classes: channels, and labels to draw from.
        dn_number: positives per image, about; as many groups as fit, or 2 * dn_number groups where that is under 100.
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
        eps: float = 1e-3,
    ):
        super().__init__()
        self.base = base()
        self.label_embed = nn.Embedding(num_classes + 1, d_model)
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
        counts = [len(target["labels"]) for target in targets]
        labels = torch.cat([target["labels"] for target in targets])
        boxes = torch.cat([target["boxes"] for target in targets])
        longest, groups = max(counts), self._num_groups(max(counts))
        repeats, size = 2 * groups, 2 * groups * longest

        labels = self._noised_labels(labels.repeat(repeats))
        negative = torch.arange(repeats, device=boxes.device).remainder(2).repeat_interleave(len(boxes))
        corners = noised_corners(boxes.repeat(repeats, 1), negative[:, None], self.box_noise_scale)
        boxes = inverse_sigmoid(xyxy_to_cxcywh(corners), self.eps).sigmoid()

        place = np.concatenate([np.arange(count) for count in counts])  # of an object within its image
        slots = (longest * np.arange(repeats)[:, None] + place).ravel()
        images = np.tile(np.repeat(np.arange(len(counts)), counts), repeats)
        image, slot = constant_tensor(np.stack([images, slots]), boxes.device)
        embedded = self.label_embed(labels)
        content = embedded.new_zeros(len(counts), size, embedded.shape[-1]).index_put((image, slot), embedded)
        reference = boxes.new_full((len(counts), size, 4), 0.5).index_put((image, slot), boxes)
        return content, reference, (QueryGroup("denoising", 2 * longest, private=True),) * groups

    def _num_groups(self, longest: int) -> int:
        total = 2 * self.dn_number
        if longest == 0:
            return 1
        return max(1, total // (2 * longest) if total >= 100 else total)

    def _noised_labels(self, labels: Tensor) -> Tensor:
        """A share of the labels is replaced by any label, the true one included."""
        replaced = torch.rand_like(labels.float()) < self.label_noise_ratio * 0.5
        drawn = torch.randint_like(labels, 0, self.num_classes)
        # The first that is replaced gets the first that was drawn, and so on: how many there are nobody needs to know.
        order = (replaced.cumsum(0) - 1).clamp(min=0)
        return torch.where(replaced, drawn[order], labels)

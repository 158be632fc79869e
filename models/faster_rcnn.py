"""Faster R-CNN with a feature pyramid: torchvision's own, the baseline of the papers' tables."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as Regions
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from models.registry import PARTS
from util.tensors.box_ops import cxcywh_to_xyxy
from util.tensors.device import constant_tensor
from util.tensors.image_batch import ImageBatch


@dataclass(frozen=True)
class RegionOutput:
    """What Faster R-CNN returns.

    Attributes:
        losses: by name, in training; it computes none otherwise.
        found: per image, outside training: `scores` (n,), `labels` (n,), `boxes` (n, 4) as x0, y0, x1, y1 in (0, 1).
    """

    losses: dict[str, Tensor]
    found: list[dict[str, Tensor]]


class _AsTheyAre(GeneralizedRCNNTransform):
    """The data set has resized and normalised the images already."""

    def __init__(self):
        super().__init__(min_size=1, max_size=1, image_mean=[], image_std=[])

    def normalize(self, image: Tensor) -> Tensor:
        return image

    def resize(self, image: Tensor, target: dict | None = None):
        return image, target


class _BackboneWithPyramid(nn.Module):
    def __init__(self, body: nn.Module, out_channels: int):
        super().__init__()
        self.body, self.out_channels = body, out_channels
        self.fpn = FeaturePyramidNetwork(body.channels, out_channels, LastLevelMaxPool())

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return self.fpn(OrderedDict((str(i), x) for i, x in enumerate(self.body(images))))


@PARTS.register
class FasterRCNN(nn.Module):
    """Faster R-CNN (Ren et al., 2015) on a feature pyramid (Lin et al., 2017), as torchvision has it.

    Args:
        backbone: makes the backbone; all four stages.
        num_classes: slots of the data's categories; torchvision's background comes on top.
        d_model: channels of the pyramid.
        score_threshold: detections below are dropped.
        num_select: detections per image.
    """

    def __init__(
        self,
        backbone: Callable[[], nn.Module],
        num_classes: int,
        d_model: int = 256,
        score_threshold: float = 0.05,
        num_select: int = 100,
    ):
        super().__init__()
        self.regions = Regions(
            _BackboneWithPyramid(backbone(), d_model),
            num_classes + 1,
            box_score_thresh=score_threshold,
            box_detections_per_img=num_select,
        )
        self.regions.transform = _AsTheyAre()

    @property
    def backbone(self) -> nn.Module:
        """The part that takes pretrained weights."""
        return self.regions.backbone.body

    def forward(self, images: ImageBatch | list[Tensor], targets: list[dict] | None = None) -> RegionOutput:
        """Takes what `Detector` takes."""
        batch = images if isinstance(images, ImageBatch) else ImageBatch.of(images)
        images = [image[:, :h, :w] for image, (h, w) in zip(batch.images, batch.sizes, strict=True)]
        scales = [constant_tensor([w, h, w, h], batch.images.device, batch.images.dtype) for h, w in batch.sizes]
        if self.training:
            return RegionOutput(self.regions(images, self._wanted(targets, scales)), [])
        found = self.regions(images)
        return RegionOutput(
            {},
            [
                {"scores": one["scores"], "labels": one["labels"] - 1, "boxes": one["boxes"] / scale}
                for one, scale in zip(found, scales, strict=True)
            ],
        )

    def _wanted(self, targets: list[dict], scales: list[Tensor]) -> list[dict]:
        return [
            {"boxes": cxcywh_to_xyxy(target["boxes"]) * scale, "labels": target["labels"] + 1}
            for target, scale in zip(targets, scales, strict=True)
        ]


@PARTS.register
class OwnLosses(nn.Module):
    """The criterion of a model that computes its own losses."""

    def forward(self, output: RegionOutput, targets: list[dict]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """-> the model's losses, and no metrics."""
        return output.losses, {}


@PARTS.register
class OwnDetections:
    """The post-processing of a model that chooses its detections itself."""

    @torch.no_grad()
    def __call__(self, output: RegionOutput, sizes: Tensor) -> list[dict[str, Tensor]]:
        """Boxes in pixels of images of these (B, 2) heights and widths."""
        results = []
        for found, (height, width) in zip(output.found, sizes.tolist(), strict=True):
            boxes = found["boxes"]
            scale = constant_tensor([width, height, width, height], boxes.device, boxes.dtype)
            results.append({**found, "boxes": boxes * scale})
        return results

"""The detector: five parts, called one after the other. Every model of this project is a choice of these parts."""

import torch
from torch import Tensor, nn

from models.structures import DetectorOutput
from util.tensors.image_batch import ImageBatch


class Detector(nn.Module):
    """backbone -> neck -> encoder -> queries -> decoder.

    Args:
        backbone: images (B, 3, H, W) -> list of feature maps (B, C_l, H_l, W_l), finest first.
        neck: (maps, ImageBatch) -> TokenSet or Pyramid.
        encoder: memory -> (memory, {site or name: what it wants to be supervised on or looked at}).
        queries: (memory, targets) -> (Queries, the same kind of dict).
        decoder: (Queries, memory, whether all that can be supervised is wanted) -> (Detections of all layers, dict).
    """

    def __init__(
        self, backbone: nn.Module, neck: nn.Module, encoder: nn.Module, queries: nn.Module, decoder: nn.Module
    ):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.encoder = encoder
        self.queries = queries
        self.decoder = decoder

    def forward(self, images: ImageBatch | list[Tensor], targets: list[dict] | None = None) -> DetectorOutput:
        """Detects objects.

        Args:
            images: a batch, or a list of normalised (3, h, w) float tensors of any sizes.
            targets: per image `labels` (T,) and `boxes` (T, 4) as cx, cy, w, h in (0, 1). Only denoising reads them,
                only in training; giving them (or having gradients enabled) also asks for everything that the criterion
                reads.
        """
        batch = images if isinstance(images, ImageBatch) else ImageBatch.of(images)
        memory = self.neck(self.backbone(batch.images), batch)
        memory, encoded = self.encoder(memory)
        queries, proposed = self.queries(memory, targets)
        supervised = targets is not None or torch.is_grad_enabled()
        decoded, traced = self.decoder(queries, memory, supervised)
        return DetectorOutput.of(decoded, queries.groups, encoded, proposed, traced)

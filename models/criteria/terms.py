"""Losses that read more of an output than its detections."""

from torch import Tensor

from models.criteria.hungarian_matcher import Targets
from models.registry import PARTS
from models.structures import DetectorOutput


@PARTS.register
class SampleScorePenalty:
    """The mean score of the tokens that poll sampling took, so that scores do not all rise to 1 (PnP-DETR).

    Args:
        weight: its share in the total.
    """

    def __init__(self, weight: float):
        self.weight = weight

    def __call__(self, output: DetectorOutput, targets: Targets) -> Tensor:
        """Scalar. Surplus tokens of images that take fewer count too, as in the paper's code."""
        scores = output.aux["sample_scores"].float()
        return scores.sum() / max(scores.numel(), 1)  # an image of few tokens may take none

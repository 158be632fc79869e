"""Any backbone of timm (Wightman, 2019) that makes feature maps.

Convolutional ones that were tried, with images of odd sides and maps at strides 8, 16 and 32:

* convnext_tiny, convnextv2_atto, convnextv2_tiny, inception_next_tiny, edgenext_small (layer norm);
* resnet50d, resnetrs50, resnest50d, resnext50_32x4d, res2net50_26w_4s, seresnet50, ecaresnet50d, cspresnet50, dpn68,
  densenet121, vovnet39a, regnetx_032, regnety_032, hgnetv2_b4, darknet53, cspdarknet53, repvgg_a2 (batch norm);
* efficientnet_b0, tf_efficientnetv2_s, mobilenetv3_large_100, mobilenetv4_conv_medium, mnasnet_100, ghostnet_100,
  fastvit_t8, starnet_s3, poolformerv2_s12 (small; batch norm but for the last);
* dla60 and hrnet_w18, with divisor=32 (batch norm); hrnet_w18 with its map at stride 4 too, or some of its weights
  never learn and training on several GPUs needs --find_unused_params.

Not for detectors: vision transformers of one resolution (vit_*, beit_*, mixer_*: no map at stride 8), models built for
one image size (swin_*, maxvit_*, efficientformerv2_*) and those whose maps are (B, H, W, C) (mambaout_*).
"""

import difflib

import timm
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn import functional as F

from models.registry import PARTS

NORMS = ("own", "frozen")


@PARTS.register
class TimmBackbone(nn.Module):
    """A model of timm, cut down to the maps that a detector reads.

    Args:
        name: timm's name of the model, without a tag for its weights: "convnext_tiny".
        strides: which maps are returned, by their stride in pixels.
        divisor: images are padded with zeros to multiples of it and the maps cut back, for models that need that.
        norm: "own", or "frozen" (batch norm as constants, for pretrained weights and few images per process).
        drop_path: stochastic depth, for models that have it.
        pretrained: timm's tag of the weights ("in12k_ft_in1k"), a checkpoint file with timm's key names, or None. Only
            remembered here; main.py fetches `pretrained_source` and hands it to `load_pretrained`.
    """

    def __init__(
        self,
        name: str,
        strides: tuple[int, ...] = (8, 16, 32),
        divisor: int = 1,
        norm: str = "own",
        drop_path: float = 0.0,
        pretrained: str | None = None,
    ):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm='{norm}' is none of {', '.join(NORMS)}")
        if not timm.is_model(name):
            close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
            raise ValueError(f"timm has no model '{name}'; nearest: {', '.join(close) or 'none'}")
        self.name, self.pretrained = name, pretrained
        self.strides, self.divisor = tuple(sorted(strides)), divisor
        options = {"drop_path_rate": drop_path} if drop_path else {}
        indices = stage_indices(name, self.strides)
        self.body = timm.create_model(name, features_only=True, out_indices=indices, **options)
        self.channels = self.body.feature_info.channels()
        if norm == "frozen":
            self.body = freeze_batch_norm_2d(self.body)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> one (B, C, H / stride, W / stride) map per stride, finest first."""
        height, width = images.shape[-2:]
        # To whole divisors, and an image that is narrower than a cell of the coarsest map to one cell.
        right, below = (max(-side % self.divisor, self.strides[-1] - side) for side in (width, height))
        maps = self.body(F.pad(images, (0, right, 0, below)))
        # Rounded up: all that a map holds of the image. Without padding nothing is cut.
        return [x[..., : -(-height // s), : -(-width // s)] for x, s in zip(maps, self.strides, strict=True)]

    def pretrained_source(self) -> str | None:
        """URL, hub name or path of the weights that the config asks for."""
        full = f"{self.name}.{self.pretrained}"
        if self.pretrained is None or full not in timm.list_pretrained(f"{self.name}.*"):
            return self.pretrained
        found = timm.get_pretrained_cfg(full)
        return f"hf-hub:{found.hf_hub_id}" if found.hf_hub_id else found.url  # type: ignore[return-value]

    def load_pretrained(self, state_dict: dict[str, Tensor]):
        """Takes weights under timm's key names; what the maps do not need is left out.

        Raises:
            RuntimeError: a weight is missing or has another shape.
        """
        # timm's cut models are flat: "stages.0.blocks" is "stages_0.blocks" there.
        given = {key.replace(".", "_"): value for key, value in state_dict.items()}
        names = {key: key.removeprefix("model.").replace(".", "_") for key in self.body.state_dict()}
        self.body.load_state_dict({key: given[name] for key, name in names.items() if name in given})


def stage_indices(name: str, strides: tuple[int, ...]) -> tuple[int, ...]:
    """Which of a model's maps have these strides. Raises ValueError when it has no maps, or none of a stride."""
    try:
        features = timm.create_model(name, features_only=True).feature_info
    except (RuntimeError, AttributeError, AssertionError, TypeError) as error:
        raise ValueError(f"timm's '{name}' gives no feature maps: {error}") from error
    found = dict(zip(features.reduction(), features.out_indices, strict=True))
    missing = [stride for stride in strides if stride not in found]
    if missing:
        raise ValueError(f"timm's '{name}' has maps at strides {sorted(found)}, none at {missing}")
    return tuple(found[stride] for stride in strides)

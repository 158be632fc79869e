"""Swin Transformer (Liu et al., 2021) for images of any size."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from models.layers.basic import GELUMLP, Recomputable, init_trunc_normal
from models.layers.linear import Linear
from models.registry import PARTS
from util.config import nearest_name


@dataclass(frozen=True)
class Arch:
    """Blocks and heads of the four stages; the width of the first, which doubles from stage to stage."""

    channels: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]


ARCHS = {
    "tiny": Arch(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": Arch(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": Arch(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": Arch(192, (2, 2, 18, 2), (6, 12, 24, 48)),
}

RELEASE = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
RELEASED = (
    "swin_tiny_patch4_window7_224",
    "swin_small_patch4_window7_224",
    "swin_base_patch4_window7_224",
    "swin_base_patch4_window7_224_22k",
    "swin_base_patch4_window12_384_22k",
    "swin_large_patch4_window7_224_22k",
    "swin_large_patch4_window12_384_22k",
)


def split_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C), sides a multiple of the window -> (B * windows, window**2, C), row by row."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c)
    return x.transpose(2, 3).reshape(-1, window * window, c)


def join_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `split_windows`: a map (B, height, width, C)."""
    c = windows.shape[-1]
    x = windows.view(-1, height // window, width // window, window, window, c)
    return x.transpose(2, 3).reshape(-1, height, width, c)


def shift_mask(height: int, width: int, window: int, shift: int, like: Tensor) -> Tensor:
    """What keeps tokens apart that only the cyclic shift brought into one window (section 3.2, figure 4).

    Args:
        height, width: of the padded map.
        like: gives dtype and device.

    Returns:
        (windows, N, N), 0 for tokens that were neighbours before the shift and -100 for others; N = window**2.
    """

    def bands(size: int) -> Tensor:
        place = torch.arange(size, device=like.device)
        return (place >= size - window).long() + (place >= size - shift).long()

    regions = bands(height)[:, None] * 3 + bands(width)
    regions = split_windows(regions[None, :, :, None], window)[..., 0]  # (windows, N)
    return (regions[:, :, None] != regions[:, None]).to(like.dtype) * -100.0


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias for every offset of a query and a key (equation 4)."""

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.normal_(self.relative_position_bias_table, std=0.02)
        place = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        rows, columns = (place[:, None] - place + window - 1).unbind(-1)
        self.register_buffer("relative_position_index", rows * (2 * window - 1) + columns, persistent=False)

    def forward(self, windows: Tensor, mask: Tensor) -> Tensor:
        """Windows (B * W, N, C) -> the same shape. The mask (W or 1, N, N) is added to the products, in turn."""
        n, c = windows.shape[1:]
        m = len(mask)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)  # (heads, N, N)
        bias = (bias + mask[:, None]).flatten(0, 1)
        qkv = self.qkv(windows).view(-1, m, n, 3, self.heads, c // self.heads)
        # Masked windows stand beside the heads, so that one mask serves all images of the batch.
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3)  # (B, m * heads, N, C / heads) each
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(x.unflatten(1, (m, self.heads)).transpose(2, 3).reshape(-1, n, c))


class SwinBlock(Recomputable):
    """Attention within windows, shifted by `shift` or not, then an MLP (section 3.1, figure 3b).

    Maps are padded to whole windows after the norm and before the shift, and neither window nor shift shrinks on small
    maps. The padding takes part in the attention.
    """

    def __init__(self, channels: int, heads: int, window: int, shift: int, drop_path: float):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = GELUMLP(channels, 4 * channels)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (B, H, W, C) and mask (windows or 1, N, N) -> map."""
        x = x + self.drop_path(self.attend(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        """Window attention over a map of any size."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        padded = x.shape[1:3]
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        x = join_windows(self.attn(split_windows(x, self.window), mask), self.window, *padded)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Each 2x2 patch becomes one token of twice the width; odd maps are padded (section 3.1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H / 2, W / 2, 2 C), sides rounded up."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        b, h, w, c = x.shape
        patches = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5)  # columns of a patch first, then rows
        return self.reduction(self.norm(patches.reshape(b, h // 2, w // 2, 4 * c)))


class SwinStage(nn.Module):
    """Blocks of one width, every second one shifted by half a window; `downsample` leads to the next stage."""

    def __init__(self, channels: int, heads: int, window: int, drop_path: list[float], downsample: nn.Module):
        super().__init__()
        self.window, self.shift = window, window // 2
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, window, self.shift * (i % 2), rate) for i, rate in enumerate(drop_path)
        )
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) -> map, not downsampled."""
        height, width = (side + -side % self.window for side in x.shape[1:3])
        free = x.new_zeros(1, self.window**2, self.window**2)
        masks = (free, shift_mask(height, width, self.window, self.shift, like=x))
        for i, block in enumerate(self.blocks):
            x = block(x, masks[i % 2])
        return x


class PatchEmbed(nn.Module):
    """4x4 pixels become a token; images are padded with zeros to whole patches."""

    def __init__(self, channels: int):
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 4, stride=4)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H / 4, W / 4, C), sides rounded up."""
        height, width = images.shape[-2:]
        return self.norm(self.proj(F.pad(images, (0, -width % 4, 0, -height % 4))).permute(0, 2, 3, 1))


@PARTS.register
class SwinTransformer(nn.Module):
    """Swin Transformer without its classifier; each returned stage has a layer norm of its own.

    Args:
        arch: "tiny", "small", "base" or "large".
        window: side of the attention windows in tokens: 7, or 12 for the weights that were trained on 384 pixels.
        stages: which of the stages 1 to 4 (strides 4, 8, 16, 32) are returned.
        drop_path: stochastic depth of the last block; rises from 0 at the first.
        frozen: how many leading pieces do not train: 0 none, 1 the patch embedding, 2 that and stage 1, and so on.
        pretrained: a name in RELEASED (the authors' ImageNet weights), a checkpoint file with their key names, or None.
            Only remembered here; main.py fetches `pretrained_source` and hands it to `load_pretrained`.
    """

    def __init__(
        self,
        arch: str = "tiny",
        window: int = 7,
        stages: tuple[int, ...] = (2, 3, 4),
        drop_path: float = 0.2,
        frozen: int = 0,
        pretrained: str | None = None,
    ):
        super().__init__()
        if arch not in ARCHS:
            raise ValueError(f"arch='{arch}' is none of Swin's; {nearest_name(arch, ARCHS)}")
        if not stages or not set(stages) <= {1, 2, 3, 4}:
            raise ValueError(f"stages={stages} must be some of 1, 2, 3, 4")
        self.stages, self.pretrained = tuple(sorted(stages)), pretrained
        spec, last = ARCHS[arch], self.stages[-1]
        widths = [spec.channels * 2**i for i in range(4)]
        rates = iter(torch.linspace(0, drop_path, sum(spec.depths)).tolist())
        self.patch_embed = PatchEmbed(spec.channels)
        self.layers = nn.ModuleList(
            SwinStage(
                widths[i],
                spec.heads[i],
                window,
                drop_path=[next(rates) for _ in range(spec.depths[i])],
                downsample=PatchMerging(widths[i]) if i + 1 < last else nn.Identity(),
            )
            for i in range(last)
        )
        self.channels = [widths[stage - 1] for stage in self.stages]
        for stage in self.stages:
            self.add_module(f"norm{stage - 1}", nn.LayerNorm(widths[stage - 1]))
        init_trunc_normal(self)
        for module in [self.patch_embed, *self.layers][:frozen]:
            module.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> one (B, C, H / stride, W / stride) map per stage, sides rounded up."""
        x, maps = self.patch_embed(images), []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i + 1 in self.stages:
                maps.append(getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2))
            x = layer.downsample(x)
        return maps

    def pretrained_source(self) -> str | None:
        """URL or path of the weights that the config asks for."""
        return f"{RELEASE}{self.pretrained}.pth" if self.pretrained in RELEASED else self.pretrained

    def load_pretrained(self, state_dict: dict[str, Tensor]):
        """Takes weights under the authors' key names. The norms of the returned stages, which a classifier lacks, stay
        as they are; its head, its index tables and stages that are not used are skipped.
        """
        last = len(self.layers)
        unused = ("head.", "norm.", f"layers.{last - 1}.downsample.", *(f"layers.{i}." for i in range(last, 4)))
        tables = ("relative_position_index", "attn_mask")
        given = {k: v for k, v in state_dict.items() if not k.startswith(unused) and not k.endswith(tables)}
        norms = {k: v for k, v in self.state_dict().items() if k.startswith("norm")}
        self.load_state_dict(norms | given)

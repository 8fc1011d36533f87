"""Visual encoders over backbones that give a pyramid of maps, at strides 4, 8, 16 and 32."""

from __future__ import annotations

from typing import cast

import timm
from timm.models.efficientnet import EfficientNet
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import Tensor, nn
from torch.nn import functional as F

from .lora import inject
from .visual import LoraSpec, VisualFeatures

STRIDES = (4, 8, 16, 32)


class Pyramid(nn.Module):
    """A timm EfficientNet or PVT v2 without its head.

    Attributes:
        map_dims: channels of the maps, fine to coarse.
    """

    def __init__(self, backbone: EfficientNet | PyramidVisionTransformerV2) -> None:
        """Takes the last map of each stride.

        Args:
            backbone: a network of timm's; its head is dropped.
        """
        super().__init__()
        head = ("conv_head", "bn2", "global_pool", "classifier")
        for part in head if isinstance(backbone, EfficientNet) else ("head",):
            setattr(backbone, part, nn.Identity())
        self.backbone = backbone
        stages = _stages(backbone)
        last = {stride: i for i, (stride, _) in enumerate(stages)}
        self._last = tuple(last[stride] for stride in STRIDES)
        self.map_dims = tuple(stages[i][1] for i in self._last)

    def maps(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Maps (B, C, h, w) of normalised pictures (B, 3, H, W), fine to coarse."""
        net = self.backbone
        if isinstance(net, EfficientNet):
            x, stages = net.bn1(net.conv_stem(frames)), net.blocks
        else:
            x, stages = net.patch_embed(frames), net.stages
        maps: list[Tensor] = []
        for i, stage in enumerate(stages):
            x = stage(x)
            if i in self._last:
                maps.append(x)
        return tuple(maps)


class GridEncoder(Pyramid):
    """One grid of tokens, and two skips.

    A trainable neck projects the maps of stride 16 and 32 to tokens at stride 16; the maps of
    stride 8 and 4 are the skips.
    """

    def __init__(
        self, backbone: EfficientNet | PyramidVisionTransformerV2, dim: int, lora: LoraSpec
    ) -> None:
        """Lays the neck out.

        Args:
            backbone: a network of timm's; its head is dropped.
            dim: size of a token.
            lora: where LoRA sits.
        """
        super().__init__(backbone)
        finest, fine, middle, coarse = self.map_dims
        self.token_dim = dim
        self.skip_dims = (fine, finest)
        self.fine = nn.Conv2d(middle, dim, 1)
        self.coarse = nn.Conv2d(coarse, dim, 1)
        self.norm = nn.LayerNorm(dim)
        inject(backbone, *lora)

    def forward(self, frames: Tensor) -> VisualFeatures:
        """Encodes normalised pictures (B, 3, H, W)."""
        skip4, skip8, middle, last = self.maps(frames)
        fine, coarse = self.fine(middle), self.coarse(last)
        coarse = F.interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=False)
        tokens = self.norm((fine + coarse).permute(0, 2, 3, 1))  # (B, h, w, D)
        return VisualFeatures(tokens, (skip8, skip4))


class PyramidEncoder(Pyramid):
    """All four maps, as the backbone gives them."""

    def __init__(self, backbone: EfficientNet | PyramidVisionTransformerV2, lora: LoraSpec) -> None:
        """Puts LoRA in.

        Args:
            backbone: a network of timm's; its head is dropped.
            lora: where LoRA sits.
        """
        super().__init__(backbone)
        inject(backbone, *lora)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Maps (B, C, h, w) of normalised pictures (B, 3, H, W), fine to coarse."""
        return self.maps(frames)


def _stages(backbone: EfficientNet | PyramidVisionTransformerV2) -> list[tuple[int, int]]:
    """(stride, channels) of the map after each stage."""
    if isinstance(backbone, PyramidVisionTransformerV2):
        return [(info["reduction"], info["num_chs"]) for info in backbone.feature_info]
    stages: list[tuple[int, int]] = []
    stride, channels = 2, 0
    for stage in backbone.blocks:
        for layer in stage.modules():
            if isinstance(layer, nn.Conv2d):
                stride, channels = stride * layer.stride[0], layer.out_channels
        stages.append((stride, channels))
    return stages


def pvt_v2(size: str) -> PyramidVisionTransformerV2:
    """Timm's `pvt_v2_b0` to `pvt_v2_b5` by the end of the name, with random weights."""
    backbone = timm.create_model(f"pvt_v2_{size}", pretrained=False, num_classes=0)
    return cast(PyramidVisionTransformerV2, backbone)

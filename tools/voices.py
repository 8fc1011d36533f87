"""Clips in memory: pictures, the voices that they can have, and what a network makes of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.audio import AudioFeatures
from ..model.network import Network, Output
from ..streams.avsbench import Entry


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """One way in which a scene can sound, with its masks.

    Attributes:
        name: the clip's.
        categories: what sounds; empty where nobody knows.
        silent: whether nothing in view sounds.
        sound: float32 (n,) mono.
        masks: uint8 (5, H, W) in {0, 1}.
        labeled: bool (5,), which masks exist.
        steady: whether the same objects sound throughout, so that any second of the sound goes
            with any picture.
    """

    name: str
    categories: tuple[str, ...]
    silent: bool
    sound: NDArray[np.float32]
    masks: NDArray[np.uint8]
    labeled: NDArray[np.bool_]
    steady: bool


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Five pictures, uint8 (5, H, W, 3), and the voices that they can have (one or two)."""

    frames: NDArray[np.uint8]
    voices: tuple[Voice, ...]


def read_scenes(
    entries: Iterable[Entry],
    size_px: int,
    sample_rate_hz: int,
    progress: Callable[[], None] = lambda: None,
) -> list[Scene]:
    """Read clips into memory, swap partners with the same pictures as one scene.

    A clip takes 0.75 MB of pictures, 0.25 MB of masks and 0.6 MB of sound at 224 px.

    Raises:
        DatasetError: a file is missing or cannot be decoded.
    """
    by_name = {entry.name: entry for entry in entries}
    scenes: list[Scene] = []
    done: set[str] = set()
    for entry in by_name.values():
        progress()
        if entry.name in done:
            continue
        frames = entry.frames(size_px)
        voices = [_voice(entry, size_px, sample_rate_hz)]
        partner = by_name.get(entry.pair or "")
        if partner is not None and np.array_equal(partner.frames(size_px), frames):
            voices.append(_voice(partner, size_px, sample_rate_hz))
            done.add(partner.name)
        scenes.append(Scene(frames, tuple(voices)))
    return scenes


def _voice(entry: Entry, size_px: int, sample_rate_hz: int) -> Voice:
    masks, labeled = entry.masks(size_px)
    return Voice(
        name=entry.name,
        categories=entry.categories,
        silent=entry.kind == "negative",
        sound=entry.sound(sample_rate_hz),
        masks=masks,
        labeled=labeled,
        steady=entry.folder.subset == "s4",
    )


def segment_each(network: Network, images: Tensor, audio: AudioFeatures) -> Output:
    """Run the network on pictures that have several sounds each.

    Args:
        network: on any device.
        images: uint8 (B, H, W, 3), on any device.
        audio: on any device, features of B·K sounds, the K of each picture one after the other.

    Returns:
        Masks (B·K, H, W) and class logits (B·K, C) or None.
    """
    device = next(network.parameters()).device
    frames = network.normalise(images.to(device))
    audio = AudioFeatures(audio.tokens.to(device), audio.embedding.to(device))
    return network.forward_features(frames, audio)


@torch.no_grad()
def predicted(
    network: Network, scene: Scene, audio: AudioFeatures, chosen: Sequence[int]
) -> NDArray[np.float32]:
    """Segment pictures of a scene, each with each of its voices.

    Args:
        network: in ``eval()``.
        scene: V voices.
        audio: from `score.encode_voices`, 5·V sounds.
        chosen: which pictures, n of them.

    Returns:
        Probabilities, float32 (n, V, H, W).
    """
    V = len(scene.voices)
    rows = torch.tensor([frame * V + v for frame in chosen for v in range(V)])
    part = AudioFeatures(audio.tokens[rows], audio.embedding[rows])
    images = torch.from_numpy(scene.frames[list(chosen)])
    logits = segment_each(network, images, part).mask_logits
    return torch.sigmoid(logits.float()).unflatten(0, (len(chosen), V)).cpu().numpy()

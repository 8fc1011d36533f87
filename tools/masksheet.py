"""Masks to look at: clips from the worst to the best, the mask tinted, the truth outlined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..model.metrics import FrameScores
from ..model.network import Network
from ..streams.avsbench import Entry
from .overlay import TRUTH, blend, contact_sheet
from .score import encode_voices
from .voices import predicted, read_scenes


class _Shown(NamedTuple):
    """One picture of a clip, what was marked in it, and how well."""

    clip: str
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    truth: NDArray[np.bool_]
    iou: float


def mask_sheet(network: Network, entries: Sequence[Entry], count: int = 40) -> Image.Image:
    """Draw clips at even steps of their rank by IoU, one picture of each, the worst first.

    Args:
        network: in ``eval()``.
        entries: the clips.
        count: how many to show.

    Raises:
        ValueError: no clip has a labelled picture.
        DatasetError: a file is missing or cannot be decoded.
    """
    preset = network.preset
    scenes = read_scenes(entries, preset.image_px, preset.sample_rate_hz)
    shown: list[_Shown] = []
    for number, (scene, heard) in enumerate(
        zip(scenes, encode_voices(network, scenes), strict=True)
    ):
        frame = number % len(scene.frames)
        masks = predicted(network, scene, heard, [frame])[0] > 0.5  # (voices, H, W)
        for voice, mask in zip(scene.voices, masks, strict=True):
            if voice.labeled[frame]:
                truth = voice.masks[frame].astype(np.bool_)
                scored = FrameScores()
                scored.add(mask[None].astype(np.float32), truth[None])
                iou = float(scored.iou[0])
                shown.append(_Shown(voice.name, scene.frames[frame], mask, truth, iou))
    if not shown:
        raise ValueError(f"none of {len(entries)} clips has a labelled picture")
    shown.sort(key=lambda one: one.iou)
    places = np.unique(np.linspace(0, len(shown) - 1, count).round().astype(int))
    chosen = [shown[place] for place in places]
    return contact_sheet(
        [blend(blend(c.image, c.mask), c.truth, TRUTH, opacity=0.0) for c in chosen],
        [f"{c.iou:.2f} {c.clip}" for c in chosen],
        columns=8,
        cell_width_px=224,
    )

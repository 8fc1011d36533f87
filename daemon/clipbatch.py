"""Labeled clips as the batches that a network learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.losses import NO_LABEL
from ..model.method import Batch
from ..model.network import Network
from ..model.training import Part, undivided
from ..streams.clips import AudioWindow, LabeledClip
from ..streams.fitting import fit_mask, fit_picture


def batches_of(
    clips: Sequence[LabeledClip],
    network: Network,
    frames: int,
    on_clip: Callable[[], None] = lambda: None,
    part: Part = undivided,
) -> list[Batch]:
    """The frames of clips in their order, so many in a batch; the last may be smaller.

    Args:
        clips: at least one.
        network: its size, its rate, its audio encoder and its classes count; sounds are encoded
            clip by clip.
        frames: most frames of a batch.
        on_clip: called after each clip.
        part: entered while a clip's sounds are encoded, as ``encode``.

    Returns:
        Batches as `tools.clipfeed` gives them: images, masks, valid, labels, tokens, embedding.
    """
    parts: list[Batch] = []
    for clip in clips:
        parts.append(_batch_of(clip, network, part))
        on_clip()
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    whole["labels"] = labels_of(clips, network)
    total = len(whole["images"])
    return [
        {name: value[first : first + frames] for name, value in whole.items()}
        for first in range(0, total, frames)
    ]


def labels_of(clips: Sequence[LabeledClip], network: Network) -> Tensor:
    """int64 (n,): the row of the class head for each frame, `NO_LABEL` where there is none."""
    rows = {name: row for row, name in enumerate(network.preset.categories)}
    return torch.tensor(
        [
            NO_LABEL if clip.category is None else rows.get(clip.category, NO_LABEL)
            for clip in clips
            for _ in clip.clip.samples
        ]
    )


def _batch_of(clip: LabeledClip, network: Network, part: Part) -> Batch:
    preset = network.preset
    samples = clip.clip.samples
    images = np.stack([fit_picture(s.frame.image, preset.image_px) for s in samples])
    masks = np.stack([fit_mask(mask, preset.image_px) for mask in clip.masks])
    length = round(preset.window_s * preset.sample_rate_hz)
    waves = np.stack([_wave(s.window, preset.sample_rate_hz, length) for s in samples])
    device = next(network.parameters()).device
    with part("encode"), torch.no_grad():
        heard = network.encode_audio(network.log_mel(torch.from_numpy(waves).to(device)))
    return {
        "images": torch.from_numpy(images),
        "masks": torch.from_numpy(masks),
        "valid": torch.ones(len(samples), dtype=torch.bool),
        "tokens": heard.tokens.float().cpu(),
        "embedding": heard.embedding.float().cpu(),
    }


def _wave(window: AudioWindow, rate_hz: int, length: int) -> NDArray[np.float32]:
    """The window at the network's rate, float32 (length,); what is missing at its start is zero."""
    samples = window.samples
    if window.sample_rate_hz != rate_hz:
        samples = np.asarray(soxr.resample(samples, window.sample_rate_hz, rate_hz), np.float32)
    samples = samples[-length:]
    return np.pad(samples, (length - len(samples), 0))

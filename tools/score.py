"""How well a network segments the clips of a data set, with controls.

Each clip's sound is scored as it is (``own``), taken away (``none``), or replaced by that of
another clip (``other``): a network that only finds what stands out in the picture scores the same
three times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..model.audio import AudioFeatures
from ..model.metrics import FrameScores
from ..model.network import Network
from ..streams.avsbench import Entry, frame_times_s, windows_at
from .voices import Scene, Voice, predicted, read_scenes

Sound = Literal["own", "none", "other"]
ALL_FRAMES = (0, 1, 2, 3, 4)


@dataclass(slots=True)
class Scored:
    """Scores of clips.

    Attributes:
        frames: of each frame.
        clips: the clip of each frame, by name.
        swaps: for each frame of a clip with a swap partner, whether the mask covers a larger share
            of the sounding object than of the silent one.
        swap_clips: the clip of each of these.
    """

    frames: FrameScores = field(default_factory=FrameScores)
    clips: list[str] = field(default_factory=list)
    swaps: list[bool] = field(default_factory=list)
    swap_clips: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """`FrameScores.summary`, and ``swaps``: the share of swaps told right."""
        swaps = float(np.mean(self.swaps)) if self.swaps else float("nan")
        return self.frames.summary() | {"swaps": swaps}


def encode_voices(
    network: Network, scenes: Sequence[Scene], sound: Sound = "own", seed: int = 0
) -> list[AudioFeatures]:
    """Audio features of every picture of every voice.

    Args:
        network: encodes.
        scenes: the clips.
        sound: which sound each clip gets.
        seed: decides which other clip's.

    Returns:
        For each scene, tokens (5·V, T', Da) and embeddings (5·V, De) of its V voices: picture by
        picture, and within it voice by voice.
    """
    preset = network.preset
    voices = [voice for scene in scenes for voice in scene.voices]
    donor = _donors(voices, seed) if sound == "other" else {}
    features: list[AudioFeatures] = []
    for scene in scenes:
        windows: list[NDArray[np.float32]] = []
        for voice in scene.voices:
            heard = donor.get(voice.name, voice).sound
            if sound == "none":
                heard = np.zeros_like(heard)
            windows.append(
                windows_at(heard, frame_times_s(), preset.window_s, preset.sample_rate_hz)
            )
        waves = torch.from_numpy(np.stack(windows, axis=1).reshape(-1, windows[0].shape[-1]))
        with torch.no_grad():
            features.append(network.encode_audio(network.log_mel(waves)))
    return features


def _donors(voices: Sequence[Voice], seed: int) -> dict[str, Voice]:
    """For each voice another one none of whose categories it has, where there is one."""
    rng = np.random.default_rng(seed)
    donors: dict[str, Voice] = {}
    for voice in voices:
        others = [
            v for v in voices if not set(v.categories) & set(voice.categories) and v is not voice
        ]
        if others:
            donors[voice.name] = others[int(rng.integers(len(others)))]
    return donors


def score(
    network: Network,
    scenes: Sequence[Scene],
    features: Sequence[AudioFeatures],
    *,
    frames: Sequence[int] = ALL_FRAMES,
    rotate: bool = False,
) -> Scored:
    """Score scenes.

    Args:
        network: in ``eval()``.
        scenes: the clips.
        features: from `encode_voices`.
        frames: which pictures of each clip.
        rotate: take one picture a scene instead, the first of the first scene, the second of the
            second and so on: a fifth of the work.
    """
    result = Scored()
    for number, (scene, audio) in enumerate(zip(scenes, features, strict=True)):
        chosen = [number % 5] if rotate else list(frames)
        probs = predicted(network, scene, audio, chosen)  # (frames, voices, H, W)
        for v, voice in enumerate(scene.voices):
            labeled = [i for i, frame in enumerate(chosen) if voice.labeled[frame]]
            if not labeled:
                continue
            truth = np.stack([voice.masks[chosen[i]] for i in labeled]).astype(np.bool_)
            result.frames.add(probs[labeled, v], truth)
            result.clips += [voice.name] * len(labeled)
            if len(scene.voices) == 2:
                other = scene.voices[1 - v].masks
                silent = np.stack([other[chosen[i]] for i in labeled]).astype(np.bool_)
                told = list(_told(probs[labeled, v] > 0.5, truth, silent))
                result.swaps += told
                result.swap_clips += [voice.name] * len(told)
    return result


def _told(
    pred: NDArray[np.bool_], truth: NDArray[np.bool_], silent: NDArray[np.bool_]
) -> Iterator[bool]:
    for mask, own, other in zip(pred, truth, silent, strict=True):
        if own.any() and other.any():
            covered = np.count_nonzero(mask & own) / np.count_nonzero(own)
            yield bool(covered > np.count_nonzero(mask & other) / np.count_nonzero(other))


def interval(
    values: Sequence[float],
    groups: Sequence[str],
    *,
    weights: Sequence[float] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """A 95 % interval of a mean, bootstrapped over groups.

    Frames of one recording or one cut-out are no independent samples: whole groups are drawn.

    Args:
        values: (N,).
        groups: the group of each.
        weights: of each in the mean; None weighs all alike.
        draws: bootstrap samples.
        seed: of the draws.

    Returns:
        The 2.5th and the 97.5th percentile of the mean.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    weight = np.ones(len(index)) if weights is None else np.asarray(weights, np.float64)
    summed = weight * np.asarray(values, np.float64)
    sums = np.bincount(index, weights=summed, minlength=len(names))
    counts = np.bincount(index, weights=weight, minlength=len(names))
    picked = np.random.default_rng(seed).integers(0, len(names), (draws, len(names)))
    means = sums[picked].sum(axis=1) / counts[picked].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def nulls(value: object) -> object:
    """The value with None for each NaN, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: nulls(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [nulls(part) for part in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def report(network: Network, entries: Sequence[Entry]) -> dict[str, object]:
    """Score clips with their own sound, with none and with another clip's.

    Args:
        network: in ``eval()``.
        entries: clips of one subset and split.

    Returns:
        ``own``, ``none`` and ``other``: each `Scored.summary`; ``intervals``: 95 % intervals of J,
        of J of frames with an object and of the swaps, over recordings and over cut-outs
        (clips that share one are drawn together).

    Raises:
        DatasetError: a file is missing or cannot be decoded.
    """
    preset = network.preset
    scenes = read_scenes(entries, preset.image_px, preset.sample_rate_hz)
    results: dict[Sound, Scored] = {
        sound: score(network, scenes, encode_voices(network, scenes, sound))
        for sound in ("own", "none", "other")
    }
    own = results["own"]
    iou, filled = own.frames.iou, ~own.frames.empty
    swaps = [float(told) for told in own.swaps]
    intervals: dict[str, tuple[float, float]] = {}
    for by in ("recording", "cutout"):
        group = {e.name: getattr(e.row, by) or e.name for e in entries}
        clips = np.array([group[name] for name in own.clips])
        intervals[f"J by {by}"] = interval(list(iou), list(clips))
        if filled.any():
            intervals[f"J_object by {by}"] = interval(list(iou[filled]), list(clips[filled]))
        if swaps:
            intervals[f"swaps by {by}"] = interval(swaps, [group[n] for n in own.swap_clips])
    return {**{s: r.summary() for s, r in results.items()}, "intervals": intervals}

"""Variety for training: other sounds that mean the same.

They are varied twice: as waves (speed, room), which is slow and done once per window, and as
log-mel spectrograms (mixing, splicing, level, colour, noise, holes), which is cheap and done anew
for every batch. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .codecs import coded

FLOOR_DB = -100.0
"""What a log-mel spectrogram shows where there is nothing."""

CODED_SHARE = 0.2
"""Share of the windows that a codec has passed."""

_FIRST_BAND_OVER_8_KHZ = 54
"""Of the front end's 64 bands: sounds stored at 16 kHz are silent from here on."""


def varied_wave(
    sound: NDArray[np.float32], rng: np.random.Generator, n: int, sample_rate_hz: int
) -> NDArray[np.float32]:
    """Cut a random window, played at another speed; half of the time in a room, at times coded.

    Args:
        sound: float32 (m,) mono; repeated if it is shorter than the window.
        rng: all randomness.
        n: samples of the window.
        sample_rate_hz: rate of both.

    Returns:
        float32 (n,).
    """
    speed = float(np.exp(rng.uniform(np.log(0.84), np.log(1.19))))
    need = int(n * speed) + 2
    if len(sound) < need:
        sound = np.tile(sound, need // max(1, len(sound)) + 1)
    start = int(rng.integers(len(sound) - need + 1))
    window = np.interp(np.arange(n) * speed, np.arange(need), sound[start : start + need])
    if rng.random() < 0.5:
        window = _in_room(window, rng, sample_rate_hz)
    if rng.random() < CODED_SHARE:
        window = coded(window, rng, sample_rate_hz)
    return window.astype(np.float32)


def _in_room(
    wave: NDArray[np.float64], rng: np.random.Generator, sample_rate_hz: int
) -> NDArray[np.float64]:
    decay_s, wet = rng.uniform(0.08, 0.6), rng.uniform(0.1, 0.7)
    n = round(decay_s * sample_rate_hz)
    tail = rng.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)
    response = wet * tail / np.sqrt(np.sum(tail**2))
    response[0] += 1
    size = 1 << (len(wave) + n - 1).bit_length()
    spectrum = np.fft.rfft(wave, size) * np.fft.rfft(response, size)
    return np.fft.irfft(spectrum, size)[: len(wave)]


def mixed(one: Tensor, other: Tensor, gain_db: Tensor) -> Tensor:
    """Add the powers of two spectrograms.

    Args:
        one: decibels (B, T, M).
        other: decibels (B, T, M).
        gain_db: (B,), added to ``other`` first.
    """
    louder = torch.maximum(one, other + gain_db[:, None, None])
    gap = (one - other - gain_db[:, None, None]).abs()
    return louder + 10.0 * torch.log10(1.0 + torch.pow(10.0, -gap / 10.0))


def spliced(first: Tensor, then: Tensor, at: Tensor) -> Tensor:
    """Play one spectrogram up to a moment and another from there on.

    Args:
        first: decibels (B, T, M).
        then: decibels (B, T, M).
        at: (B,), the first spectrogram frame of ``then``.
    """
    frames = torch.arange(first.shape[1])[None, :, None]
    return torch.where(frames < at[:, None, None], first, then)


def varied_mel(mel: Tensor, rng: np.random.Generator) -> Tensor:
    """Change level and colour, add noise, cut holes.

    Half of the spectrograms get something above 8 kHz: training sounds are stored at 16 kHz, a
    microphone's are not, and a network must not care.

    Args:
        mel: decibels (B, T, M).
        rng: all randomness.

    Returns:
        decibels (B, T, M), at least `FLOOR_DB`.
    """
    B, T, M = mel.shape
    level = _uniform(rng, -18, 8, (B, 1, 1))
    knots = _uniform(rng, -7, 7, (B, 1, 5))
    colour = torch.nn.functional.interpolate(knots, M, mode="linear", align_corners=True)
    bands = torch.arange(M, dtype=torch.float32)
    cut = _uniform(rng, 20, 90, (B, 1, 1))
    rolloff = -(bands - cut).clamp(min=0) * 3.0
    mel = mel + level + colour + rolloff
    mel = _with_noise(mel, rng)
    mel = _above_8_khz(mel, rng)
    for axis, size, longest in ((1, T, 14), (2, M, 8)):
        width = torch.from_numpy(rng.integers(0, longest + 1, (B, 1, 1)))
        start = (_uniform(rng, 0, 1, (B, 1, 1)) * (size - width)).long()
        position = torch.arange(size).view((1, -1, 1) if axis == 1 else (1, 1, -1))
        hole = (position >= start) & (position < start + width)
        mel = torch.where(hole, mel.mean(dim=(1, 2), keepdim=True), mel)
    return mel.clamp(min=FLOOR_DB)


def _uniform(rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32))


def _with_noise(mel: Tensor, rng: np.random.Generator) -> Tensor:
    """Noise of a random slope over the bands, its level relative to the loudest tenth."""
    B, T, M = mel.shape
    peak = torch.quantile(mel.flatten(1), 0.9, dim=1)
    slope = _uniform(rng, -25, 5, (B, 1, 1)) * torch.linspace(0, 1, M)
    grain = torch.from_numpy(rng.gumbel(0, 2.5, (B, T, M)).astype(np.float32))
    return mixed(mel, slope - grain, peak + _uniform(rng, -55, -8, (B,)))


def _above_8_khz(mel: Tensor, rng: np.random.Generator) -> Tensor:
    first = _FIRST_BAND_OVER_8_KHZ
    if mel.shape[2] <= first:
        return mel
    edge = mel[:, :, first - 6 : first - 2].mean(dim=2, keepdim=True)
    fall = _uniform(rng, 0.3, 4.0, (len(mel), 1, 1)) * torch.arange(mel.shape[2] - first)
    fill = torch.maximum(mel[:, :, first:], edge - fall)
    chosen = torch.from_numpy(rng.random((len(mel), 1, 1)) < 0.5)
    top = torch.where(chosen, fill, mel[:, :, first:])
    return torch.cat([mel[:, :, :first], top], dim=2)

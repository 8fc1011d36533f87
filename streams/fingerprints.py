"""Whether two recordings hold the same sound, though another coder, level or cut was used.

Stretches of a second are laid over the known sounds at every shift. First as spectrograms, which is
cheap and tells where it is worth looking; then as waves at 8 kHz, whose cosine decides, with higher
frequencies lifted so that two notes of one pitch are not yet the same sound. A copy that is played
up to a hundredth faster or slower, as after a sloppy change of rate, is looked for where the
spectrograms are very much alike; one at a speed farther off is not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import soxr
from numpy.typing import NDArray

from .sounds import Sound

_Wave = NDArray[np.floating]
"""(n,) at 8 kHz."""

_RATE_HZ = 8_000
_STRETCH = _RATE_HZ
_HOP = 128
_BANDS = 16
_FRAMES = _STRETCH // _HOP + 1
_WORTH = 0.6
"""From this cosine of spectrograms on the waves are compared, those of the likeliest few."""
_FEW = 8
_ALIKE = 0.92
"""From this cosine of spectrograms on the waves are compared at other speeds too."""
_SPEEDS = [1 + step * 4e-4 for step in range(-25, 26)]
_FAINT = 0.03
"""What is below this share of the loudest level says nothing."""


class Fingerprints:
    """Known sounds, to look others up in.

    Args:
        sounds: samples and their rate in Hz, by name.
    """

    def __init__(self, sounds: Mapping[str, tuple[Sound, int]]) -> None:
        self._names = list(sounds)
        self._waves = [_lifted(*sound) for sound in sounds.values()]
        gap = np.repeat(_frames(np.zeros(_HOP, np.float32))[:1], _FRAMES, axis=0)
        spaced = [np.concatenate([gap, _frames(wave)]) for wave in self._waves]
        self._starts = np.cumsum([0, *map(len, spaced)])
        self._frames = np.concatenate([*spaced, gap])
        self._sums = _summed(self._frames.sum(axis=1))
        self._squares = _summed((self._frames**2).sum(axis=1))

    def nearest(self, samples: Sound, sample_rate_hz: int) -> tuple[str, float]:
        """Return the known sound that a stretch of this one is most like, and how much.

        Args:
            samples: float32 (n,).
            sample_rate_hz: their rate.

        Returns:
            Its name, and a cosine in [0, 1]: 1 is the same wave; 0, and no name, where not even
            a spectrogram is alike.
        """
        if not self._names:
            return "", 0.0
        wave = _lifted(samples, sample_rate_hz)
        matches = [match for part in _stretches(wave) for match in self._likely(part)]
        cosines = [(match.cosine(), match.owner) for match in matches]
        likeliest = max(matches, key=lambda match: match.likeness, default=None)
        if likeliest is not None and likeliest.likeness >= _ALIKE:
            cosines.append((likeliest.cosine_at_other_speeds(), likeliest.owner))
        cosine, owner = max(cosines, default=(0.0, -1))
        return (self._names[owner] if cosine else ""), cosine

    def _likely(self, stretch: Sound) -> Iterator[_Match]:
        """Iterate over what is worth a closer look, and all that is shorter than the stretch."""
        cosines = self._cosines(_frames(stretch))
        at = [int(cosines[a:b].argmax()) for a, b in pairwise(self._starts)]
        likeness = [float(cosines[a + i]) for a, i in zip(self._starts, at, strict=False)]
        worth = max(_WORTH, sorted(likeness, reverse=True)[:_FEW][-1])
        for owner, wave in enumerate(self._waves):
            if len(wave) < len(stretch):
                yield _Match(owner, likeness[owner], stretch, wave, None)
            elif likeness[owner] >= worth:
                shift = (at[owner] - _FRAMES) * _HOP
                yield _Match(owner, likeness[owner], stretch, wave, shift)

    def _cosines(self, frames: NDArray[np.float32]) -> NDArray[np.float64]:
        """Slide a spectrogram over all known ones: the cosine at every shift."""
        n, size = len(frames), frames.size
        centred = frames - frames.mean()
        products = centred @ self._frames.T
        shifts = len(self._frames) - n + 1
        overlap = np.zeros(shifts, np.float32)
        for i in range(n):
            overlap += products[i, i : i + shifts]
        spread = self._squares[n:] - self._squares[:-n]
        spread -= (self._sums[n:] - self._sums[:-n]) ** 2 / size
        return overlap / np.sqrt(np.maximum(spread, 1)) / max(1.0, float(np.linalg.norm(centred)))


class _Match(NamedTuple):
    """Where a stretch may lie on a known wave.

    Attributes:
        owner: number of the known sound.
        likeness: cosine of the spectrograms there.
        stretch: the stretch.
        wave: the known wave.
        shift: sample of the wave where the stretch begins, good to a frame or two, negative if it
            begins earlier; None means anywhere.
    """

    owner: int
    likeness: float
    stretch: Sound
    wave: Sound
    shift: int | None

    def cosine(self) -> float:
        """Compare the waves about that place."""
        return _cosine(self.stretch, self._under(self.shift, len(self.stretch)))

    def cosine_at_other_speeds(self) -> float:
        """Compare them about that place, played at each of `_SPEEDS`: the best cosine.

        Half a stretch is compared: over it waves of nearly one speed do not yet drift apart.
        """
        quarter = len(self.stretch) // 4
        fine = soxr.resample(self.stretch, 1, 4)[4 * quarter : -4 * quarter or None]
        shift = None if self.shift is None else self.shift + quarter
        under = self._under(shift, len(fine) // 4)
        index = np.arange(len(fine))
        return max(
            _cosine(np.interp(np.arange(0, len(fine) - 1, 4 * speed), index, fine), under)
            for speed in _SPEEDS
        )

    def _under(self, shift: int | None, n: int) -> Sound:
        """Cut out of the known wave what lies under n samples, so that one can slide a little.

        Where the wave reaches over both ends it is cut longer than n, else shorter. Nothing where
        the two share less than half of the shorter one, which could agree by chance.
        """
        if shift is None:
            return self.wave
        slack, end = 2 * _HOP, shift + n
        first = max(0, shift - slack if end <= len(self.wave) else shift + slack)
        last = end + slack if shift >= 0 else end - slack
        shared = min(last, len(self.wave)) - first
        return self.wave[first : last if 2 * shared >= min(n, len(self.wave)) else first]


def _cosine(one: _Wave, two: _Wave) -> float:
    """Slide the shorter wave over the longer one: the best cosine, of either sign."""
    short, long = sorted((one, two), key=len)
    if not len(short):
        return 0.0
    size = len(long) + -len(long) % 512
    spectrum = np.fft.rfft(long, size) * np.conj(np.fft.rfft(short, size))
    # At half samples too: between two samples the highest frequencies would cancel out.
    finer = 2 * np.abs(np.fft.irfft(spectrum, 2 * size))
    overlap = np.maximum(finer[::2], finer[1::2])
    energy = _summed(long**2)
    under = energy[len(short) :] - energy[: len(energy) - len(short)]
    # Where next to nothing lies under the shorter wave a cosine means nothing.
    floor = max(1e-9, _FAINT**2 * float(under.max()))
    norm = np.sqrt(np.maximum(under, floor)) * max(1e-9, float(np.linalg.norm(short)))
    return float(min(1.0, (overlap[: len(under)] / norm).max()))


def _stretches(wave: Sound) -> Iterator[Sound]:
    """Cut into seconds that overlap by half; faint ones are left out."""
    last = max(0, len(wave) - _STRETCH)
    parts = [wave[at : at + _STRETCH] for at in (*range(0, last, _STRETCH // 2), last)]
    levels = [float(np.linalg.norm(part)) for part in parts]
    for part, level in zip(parts, levels, strict=True):
        if level > _FAINT * max(levels):
            yield part


def _frames(wave: Sound) -> NDArray[np.float32]:
    """Return the level of each band over time in decibels: float32 (T, bands)."""
    window = 2 * _HOP
    padded = np.pad(wave, (_HOP, _HOP + -len(wave) % _HOP))
    blocks = np.lib.stride_tricks.sliding_window_view(padded, window)[::_HOP]
    power = np.abs(np.fft.rfft(blocks * np.hanning(window), axis=1)[:, 1:]) ** 2
    bands = power.reshape(len(power), _BANDS, -1).sum(axis=2)
    return (10 * np.log10(bands + 1e-2)).astype(np.float32)


def _summed(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the running sum, from 0 on."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _lifted(samples: Sound, sample_rate_hz: int) -> Sound:
    """Resample, lift high frequencies by 6 dB an octave, and scale to a peak of 1."""
    if sample_rate_hz != _RATE_HZ:
        samples = soxr.resample(samples, sample_rate_hz, _RATE_HZ)
    wave = np.diff(samples, prepend=samples[:1]).astype(np.float32)
    peak = float(np.abs(wave).max(initial=0))
    return wave / np.float32(peak) if peak > 0 else wave

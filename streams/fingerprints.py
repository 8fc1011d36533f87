"""Whether two recordings hold the same sound, though another coder, level or cut was used.

Stretches of a second are laid over the known sounds at every shift. First as spectrograms, which is
cheap and tells where it is worth looking; then as waves at 8 kHz, whose cosine decides, with higher
frequencies lifted so that two notes of one pitch are not yet the same sound. A copy that is played
up to a hundredth faster or slower, as after a sloppy change of rate, is looked for where the
spectrograms are very much alike; one at a speed farther off is not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import soxr
from numpy.typing import NDArray

from .sounds import Sound

_RATE_HZ = 8_000
_STRETCH = _RATE_HZ
_HOP = 128
_BANDS = 16
_FRAMES = _STRETCH // _HOP + 1
_WORTH = 0.75
"""From this cosine of spectrograms on the waves are compared, those of the likeliest few."""
_FEW = 6
_ALIKE = 0.9
"""From this cosine of spectrograms on the waves are compared at other speeds too."""
_SPEEDS = 1 + np.arange(-25, 26) * 4e-4
_FAINT = 0.03
"""What is below this share of the loudest level says nothing."""


class Fingerprints:
    """Known sounds, to look others up in.

    Args:
        sounds: samples and their rate in Hz, by name.
    """

    def __init__(self, sounds: Mapping[str, tuple[Sound, int]]) -> None:
        self._known = [_Known(name, _lifted(*sound)) for name, sound in sounds.items()]
        gap = np.repeat(_frames(np.zeros(_HOP, np.float32))[:1], _FRAMES, axis=0)
        spaced = [np.concatenate([gap, _frames(known.wave)]) for known in self._known]
        self._starts = np.cumsum([0, *map(len, spaced)])[:-1]
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
        pairs = [
            (likeness, known, stretch)
            for stretch in _stretches(_lifted(samples, sample_rate_hz))
            for likeness, known in self._likely(stretch)
        ]
        cosines = [(known.cosine(stretch), known.name) for _, known, stretch in pairs]
        likeness, known, stretch = max(pairs, key=lambda pair: pair[0], default=(0.0, None, None))
        if known is not None and stretch is not None and likeness >= _ALIKE:
            # Half a stretch, over which waves at nearly one speed do not yet drift apart.
            half = stretch[len(stretch) // 4 : -len(stretch) // 4]
            others = (soxr.resample(half, _RATE_HZ, _RATE_HZ * speed) for speed in _SPEEDS)
            cosines += [(known.cosine(other), known.name) for other in others]
        cosine, name = max(cosines, default=(0.0, ""))
        return name, cosine

    def _likely(self, stretch: Sound) -> Iterator[tuple[float, _Known]]:
        """Iterate over what is worth a closer look, and all that is shorter than the stretch."""
        likeness = self._likeness(_frames(stretch)).tolist()
        worth = sorted(likeness, reverse=True)[:_FEW][-1:] or [0.0]
        for index, known in enumerate(self._known):
            if likeness[index] >= max(_WORTH, *worth) or len(known.wave) < len(stretch):
                yield likeness[index], known

    def _likeness(self, frames: NDArray[np.float32]) -> NDArray[np.float64]:
        """Slide a spectrogram over all known ones: the best cosine with each, (sounds,)."""
        if not self._known:
            return np.empty(0)
        n, size = len(frames), frames.size
        centred = frames - frames.mean()
        products = np.ascontiguousarray(self._frames @ centred.T)
        along, across = products.strides
        # Row f of this view is what frames f, f + 1, ... give with frames 0, 1, ... of the other.
        shifted = np.lib.stride_tricks.as_strided(
            products, (len(products) - n + 1, n), (along, along + across)
        )
        spread = self._squares[n:] - self._squares[:-n]
        spread -= (self._sums[n:] - self._sums[:-n]) ** 2 / size
        norm = np.sqrt(np.maximum(spread, 1)) * max(1.0, float(np.linalg.norm(centred)))
        return np.maximum.reduceat(shifted.sum(axis=1) / norm, self._starts)


class _Known:
    """A known wave, ready to have others slid over it."""

    def __init__(self, name: str, wave: Sound) -> None:
        self.name, self.wave = name, wave
        self._size = 1 << (len(wave) + _STRETCH).bit_length()
        self._spectrum = np.fft.rfft(wave, self._size)

    def cosine(self, stretch: Sound) -> float:
        """Slide the shorter wave over the longer one: the best cosine, of either sign."""
        spectrum = self._spectrum * np.conj(np.fft.rfft(stretch, self._size))
        n, m = len(self.wave), len(stretch)
        # At half samples too: between two samples the highest frequencies would cancel out.
        overlap = 2 * np.abs(np.fft.irfft(spectrum, 2 * self._size)).reshape(-1, 2).max(axis=1)
        if n >= m:
            overlap, short, long = overlap[: n - m + 1], stretch, self.wave
        else:
            overlap = np.roll(overlap, m - n)[: m - n + 1][::-1]
            short, long = self.wave, stretch
        energy = _summed(long.astype(np.float64) ** 2)
        under = energy[len(short) :] - energy[: len(energy) - len(short)]
        # Where next to nothing lies under the shorter wave a cosine means nothing.
        floor = max(1e-9, _FAINT**2 * float(under.max()))
        norm = np.sqrt(np.maximum(under, floor)) * max(1e-9, float(np.linalg.norm(short)))
        return float(min(1.0, (overlap / norm).max()))


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

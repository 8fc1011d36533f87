"""Decoded sound of any rate, layout and format becomes mono float32 at one rate, in exact runs.

Containers round timestamps to their own tick (1 ms in Matroska), and some writers jitter. So the
place of a sample follows from the start of its run and a count of samples; a timestamp is believed
only where it leaves the run by more than `JITTER_NS`.
"""

from __future__ import annotations

from dataclasses import dataclass

import av
import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from .audio import JITTER_NS
from .clips import NS_PER_S


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Resampled sound: float32 (n,) mono in [-1, 1], its first sample at ``start_ns``."""

    samples: NDArray[np.float32]
    start_ns: int


def mix_down(frame: AudioFrame) -> NDArray[np.float32]:
    """Mean of all channels of a decoded frame as float32 (n,), full scale at 1."""
    data = frame.to_ndarray()
    channels = frame.layout.nb_channels
    if frame.format.is_planar:
        by_channel = data.reshape(channels, -1)
    else:
        by_channel = data.reshape(-1, channels).T
    wide = data.dtype.itemsize > np.dtype(np.int16).itemsize
    mono = by_channel.mean(axis=0, dtype=np.float64 if wide else np.float32)
    if data.dtype == np.uint8:
        mono -= 128.0
    if data.dtype.kind in "iu":
        mono /= 2.0 ** (8 * data.dtype.itemsize - 1)
    return mono.astype(np.float32)


class MonoResampler:
    """One track's sound as runs of mono samples at ``sample_rate_hz``.

    Args:
        sample_rate_hz: the rate that comes out.

    Attributes:
        not_finite: decoded frames so far that held NaN or infinity, which became zeros.
    """

    def __init__(self, sample_rate_hz: int) -> None:
        self.not_finite = 0
        self._rate_hz = sample_rate_hz
        self._resampler: av.AudioResampler | None = None
        self._in_rate_hz = 0
        self._run_start_ns = 0
        self._samples_in = 0
        self._samples_out = 0

    @property
    def expected_ns(self) -> int:
        """Time at which the next decoded sample belongs if the run goes on."""
        if not self._in_rate_hz:
            return self._run_start_ns
        return self._run_start_ns + round(self._samples_in * NS_PER_S / self._in_rate_hz)

    def push(self, frame: AudioFrame, start_ns: int | None) -> list[Piece]:
        """Add one decoded frame.

        Args:
            frame: decoded sound of any rate, layout and sample format.
            start_ns: time of its first sample; None where the container does not say, which
                continues the run.

        Returns:
            What is complete: the rest of the last run where a new one begins, and what the
            resampler has given so far of this one.
        """
        pieces: list[Piece] = []
        if start_ns is None:
            start_ns = self.expected_ns
        goes_on = frame.sample_rate == self._in_rate_hz
        if not goes_on or abs(start_ns - self.expected_ns) > JITTER_NS:
            pieces = self.flush()
            self._begin(frame.sample_rate, start_ns)
        mono = mix_down(frame)
        if not np.isfinite(mono).all():
            self.not_finite += 1
            mono = np.nan_to_num(mono, nan=0.0, posinf=0.0, neginf=0.0)
        self._samples_in += mono.size
        if self._resampler is None:
            return pieces + self._piece(mono)
        resampled = AudioFrame.from_ndarray(mono[np.newaxis], format="fltp", layout="mono")
        resampled.sample_rate = frame.sample_rate
        for out in self._resampler.resample(resampled):
            pieces += self._piece(out.to_ndarray()[0])
        return pieces

    def flush(self) -> list[Piece]:
        """Give what the resampler still holds and end the run."""
        pieces: list[Piece] = []
        if self._resampler is not None and self._samples_in:
            for out in self._resampler.resample(None):
                pieces += self._piece(out.to_ndarray()[0])
        self._run_start_ns = self.expected_ns
        self._resampler, self._in_rate_hz, self._samples_in = None, 0, 0
        return pieces

    def _begin(self, in_rate_hz: int, start_ns: int) -> None:
        self._run_start_ns = start_ns
        self._in_rate_hz, self._samples_in, self._samples_out = in_rate_hz, 0, 0
        if in_rate_hz != self._rate_hz:
            self._resampler = av.AudioResampler(format="fltp", layout="mono", rate=self._rate_hz)

    def _piece(self, samples: NDArray[np.float32]) -> list[Piece]:
        if not samples.size:
            return []
        start_ns = self._run_start_ns + round(self._samples_out * NS_PER_S / self._rate_hz)
        self._samples_out += samples.size
        return [Piece(np.clip(samples, -1.0, 1.0), start_ns)]

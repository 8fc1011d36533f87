"""Sound by time: a ring of samples that is asked for exact windows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .clips import NS_PER_S, AudioChunk

JITTER_NS = 15_000_000
"""Deviation of a timestamp from the count of samples that is still the same run.

Three quarters of the shortest packet in common use (Opus, 20 ms): one lost packet is seen, the
rounding of Matroska and FLV (1 ms) and the jitter of browsers' recordings are not.
"""


@dataclass(frozen=True, slots=True)
class Anchor:
    """From here on the sample with absolute number ``index`` was heard at ``ns``."""

    index: int
    ns: int


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """What a ring holds of a window.

    Attributes:
        samples: float32 (n,), zeros where nothing was heard.
        gap_samples: how many of them were lost, came before the first sound of the epoch, or have
            left the ring.
        missing_tail_samples: how many at the end have not arrived.
    """

    samples: NDArray[np.float32]
    gap_samples: int
    missing_tail_samples: int


class AudioRing:
    """The last seconds of one stream's sound, in one epoch, in fixed memory.

    Samples carry absolute numbers. Anchors tie numbers to times: chunks whose timestamps wander
    less than `JITTER_NS` join without a seam, and only the tie moves. A chunk that begins later
    leaves a hole: zeros, kept in the gap map. What begins earlier repeats time that was already
    heard: the first stays, so later input never changes an earlier answer.

    Args:
        sample_rate_hz: samples a second.
        capacity_s: how much is kept.

    Attributes:
        sample_rate_hz: samples a second.
        epoch: the epoch whose sound is held.
        repeated_samples: samples dropped so far because their time had been heard.
    """

    def __init__(self, sample_rate_hz: int, capacity_s: float = 12.0) -> None:
        self.sample_rate_hz = sample_rate_hz
        self._samples = np.zeros(max(1, round(capacity_s * sample_rate_hz)), np.float32)
        self.reset(0)

    def reset(self, epoch: int) -> None:
        """Forget all sound; ``epoch`` begins."""
        self.epoch = epoch
        self.repeated_samples = 0
        self._end = 0
        self._anchors: deque[Anchor] = deque()
        self._gaps: deque[tuple[int, int]] = deque()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was heard in this epoch."""
        return not self._anchors

    @property
    def end_ns(self) -> int | None:
        """Time just after the newest sample, or None where nothing was heard."""
        return self._time_of(self._end) if self._anchors else None

    def push(self, chunk: AudioChunk) -> None:
        """Append a chunk.

        Raises:
            ValueError: it has another rate, or belongs to another epoch.
        """
        if chunk.sample_rate_hz != self.sample_rate_hz or chunk.epoch != self.epoch:
            raise ValueError(
                f"chunk of {chunk.sample_rate_hz} Hz in epoch {chunk.epoch}; this ring holds "
                f"{self.sample_rate_hz} Hz in epoch {self.epoch}: resample, or reset the ring"
            )
        samples = chunk.samples
        if not self._anchors:
            self._anchors.append(Anchor(0, chunk.start_ns))
        late_ns = chunk.start_ns - self._time_of(self._end)
        late = self._count(late_ns)
        if late_ns > JITTER_NS:
            self._gaps.append((self._end, self._end + late))
            self._advance(late)
            self._anchors.append(Anchor(self._end, chunk.start_ns))
        elif late_ns < -JITTER_NS:
            repeated = min(-late, samples.size)
            self.repeated_samples += repeated
            samples = samples[repeated:]
        elif abs(late) > 1:
            self._anchors.append(Anchor(self._end, chunk.start_ns))
        self._append(samples)
        self._prune()

    def window(self, start_ns: int, n_samples: int) -> Heard:
        """The ``n_samples`` samples from ``start_ns`` on; asking twice gives the same."""
        samples = np.zeros(n_samples, np.float32)
        if not self._anchors:
            return Heard(samples, 0, n_samples)
        first = self._index_of(start_ns)
        last = first + n_samples
        oldest = max(0, self._end - self._samples.size)
        low, high = max(first, oldest), min(last, self._end)
        for at, held in self._parts(low, high):
            samples[at - first : at - first + held.size] = held
        gap = max(0, min(last, oldest) - first)
        for begin, end in self._gaps:
            gap += max(0, min(end, high) - max(begin, low))
        return Heard(samples, gap, min(n_samples, max(0, last - max(first, self._end))))

    def _append(self, samples: NDArray[np.float32]) -> None:
        begin, self._end = self._end, self._end + samples.size
        for at, held in self._parts(max(begin, self._end - self._samples.size), self._end):
            held[:] = samples[at - begin : at - begin + held.size]

    def _advance(self, count: int) -> None:
        begin, self._end = self._end, self._end + count
        for _, held in self._parts(max(begin, self._end - self._samples.size), self._end):
            held[:] = 0.0

    def _parts(self, low: int, high: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The samples numbered low to high as one or two views, each with its first number."""
        while low < high:
            begin = low % self._samples.size
            held = self._samples[begin : begin + high - low]
            yield low, held
            low += held.size

    def _prune(self) -> None:
        oldest = self._end - self._samples.size
        while len(self._anchors) > 1 and self._anchors[1].index <= oldest:
            self._anchors.popleft()
        while self._gaps and self._gaps[0][1] <= oldest:
            self._gaps.popleft()

    def _count(self, duration_ns: int) -> int:
        """Samples in a duration, to the nearest; exact for any length of stream."""
        return (duration_ns * self.sample_rate_hz * 2 + NS_PER_S) // (2 * NS_PER_S)

    def _time_of(self, index: int) -> int:
        anchor = self._anchors[-1]
        for earlier in reversed(self._anchors):
            anchor = earlier
            if earlier.index <= index:
                break
        samples_ns = (index - anchor.index) * NS_PER_S
        return anchor.ns + round(samples_ns / self.sample_rate_hz)

    def _index_of(self, time_ns: int) -> int:
        anchor = self._anchors[0]
        for later in self._anchors:
            if later.ns > time_ns:
                break
            anchor = later
        return anchor.index + self._count(time_ns - anchor.ns)

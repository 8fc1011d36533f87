"""Sound on its way from a real-time callback to a reader, in memory that was made beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .clips import NS_PER_S
from .trust import Trust

RECORDS = 4096
"""Blocks that may wait: eight seconds of the smallest in common use, 2 ms."""
MAX_AGE_S = 1.0
"""Sound that says to be older than this on arrival lies."""
FOLLOWS_NS = 1_000_000
"""A block moves by at most so much what latency is usual."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Sound without a hole.

    Attributes:
        samples: float32 (n,) mono.
        position: number of the first sample, counted from the opening, lost ones included.
        host_ns: host monotonic clock when the first sample was heard, by the device's word.
        arrival_ns: host monotonic clock when the last of it arrived.
        lost: samples lost just before it.
        overflows: how often the device has lost sound so far.
        presumed_ns: the device was believed and is no more: its usual latency, which ``host_ns``
            counts with. None: ``host_ns`` is by its word, or it never gave a plausible one.
    """

    samples: NDArray[np.float32]
    position: int
    host_ns: int
    arrival_ns: int
    lost: int
    overflows: int
    presumed_ns: int | None = None


class CaptureRing:
    """The last seconds of a microphone; one thread puts, one reads, and neither waits.

    The writer publishes a block by one store, after its content. A reader that falls behind by
    more than the ring loses the oldest, which shows as lost samples.

    Args:
        rate_hz: samples a second.
        channels: of what is put.
        keep_s: seconds that fit.
        latency_s: how old sound is on arrival, for devices that never say it. One that has said it
            and then says what cannot be is taken to be as late as it was (see `trust.Trust`).

    Attributes:
        last_ns: host monotonic clock of the last put; 0 before the first.
    """

    def __init__(self, rate_hz: int, channels: int, keep_s: float, latency_s: float) -> None:
        self.last_ns = 0
        self._rate_hz = rate_hz
        self._latency_ns = round(latency_s * NS_PER_S)
        self._samples = np.zeros((max(1, round(keep_s * rate_hz)), channels), np.float32)
        self._ends = np.zeros(RECORDS, np.int64)
        self._heard_ns = np.zeros(RECORDS, np.int64)
        self._arrived_ns = np.zeros(RECORDS, np.int64)
        self._overflowed = np.zeros(RECORDS, np.bool_)
        self._written = self._records = 0
        self._read_records = 0
        self._trust = Trust()
        self._usual_ns: int | None = None
        self._lost = self._overflows = self._next_position = 0
        self._expected_ns: int | None = None

    def put(
        self, samples: NDArray[np.float32], now_ns: int, age_s: float, overflowed: bool
    ) -> None:
        """Add a block; the real-time side.

        Args:
            samples: float32 (n, channels).
            now_ns: host monotonic clock.
            age_s: how old its first sample is by the device's word; outside [0, 1) it lies.
            overflowed: whether sound before it was lost.
        """
        n, size = len(samples), len(self._samples)
        begin = self._written % size
        head = min(n, size - begin)
        self._samples[begin : begin + head] = samples[:head]
        self._samples[: n - head] = samples[head:n]
        record = self._records % RECORDS
        self._ends[record] = self._written + n
        self._heard_ns[record] = now_ns - self._age_ns(age_s, n)
        self._arrived_ns[record] = now_ns
        self._overflowed[record] = overflowed
        self._written += n
        self._records += 1
        self.last_ns = now_ns

    def _age_ns(self, age_s: float, n: int) -> int:
        span_ns = n * NS_PER_S // self._rate_hz
        can_be = 0 <= age_s < MAX_AGE_S
        self._trust.judge(can_be)
        if not can_be or self._trust.is_lost:
            return (self._latency_ns if self._usual_ns is None else self._usual_ns) + span_ns
        age_ns = int(age_s * NS_PER_S)
        if self._usual_ns is None:
            self._usual_ns = age_ns - span_ns
        change_ns = age_ns - span_ns - self._usual_ns
        self._usual_ns += min(FOLLOWS_NS, max(-FOLLOWS_NS, change_ns))
        return age_ns

    def read(self) -> list[Block]:
        """All sound since the last reading, as runs without a hole; the reader's side."""
        records = self._records
        self._skip_overwritten(records)
        first = self._read_records
        self._read_records = records
        seams = [
            record for record in range(first + 1, records) if self._overflowed[record % RECORDS]
        ]
        bounds = [first, *seams, records] if first < records else []
        taken = [self._taken(low, high) for low, high in pairwise(bounds)]
        return [block for block in taken if block is not None]

    def _skip_overwritten(self, records: int) -> None:
        """Begin with the oldest record whose samples the writer cannot reach while they are read.

        Half of the ring is left to it.
        """
        newest = int(self._ends[(records - 1) % RECORDS]) if records else 0
        record = max(self._read_records, records - RECORDS // 2)
        while record < records and newest - self._begin_of(record) > len(self._samples) // 2:
            record += 1
        self._overflows += record > self._read_records
        self._read_records = record

    def _begin_of(self, record: int) -> int:
        return int(self._ends[(record - 1) % RECORDS]) if record else 0

    def _taken(self, first: int, last: int) -> Block | None:
        """The records from ``first`` to before ``last`` as one block; None: overwritten meanwhile.

        A quarter of the ring is more than the writer can be writing at this moment.
        """
        begin, end = self._begin_of(first), int(self._ends[(last - 1) % RECORDS])
        at = np.arange(first, last) % RECORDS
        begins = np.array([self._begin_of(record) for record in range(first, last)]) - begin
        span_ns = begins * NS_PER_S // self._rate_hz
        host_ns = int(np.min(self._heard_ns[at] - span_ns))
        if self._overflowed[first % RECORDS] and self._expected_ns is not None:
            self._lost += max(0, (host_ns - self._expected_ns) * self._rate_hz // NS_PER_S)
            self._overflows += 1
        self._expected_ns = host_ns + (end - begin) * NS_PER_S // self._rate_hz
        position = begin + self._lost
        lost, self._next_position = position - self._next_position, end + self._lost
        size = len(self._samples)
        samples = self._samples[np.arange(begin, end) % size].mean(axis=1)
        if self._written - begin > size - size // 4:
            self._next_position = position - lost
            self._overflows += 1
            return None
        return Block(
            samples=samples,
            position=position,
            host_ns=host_ns,
            arrival_ns=int(self._arrived_ns[(last - 1) % RECORDS]),
            lost=lost,
            overflows=self._overflows,
            presumed_ns=self._usual_ns if self._trust.is_lost else None,
        )

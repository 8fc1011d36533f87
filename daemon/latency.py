"""Latencies by stage, kept in bounded memory and told as percentiles."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (50, 95, 99)


class Latencies:
    """The newest milliseconds of each stage.

    Args:
        capacity: how many of each stage are kept; older ones give way.
    """

    def __init__(self, capacity: int = 65_536) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; at least one must be kept")
        self._capacity = capacity
        self._rings: dict[str, NDArray[np.float32]] = {}
        self._counts: dict[str, int] = {}

    def add(self, latency_ms: Mapping[str, float]) -> None:
        """Note the stages of one frame."""
        for stage, ms in latency_ms.items():
            if stage not in self._rings:
                self._rings[stage] = np.empty(self._capacity, np.float32)
                self._counts[stage] = 0
            self._rings[stage][self._counts[stage] % self._capacity] = ms
            self._counts[stage] += 1

    def percentiles(self, last: int | None = None) -> dict[str, dict[str, float]]:
        """Milliseconds by stage, then by ``p50``, ``p95`` and ``p99``.

        Args:
            last: only this many of the newest; None takes all that are kept.
        """
        out: dict[str, dict[str, float]] = {}
        for stage, ring in self._rings.items():
            count = self._counts[stage]
            kept = min(count, self._capacity, last or self._capacity)
            places = np.arange(count - kept, count) % self._capacity
            values = np.percentile(ring[places], PERCENTILES)
            out[stage] = {
                f"p{p}": round(float(v), 3) for p, v in zip(PERCENTILES, values, strict=True)
            }
        return out

"""Latencies without something and with it, in turn: what it costs, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from ..daemon.latency import PERCENTILES

Side = Literal["off", "on"]
SIDES: Final[tuple[Side, ...]] = ("off", "on")
_DRAWS: Final = 2000


class Turns:
    """Phases ``off``, ``on``, ``off``, ..., ``off``, of a minute at most.

    A machine that is shared drifts by more than most effects within minutes: both sides get the
    same share of that where the phases are short.

    Args:
        phases: latencies in milliseconds of each phase, in order.

    Raises:
        ValueError: an even number of phases, or fewer than three, or an empty one.
    """

    def __init__(self, phases: Sequence[Sequence[float]]) -> None:
        if len(phases) < 3 or len(phases) % 2 == 0 or not all(map(len, phases)):
            raise ValueError(
                f"phases of {[len(phase) for phase in phases]} latencies; they must be off, on, "
                "off and so on, end with one that is off, and none may be empty"
            )
        self._phases = phases

    def percentiles(self) -> dict[str, dict[str, float]]:
        """p50, p95 and p99 of each side, all its phases together."""
        return {
            side: {f"p{p}": float(np.percentile(self._pooled(side), p)) for p in PERCENTILES}
            for side in SIDES
        }

    def p99(self) -> tuple[float, ...]:
        """Of each phase, in order."""
        return tuple(float(np.percentile(phase, 99)) for phase in self._phases)

    def ratio(self) -> float:
        """p99 ``on`` over p99 ``off``."""
        return _p99(self._of("on")) / _p99(self._of("off"))

    def interval(self) -> tuple[float, float]:
        """95 % of the ratio, by drawing phases with replacement (bootstrap)."""
        rng = np.random.default_rng(0)

        def drawn(side: Side) -> float:
            phases = self._of(side)
            return _p99([phases[k] for k in rng.integers(len(phases), size=len(phases))])

        low, high = np.percentile([drawn("on") / drawn("off") for _ in range(_DRAWS)], (2.5, 97.5))
        return float(low), float(high)

    def _of(self, side: Side) -> Sequence[Sequence[float]]:
        return self._phases[SIDES.index(side) :: 2]

    def _pooled(self, side: Side) -> NDArray[np.float64]:
        return np.concatenate(self._of(side))


def _p99(phases: Sequence[Sequence[float]]) -> float:
    return float(np.percentile(np.concatenate(phases), 99))

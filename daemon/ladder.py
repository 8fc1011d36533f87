"""The ladder: the largest of several input sizes that keeps a deadline.

A rung is a side of the square pictures that the network sees, rung 0 the largest. A frame's time is
taken for that of its rung on a quiet machine, measured once, times the load of the moment, measured
on every frame of the rung in use: so the other rungs have an estimate too, which rises and falls
with the load.

Down it goes at once, when of the latest frames too many were late; up after a while, with room to
spare and on trial: a trial that fails doubles the wait for the next one of this rung. It costs two
late frames out of 40 or more, so trials alone never break a deadline's 95 %. Everything is counted
in frames and nothing by a clock: the same times give the same rungs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final

from .infos import MAX_RUNGS, LadderInfo, RungInfo

WINDOW: Final = 100
"""Frames of the rung in use of which the p95 is taken."""
FIRST_WAIT: Final = 40
"""Frames at a rung before a larger one is tried."""
LONGEST_WAIT: Final = 1280
"""Most frames of such a wait. After so many, the next larger rung is tried whatever is expected of
it, if it would keep the deadline on a quiet machine."""
MARGIN: Final = 0.9
"""Share of the deadline within which a larger rung must be expected."""

STEP_PX: Final = 32
"""Sides are multiples of it: the coarsest stride of the networks."""

_LEAST_MS = 1e-3


class Ladder:
    """Which rung the next frame takes.

    Args:
        sides_px: of the rungs, from the largest to the smallest, multiples of `STEP_PX`.
        deadline_ms: milliseconds that 95 % of the frames may take at most.

    Raises:
        ValueError: no or too many rungs, sides that are no multiples or do not fall, a
            deadline that is not positive.
    """

    def __init__(self, sides_px: Sequence[int], deadline_ms: float) -> None:
        sides = tuple(sides_px)
        if not 1 <= len(sides) <= MAX_RUNGS:
            raise ValueError(f"the ladder has {len(sides)} rungs; 1 to {MAX_RUNGS} are allowed")
        if sides[-1] < 1 or any(side % STEP_PX for side in sides):
            raise ValueError(
                f"the ladder's sides are {list(sides)} px; they must be multiples of {STEP_PX}"
            )
        if any(a <= b for a, b in pairwise(sides)):
            raise ValueError(
                f"the ladder's sides are {list(sides)} px; they must fall from the largest to the"
                " smallest"
            )
        if not deadline_ms > 0:
            raise ValueError(f"the deadline is {deadline_ms} ms; it must be positive")
        self.sides_px = sides
        self.deadline_ms = deadline_ms
        # Until `calibrate`: time goes with the area, and the largest just keeps the deadline.
        self._quiet_ms = [deadline_ms * (side / sides[0]) ** 2 for side in sides]
        self._load_before = 1.0
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._stay = 0
        self._on_trial = False
        self._waits = [FIRST_WAIT] * len(sides)
        self._frames = [0] * len(sides)
        self._rung = 0

    @property
    def rung(self) -> int:
        """The rung that the next frame takes."""
        return self._rung

    @property
    def side_px(self) -> int:
        """Its side."""
        return self.sides_px[self._rung]

    def calibrate(self, times_ms: Sequence[Sequence[float]]) -> None:
        """Learn what frames need, and begin at the largest rung that fits.

        The least time of a rung is taken for that on a quiet machine; by how much the others are
        longer, over all rungs, is the load.

        Args:
            times_ms: of a few frames of each rung, best taken in turn, so that a disturbance
                hits all rungs alike.

        Raises:
            ValueError: times of more or fewer rungs than there are.
        """
        if len(times_ms) != len(self.sides_px):
            raise ValueError(f"got times of {len(times_ms)} rungs; there are {len(self.sides_px)}")
        least = [max(min(times), _LEAST_MS) for times in times_ms]
        # A smaller rung that seems slower than a larger one was disturbed.
        self._quiet_ms = list(accumulate(least, min))
        longer = [ms / quiet for times, quiet in zip(times_ms, least, strict=True) for ms in times]
        self._recent.clear()
        self._load_before = p95_ms(longer)
        self._enter(self._fitting(0), self._load_before)

    def note(self, ms: float) -> None:
        """Count a frame of this `rung`, and choose the next frame's.

        Args:
            ms: milliseconds that it took.
        """
        self._recent.append(ms)
        self._frames[self._rung] += 1
        self._stay += 1
        if self._on_trial and self._stay >= WINDOW:
            self._on_trial = False
            self._waits[self._rung] = FIRST_WAIT
        if self.p95_ms(self._rung) > self.deadline_ms:
            self._descend()
        elif self._rung > 0:
            self._climb()

    def p95_ms(self, rung: int) -> float:
        """What 95 % of a rung's frames take at most.

        Of the rung in use it is measured, over its latest frames since it was entered; of the
        others it is expected at the present load.
        """
        return self._quiet_ms[rung] * self._load()

    def info(self) -> LadderInfo:
        """How the ladder does."""
        return LadderInfo(
            deadline_ms=self.deadline_ms,
            rung=self._rung,
            rungs=tuple(
                RungInfo(px=side, p95_ms=round(self.p95_ms(rung), 3), frames=frames)
                for rung, (side, frames) in enumerate(zip(self.sides_px, self._frames, strict=True))
            ),
        )

    def _load(self) -> float:
        """What frames take at present, in units of what they take on a quiet machine."""
        if len(self._recent) < 2:
            return self._load_before
        return p95_ms(self._recent) / self._quiet_ms[self._rung]

    def _fitting(self, first: int) -> int:
        """The largest rung from `first` on that keeps the deadline, or the smallest of all."""
        rungs = range(first, len(self.sides_px))
        fitting = (rung for rung in rungs if self.p95_ms(rung) <= self.deadline_ms)
        return next(fitting, rungs[-1])

    def _descend(self) -> None:
        if self._rung + 1 == len(self.sides_px):
            return
        if self._on_trial:
            self._waits[self._rung] = min(2 * self._waits[self._rung], LONGEST_WAIT)
        self._enter(self._fitting(self._rung + 1), self._load())

    def _climb(self) -> None:
        for rung in range(self._rung):
            has_room = self.p95_ms(rung) <= MARGIN * self.deadline_ms
            if has_room and self._stay >= self._waits[rung]:
                self._enter(rung, self._load(), on_trial=True)
                return
        larger = self._rung - 1
        if self._stay >= LONGEST_WAIT and self._quiet_ms[larger] <= self.deadline_ms:
            self._enter(larger, load=1.0, on_trial=True)

    def _enter(self, rung: int, load: float, *, on_trial: bool = False) -> None:
        self._rung = rung
        self._load_before = load
        self._on_trial = on_trial
        self._stay = 0
        self._recent.clear()


def p95_ms(times_ms: Sequence[float]) -> float:
    """The 95th percentile by nearest rank; of fewer than 20 values all but the largest.

    Args:
        times_ms: at least one.
    """
    late = max(1, len(times_ms) // 20) if len(times_ms) > 1 else 0
    return sorted(times_ms)[-1 - late]


def default_sides(image_px: int) -> tuple[int, ...]:
    """A network's own size and down to half of it by eighths, in multiples of `STEP_PX`."""
    steps = (round(image_px * eighths / 8 / STEP_PX) for eighths in (7, 6, 5, 4))
    smaller = (STEP_PX * max(1, step) for step in steps)
    return tuple(sorted({image_px, *(side for side in smaller if side < image_px)}, reverse=True))

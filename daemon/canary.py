"""The canary: what clips say of weights that were learned, before anything is served or kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..model.method import Batch
from ..model.network import Network
from ..model.teacher import Teacher
from .learnstore import Tally
from .onlinelearner import Best, LearnState

Score = Callable[[Network | None], NDArray[np.float64]]
"""J of each frame of some clips, by a network; None: the one that learns."""


@dataclass(frozen=True, slots=True)
class Rival:
    """Weights that a candidate is compared with.

    Attributes:
        version: their name.
        teacher: what predicts with them.
    """

    version: str
    teacher: Teacher

    def as_best(self) -> Best:
        """To be kept on disk."""
        tensors = self.teacher.state_dict()
        return Best(self.version, {n: t.detach().cpu().clone() for n, t in tensors.items()})


@dataclass(frozen=True, slots=True)
class Accepted:
    """Weights that the canary passed, to go back to.

    Attributes:
        cursor: number of the last batch in them.
        version: their name.
        parent: the version before.
        tally: of the stream up to there.
        state: of the learner, to go on from.
        teacher: what predicts with them.
        best: earlier weights that did better where they were compared last; None: these are the
            best.
    """

    cursor: int
    version: str
    parent: str
    tally: Tally
    state: LearnState
    teacher: Teacher
    best: Rival | None = None


@dataclass(slots=True)
class Candidate:
    """A batch that was learned and not yet judged.

    Attributes:
        number: of the batch.
        tally: of the stream up to there.
        batches: its clips.
        learned_ns: when.
        was_tried: whether it was looked at without a next batch, and is served or waits for one.
        orders: numbers of the orders to consolidate that wait until it is judged.
    """

    number: int
    tally: Tally
    batches: Sequence[Batch]
    learned_ns: int
    was_tried: bool = False
    orders: list[int] = field(default_factory=list[int])


@dataclass(frozen=True, slots=True)
class Verdict:
    """What clips say of a candidate: J of each frame, float64 (n,).

    Compared with the weights accepted last alone, weights could get worse by a little with each
    batch, without end; so they are also compared with the best ones until then.

    Attributes:
        fresh: with it.
        held: with the weights that were accepted last.
        best: with those that were the best before; None where these are the accepted ones.
        drop: by how much its mean may lie below the others'.
    """

    fresh: NDArray[np.float64]
    held: NDArray[np.float64]
    best: NDArray[np.float64] | None
    drop: float

    @classmethod
    def of(cls, accepted: Accepted, drop: float, score: Score) -> Verdict:
        """Score the candidate, and what it is compared with."""
        best = accepted.best
        return cls(
            fresh=score(None),
            held=score(accepted.teacher.network),
            best=None if best is None else score(best.teacher.network),
            drop=drop,
        )

    @property
    def passes(self) -> bool:
        """Whether the candidate is not worse than it may be."""
        return bool(self.fresh.mean() >= self._bar - self.drop)

    def best_of(self, accepted: Accepted) -> Rival | None:
        """The best of those that the candidate was compared with; None: it is itself the best."""
        if self.fresh.mean() >= self._bar:
            return None
        if self.best is not None and self.best.mean() > self.held.mean():
            return accepted.best
        return Rival(accepted.version, accepted.teacher)

    def told(self, accepted: Accepted) -> str:
        """The scores in words."""
        words = f"score {self.fresh.mean():.3f} with it and {self.held.mean():.3f} without"
        if self.best is not None and accepted.best is not None:
            words += f" ({self.best.mean():.3f} with version {accepted.best.version})"
        return words

    @property
    def _bar(self) -> float:
        others = [self.held] if self.best is None else [self.held, self.best]
        return max(float(scores.mean()) for scores in others)

"""Learning on probation: a batch that was learned counts once the clips after it have judged it.

A batch that was learned makes a *candidate*. It is judged on the batch after it, before that one is
learned: it must not score worse there than the weights that were accepted last, nor than the best
ones before. So no clip is held back for judging, and none is an exemplar. Accepted weights are
published and kept; a refusal brings the learner back to where it was, and sets the batch aside.
Where no further batch comes for a while, the candidate is published unjudged if it does no harm to
its own clips and to the clips learned before that are still in the spool (for a learner that is
killed; they judge here and are never learned again), and called back if it is refused later. One
at whose sight the learner died three times is not looked at again.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.checkpoints import tensor_hash
from ..model.method import Batch, MethodError
from ..model.training import TrainingError
from ..streams.clips import LabeledClip
from .canary import Accepted, Candidate, Rival, Verdict
from .foundation import Foundation, LeavingError
from .keeper import Keeper, LearningError
from .labelclips import load
from .labels import LabelError
from .learnstore import Learned, Tally
from .notices import LearningRules, Publication, Reason
from .onlinelearner import LearnState, OnlineLearner
from .spool import Spool
from .spooled import Batch as Journaled
from .spoolfile import SpoolError
from .teller import Teller
from .wire import MAX_ENTRIES

ATTEMPTS: Final = 3
"""A batch that was begun so often and never ended is begun no more."""
Rebuilt = tuple[OnlineLearner, Rival | None]
"""A learner as a checkpoint has it, and the best weights before where those are others."""
_RECENT_FRAMES: Final = 256
_NS: Final = 1_000_000_000
_log = logging.getLogger(__name__)


class Probation:
    """The weights that were accepted, and a candidate on its way to be.

    Args:
        foundation: what learners are made from.
        rules: what to trust.
        spool: holds clips that were learned, to judge by.
        keeper: keeps what is accepted, and says what to begin with.
        teller: tells what is to be served.
        clock: monotonic nanoseconds.

    Attributes:
        accepted: the weights that the canary passed last.
        candidate: what was learned since; None: nothing.
        learner: with the weights at hand.

    Raises:
        LearningError: the checkpoints were made on another base or by another method.
        SpoolError: the spool.
        MethodError: the method cannot be had.
        OSError: the first checkpoint cannot be written.
    """

    accepted: Accepted
    candidate: Candidate | None
    learner: OnlineLearner

    def __init__(
        self,
        foundation: Foundation,
        rules: LearningRules,
        spool: Spool,
        keeper: Keeper,
        teller: Teller,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._foundation, self._rules, self._clock = foundation, rules, clock
        self._spool, self._keeper, self._teller = spool, keeper, teller
        self._recent: deque[float] = deque(maxlen=_RECENT_FRAMES)
        learned, state = keeper.newest()
        if state is None:
            self._set_out(learned, foundation.learner(None))
            keeper.begin(self.accepted)
            return
        self.restore(learned, self.rebuilt(state))
        keeper.go_on(learned)
        teller.say(
            "learner_resumed",
            f"goes on from version {learned.version}, after batch {learned.cursor}",
            {"version": learned.version, "batch": learned.cursor, "clips": learned.tally.clips},
        )
        # The base too: the daemon may serve a candidate of a learner that was killed.
        self.publish("resumed", "")

    @property
    def cursor(self) -> int:
        """The last batch in the weights at hand, or the last order that waits behind it."""
        candidate = self.candidate
        return max([candidate.number, *candidate.orders]) if candidate else self.accepted.cursor

    @property
    def tally(self) -> Tally:
        """Of the stream up to the weights at hand."""
        return self.candidate.tally if self.candidate else self.accepted.tally

    @property
    def score(self) -> float | None:
        """Mean J of the latest frames, each predicted before it was learned; None before them."""
        return float(np.mean(self._recent)) if self._recent else None

    # Batches and orders.

    def take(self, batch: Journaled) -> None:
        """Judge the candidate by a batch, then learn it.

        Raises:
            SpoolError, OSError: what is accepted cannot be kept, or a batch not set aside.
        """
        try:
            clips = [self._loaded(clip.payload) for clip in batch.clips]
        except LabelError as error:
            self.set_aside(batch.number, f"a clip cannot be read: {error}")
            return
        batches = self.learner.batches(clips)
        scores = self._judged(batches)
        self._recent.extend(scores.tolist())
        tally = self.accepted.tally.plus(len(clips), scores)
        try:
            self._learn(batch, clips, batches)
        except TrainingError as error:
            self.go_back()
            self.set_aside(batch.number, str(error))
            self._count_frames(tally)
            return
        self.candidate = Candidate(batch.number, tally, batches, self._clock())

    def come_to_order(self, number: int) -> None:
        """Carry out a journaled order to consolidate, or let it wait for what is to be judged.

        Raises:
            SpoolError, OSError: what is accepted cannot be kept.
        """
        if self.candidate is None:
            self._hold_on(number)
        else:
            self.candidate.orders.append(number)

    def publish_unjudged(self) -> bool:
        """Serve a candidate that no clips came to judge, if what is at hand says nothing else.

        Returns:
            Whether it was looked at.

        Raises:
            SpoolError, OSError: it cannot be set aside, or not be noted that it is looked at.
        """
        candidate = self.candidate
        if candidate is None or candidate.was_tried:
            return False
        if self._clock() - candidate.learned_ns < self._rules.canary_wait_s * _NS:
            return False
        if self._spool.try_batch(candidate.number, "look") >= ATTEMPTS:
            self._let_wait(candidate, f"the learner died {ATTEMPTS} times as it looked at it")
            return True
        try:
            self._look_at(candidate)
        except (MemoryError, torch.OutOfMemoryError) as error:
            self._let_wait(candidate, f"to look at it there is no memory: {error}")
        except (SpoolError, OSError, LeavingError):
            self._spool.end_batch(candidate.number, "look")
            raise
        self._spool.end_batch(candidate.number, "look")
        return True

    def set_aside(self, number: int, reason: str) -> None:
        """Quarantine a batch; see `Keeper.set_aside`."""
        self._keeper.set_aside(number, reason, self.accepted)

    def go_back(self) -> None:
        """Forget the candidate, and what was learned since the weights that were accepted."""
        self.candidate = None
        self.learner = self._foundation.learner(self.accepted.state)

    def rebuilt(self, state: LearnState) -> Rebuilt:
        """What a checkpoint kept, to be gone on from by `restore`; until then all is as it was.

        Raises:
            LearningError: it cannot be gone on from with these settings.
        """
        try:
            learner = self._foundation.learner(state)
        except (TrainingError, MethodError) as error:
            raise LearningError(
                f"{self._keeper.folder} cannot be gone on from with these settings: {error}"
            ) from error
        best = None
        if state.best is not None:
            best = Rival(state.best.version, learner.as_it_is())
            best.teacher.load_state_dict(state.best.tensors)
        return learner, best

    def restore(self, learned: Learned, rebuilt: Rebuilt) -> None:
        """Go on from a checkpoint; a candidate is forgotten."""
        self._set_out(learned, *rebuilt)

    def publish(self, reason: Reason, before: str) -> None:
        """Serve what was accepted last, instead of a version before."""
        accepted = self.accepted
        self._serve(accepted.version, before, accepted.cursor, reason, self.learner.serving())

    # Learning.

    def _set_out(self, learned: Learned, learner: OnlineLearner, best: Rival | None = None) -> None:
        self.learner = learner
        self.accepted = self._as_accepted(
            learned.cursor, learned.version, learned.parent, learned.tally, best
        )
        self.candidate = None

    def _as_accepted(
        self, cursor: int, version: str, parent: str, tally: Tally, best: Rival | None
    ) -> Accepted:
        learner = self.learner
        return Accepted(cursor, version, parent, tally, learner.state(), learner.as_it_is(), best)

    def _loaded(self, payload: bytes) -> LabeledClip:
        self._foundation.beat()
        return load(payload, self._foundation.window_s)

    def _learn(
        self, batch: Journaled, clips: Sequence[LabeledClip], batches: Sequence[Batch]
    ) -> None:
        known = {*self.learner.categories, *(c.category for c in clips if c.category is not None)}
        if len(known) > MAX_ENTRIES:
            raise TrainingError(
                f"with batch {batch.number} the network would know {len(known)} classes; masks can "
                f"tell {MAX_ENTRIES}"
            )
        consolidator = self.learner.trainer.consolidator
        lifted = consolidator.lifted
        loss = self.learner.learn(clips, batches, batch.seed)
        if consolidator.lifted > lifted:
            self._teller.say(
                "consolidated_late",
                f"in batch {batch.number} the method kept what it knows though the loss lay far "
                "above that of the last time for long; look whether the latest labels are right",
                {"batch": batch.number},
            )
        if not all(bool(p.isfinite().all()) for p in self.learner.network.trainable_parameters()):
            raise TrainingError(f"after batch {batch.number} a weight is not finite")
        _log.info("batch %d: %d clips, loss %.3f", batch.number, len(clips), loss)

    # Judging.

    def _judged(self, batches: Sequence[Batch]) -> NDArray[np.float64]:
        """J of the frames of the next batch, by the candidate where it passes."""
        if self.candidate is None:
            return self.learner.score(batches)
        verdict = self._verdict(batches)
        if not verdict.passes:
            self._refuse(self.candidate, f"the next clips {verdict.told(self.accepted)}")
            return verdict.held
        try:
            tensors = self.learner.serving()
        except TrainingError as error:
            self._refuse(self.candidate, str(error))
            return verdict.held
        self._accept(self.candidate, tensors, verdict.best_of(self.accepted))
        return verdict.fresh

    def _verdict(self, batches: Sequence[Batch]) -> Verdict:
        learner, drop = self.learner, self._rules.canary_drop
        return Verdict.of(self.accepted, drop, lambda network: learner.score(batches, network))

    def _look_at(self, candidate: Candidate) -> None:
        """Refuse a candidate, serve it or let it wait, by clips that were learned."""
        own = self._verdict(candidate.batches)
        if not own.passes:
            self._refuse(candidate, f"its own clips {own.told(self.accepted)}")
            return
        earlier = self._earlier()
        if earlier and not (verdict := self._verdict(earlier)).passes:
            self._let_wait(candidate, f"clips of the batches before {verdict.told(self.accepted)}")
            return
        try:
            tensors = self.learner.serving()
        except TrainingError as error:
            self._refuse(candidate, str(error))
            return
        candidate.was_tried = True
        version = _named(candidate.number, tensors)
        self._serve(version, self.accepted.version, candidate.number, "unjudged", tensors)

    def _let_wait(self, candidate: Candidate, why: str) -> None:
        candidate.was_tried = True
        self._teller.say(
            "candidate_waits",
            f"batch {candidate.number} is learned and not served: {why}; the next clips judge it",
            {"batch": candidate.number},
        )

    def _earlier(self) -> list[Batch]:
        """The latest accepted clips, as far as they are still in the spool; to judge by alone."""
        stored = self._spool.latest_learned(self.accepted.cursor, self._rules.clips)
        try:
            clips = [load(clip.payload, self._foundation.window_s) for clip in stored]
        except LabelError as error:
            _log.warning("clips that were learned cannot be read again: %s", error)
            return []
        return self.learner.batches(clips) if clips else []

    # What follows.

    def _accept(
        self, candidate: Candidate, tensors: Mapping[str, Tensor], best: Rival | None
    ) -> None:
        before = self.accepted
        version = _named(candidate.number, tensors)
        self.accepted = self._as_accepted(
            candidate.number, version, before.version, candidate.tally, best
        )
        self.candidate = None
        if version != self._teller.served:
            self._serve(version, before.version, candidate.number, "learned", tensors)
        self._keeper.keep_if_due(self.accepted)
        for number in candidate.orders:
            self._hold_on(number)

    def _refuse(self, candidate: Candidate, why: str) -> None:
        """Go back. What is served comes first: the spool or the disk may fail."""
        self.go_back()
        if self._teller.served != self.accepted.version:
            self.publish("refused", self._teller.served)
        self.set_aside(candidate.number, f"the canary refused it: {why}")
        self._count_frames(candidate.tally)
        for number in candidate.orders:
            self._hold_on(number)

    def _hold_on(self, number: int) -> None:
        self.learner.consolidate()
        before, tensors = self.accepted, self.learner.serving()
        version = _named(number, tensors)
        self.accepted = self._as_accepted(
            number, version, before.version, before.tally, before.best
        )
        self._serve(version, before.version, number, "consolidated", tensors)
        self._keeper.keep_if_due(self.accepted)

    def _count_frames(self, tally: Tally) -> None:
        """The frames of a batch that was set aside were predicted all the same."""
        counted = replace(tally, clips=self.accepted.tally.clips)
        self.accepted = replace(self.accepted, tally=counted)

    def _serve(
        self, version: str, parent: str, batch: int, reason: Reason, tensors: Mapping[str, Tensor]
    ) -> None:
        categories = self.learner.categories
        self._teller.serve(Publication(version, parent, batch, reason, categories, tensors))


def _named(batch: int, tensors: Mapping[str, Tensor]) -> str:
    """The name of weights: the last batch in them, and their content."""
    return f"{batch}-{tensor_hash(dict(tensors))[:8]}"

"""Learning in service: batches out of the spool, a canary before anything is served, checkpoints.

What is learned of a batch is on `probation` until the next one judged it; what was accepted is
published and kept by the `keeper`, and nothing else is kept, whoever orders a checkpoint.

Everything that later weights depend on is in the spool's journal and in the checkpoints: killed
anywhere, `Learning` goes on to the same weights (same machine, same threads). See `spool` for the
order that this rests on.

Where checkpoints or spool are not those of before (moved away to begin anew, or from a backup),
both are fitted together and it is told: what the checkpoints do not hold and is still on disk is
learned. A batch that cannot be learned, or in which the learner died three times, is set aside.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

import torch

from ..model.adapting import batch_seed
from ..model.baseimportance import BaseImportance
from ..model.network import Network
from ..model.training import Part, undivided
from .foundation import Foundation, LeavingError
from .infos import LearnerInfo, LearnerState, VersionInfo
from .keeper import Keeper, LearningError
from .learnstore import Kept, LearnStore
from .notices import LearningRules, Notice
from .onlinelearner import LearnSettings
from .probation import ATTEMPTS, Probation
from .spool import Spool
from .spoolfile import CorruptError, SpoolError
from .teller import Teller

_RETRY_NS: Final = 60_000_000_000
_NS: Final = 1_000_000_000
_log = logging.getLogger(__name__)


class Learning:
    """One learner, one spool, one store of checkpoints; it belongs to one thread.

    Args:
        base: the deployed network; see `OnlineLearner`.
        settings: how to learn.
        rules: when, and what to trust.
        spool: where clips come from.
        store: where what was learned is kept.
        tell: receives what is to be served and told.
        importance: of the base's weights; see `OnlineLearner`.
        beat: called after each clip, score, step and checkpoint, as a sign that learning goes on;
            within a turn it may raise a `LeavingError`.
        part: entered for each part of the work that computes on the device.
        clock: monotonic nanoseconds.
        now: nanoseconds since 1970.

    Raises:
        LearningError: the checkpoints were made on another base or by another method.
        SpoolError: the spool.
        MethodError: the method cannot be had.
        OSError: the first checkpoint cannot be written.
    """

    def __init__(
        self,
        base: Network,
        settings: LearnSettings,
        rules: LearningRules,
        spool: Spool,
        store: LearnStore,
        tell: Callable[[Notice], None],
        *,
        importance: BaseImportance | None = None,
        beat: Callable[[], None] = lambda: None,
        part: Part = undivided,
        clock: Callable[[], int] = time.monotonic_ns,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._settings, self._rules, self._spool = settings, rules, spool
        self._clock, self._now = clock, now
        self._is_paused = spool.is_paused
        self._halted: str | None = None
        self._retry_ns = 0
        foundation = Foundation(base, settings, importance, part, beat)
        self._teller = Teller(tell, base.version)
        self._keeper = Keeper(foundation, rules, spool, store, self._teller, clock, now)
        self._probation = Probation(foundation, rules, spool, self._keeper, self._teller, clock)

    # What happens by itself.

    def turn(self) -> bool:
        """Do what is due: at most one batch. False: nothing was.

        A disk that is full, or a spool that cannot be read, halts learning for a minute.

        Raises:
            LeavingError: `beat` did; what was at work is begun anew when learning goes on.
        """
        if self._is_paused or (self._halted is not None and self._clock() < self._retry_ns):
            return False
        try:
            if self._halted is not None:
                self._keeper.finish_rollback()
                self._keeper.keep(self._probation.accepted)
                self._halted = None
            return self._take_or_publish()
        except (SpoolError, OSError) as error:
            self._halt(error)
            return False

    def info(self) -> LearnerInfo:
        """How learning goes."""
        probation, keeper = self._probation, self._keeper
        accepted, candidate = probation.accepted, probation.candidate
        learner, tally = probation.learner, probation.tally
        state: LearnerState = "waiting"
        if self._is_paused:
            state = "paused"
        elif self._halted is not None:
            state = "halted"
        return LearnerInfo(
            state=state,
            detail=(self._halted or "")[:4000],
            method=self._settings.method,
            version=accepted.version,
            batch=accepted.cursor,
            candidate=candidate.number if candidate else 0,
            clips=tally.clips,
            steps=learner.steps,
            consolidations=learner.consolidations,
            refused=keeper.refused,
            score=probation.score,
            a_auc=tally.mean,
            checkpoint=keeper.checkpoint,
        )

    def close(self) -> None:
        """Keep what was accepted; a candidate is learned again when learning goes on.

        Raises:
            OSError, SpoolError: it cannot be written; what was kept before is there.
        """
        self._keeper.catch_up(self._probation.accepted)

    # What people order.

    def pause(self) -> None:
        """Learn nothing until `resume`, whatever is started again; labels are taken all the same.

        Raises:
            SpoolError: it cannot be noted; nothing is learned all the same.
        """
        self._is_paused = True
        self._spool.pause()

    def resume(self) -> None:
        """Learn again, and try again what had failed.

        Raises:
            SpoolError: it cannot be noted; nothing is learned.
        """
        self._spool.pause(False)
        self._is_paused = False
        self._retry_ns = 0

    def checkpoint(self) -> Kept:
        """Keep what was accepted, now; a candidate goes on waiting for the clips that judge it.

        Raises:
            LearningError: it cannot be written.
        """
        try:
            return self._keeper.keep(self._probation.accepted)
        except (SpoolError, OSError) as error:
            raise LearningError(f"no checkpoint was made: {error}") from error

    def consolidate(self) -> bool:
        """Let the method keep what was learned, plateau or not; the order is journaled at once.

        Where a batch before it is still to be learned or to be judged, the order waits for that:
        what the canary may refuse is not held on to.

        Returns:
            Whether it was carried out; False: it waits.

        Raises:
            LearningError: it cannot be journaled.
        """
        try:
            is_next = not self._spool.waiting(self._probation.cursor).journaled
            number = self._spool.note_consolidation()
        except SpoolError as error:
            raise LearningError(f"nothing was consolidated: {error}") from error
        if not is_next:
            return False
        try:
            self._probation.come_to_order(number)
        except (SpoolError, OSError) as error:
            self._halt(error)
        return self._probation.candidate is None

    def versions(self) -> list[VersionInfo]:
        """What can be gone back to, oldest first."""
        return self._keeper.versions()

    def rollback(self, version: str = "") -> str:
        """Go back to a version that is kept; what was learned since is set aside.

        It is journaled before anything is deleted, and finished when learning begins or is tried
        again, so that it is carried out as a whole or not at all.

        Args:
            version: its name; empty: the newest before the one that is served.

        Returns:
            The version.

        Raises:
            LearningError: it is not kept, or cannot be gone back to; all is as it was.
        """
        probation, keeper, teller = self._probation, self._keeper, self._teller
        if not version and teller.served != probation.accepted.version:
            self.checkpoint()  # an unjudged candidate is served: what is before it may not be kept
        kept = keeper.versions()
        earlier = [each.version for each in kept if not each.served]
        wanted = version or (earlier[-1] if earlier else "")
        found = keeper.find(wanted) if wanted else None
        if found is None:
            names = ", ".join(each.version for each in kept)
            raise LearningError(
                f"version {wanted or 'before this one'} is not kept, or damaged; kept are {names}: "
                "choose another"
            )
        learned, state = found
        rebuilt = probation.rebuilt(state)
        try:
            keeper.rewind(learned)
        except (SpoolError, OSError) as error:
            raise LearningError(f"cannot go back to {wanted}: {error}") from error
        before = teller.served
        probation.restore(learned, rebuilt)
        try:
            keeper.go_back(learned)
        except (SpoolError, OSError) as error:
            self._halt(error)
        probation.publish("rollback", before)
        teller.say("rollback", f"{before} gone back to {wanted}", {"version": wanted})
        return wanted

    def release(self, batch: int) -> None:
        """Let the clips of a batch that was set aside wait again.

        Raises:
            SpoolError: it is not set aside.
        """
        self._spool.release(batch)

    def discard(self, batch: int) -> None:
        """Throw a batch away that was set aside.

        Raises:
            SpoolError: it is not set aside.
        """
        self._spool.discard(batch)

    # A batch.

    def _take_or_publish(self) -> bool:
        at = self._probation.cursor
        waiting = self._spool.waiting(at)
        oldest_ns = waiting.oldest_ns
        is_old = oldest_ns is not None and self._now() - oldest_ns >= self._rules.wait_s * _NS
        if not (waiting.journaled or waiting.pending >= self._rules.clips or is_old):
            self._keeper.keep_if_due(self._probation.accepted)
            return self._probation.publish_unjudged()
        seed = batch_seed(self._settings.seed, at)
        try:
            batch = self._spool.next_batch(at, self._rules.clips, seed)
        except CorruptError as error:
            if error.batch is None:
                raise
            self._probation.set_aside(error.batch, str(error))
            return True
        if batch is None:
            return False
        if batch.clips:
            self._try(batch.number, lambda: self._probation.take(batch))
        else:
            self._try(batch.number, lambda: self._probation.come_to_order(batch.number))
        return True

    def _try(self, number: int, work: Callable[[], None]) -> None:
        """Do a batch's work, or set it aside: none stands in the way of the others for ever."""
        if self._spool.try_batch(number) >= ATTEMPTS:
            self._probation.set_aside(
                number,
                f"it was begun {ATTEMPTS} times and never ended: the learner died, hung or ran "
                "out of memory each time",
            )
            return
        try:
            work()
        except (MemoryError, torch.OutOfMemoryError) as error:
            self._probation.go_back()
            self._halt(error, f"batch {number} finds no memory")
            return
        except (SpoolError, OSError, LeavingError):
            self._spool.end_batch(number)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the next batches are learned
            _log.exception("batch %d cannot be learned", number)
            self._probation.go_back()  # where this fails too, the learner is begun anew
            self._probation.set_aside(number, f"{type(error).__name__}: {error}"[:1000])
        self._spool.end_batch(number)

    def _halt(self, error: Exception, what: str = "what is learned cannot be kept") -> None:
        first = self._halted is None
        self._halted = f"{what}: {error}; masks go on, tried again in 60 s"
        self._retry_ns = self._clock() + _RETRY_NS
        if first:
            self._teller.say("learner_halted", self._halted, {})

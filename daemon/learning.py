"""Learning in service: batches out of the spool, a canary before anything is served, checkpoints.

A batch that was learned makes a *candidate*. It is judged on the batch after it, before that one is
learned: it must not score worse there than the weights that were accepted last, nor than the best
ones before. So no clip is held back for judging, and none is an exemplar. Accepted weights are
published and kept, and nothing else is kept, whoever orders a checkpoint; a refusal brings
the learner back to where it was, and sets the batch aside. Where no further batch comes for a
while, the candidate is published unjudged if it does no harm to its own clips and to the clips
learned before that are still in the spool (for a learner that is killed; they judge here and are
never learned again), and called back if it is refused later.

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
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from secrets import token_hex
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.baseimportance import BaseImportance
from ..model.checkpoints import tensor_hash, tensors_of
from ..model.method import Batch, MethodError
from ..model.network import Network
from ..model.training import Part, TrainingError, undivided
from ..streams.clips import LabeledClip
from .canary import Accepted, Candidate, Rival, Verdict
from .infos import LearnerInfo, LearnerState, VersionInfo
from .labelclips import load
from .labels import LabelError
from .learnstore import Kept, Learned, LearnStore, Tally
from .notices import Happening, LearningRules, Notice, Publication, Reason
from .onlinelearner import LearnSettings, LearnState, OnlineLearner
from .spool import Spool
from .spooled import Batch as Journaled
from .spoolfile import CorruptError, SpoolError
from .wire import MAX_ENTRIES

_ATTEMPTS: Final = 3
"""A batch that was begun so often and never ended is set aside."""
_RECENT_FRAMES: Final = 256
_RETRY_NS: Final = 60_000_000_000
_NS: Final = 1_000_000_000
_log = logging.getLogger(__name__)


class LearningError(Exception):
    """Learning cannot begin, or an order cannot be carried out: what came, what to do."""


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
        beat: called after each clip, score, step and checkpoint, as a sign that learning goes on.
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
        self._beat, self._part = beat, part
        self._base, self._settings, self._rules = base, settings, rules
        self._importance = importance
        self._content = tensor_hash(tensors_of(base))
        self._spool, self._store, self._tell = spool, store, tell
        self._clock, self._now = clock, now
        self._candidate: Candidate | None = None
        self._recent: deque[float] = deque(maxlen=_RECENT_FRAMES)
        self._refused = 0
        self._is_paused = spool.is_paused
        self._halted: str | None = None
        self._retry_ns = 0
        self._checkpoint = 0
        self._checkpoint_ns = clock()
        self._served = base.version
        self._accepted = self._begin()

    # What happens by itself.

    def turn(self) -> bool:
        """Do what is due: at most one batch. False: nothing was.

        A disk that is full, or a spool that cannot be read, halts learning for a minute.
        """
        if self._is_paused or (self._halted is not None and self._clock() < self._retry_ns):
            return False
        try:
            if self._halted is not None:
                self._finish_rollback()
                self._keep()
                self._halted = None
            return self._take_or_publish()
        except (SpoolError, OSError) as error:
            self._halt(error)
            return False

    def info(self) -> LearnerInfo:
        """How learning goes."""
        tally = self._candidate.tally if self._candidate else self._accepted.tally
        state: LearnerState = "waiting"
        if self._is_paused:
            state = "paused"
        elif self._halted is not None:
            state = "halted"
        return LearnerInfo(
            state=state,
            detail=(self._halted or "")[:4000],
            method=self._settings.method,
            version=self._accepted.version,
            batch=self._accepted.cursor,
            candidate=self._candidate.number if self._candidate else 0,
            clips=tally.clips,
            steps=self._learner.steps,
            consolidations=self._learner.consolidations,
            refused=self._refused,
            score=float(np.mean(self._recent)) if self._recent else None,
            a_auc=tally.mean,
            checkpoint=self._checkpoint,
        )

    def close(self) -> None:
        """Keep what was accepted; a candidate is learned again when learning goes on.

        Raises:
            OSError, SpoolError: it cannot be written; what was kept before is there.
        """
        if self._accepted.cursor > self._checkpoint:
            self._keep()

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
            return self._keep()
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
            is_next = not self._spool.waiting(self._cursor).journaled
            number = self._spool.note_consolidation()
        except SpoolError as error:
            raise LearningError(f"nothing was consolidated: {error}") from error
        if not is_next:
            return False
        try:
            self._come_to_order(number)
        except (SpoolError, OSError) as error:
            self._halt(error)
        return self._candidate is None

    def versions(self) -> list[VersionInfo]:
        """What can be gone back to, oldest first."""
        return [self._told(kept) for kept in self._store.all()]

    def rollback(self, version: str = "") -> str:
        """Go back to a version that is kept; what was learned since is set aside.

        It is journaled before anything is deleted, and finished when learning begins or is tried
        again, so that it is carried out as a whole or not at all.

        Args:
            version: its name; empty: the newest before the one that is served.

        Returns:
            The version.

        Raises:
            LearningError: it is not kept.
        """
        if not version and self._served != self._accepted.version:
            self.checkpoint()  # an unjudged candidate is served: what is before it may not be kept
        kept = self._store.all()
        earlier = [k for k in kept if k.learned.version != self._served]
        wanted = version or (earlier[-1].learned.version if earlier else "")
        found = self._store.find(wanted) if wanted else None
        if found is None:
            names = ", ".join(k.learned.version for k in kept)
            raise LearningError(
                f"version {wanted or 'before this one'} is not kept, or damaged; kept are {names}: "
                "choose another"
            )
        checkpoint, state = found
        cursor = checkpoint.learned.cursor
        try:
            self._spool.rewind(cursor, f"gone back to version {wanted}")
        except (SpoolError, OSError) as error:
            raise LearningError(f"cannot go back to {wanted}: {error}") from error
        before = self._served
        self._accepted = self._restored(checkpoint.learned, state)
        self._candidate = None
        self._checkpoint = cursor
        try:
            self._finish_rollback()
        except (SpoolError, OSError) as error:
            self._halt(error)
        self._publish("rollback", before)
        self._say("rollback", f"{before} gone back to {wanted}", {"version": wanted})
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

    # Beginning.

    def _begin(self) -> Accepted:
        self._finish_rollback()
        found = self._store.newest()
        if found is None:
            self._lineage = token_hex(8)
            self._learner = self._fresh()
            self._put_away(-1)
            accepted = self._as_accepted(0, self._base.version, "", Tally())
            self._write(accepted)
            self._fit(0)
            return accepted
        kept, state = found
        learned = kept.learned
        if learned.base != self._content or learned.method != self._settings.method:
            raise LearningError(
                f"{kept.folder} was learned by {learned.method} on base {learned.base[:12]}; this "
                f"daemon has {self._settings.method} on {self._content[:12]}: go on with those, or "
                f"move {self._store.folder} away and begin anew"
            )
        accepted = self._restored(learned, state)
        self._lineage = learned.lineage
        self._checkpoint = learned.cursor
        self._put_away(learned.cursor)
        self._fit(learned.cursor)
        self._accepted = accepted
        self._say(
            "learner_resumed",
            f"goes on from version {learned.version}, after batch {learned.cursor}",
            {"version": learned.version, "batch": learned.cursor, "clips": learned.tally.clips},
        )
        # The base too: the daemon may serve a candidate of a learner that was killed.
        self._publish("resumed", "")
        return accepted

    def _put_away(self, cursor: int) -> None:
        """Put away what comes after the newest checkpoint that is whole."""
        for path in self._store.put_away_after(cursor):
            detail = f"a checkpoint is damaged and passed over; it lies in {path}"
            self._say("checkpoint_damaged", detail, {"path": str(path)})

    def _fit(self, cursor: int) -> None:
        """Fit the spool to the checkpoints, where one of them is not that of before."""
        spool = self._spool
        oldest = self._store.all()[0].learned.cursor
        if not spool.fits(self._lineage, cursor):
            rebased = spool.rebase(self._lineage, cursor, oldest)
            if cursor or rebased.waiting or rebased.gone:
                self._say(
                    "learner_rebased",
                    f"{spool.path} and {self._store.folder} do not belong together: learning goes "
                    f"on after batch {cursor}; {rebased.waiting} clips that its weights do not "
                    f"hold wait again, {rebased.gone} are no longer on disk",
                    {"batch": cursor, "waiting": rebased.waiting, "gone": rebased.gone},
                )
        retired = spool.status().retired_up_to
        if oldest < retired:  # clips that were learned after it are no longer on disk
            self._store.forget_before(retired)
            oldest = self._store.all()[0].learned.cursor
        spool.finish(cursor, oldest)

    def _finish_rollback(self) -> None:
        """Delete the checkpoints of what was gone back from, where that was not done."""
        to, lineage = self._spool.rewound, self._spool.lineage
        if to is None:
            return
        learned = [kept.learned for kept in self._store.all()]
        if any(each.cursor > to and each.lineage == lineage for each in learned):
            self._store.forget_after(to)
        self._spool.settle()

    def _restored(self, learned: Learned, state: LearnState) -> Accepted:
        try:
            self._learner = self._fresh(state)
        except (TrainingError, MethodError) as error:
            raise LearningError(
                f"{self._store.folder} cannot be gone on from with these settings: {error}"
            ) from error
        best = None
        if state.best is not None:
            best = Rival(state.best.version, self._learner.as_it_is())
            best.teacher.load_state_dict(state.best.tensors)
        return self._as_accepted(
            learned.cursor, learned.version, learned.parent, learned.tally, best
        )

    def _as_accepted(
        self, cursor: int, version: str, parent: str, tally: Tally, best: Rival | None = None
    ) -> Accepted:
        learner = self._learner
        return Accepted(cursor, version, parent, tally, learner.state(), learner.as_it_is(), best)

    def _fresh(self, state: LearnState | None = None) -> OnlineLearner:
        return OnlineLearner(
            self._base, self._settings, state, self._importance, self._part, self._beat
        )

    # A batch.

    @property
    def _cursor(self) -> int:
        """The last batch in the weights at hand, or the last order that waits behind it."""
        candidate = self._candidate
        return max([candidate.number, *candidate.orders]) if candidate else self._accepted.cursor

    def _take_or_publish(self) -> bool:
        at = self._cursor
        waiting = self._spool.waiting(at)
        oldest_ns = waiting.oldest_ns
        is_old = oldest_ns is not None and self._now() - oldest_ns >= self._rules.wait_s * _NS
        if not (waiting.journaled or waiting.pending >= self._rules.clips or is_old):
            self._keep_if_due()
            return self._publish_unjudged()
        try:
            batch = self._spool.next_batch(at, self._rules.clips, self._seed(at))
        except CorruptError as error:
            if error.batch is None:
                raise
            self._set_aside(error.batch, str(error))
            return True
        if batch is None:
            return False
        if batch.clips:
            self._try(batch.number, lambda: self._take(batch))
        else:
            self._try(batch.number, lambda: self._come_to_order(batch.number))
        return True

    def _try(self, number: int, work: Callable[[], None]) -> None:
        """Do a batch's work, or set it aside: none stands in the way of the others for ever."""
        if self._spool.try_batch(number) >= _ATTEMPTS:
            self._set_aside(
                number,
                f"it was begun {_ATTEMPTS} times and never ended: the learner died, hung or ran "
                "out of memory each time",
            )
            return
        try:
            work()
        except (MemoryError, torch.OutOfMemoryError) as error:
            self._go_back()
            self._halt(error, f"batch {number} finds no memory")
            return
        except (SpoolError, OSError):
            self._spool.end_batch(number)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the next batches are learned
            _log.exception("batch %d cannot be learned", number)
            self._go_back()  # where this fails too, the learner is begun anew
            self._set_aside(number, f"{type(error).__name__}: {error}"[:1000])
        self._spool.end_batch(number)

    def _seed(self, at: int) -> int:
        digest = sha256(f"{self._settings.seed} {at}".encode()).digest()
        return int.from_bytes(digest[:6], "little")

    def _take(self, batch: Journaled) -> None:
        """Judge the candidate by a batch, then learn it."""
        try:
            clips = [self._loaded(clip.payload) for clip in batch.clips]
        except LabelError as error:
            self._set_aside(batch.number, f"a clip cannot be read: {error}")
            return
        batches = self._learner.batches(clips)
        scores = self._judged(batches)
        self._recent.extend(scores.tolist())
        tally = self._accepted.tally.plus(len(clips), scores)
        try:
            self._learn(batch, clips, batches)
        except TrainingError as error:
            self._go_back()
            self._set_aside(batch.number, str(error))
            self._count_frames(tally)
            return
        self._candidate = Candidate(batch.number, tally, batches, self._clock())

    def _loaded(self, payload: bytes) -> LabeledClip:
        self._beat()
        return load(payload, self._base.preset.window_s)

    def _learn(
        self, batch: Journaled, clips: Sequence[LabeledClip], batches: Sequence[Batch]
    ) -> None:
        known = {*self._learner.categories, *(c.category for c in clips if c.category is not None)}
        if len(known) > MAX_ENTRIES:
            raise TrainingError(
                f"with batch {batch.number} the network would know {len(known)} classes; masks can "
                f"tell {MAX_ENTRIES}"
            )
        consolidator = self._learner.trainer.consolidator
        lifted = consolidator.lifted
        loss = self._learner.learn(clips, batches, batch.seed)
        if consolidator.lifted > lifted:
            self._say(
                "consolidated_late",
                f"in batch {batch.number} the method kept what it knows though the loss lay far "
                "above that of the last time for long; look whether the latest labels are right",
                {"batch": batch.number},
            )
        if not all(bool(p.isfinite().all()) for p in self._learner.network.trainable_parameters()):
            raise TrainingError(f"after batch {batch.number} a weight is not finite")
        _log.info("batch %d: %d clips, loss %.3f", batch.number, len(clips), loss)

    def _judged(self, batches: Sequence[Batch]) -> NDArray[np.float64]:
        """J of the frames of the next batch, by the candidate where it passes."""
        if self._candidate is None:
            return self._learner.score(batches)
        verdict = self._verdict(batches)
        if verdict.passes:
            self._accept(verdict.best_of(self._accepted))
            return verdict.fresh
        self._refuse(self._candidate, f"the next clips {verdict.told(self._accepted)}")
        return verdict.held

    def _verdict(self, batches: Sequence[Batch]) -> Verdict:
        learner, drop = self._learner, self._rules.canary_drop
        return Verdict.of(self._accepted, drop, lambda network: learner.score(batches, network))

    def _publish_unjudged(self) -> bool:
        """Serve a candidate that no clips came to judge, if what is at hand says nothing else."""
        candidate = self._candidate
        if candidate is None or candidate.was_tried:
            return False
        if self._clock() - candidate.learned_ns < self._rules.canary_wait_s * _NS:
            return False
        try:
            self._look_at(candidate)
        except (MemoryError, torch.OutOfMemoryError) as error:
            self._let_wait(candidate, f"to look at it there is no memory: {error}")
        return True

    def _look_at(self, candidate: Candidate) -> None:
        """Refuse a candidate, serve it or let it wait, by clips that were learned."""
        own = self._verdict(candidate.batches)
        if not own.passes:
            self._refuse(candidate, f"its own clips {own.told(self._accepted)}")
            return
        earlier = self._earlier()
        if earlier and not (verdict := self._verdict(earlier)).passes:
            self._let_wait(candidate, f"clips of the batches before {verdict.told(self._accepted)}")
            return
        candidate.was_tried = True
        tensors = self._learner.serving()
        version = _named(candidate.number, tensors)
        self._serve(version, self._accepted.version, candidate.number, "unjudged", tensors)

    def _let_wait(self, candidate: Candidate, why: str) -> None:
        candidate.was_tried = True
        self._say(
            "candidate_waits",
            f"batch {candidate.number} is learned and not served: {why}; the next clips judge it",
            {"batch": candidate.number},
        )

    def _earlier(self) -> list[Batch]:
        """The latest accepted clips, as far as they are still in the spool; to judge by alone."""
        stored = self._spool.latest_learned(self._accepted.cursor, self._rules.clips)
        try:
            clips = [load(clip.payload, self._base.preset.window_s) for clip in stored]
        except LabelError as error:
            _log.warning("clips that were learned cannot be read again: %s", error)
            return []
        return self._learner.batches(clips) if clips else []

    def _come_to_order(self, number: int) -> None:
        """Carry out a journaled order to consolidate, or let it wait for what is to be judged."""
        if self._candidate is None:
            self._hold_on(number)
        else:
            self._candidate.orders.append(number)

    def _hold_on(self, number: int) -> None:
        self._learner.consolidate()
        before, tensors = self._accepted, self._learner.serving()
        version = _named(number, tensors)
        self._accepted = self._as_accepted(
            number, version, before.version, before.tally, before.best
        )
        self._serve(version, before.version, number, "consolidated", tensors)
        self._keep_if_due()

    def _accept(self, best: Rival | None) -> None:
        candidate, before = self._candidate, self._accepted
        assert candidate is not None  # noqa: S101  callers look
        tensors = self._learner.serving()
        version = _named(candidate.number, tensors)
        self._accepted = self._as_accepted(
            candidate.number, version, before.version, candidate.tally, best
        )
        self._candidate = None
        if version != self._served:
            self._serve(version, before.version, candidate.number, "learned", tensors)
        self._keep_if_due()
        for number in candidate.orders:
            self._hold_on(number)

    def _refuse(self, candidate: Candidate, why: str) -> None:
        """Go back. What is served comes first: the spool or the disk may fail."""
        self._go_back()
        if self._served != self._accepted.version:
            self._publish("refused", self._served)
        self._set_aside(candidate.number, f"the canary refused it: {why}")
        self._count_frames(candidate.tally)
        for number in candidate.orders:
            self._hold_on(number)

    def _count_frames(self, tally: Tally) -> None:
        """The frames of a batch that was set aside were predicted all the same."""
        counted = replace(tally, clips=self._accepted.tally.clips)
        self._accepted = replace(self._accepted, tally=counted)

    def _go_back(self) -> None:
        self._candidate = None
        self._learner = self._fresh(self._accepted.state)

    def _set_aside(self, number: int, reason: str) -> None:
        """Quarantine a batch, once what it judged is kept: it does not come again to judge that."""
        if self._accepted.cursor > self._checkpoint:
            self._keep()
        self._spool.quarantine(number, reason)
        self._refused += 1
        self._say(
            "batch_refused",
            f"batch {number} was set aside: {reason}; look at its clips, then release or discard "
            "it (atlasd release, atlasd discard)",
            {"batch": number},
        )

    # Keeping and telling.

    def _keep_if_due(self) -> None:
        if self._accepted.cursor <= self._checkpoint:
            return
        is_time = self._clock() - self._checkpoint_ns >= self._rules.checkpoint_s * _NS
        if is_time or self._spool.is_crowded(self._accepted.cursor):
            self._keep()

    def _keep(self) -> Kept:
        accepted = self._accepted
        kept = self._write(accepted)
        self._checkpoint_ns = self._clock()
        self._spool.finish(accepted.cursor, self._store.all()[0].learned.cursor)
        if accepted.cursor > self._checkpoint:
            data = {"version": accepted.version, "batch": accepted.cursor}
            self._say("checkpoint", f"version {accepted.version} is kept in {kept.folder}", data)
        self._checkpoint = accepted.cursor
        self._make_room()
        return kept

    def _write(self, accepted: Accepted) -> Kept:
        learned = Learned(
            version=accepted.version,
            parent=accepted.parent,
            base=self._content,
            method=self._settings.method,
            cursor=accepted.cursor,
            tally=accepted.tally,
            made_ns=self._now(),
            lineage=self._lineage,
        )
        best = accepted.best and accepted.best.as_best()
        state = replace(accepted.state, best=best)
        self._beat()
        kept = self._store.write(learned, accepted.teacher.network, state)
        self._beat()
        return kept

    def _make_room(self) -> None:
        """Go without the oldest checkpoints where their clips are more than may wait."""
        while self._spool.is_crowded(self._checkpoint) and len(kept := self._store.all()) > 1:
            oldest, next_oldest = kept[0].learned, kept[1].learned
            self._store.forget_before(next_oldest.cursor)
            self._spool.finish(self._checkpoint, next_oldest.cursor)
            self._say(
                "version_dropped",
                f"version {oldest.version} is kept no more: the clips to learn again from there "
                "are more than intake.max_clips or intake.max_mb",
                {"version": oldest.version, "batch": oldest.cursor},
            )

    def _halt(self, error: Exception, what: str = "what is learned cannot be kept") -> None:
        first = self._halted is None
        self._halted = f"{what}: {error}; masks go on, tried again in 60 s"
        self._retry_ns = self._clock() + _RETRY_NS
        if first:
            self._say("learner_halted", self._halted, {})

    def _publish(self, reason: Reason, before: str) -> None:
        """Serve what was accepted last."""
        accepted = self._accepted
        self._serve(accepted.version, before, accepted.cursor, reason, self._learner.serving())

    def _serve(
        self, version: str, parent: str, batch: int, reason: Reason, tensors: Mapping[str, Tensor]
    ) -> None:
        categories = self._learner.categories
        self._tell(Publication(version, parent, batch, reason, categories, tensors))
        self._served = version

    def _say(self, kind: str, detail: str, data: Mapping[str, bool | int | float | str]) -> None:
        _log.info("%s: %s", kind, detail)
        self._tell(Happening(kind, detail, data))

    def _told(self, kept: Kept) -> VersionInfo:
        learned = kept.learned
        return VersionInfo(
            version=learned.version,
            parent=learned.parent,
            batch=learned.cursor,
            clips=learned.tally.clips,
            a_auc=learned.tally.mean,
            made_s=learned.made_ns / _NS,
            served=learned.version == self._served,
            path=str(kept.weights),
        )


def _named(batch: int, tensors: Mapping[str, Tensor]) -> str:
    """The name of weights: the last batch in them, and their content."""
    return f"{batch}-{tensor_hash(dict(tensors))[:8]}"

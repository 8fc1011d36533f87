"""Keeping what was learned: checkpoints and spool in step, whatever is cut in between.

A checkpoint is written before the spool hears what it holds, and a batch is set aside only once
what it judged is kept. What the checkpoints do not hold comes again out of the spool; see `spool`
for the order that this rests on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import Final

from .canary import Accepted
from .foundation import Foundation
from .infos import VersionInfo
from .learnstore import Kept, Learned, LearnStore
from .notices import LearningRules
from .onlinelearner import LearnState
from .spool import Spool
from .teller import Teller

_NS: Final = 1_000_000_000


class LearningError(Exception):
    """Learning cannot begin, or an order cannot be carried out: what came, what to do."""


class Keeper:
    """The checkpoints of one learner and the cursors of its spool.

    To begin: `newest`, then `begin` where that is the base, else `go_on`.

    Args:
        foundation: what learners are made from.
        rules: when to keep.
        spool: where clips come from.
        store: where what was learned is kept.
        teller: tells what is done.
        clock: monotonic nanoseconds.
        now: nanoseconds since 1970.

    Attributes:
        folder: of the checkpoints.
        checkpoint: cursor of the newest one, 0 for the base.
        refused: batches that were set aside since the process began.
    """

    def __init__(
        self,
        foundation: Foundation,
        rules: LearningRules,
        spool: Spool,
        store: LearnStore,
        teller: Teller,
        clock: Callable[[], int] = time.monotonic_ns,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._foundation, self._rules, self._teller = foundation, rules, teller
        self._spool, self._store = spool, store
        self._clock, self._now = clock, now
        self._lineage = ""
        self._kept_ns = clock()
        self.folder: Final[Path] = store.folder
        self.checkpoint = 0
        self.refused = 0

    # Beginning.

    def newest(self) -> tuple[Learned, LearnState | None]:
        """What to go on from: the newest checkpoint that is whole, or the base, without a state.

        Raises:
            LearningError: the checkpoint was made on another base or by another method.
            SpoolError, OSError: a rollback that was cut cannot be finished.
        """
        self.finish_rollback()
        found = self._store.newest()
        if found is None:
            return self._foundation.learned, None
        kept, state = found
        learned, wanted = kept.learned, self._foundation.learned
        if learned.base != wanted.base or learned.method != wanted.method:
            raise LearningError(
                f"{kept.folder} was learned by {learned.method} on base {learned.base[:12]}; this "
                f"daemon has {wanted.method} on {wanted.base[:12]}: go on with those, or "
                f"move {self.folder} away and begin anew"
            )
        return learned, state

    def begin(self, accepted: Accepted) -> None:
        """Begin anew: a first checkpoint, of the base.

        Raises:
            SpoolError, OSError: it cannot be written.
        """
        self._lineage = token_hex(8)
        self._put_away(-1)
        self._write(accepted)
        self._fit(0)

    def go_on(self, learned: Learned) -> None:
        """Go on from a checkpoint.

        Raises:
            SpoolError, OSError: the spool cannot be fitted to it.
        """
        self._lineage = learned.lineage
        self.checkpoint = learned.cursor
        self._put_away(learned.cursor)
        self._fit(learned.cursor)

    # Keeping.

    def keep(self, accepted: Accepted) -> Kept:
        """Write a checkpoint, and let go of what none needs any more.

        Raises:
            SpoolError, OSError: it cannot be written; what was kept before is there.
        """
        kept = self._write(accepted)
        self._kept_ns = self._clock()
        self._spool.finish(accepted.cursor, self._oldest())
        if accepted.cursor > self.checkpoint:
            data = {"version": accepted.version, "batch": accepted.cursor}
            self._teller.say(
                "checkpoint", f"version {accepted.version} is kept in {kept.folder}", data
            )
        self.checkpoint = accepted.cursor
        self._make_room()
        return kept

    def catch_up(self, accepted: Accepted) -> None:
        """Write a checkpoint where the newest one does not hold all that was accepted.

        Raises:
            SpoolError, OSError: as `keep`.
        """
        if accepted.cursor > self.checkpoint:
            self.keep(accepted)

    def keep_if_due(self, accepted: Accepted) -> None:
        """Catch up where it is time, or where learned clips crowd the spool.

        Raises:
            SpoolError, OSError: as `keep`.
        """
        if accepted.cursor <= self.checkpoint:
            return
        is_time = self._clock() - self._kept_ns >= self._rules.checkpoint_s * _NS
        if is_time or self._spool.is_crowded(accepted.cursor):
            self.keep(accepted)

    def set_aside(self, number: int, reason: str, accepted: Accepted) -> None:
        """Quarantine a batch, once what it judged is kept: it does not come again to judge that.

        Raises:
            SpoolError, OSError: as `keep`, or it cannot be set aside.
        """
        self.catch_up(accepted)
        self._spool.quarantine(number, reason)
        self.refused += 1
        self._teller.say(
            "batch_refused",
            f"batch {number} was set aside: {reason}; look at its clips, then release or discard "
            "it (atlasd release, atlasd discard)",
            {"batch": number},
        )

    # Going back.

    def versions(self) -> list[VersionInfo]:
        """What can be gone back to, oldest first."""
        return [self._told(kept) for kept in self._store.all()]

    def find(self, version: str) -> tuple[Learned, LearnState] | None:
        """A version that is kept; None where it is not, or is damaged."""
        found = self._store.find(version)
        return found and (found[0].learned, found[1])

    def rewind(self, to: Learned) -> None:
        """Journal that a checkpoint is gone back to; nothing is deleted yet.

        Raises:
            SpoolError, OSError: it cannot be journaled; all is as before.
        """
        self._spool.rewind(to.cursor, f"gone back to version {to.version}")

    def go_back(self, to: Learned) -> None:
        """Carry out what `rewind` journaled.

        Raises:
            SpoolError, OSError: as `finish_rollback`.
        """
        self.checkpoint = to.cursor
        self.finish_rollback()

    def finish_rollback(self) -> None:
        """Delete the checkpoints of what was gone back from, where that was not done.

        Raises:
            SpoolError, OSError: they cannot be deleted; say it again later.
        """
        to, lineage = self._spool.rewound, self._spool.lineage
        if to is None:
            return
        learned = [kept.learned for kept in self._store.all()]
        if any(each.cursor > to and each.lineage == lineage for each in learned):
            self._store.forget_after(to)
        self._spool.settle()

    # Store and spool.

    def _oldest(self) -> int:
        """Cursor of the oldest checkpoint."""
        return self._store.all()[0].learned.cursor

    def _put_away(self, cursor: int) -> None:
        """Put away what comes after the newest checkpoint that is whole."""
        for path in self._store.put_away_after(cursor):
            detail = f"a checkpoint is damaged and passed over; it lies in {path}"
            self._teller.say("checkpoint_damaged", detail, {"path": str(path)})

    def _fit(self, cursor: int) -> None:
        """Fit the spool to the checkpoints, where one of them is not that of before."""
        spool = self._spool
        oldest = self._oldest()
        if not spool.fits(self._lineage, cursor):
            rebased = spool.rebase(self._lineage, cursor, oldest)
            if cursor or rebased.waiting or rebased.gone:
                self._teller.say(
                    "learner_rebased",
                    f"{spool.path} and {self.folder} do not belong together: learning goes "
                    f"on after batch {cursor}; {rebased.waiting} clips that its weights do not "
                    f"hold wait again, {rebased.gone} are no longer on disk",
                    {"batch": cursor, "waiting": rebased.waiting, "gone": rebased.gone},
                )
        retired = spool.status().retired_up_to
        if oldest < retired:  # clips that were learned after it are no longer on disk
            self._store.forget_before(retired)
            oldest = self._oldest()
        spool.finish(cursor, oldest)

    def _write(self, accepted: Accepted) -> Kept:
        learned = replace(
            self._foundation.learned,
            version=accepted.version,
            parent=accepted.parent,
            cursor=accepted.cursor,
            tally=accepted.tally,
            made_ns=self._now(),
            lineage=self._lineage,
        )
        best = accepted.best and accepted.best.as_best()
        state = replace(accepted.state, best=best)
        self._foundation.beat()
        kept = self._store.write(learned, accepted.teacher.network, state)
        self._foundation.beat()
        return kept

    def _make_room(self) -> None:
        """Go without the oldest checkpoints where their clips are more than may wait."""
        while self._spool.is_crowded(self.checkpoint) and len(kept := self._store.all()) > 1:
            oldest, next_oldest = kept[0].learned, kept[1].learned
            self._store.forget_before(next_oldest.cursor)
            self._spool.finish(self.checkpoint, next_oldest.cursor)
            self._teller.say(
                "version_dropped",
                f"version {oldest.version} is kept no more: the clips to learn again from there "
                "are more than intake.max_clips or intake.max_mb",
                {"version": oldest.version, "batch": oldest.cursor},
            )

    def _told(self, kept: Kept) -> VersionInfo:
        learned = kept.learned
        return VersionInfo(
            version=learned.version,
            parent=learned.parent,
            batch=learned.cursor,
            clips=learned.tally.clips,
            a_auc=learned.tally.mean,
            made_s=learned.made_ns / _NS,
            served=learned.version == self._teller.served,
            path=str(kept.weights),
        )

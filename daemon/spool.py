"""The spool: labeled clips on disk, from their acknowledgement until they are learned.

One SQLite file (WAL, ``synchronous=FULL``), shared by the daemon that appends and the learner that
takes. Whatever process is killed, and when, no acknowledged clip is lost and none is learned twice,
as long as both keep this order:

1. The daemon calls `Spool.append` and acknowledges the clip once it has returned.
2. The learner keeps its *cursor* in its checkpoint: the number of the last batch in its weights, 0
   at the beginning. It asks `Spool.next_batch` for the batch after its cursor, which is journaled
   (members, order, seed) before it is returned.
3. It learns the batch, and may go on with ``after`` raised to the batch's number.
4. It writes a checkpoint that holds the cursor (fsync, rename, fsync of the folder).
5. It calls `Spool.finish` with the cursors of the newest and of the oldest checkpoint that it
   keeps. Payloads up to the latter are deleted; ids stay, so that a late duplicate is known.

Killed anywhere, the learner loads a checkpoint and asks for the batch after the cursor *in it*:
batches that were journaled since come again, with the same members, order and seed. Two refinements
of a learner that judges its own steps: `Spool.quarantine` sets a batch aside, and a person decides
between `Spool.release` (its clips wait again) and `Spool.discard`. A person's order to consolidate
is journaled too, as a batch without clips (`Spool.note_consolidation`).

Exactly once is meant within a *lineage*: the checkpoints that began together, from one base. The
spool knows which lineage its cursors belong to. Where a learner comes with other checkpoints (a new
base, a store or a spool that was moved away, a backup), `Spool.rebase` fits both together: what
these checkpoints do not hold and is still on disk waits again, numbers go on, and nothing of what
waited or was set aside is touched.

A batch may kill its learner. So `Spool.try_batch` counts on disk how often a batch was begun since
it was last learned to its end (`Spool.end_batch`), and how often it was looked at so.

A clip is ``pending``, then ``journaled``, then ``consumed`` (or ``quarantined``, then ``pending``
or ``discarded``); a pending or quarantined one may be replaced, each at its place, or become
``deleted``: so one wrong clip does not cost its batch. Its id is kept for ever.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from .spoolclips import SpoolClips
from .spooled import Batch, Rebased, StoredClip, Waiting
from .spoolfile import JournalError

Work = Literal["learn", "look"]
"""What may kill a learner: learning a batch, or looking whether its candidate may be served."""
_COUNTED_IN: Final[Mapping[Work, str]] = {"learn": "attempts", "look": "looks"}


class Spool(SpoolClips):
    """An open spool as a learner sees it; arguments and their errors are those of `SpoolClips`."""

    def waiting(self, after: int) -> Waiting:
        """What `next_batch` could give, at little cost and without journaling anything.

        Args:
            after: the cursor: number of the last batch in the learner's weights.

        Raises:
            StorageError, CorruptError: the file.
        """
        with self._file.told():
            pending, oldest_ns = self._db.execute(
                "SELECT coalesce(sum(clips), 0), (SELECT min(stored_ns) FROM clips"
                " INDEXED BY pending_by_age WHERE state = 'pending')"
                " FROM totals WHERE what = 'pending'"
            ).fetchone()
            journaled = self._db.execute(
                "SELECT 1 FROM batches WHERE number > ? AND state = 'journaled' LIMIT 1", (after,)
            ).fetchone()
        return Waiting(pending, oldest_ns, journaled is not None)

    def next_batch(self, after: int, size: int, seed: int) -> Batch | None:
        """The batch that comes after a cursor, journaled before this returns.

        If one was journaled before, that one comes again, with its own members and seed, whatever
        `size` and `seed` say now; batches that were set aside are passed over. Else the oldest
        pending clips become the next one.

        Args:
            after: the cursor: number of the last batch in the learner's weights.
            size: most clips of a new batch.
            seed: of a new batch, 0 to 2^63 - 1.

        Returns:
            The batch, or None while nothing is pending.

        Raises:
            JournalError: the cursor lies before the oldest kept checkpoint's or after the journal's
                end, or size or seed is out of bounds.
            CorruptError: the file, or a payload is not what was stored.
            StorageError: it cannot be read or written.
        """
        if size < 1 or not 0 <= seed < 2**63:
            raise JournalError(
                f"size is {size}, seed {seed}; size is from 1, seed from 0 to 2^63-1"
            )
        with self._file.transaction():
            _, retired = self._batches.cursors()
            last = self._batches.last()
            if not retired <= after <= last:
                raise JournalError(
                    f"the cursor is {after}; this spool can go on after batches {retired} to "
                    f"{last}: take a checkpoint that was made with this spool, and not one older "
                    "than the oldest that it was told is kept"
                )
            row = self._db.execute(
                "SELECT number, seed FROM batches WHERE number > ? AND state = 'journaled'"
                " ORDER BY number LIMIT 1",
                (after,),
            ).fetchone()
            if row is None:
                row = self._batches.journal(last + 1, size, seed)
        if row is None:
            return None
        number, seed = row
        return Batch(number, seed, self._batches.read(number))

    def note_consolidation(self) -> int:
        """Journal a person's order to keep what is known: a batch without clips, after all others.

        So it has its place among the batches, and is carried out exactly once, as they are learned.

        Returns:
            Its number.

        Raises:
            StorageError, CorruptError: the file.
        """
        with self._file.transaction():
            number = self._batches.last() + 1
            self._db.execute(
                "INSERT INTO batches (number, seed, state) VALUES (?, 0, 'journaled')", (number,)
            )
        return number

    def try_batch(self, number: int, work: Work = "learn") -> int:
        """Count that work on a batch is begun, on disk before its first step.

        Returns:
            How often it was begun before and not ended: its learner died in it each time.

        Raises:
            JournalError: there is no such batch.
            StorageError, CorruptError: the file.
        """
        column = _COUNTED_IN[work]
        with self._file.transaction():
            row = self._db.execute(
                f"SELECT {column} FROM batches WHERE number = ?",  # noqa: S608 - a name of ours
                (number,),
            ).fetchone()
            if row is None:
                raise JournalError(f"batch {number} is not in the journal; it cannot be begun")
            self._db.execute(
                f"UPDATE batches SET {column} = {column} + 1 WHERE number = ?",  # noqa: S608 - too
                (number,),
            )
        return row[0]

    def end_batch(self, number: int, work: Work = "learn") -> None:
        """Note that work on a batch came to its end, and may be begun again; see `try_batch`.

        Raises:
            StorageError, CorruptError: the file.
        """
        with self._file.transaction():
            self._db.execute(
                f"UPDATE batches SET {_COUNTED_IN[work]} = 0 WHERE number = ?",  # noqa: S608 - too
                (number,),
            )

    @property
    def lineage(self) -> str | None:
        """Of the checkpoints that the cursors belong to; None: nothing was learned from here.

        Raises:
            StorageError, CorruptError: the file.
        """
        with self._file.told():
            return self._db.execute("SELECT lineage FROM cursor").fetchone()[0]

    def fits(self, lineage: str, up_to: int) -> bool:
        """Whether learning can go on from a checkpoint without `rebase`.

        Args:
            lineage: of the checkpoint.
            up_to: its cursor.

        Raises:
            StorageError, CorruptError: the file.
        """
        with self._file.transaction(reading=True):
            _, retired = self._batches.cursors()
            return self.lineage == lineage and retired <= up_to <= self._batches.last()

    def rebase(self, lineage: str, up_to: int, oldest_kept: int) -> Rebased:
        """Go on with other checkpoints than before, once; saying it again changes nothing.

        Checkpoints of another lineage hold none of the batches here: clips whose payloads are there
        wait again, at their old places. Those of the same lineage come from a backup, or the spool
        does: they hold the batches up to their cursor. Clips that wait or are set aside stay so.

        Args:
            lineage: of the checkpoints.
            up_to: cursor of the one to go on from; new batches are numbered from there on, or from
                the last one here.
            oldest_kept: cursor of the oldest one.

        Raises:
            StorageError, CorruptError: the file.
        """
        with self._file.transaction():
            _, retired = self._batches.cursors()
            waiting = 0
            if self.lineage == lineage:
                first_gone, oldest_kept = up_to + 1, max(oldest_kept, min(retired, up_to))
            else:
                first_gone = 0
                waiting = self._batches.set_clips(
                    "pending", "journaled", retired + 1, self._batches.last()
                )
                self._db.execute(
                    "UPDATE batches SET attempts = 0, state = CASE"
                    " WHEN number IN (SELECT batch FROM members) THEN 'released' ELSE 'past' END"
                    " WHERE state = 'journaled' AND number > ?",
                    (retired,),
                )
            gone = self._batches.set_clips("consumed", "journaled", first_gone, retired)
            self._db.execute(
                "UPDATE batches SET state = 'past'"
                " WHERE state = 'journaled' AND number BETWEEN ? AND ?",
                (first_gone, retired),
            )
            self._db.execute(
                "UPDATE cursor SET finished = ?, retired = ?, lineage = ?, rewound = NULL",
                (up_to, oldest_kept, lineage),
            )
        return Rebased(waiting, gone)

    def finish(self, up_to: int, oldest_kept: int) -> None:
        """Note what the checkpoints hold; payloads that none of them needs any more are deleted.

        To be called after each checkpoint, and once a checkpoint was loaded.

        Args:
            up_to: cursor of the newest checkpoint, or of the one that was loaded.
            oldest_kept: cursor of the oldest one that may still be loaded.

        Raises:
            JournalError: the cursors contradict each other or the journal.
            StorageError, CorruptError: the file; say it again later.
        """
        with self._file.transaction():
            _, retired = self._batches.cursors()
            last = self._batches.last()
            if not retired <= oldest_kept <= up_to <= last:
                raise JournalError(
                    f"finished up to {up_to} with {oldest_kept} the oldest kept; it must be "
                    f"{retired} (kept before) <= oldest kept <= finished <= {last} (journaled)"
                )
            self._batches.set_clips("consumed", "journaled", retired + 1, up_to)
            self._batches.set_clips("journaled", "journaled", up_to + 1, last)
            self._db.execute(
                "DELETE FROM payloads WHERE sequence IN (SELECT sequence FROM members JOIN batches"
                " ON batch = number WHERE state = 'journaled' AND number > ? AND number <= ?)",
                (retired, oldest_kept),
            )
            self._db.execute("UPDATE cursor SET finished = ?, retired = ?", (up_to, oldest_kept))

    def is_crowded(self, up_to: int) -> bool:
        """Whether payloads of learned clips take more room than clips that wait may.

        A checkpoint then makes room, and if it does not, going without the oldest one; see
        `finish`.

        Args:
            up_to: number of the last batch that counts; those that no checkpoint needs any more
                do not.

        Raises:
            StorageError, CorruptError: the file.
        """
        with self._file.told():
            clips, total = self._db.execute(
                "SELECT count(*), coalesce(sum(clips.bytes), 0) FROM batches"
                " JOIN members ON batch = number JOIN clips USING (sequence)"
                " WHERE batches.state = 'journaled' AND number <= ?"
                " AND number > (SELECT retired FROM cursor)",
                (up_to,),
            ).fetchone()
        return clips > self.max_clips or total > self.max_bytes

    def latest_learned(self, up_to: int, most: int) -> tuple[StoredClip, ...]:
        """The latest clips that were learned, as far as a checkpoint may still need them.

        Args:
            up_to: number of the last batch that counts.
            most: clips.

        Returns:
            The newest first, without those that are damaged; none where none is kept any more.

        Raises:
            StorageError, CorruptError: the file.
        """
        with self._file.told():
            rows: Sequence[tuple[str, bytes, int]] = self._db.execute(
                "SELECT id, payload, crc32 FROM batches JOIN members ON batch = number"
                " JOIN clips USING (sequence) JOIN payloads USING (sequence)"
                " WHERE batches.state = 'journaled' AND number <= ?"
                " ORDER BY number DESC, place DESC LIMIT ?",
                (up_to, most),
            ).fetchall()
        return tuple(
            StoredClip(i, payload) for i, payload, crc in rows if zlib.crc32(payload) == crc
        )

    def quarantine(self, number: int, reason: str) -> None:
        """Set a batch aside that is in no checkpoint: it does not come again by itself.

        Raises:
            JournalError: there is no such batch, or a checkpoint holds it.
            StorageError, CorruptError: the file.
        """
        with self._file.transaction():
            finished, _ = self._batches.cursors()
            if number <= finished:
                raise JournalError(
                    f"batch {number} cannot be set aside: the newest checkpoint holds all up to "
                    f"{finished}"
                )
            self._batches.move(number, ("journaled", "quarantined"), "quarantined")
            self._db.execute("UPDATE batches SET reason = ? WHERE number = ?", (reason, number))

    def rewind(self, to: int, reason: str) -> None:
        """Go back to an earlier checkpoint: what was learned after it is set aside.

        To be called before the later checkpoints are deleted, and `settle` after it. Killed in
        between, the learner finds `rewound` and goes on to delete them.

        Args:
            to: cursor of the checkpoint, one that is still kept.
            reason: why, for people.

        Raises:
            JournalError: no checkpoint with this cursor is kept.
            StorageError, CorruptError: the file.
        """
        with self._file.transaction():
            finished, retired = self._batches.cursors()
            if not retired <= to <= finished:
                raise JournalError(
                    f"cannot go back to batch {to}: checkpoints of {retired} to {finished} are kept"
                )
            last = self._batches.last()
            self._batches.set_clips("quarantined", "journaled", to + 1, last)
            self._db.execute(
                "UPDATE batches SET reason = ?, state = CASE"
                " WHEN number IN (SELECT batch FROM members) THEN 'quarantined'"
                " ELSE 'discarded' END WHERE state = 'journaled' AND number > ?",
                (reason, to),
            )
            self._db.execute("UPDATE cursor SET finished = ?, rewound = ?", (to, to))

    @property
    def rewound(self) -> int | None:
        """Where `rewind` went back to, as long as checkpoints after it may be there; else None.

        Raises:
            StorageError, CorruptError: the file.
        """
        with self._file.told():
            return self._db.execute("SELECT rewound FROM cursor").fetchone()[0]

    def settle(self) -> None:
        """Note that the checkpoints after `rewound` are deleted.

        Raises:
            StorageError, CorruptError: the file.
        """
        with self._file.transaction():
            self._db.execute("UPDATE cursor SET rewound = NULL")

    def release(self, number: int) -> None:
        """Let the clips of a batch in quarantine wait again, at their old places, as they are now.

        Raises:
            JournalError: the batch is not in quarantine.
            StorageError, CorruptError: the file.
        """
        with self._file.transaction():
            self._batches.move(number, ("quarantined", "released"), "pending")

    def discard(self, number: int) -> None:
        """Delete the payloads of a batch in quarantine; the ids are kept.

        Raises:
            JournalError: the batch is not in quarantine.
            StorageError, CorruptError: the file.
        """
        with self._file.transaction():
            self._batches.move(number, ("quarantined", "discarded"), "discarded")
            self._db.execute(
                "DELETE FROM payloads WHERE sequence IN"
                " (SELECT sequence FROM members WHERE batch = ?)",
                (number,),
            )

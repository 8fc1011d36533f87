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
it was last learned to its end (`Spool.end_batch`).

A clip is ``pending``, then ``journaled``, then ``consumed`` (or ``quarantined``, then ``pending``
or ``discarded``); a pending or quarantined one may be replaced, each at its place, or become
``deleted``: so one wrong clip does not cost its batch. Its id is kept for ever.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from .spoolbook import SpoolBook, Total
from .spooled import (
    Batch,
    ClipState,
    Outcome,
    Rebased,
    SetAside,
    SpoolStatus,
    StoredClip,
    Waiting,
)
from .spoolfile import (
    ConflictError,
    CorruptError,
    DeletedError,
    JournaledError,
    JournalError,
    QuotaError,
    SpoolError,
    SpoolFile,
    UnknownClipError,
)

FILE_NAME: Final = "clips.sqlite"
MAX_ID_CHARACTERS: Final = 256
_OPEN: Final[tuple[ClipState, ...]] = ("pending", "quarantined")
"""Clips in these states can be replaced and deleted."""


class Spool:
    """An open spool; it belongs to one thread at a time, the file to as many processes as open it.

    Args:
        folder: made with mode 0700 where it is not there; the file gets 0600.
        max_clips: most clips that may wait or be set aside; so many again may be kept of what was
            learned, which is the learner's to see to (`is_crowded`).
        max_bytes: most bytes of their payloads, likewise.
        clock: nanoseconds since 1970.

    Raises:
        StorageError: the folder cannot be made, written or kept private.
        CorruptError: the file is damaged or of another format.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_clips: int = 10_000,
        max_bytes: int = 4_000_000_000,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.path: Final = folder / FILE_NAME
        self.max_clips: Final = max_clips
        self.max_bytes: Final = max_bytes
        self._clock = clock
        self._file = SpoolFile(self.path)
        self._db: Final = self._file.connection
        try:
            self._book = SpoolBook(self._file)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # The daemon's side.

    def recognise(self, clip_id: str, digest: bytes, *, replace: bool = False) -> Outcome | None:
        """What became of a clip that was put before; None for one that `append` would store.

        Args:
            clip_id: names the clip for ever.
            digest: of what was said about the clip; equal digests mean the same clip.
            replace: whether other content may take its place.

        Raises:
            ConflictError, JournaledError, DeletedError: as `append`.
            StorageError, CorruptError: the file.
        """
        with self._file.told():
            row = self._db.execute(
                "SELECT digest, state FROM clips WHERE id = ?", (clip_id,)
            ).fetchone()
        if row is None:
            return None
        known, state = row
        return _recognised(clip_id, known, state, digest, replace)

    def append(
        self,
        clip_id: str,
        payload: bytes,
        *,
        digest: bytes | None = None,
        replace: bool = False,
        category: str | None = None,
    ) -> Outcome:
        """Store a clip; it is on disk when this returns.

        The same id with the same digest is the same clip and is stored once.

        Args:
            clip_id: names the clip for ever, 1 to `MAX_ID_CHARACTERS` characters.
            payload: what the learner gets.
            digest: of what was said about the clip; None takes the payload's.
            replace: put it in the place of one with this id that is pending, set aside (its batch
                stays so) or deleted.
            category: its class, for `classes`.

        Raises:
            ConflictError: the id names a clip with other content, and `replace` is not set.
            JournaledError: it is to replace a clip that is being learned or was.
            DeletedError: the clip was deleted, and `replace` is not set.
            QuotaError: too many clips or bytes.
            StorageError: it could not be written, as where the disk is full.
            CorruptError: the file.
        """
        if not 1 <= len(clip_id) <= MAX_ID_CHARACTERS:
            raise SpoolError(
                f"the id has {len(clip_id)} characters; it must have 1 to {MAX_ID_CHARACTERS}"
            )
        digest = digest or sha256(payload).digest()
        with self._file.transaction():
            known = self.recognise(clip_id, digest, replace=replace)
            if known is not None:
                return known
            replaced = self._make_way(clip_id)
            self._check_quota(len(payload), replaced)
            entry = (clip_id, digest, len(payload), self._clock())
            if replaced is None:
                sequence = self._db.execute(
                    "INSERT INTO clips (id, digest, bytes, state, stored_ns)"
                    " VALUES (?, ?, ?, 'pending', ?)",
                    entry,
                ).lastrowid
            else:
                sequence = replaced
                self._db.execute(
                    "UPDATE clips SET id = ?, digest = ?, bytes = ?, stored_ns = ?, state = CASE"
                    " WHEN state = 'quarantined' THEN state ELSE 'pending' END WHERE sequence = ?",
                    (*entry, sequence),
                )
            self._db.execute(
                "INSERT INTO payloads VALUES (?, ?, ?, ?)",
                (sequence, len(payload), zlib.crc32(payload), payload),
            )
            if category is not None:
                self._book.note_class(category)
        return "stored" if replaced is None else "replaced"

    def delete(self, clip_id: str) -> None:
        """Delete a clip that is pending or set aside; deleting it again is harmless.

        Its id is kept. A batch that is set aside goes on without it.

        Raises:
            UnknownClipError: no clip has the id.
            JournaledError: it is being learned or was.
            StorageError, CorruptError: the file.
        """
        with self._file.transaction():
            row = self._db.execute(
                "SELECT sequence, state FROM clips WHERE id = ?", (clip_id,)
            ).fetchone()
            if row is None:
                raise UnknownClipError(f"no clip has the id {clip_id!r}; nothing was deleted")
            sequence, state = row
            if state == "deleted":
                return
            if state not in _OPEN:
                raise JournaledError(
                    f"clip {clip_id!r} is {state}; only one that is pending or set aside can be "
                    "deleted"
                )
            self._db.execute("DELETE FROM payloads WHERE sequence = ?", (sequence,))
            self._db.execute("UPDATE clips SET state = 'deleted' WHERE sequence = ?", (sequence,))
            self._db.execute(
                "DELETE FROM members WHERE sequence = ?"
                " AND batch IN (SELECT number FROM batches WHERE state = 'quarantined')",
                (sequence,),
            )

    def status(self) -> SpoolStatus:
        """What the spool holds, as of one moment.

        Raises:
            StorageError, CorruptError: the file.
        """
        with self._file.transaction(reading=True):
            totals = self._book.totals()
            clips: dict[ClipState, int] = {state: each.clips for state, each in totals.items()}
            held, size = self._book.held()
            (oldest_ns,) = self._db.execute(
                "SELECT min(stored_ns) FROM clips INDEXED BY pending_by_age WHERE state = 'pending'"
            ).fetchone()
            finished, retired = self._cursors()
            aside = self._db.execute(
                "SELECT number, reason FROM batches WHERE state = 'quarantined' ORDER BY number"
            ).fetchall()
            return SpoolStatus(
                clips,
                held,
                size,
                oldest_ns,
                self._last_batch(),
                finished,
                retired,
                tuple(SetAside(n, why, self._members(n)) for n, why in aside),
            )

    @property
    def classes(self) -> frozenset[str]:
        """Classes of all clips that were ever stored here.

        Raises:
            StorageError, CorruptError: the file.
        """
        return self._book.classes

    # Both sides.

    @property
    def is_paused(self) -> bool:
        """Whether nothing is to be learned; whoever learns asks when it begins.

        Raises:
            StorageError, CorruptError: the file.
        """
        return self._book.is_paused

    def pause(self, wanted: bool = True) -> None:
        """Let nothing be learned, whatever is started again, until this is taken back.

        Raises:
            StorageError, CorruptError: the file.
        """
        self._book.pause(wanted)

    # The learner's side.

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
            _, retired = self._cursors()
            last = self._last_batch()
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
                row = self._journal(last + 1, size, seed)
        if row is None:
            return None
        number, seed = row
        return Batch(number, seed, self._read(number))

    def note_consolidation(self) -> int:
        """Journal a person's order to keep what is known: a batch without clips, after all others.

        So it has its place among the batches, and is carried out exactly once, as they are learned.

        Returns:
            Its number.

        Raises:
            StorageError, CorruptError: the file.
        """
        with self._file.transaction():
            number = self._last_batch() + 1
            self._db.execute(
                "INSERT INTO batches (number, seed, state) VALUES (?, 0, 'journaled')", (number,)
            )
        return number

    def try_batch(self, number: int) -> int:
        """Count that a batch is begun, on disk before its first step.

        Returns:
            How often it was begun before and not ended: its learner died in it each time.

        Raises:
            JournalError: there is no such batch.
            StorageError, CorruptError: the file.
        """
        with self._file.transaction():
            row = self._db.execute(
                "SELECT attempts FROM batches WHERE number = ?", (number,)
            ).fetchone()
            if row is None:
                raise JournalError(f"batch {number} is not in the journal; it cannot be begun")
            self._db.execute(
                "UPDATE batches SET attempts = attempts + 1 WHERE number = ?", (number,)
            )
        return row[0]

    def end_batch(self, number: int) -> None:
        """Note that a batch was learned to its end, and may be learned again; see `try_batch`.

        Raises:
            StorageError, CorruptError: the file.
        """
        with self._file.transaction():
            self._db.execute("UPDATE batches SET attempts = 0 WHERE number = ?", (number,))

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
            _, retired = self._cursors()
            return self.lineage == lineage and retired <= up_to <= self._last_batch()

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
            _, retired = self._cursors()
            waiting = 0
            if self.lineage == lineage:
                first_gone, oldest_kept = up_to + 1, max(oldest_kept, min(retired, up_to))
            else:
                first_gone = 0
                waiting = self._set_states("pending", "journaled", retired + 1, self._last_batch())
                self._db.execute(
                    "UPDATE batches SET attempts = 0, state = CASE"
                    " WHEN number IN (SELECT batch FROM members) THEN 'released' ELSE 'past' END"
                    " WHERE state = 'journaled' AND number > ?",
                    (retired,),
                )
            gone = self._set_states("consumed", "journaled", first_gone, retired)
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
            _, retired = self._cursors()
            last = self._last_batch()
            if not retired <= oldest_kept <= up_to <= last:
                raise JournalError(
                    f"finished up to {up_to} with {oldest_kept} the oldest kept; it must be "
                    f"{retired} (kept before) <= oldest kept <= finished <= {last} (journaled)"
                )
            self._set_states("consumed", "journaled", retired + 1, up_to)
            self._set_states("journaled", "journaled", up_to + 1, last)
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
            finished, _ = self._cursors()
            if number <= finished:
                raise JournalError(
                    f"batch {number} cannot be set aside: the newest checkpoint holds all up to "
                    f"{finished}"
                )
            self._move(number, ("journaled", "quarantined"), "quarantined")
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
            finished, retired = self._cursors()
            if not retired <= to <= finished:
                raise JournalError(
                    f"cannot go back to batch {to}: checkpoints of {retired} to {finished} are kept"
                )
            last = self._last_batch()
            self._set_states("quarantined", "journaled", to + 1, last)
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
            self._move(number, ("quarantined", "released"), "pending")

    def discard(self, number: int) -> None:
        """Delete the payloads of a batch in quarantine; the ids are kept.

        Raises:
            JournalError: the batch is not in quarantine.
            StorageError, CorruptError: the file.
        """
        with self._file.transaction():
            self._move(number, ("quarantined", "discarded"), "discarded")
            self._db.execute(
                "DELETE FROM payloads WHERE sequence IN"
                " (SELECT sequence FROM members WHERE batch = ?)",
                (number,),
            )

    # Within a transaction.

    def _make_way(self, clip_id: str) -> int | None:
        """Take out what is to be replaced; its sequence, None where the id is new."""
        row = self._db.execute("SELECT sequence FROM clips WHERE id = ?", (clip_id,)).fetchone()
        if row is None:
            return None
        self._db.execute("DELETE FROM payloads WHERE sequence = ?", row)
        return row[0]

    def _check_quota(self, size: int, replaced: int | None) -> None:
        """Count what waits or is set aside: what is learned goes by itself, and must not keep out.

        Else a learner that needs further clips to go on would wait for an intake that waits for it.
        """
        totals = self._book.totals()
        pending, quarantined = (totals.get(each, Total()) for each in ("pending", "quarantined"))
        counted, bytes_counted = self._db.execute(
            "SELECT count(*), coalesce(sum(bytes), 0) FROM clips"
            " WHERE state IN ('pending', 'quarantined') AND sequence IS ?",
            (replaced,),
        ).fetchone()
        waiting = pending.clips + quarantined.clips - counted
        total = pending.bytes + quarantined.bytes - bytes_counted
        aside = quarantined.clips
        advice = "wait until some are learned"
        if aside:
            advice += f", release or discard the {aside} that are set aside"
        if waiting >= self.max_clips:
            raise QuotaError(
                f"the spool holds {waiting} clips that are not learned; {self.max_clips} are "
                f"allowed: {advice}, or raise intake.max_clips"
            )
        if total + size > self.max_bytes:
            raise QuotaError(
                f"the spool holds {total} bytes that are not learned and the clip has {size}; "
                f"{self.max_bytes} are allowed: {advice}, or raise intake.max_mb"
            )

    def _cursors(self) -> tuple[int, int]:
        return self._db.execute("SELECT finished, retired FROM cursor").fetchone()

    def _last_batch(self) -> int:
        """Number of the last batch; a spool that is younger than its checkpoints goes on theirs."""
        query = "SELECT max(finished, (SELECT coalesce(max(number), 0) FROM batches)) FROM cursor"
        return self._db.execute(query).fetchone()[0]

    def _journal(self, number: int, size: int, seed: int) -> tuple[int, int] | None:
        rows = self._db.execute(
            "SELECT sequence FROM clips WHERE state = 'pending' ORDER BY sequence LIMIT ?", (size,)
        ).fetchall()
        if not rows:
            return None
        self._db.execute(
            "INSERT INTO batches (number, seed, state) VALUES (?, ?, 'journaled')", (number, seed)
        )
        self._db.executemany(
            "INSERT INTO members VALUES (?, ?, ?)",
            [(number, place, sequence) for place, (sequence,) in enumerate(rows)],
        )
        self._db.executemany("UPDATE clips SET state = 'journaled' WHERE sequence = ?", rows)
        return number, seed

    def _move(self, number: int, from_to: tuple[str, str], clips: ClipState) -> None:
        """Bring a batch from one state to another, and its clips to theirs."""
        before, after = from_to
        row = self._db.execute("SELECT state FROM batches WHERE number = ?", (number,)).fetchone()
        if row != (before,):
            raise JournalError(
                f"batch {number} is {row[0] if row else 'not in the journal'}; it must be {before}"
            )
        self._set_states(clips, before, number, number)
        self._db.execute("UPDATE batches SET state = ? WHERE number = ?", (after, number))

    def _set_states(self, state: ClipState, batches: str, first: int, last: int) -> int:
        """Set the state of all clips in the batches of one state from the first to the last."""
        return self._db.execute(
            "UPDATE clips SET state = ? WHERE sequence IN (SELECT sequence FROM members"
            " JOIN batches ON batch = number"
            " WHERE batches.state = ? AND number BETWEEN ? AND ?)",
            (state, batches, first, last),
        ).rowcount

    def _members(self, number: int) -> tuple[str, ...]:
        rows = self._db.execute(
            "SELECT id FROM members JOIN clips USING (sequence) WHERE batch = ? ORDER BY place",
            (number,),
        )
        return tuple(clip_id for (clip_id,) in rows)

    # The file.

    def _read(self, number: int) -> tuple[StoredClip, ...]:
        with self._file.told():
            rows: Sequence[tuple[str, bytes | None, int]] = self._db.execute(
                "SELECT id, payload, crc32 FROM members JOIN clips USING (sequence)"
                " LEFT JOIN payloads USING (sequence) WHERE batch = ? ORDER BY place",
                (number,),
            ).fetchall()
        clips: list[StoredClip] = []
        for clip_id, payload, crc32 in rows:
            if payload is None or zlib.crc32(payload) != crc32:
                raise CorruptError(
                    f"{self.path}: the payload of clip {clip_id!r} in batch {number} is damaged; "
                    "set the batch aside, or restore the file",
                    batch=number,
                )
            clips.append(StoredClip(clip_id, payload))
        return tuple(clips)


def _recognised(
    clip_id: str, known: bytes, state: ClipState, digest: bytes, replace: bool
) -> Outcome | None:
    """What an id that is known means for a clip that is put."""
    if state == "deleted":
        if replace:
            return None
        raise DeletedError(f"clip {clip_id!r} was deleted; to bring it back, put it with replace")
    if known == digest:
        return state if state in ("consumed", "discarded") else "same"
    if not replace:
        raise ConflictError(
            f"the id {clip_id!r} names a clip with other content, which is {state}; use another "
            "id, or while it is pending or set aside put it with replace"
        )
    if state not in _OPEN:
        raise JournaledError(
            f"clip {clip_id!r} is {state}; only one that is pending or set aside can be replaced"
        )
    return None

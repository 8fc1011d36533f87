"""What a spool's file keeps of batches: their members and states, and the checkpoints' cursors."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from .spooled import ClipState, StoredClip
from .spoolfile import CorruptError, JournalError, SpoolFile


class BatchBook:
    """Belongs to a spool, within whose transactions it is asked.

    Args:
        file: where it lies.
    """

    def __init__(self, file: SpoolFile) -> None:
        self._file = file
        self._db = file.connection

    def cursors(self) -> tuple[int, int]:
        """Of the newest checkpoint and of the oldest one that is kept."""
        return self._db.execute("SELECT finished, retired FROM cursor").fetchone()

    def last(self) -> int:
        """Number of the last batch; a spool that is younger than its checkpoints goes on theirs."""
        query = "SELECT max(finished, (SELECT coalesce(max(number), 0) FROM batches)) FROM cursor"
        return self._db.execute(query).fetchone()[0]

    def journal(self, number: int, size: int, seed: int) -> tuple[int, int] | None:
        """Make a batch of the oldest pending clips, of `size` at the most.

        Returns:
            Its number and seed; None where nothing is pending.
        """
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

    def move(self, number: int, from_to: tuple[str, str], clips: ClipState) -> None:
        """Bring a batch from one state to another, and its clips to theirs.

        Raises:
            JournalError: it is not there, or not in the first of the two states.
        """
        before, after = from_to
        row = self._db.execute("SELECT state FROM batches WHERE number = ?", (number,)).fetchone()
        if row != (before,):
            raise JournalError(
                f"batch {number} is {row[0] if row else 'not in the journal'}; it must be {before}"
            )
        self.set_clips(clips, before, number, number)
        self._db.execute("UPDATE batches SET state = ? WHERE number = ?", (after, number))

    def set_clips(self, state: ClipState, batches: str, first: int, last: int) -> int:
        """Set the state of all clips in the batches of one state from the first to the last.

        Returns:
            How many clips these are.
        """
        return self._db.execute(
            "UPDATE clips SET state = ? WHERE sequence IN (SELECT sequence FROM members"
            " JOIN batches ON batch = number"
            " WHERE batches.state = ? AND number BETWEEN ? AND ?)",
            (state, batches, first, last),
        ).rowcount

    def members(self, number: int) -> tuple[str, ...]:
        """Ids of a batch's clips, in their order."""
        rows = self._db.execute(
            "SELECT id FROM members JOIN clips USING (sequence) WHERE batch = ? ORDER BY place",
            (number,),
        )
        return tuple(clip_id for (clip_id,) in rows)

    def read(self, number: int) -> tuple[StoredClip, ...]:
        """A batch's clips, in their order; a transaction is not needed.

        Raises:
            CorruptError: a payload is not what was stored, or the file is damaged.
            StorageError: it cannot be read.
        """
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
                    f"{self._file.path}: the payload of clip {clip_id!r} in batch {number} is "
                    "damaged; set the batch aside, or restore the file",
                    batch=number,
                )
            clips.append(StoredClip(clip_id, payload))
        return tuple(clips)

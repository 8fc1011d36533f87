"""A spool as the daemon sees it: clips are put, replaced and deleted, as far as a quota allows.

What a learner does with them, and the order that both keep, is told in `spool`.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from .batchbook import BatchBook
from .spoolbook import SpoolBook, Total
from .spooled import ClipState, Outcome, SetAside, SpoolStatus
from .spoolfile import (
    FILE_NAME,
    ConflictError,
    DeletedError,
    JournaledError,
    QuotaError,
    SpoolError,
    SpoolFile,
    UnknownClipError,
)

MAX_ID_CHARACTERS: Final = 256
_OPEN: Final[tuple[ClipState, ...]] = ("pending", "quarantined")
"""Clips in these states can be replaced and deleted."""


class SpoolClips:
    """An open spool; it belongs to one thread at a time, the file to as many processes as open it.

    Args:
        folder: made with mode 0700 where it is not there; the file gets 0600.
        max_clips: most clips that may wait or be set aside; so many again may be kept of what was
            learned, which is the learner's to see to (`Spool.is_crowded`).
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
            self._batches: Final = BatchBook(self._file)
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
            finished, retired = self._batches.cursors()
            aside = self._db.execute(
                "SELECT number, reason FROM batches WHERE state = 'quarantined' ORDER BY number"
            ).fetchall()
            return SpoolStatus(
                clips,
                held,
                size,
                oldest_ns,
                self._batches.last(),
                finished,
                retired,
                tuple(SetAside(n, why, self._batches.members(n)) for n, why in aside),
            )

    @property
    def classes(self) -> frozenset[str]:
        """Classes of all clips that were ever stored here.

        Raises:
            StorageError, CorruptError: the file.
        """
        return self._book.classes

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

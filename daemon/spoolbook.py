"""What a spool's file keeps beside clips and journal: totals, classes, and whether learning rests.

Totals by state are kept by triggers, so status costs the same however many clips were ever put. All
of it is laid out where it is missing, in files of any age.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from .spooled import ClipState
from .spoolfile import SpoolFile

_LAYOUT: Final = (
    "CREATE TABLE totals (what TEXT PRIMARY KEY, clips INTEGER NOT NULL, bytes INTEGER NOT NULL)"
    " WITHOUT ROWID",
    "CREATE TABLE classes (name TEXT PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE pause (since_ns INTEGER NOT NULL)",
    "INSERT INTO totals SELECT state, count(*), sum(bytes) FROM clips GROUP BY state",
    "INSERT INTO totals SELECT 'held', count(*), coalesce(sum(bytes), 0) FROM payloads",
    "CREATE TRIGGER clip_came AFTER INSERT ON clips BEGIN"
    " INSERT INTO totals VALUES (new.state, 1, new.bytes)"
    " ON CONFLICT (what) DO UPDATE SET clips = clips + 1, bytes = bytes + excluded.bytes; END",
    "CREATE TRIGGER clip_changed AFTER UPDATE OF state, bytes ON clips BEGIN"
    " UPDATE totals SET clips = clips - 1, bytes = bytes - old.bytes WHERE what = old.state;"
    " INSERT INTO totals VALUES (new.state, 1, new.bytes)"
    " ON CONFLICT (what) DO UPDATE SET clips = clips + 1, bytes = bytes + excluded.bytes; END",
    "CREATE TRIGGER payload_came AFTER INSERT ON payloads BEGIN UPDATE totals"
    " SET clips = clips + 1, bytes = bytes + new.bytes WHERE what = 'held'; END",
    "CREATE TRIGGER payload_went AFTER DELETE ON payloads BEGIN UPDATE totals"
    " SET clips = clips - 1, bytes = bytes - old.bytes WHERE what = 'held'; END",
    "CREATE INDEX pending_by_age ON clips (stored_ns) WHERE state = 'pending'",
    "CREATE INDEX batches_aside ON batches (number) WHERE state = 'quarantined'",
)


class Total(NamedTuple):
    """Clips, and the bytes of their payloads, also of those whose payload is gone."""

    clips: int = 0
    bytes: int = 0


class SpoolBook:
    """Belongs to a spool, within whose transactions it is asked.

    Args:
        file: where it lies.

    Raises:
        StorageError, CorruptError: the file.
    """

    def __init__(self, file: SpoolFile) -> None:
        self._file = file
        self._db = file.connection
        with file.transaction():
            query = "SELECT 1 FROM sqlite_master WHERE name = 'totals'"
            if self._db.execute(query).fetchone() is None:
                for statement in _LAYOUT:
                    self._db.execute(statement)

    def totals(self) -> dict[ClipState, Total]:
        """By state; those without a clip may be missing."""
        rows = self._db.execute("SELECT what, clips, bytes FROM totals WHERE what != 'held'")
        return {what: Total(clips, size) for what, clips, size in rows if clips}

    def held(self) -> Total:
        """Clips whose payload is kept."""
        query = "SELECT clips, bytes FROM totals WHERE what = 'held'"
        return Total(*self._db.execute(query).fetchone())

    @property
    def classes(self) -> frozenset[str]:
        """Classes of all clips that were ever stored."""
        with self._file.told():
            return frozenset(name for (name,) in self._db.execute("SELECT name FROM classes"))

    def note_class(self, name: str) -> None:
        """Note the class of a clip that is stored."""
        self._db.execute("INSERT OR IGNORE INTO classes VALUES (?)", (name,))

    @property
    def is_paused(self) -> bool:
        """Whether nothing is to be learned."""
        with self._file.told():
            return self._db.execute("SELECT 1 FROM pause").fetchone() is not None

    def pause(self, wanted: bool) -> None:
        """Let nothing be learned, also by a learner that begins later, or take that back."""
        if self.is_paused == wanted:
            return
        with self._file.transaction():
            self._db.execute("DELETE FROM pause")
            if wanted:
                self._db.execute("INSERT INTO pause VALUES (?)", (time.time_ns(),))

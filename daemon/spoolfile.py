"""The spool's file: an SQLite database, private and durable, whose errors say what to do."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Final

FILE_NAME: Final = "clips.sqlite"
_FORMAT = 3
_BUSY_S = 10.0
_PASSING = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM}
_PASSING_ERRNOS = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EDQUOT,
    errno.EINTR,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
_TURNSTILE = "turnstile.sqlite"
_WAL_BYTES = 1 << 26
_FOLDER_MODE, _FILE_MODE = 0o700, 0o600
_SCHEMA = """
CREATE TABLE clips (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    digest BLOB NOT NULL,
    bytes INTEGER NOT NULL,
    state TEXT NOT NULL,
    stored_ns INTEGER NOT NULL
);
CREATE INDEX clips_by_state ON clips (state, sequence);
CREATE TABLE payloads (
    sequence INTEGER PRIMARY KEY REFERENCES clips,
    bytes INTEGER NOT NULL,
    crc32 INTEGER NOT NULL,
    payload BLOB NOT NULL
);
CREATE TABLE batches (
    number INTEGER PRIMARY KEY,
    seed INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    attempts INTEGER NOT NULL DEFAULT 0,
    looks INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE members (
    batch INTEGER NOT NULL REFERENCES batches,
    place INTEGER NOT NULL,
    sequence INTEGER NOT NULL REFERENCES clips,
    PRIMARY KEY (batch, place)
) WITHOUT ROWID;
CREATE TABLE cursor (
    finished INTEGER NOT NULL,
    retired INTEGER NOT NULL,
    lineage TEXT,
    rewound INTEGER
);
INSERT INTO cursor VALUES (0, 0, NULL, NULL);
"""
_TO_FORMAT_2 = """
ALTER TABLE batches ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE cursor ADD COLUMN lineage TEXT;
ALTER TABLE cursor ADD COLUMN rewound INTEGER;
UPDATE cursor SET lineage = '';
"""
_TO_FORMAT_3 = """
ALTER TABLE batches ADD COLUMN looks INTEGER NOT NULL DEFAULT 0;
"""
_FROM = {0: _SCHEMA, 1: _TO_FORMAT_2 + _TO_FORMAT_3, 2: _TO_FORMAT_3}
"""What brings an empty file, or one of an earlier format, to this one."""


class SpoolError(Exception):
    """Something that the spool cannot do: what came, what is allowed, what to do.

    Attributes:
        code: a short stable name.
    """

    code: ClassVar[str] = "storage"


class StorageError(SpoolError):
    """The file system or another process stands in the way; nothing was changed."""


class BusyError(StorageError):
    """Another process holds the file, or the system cannot reach it just now; ask again later."""


class DiskFullError(StorageError):
    """No room on the disk; nothing was changed."""

    code = "disk_full"


class CorruptError(SpoolError):
    """The file is damaged or no spool.

    Attributes:
        batch: number of the batch whose payloads are damaged while the rest is sound; None: more.
    """

    code = "corrupt"

    def __init__(self, detail: str, *, batch: int | None = None) -> None:
        super().__init__(detail)
        self.batch: Final = batch


class ConflictError(SpoolError):
    """The id names another clip."""

    code = "conflict"


class DeletedError(SpoolError):
    """The id names a clip that was deleted."""

    code = "deleted"


class JournaledError(SpoolError):
    """The clip is being learned, was or was thrown away: neither to be replaced nor deleted."""

    code = "journaled"


class UnknownClipError(SpoolError):
    """No clip has the id."""

    code = "unknown_clip"


class QuotaError(SpoolError):
    """The spool holds as much as it may."""

    code = "quota"


class JournalError(SpoolError):
    """A batch or a cursor that does not fit the journal."""

    code = "journal"


class SpoolFile:
    """An open database; it belongs to one thread at a time, the file to any number of processes.

    SQLite's waiting for a lock is not fair: a process that writes without a pause was seen to keep
    another out for over 10 s. So who wants to write passes a turnstile first, a second and empty
    database: it is free while somebody writes, and whoever waits for his turn holds it.

    Args:
        path: the file, made with mode 0600; its folder is made with 0700 where it is not there.

    Attributes:
        path: the file.
        connection: to be used within `transaction` or `told`.

    Raises:
        StorageError: the folder cannot be made, written or kept private.
        CorruptError: the file is damaged or of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        _prepare(path.parent, path, path.with_name(_TURNSTILE))
        with self.told():
            self.connection: Final = _connect(path)
            self._turnstile = _connect(path.with_name(_TURNSTILE))
        try:
            with self.told():
                self.connection.execute("PRAGMA journal_mode=WAL")
                self.connection.execute("PRAGMA synchronous=FULL")
                self.connection.execute("PRAGMA foreign_keys=ON")
                self.connection.execute(f"PRAGMA journal_size_limit={_WAL_BYTES}")
            self._lay_out()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self.connection.close()
        self._turnstile.close()

    @contextmanager
    def transaction(self, *, reading: bool = False) -> Generator[None]:
        """All or nothing, and on disk at the end; while reading, all as of one moment."""
        with self.told():
            if reading:
                self.connection.execute("BEGIN DEFERRED")
            else:
                self._begin_writing()
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # a full disk may have ended it
                    self.connection.execute("ROLLBACK")
                raise

    @contextmanager
    def told(self) -> Generator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                raise DiskFullError(
                    f"{self.path}: the disk is full; the clip was not stored: make room"
                ) from error
            if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
                raise CorruptError(
                    f"{self.path}: is damaged ({error}); move it away to begin anew, or restore it"
                ) from error
            kind = BusyError if code in _PASSING else StorageError
            raise kind(f"{self.path}: {error}; nothing was changed") from error

    def _begin_writing(self) -> None:
        self._turnstile.execute("BEGIN IMMEDIATE")
        try:
            self.connection.execute("BEGIN IMMEDIATE")
        finally:
            self._turnstile.execute("ROLLBACK")

    def _lay_out(self) -> None:
        with self.transaction():
            (version,) = self.connection.execute("PRAGMA user_version").fetchone()
            if version == _FORMAT:
                self.connection.execute("SELECT finished, retired FROM cursor").fetchone()
                return
            (tables,) = self.connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version not in _FROM or (version == 0 and tables):
                raise CorruptError(
                    f"{self.path}: is of format {version}; this program reads {_FORMAT}: choose "
                    "another folder (intake.spool)"
                )
            self._run(_FROM[version])

    def _run(self, script: str) -> None:
        """Bring the file to this format, within a transaction."""
        for statement in script.split(";"):
            self.connection.execute(statement)
        self.connection.execute(f"PRAGMA user_version={_FORMAT}")


def passes(error: Exception) -> bool:
    """Whether what stands in the way may go by itself: a full disk, a lock, a lack of memory."""
    if isinstance(error, OSError):
        return error.errno in _PASSING_ERRNOS
    return isinstance(error, BusyError | DiskFullError)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)


def _prepare(folder: Path, *files: Path) -> None:
    """Make the folder and empty files, readable by their owner alone, and keep them on disk."""
    try:
        for missing in reversed([p for p in (folder, *folder.parents) if not p.exists()]):
            missing.mkdir(mode=_FOLDER_MODE)
            _sync(missing.parent)
        mode = folder.stat().st_mode & 0o777
        if mode & 0o077:
            raise StorageError(
                f"{folder}: has mode {mode:o}, so others may read the clips; it must be "
                f"{_FOLDER_MODE:o}: chmod {_FOLDER_MODE:o} {folder}, or choose another folder"
            )
        for file in files:
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, _FILE_MODE))
            file.chmod(_FILE_MODE)
        _sync(folder)
    except OSError as error:
        kind = BusyError if passes(error) else StorageError
        raise kind(f"{folder}: cannot be made a spool's folder ({error})") from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

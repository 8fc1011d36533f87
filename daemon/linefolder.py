"""Where the daemon and its learner meet: sockets in one folder of the user's, used again and again.

A daemon that is killed leaves its socket behind. The next daemon of the user finds it by the
process id in its name and takes it away, so that nothing piles up.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

_MODE: Final = 0o700
_NAME: Final = "atlasd"


class LineFolderError(OSError):
    """The folder is not the user's alone: what lies there, what to do."""


class LineFolder:
    """Names for the sockets of this process.

    The folder is ``atlasd`` in ``$XDG_RUNTIME_DIR``, else ``atlasd-UID`` among the temporary files:
    paths of sockets must be short (107 bytes on Linux), which a spool's may not be.

    Args:
        environ: variables.

    Raises:
        LineFolderError: somebody else's folder stands there, or others may enter it.
        OSError: it cannot be made.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        runtime = environ.get("XDG_RUNTIME_DIR")
        self.path: Final = (
            Path(runtime) / _NAME
            if runtime
            else Path(tempfile.gettempdir()) / f"{_NAME}-{os.getuid()}"
        )
        self._mine = f"line-{os.getpid()}-"
        self._make()
        self._sweep()

    def socket(self, number: int) -> Path:
        """Where the line of one life of the learner is."""
        self._make()
        return self.path / f"{self._mine}{number}"

    def clear(self) -> None:
        """Take this process's sockets away; the folder stays, for the next."""
        for left in self.path.glob(f"{self._mine}*"):
            left.unlink(missing_ok=True)

    def _make(self) -> None:
        with suppress(FileExistsError):
            self.path.mkdir(mode=_MODE)
        found = self.path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise LineFolderError(
                f"{self.path} belongs to user {found.st_uid} and has mode "
                f"{stat.filemode(found.st_mode)}; it must be a folder of user {os.getuid()} alone "
                "(drwx------): take it away, or set XDG_RUNTIME_DIR to a folder that is yours"
            )

    def _sweep(self) -> None:
        """Take away what processes left that are no more, and one of before with this one's id."""
        for left in self.path.glob("line-*-*"):
            owner = left.name.split("-")[1]
            if owner.isdecimal() and (int(owner) == os.getpid() or not _is_alive(int(owner))):
                left.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

"""What writes that were killed left behind: ``NAME.PID.part`` of processes that are gone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_PART = re.compile(r".+\.(\d{1,10})\.part")


def is_leftover(path: Path) -> bool:
    """Whether a file is the unfinished write of a process that is gone (from this machine)."""
    match = _PART.fullmatch(path.name)
    return match is not None and not _lives(int(match[1]))


def sweep(paths: Iterable[Path]) -> None:
    """Delete the leftovers among these files; what cannot be deleted stays."""
    for path in paths:
        if is_leftover(path):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # asks, and sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True

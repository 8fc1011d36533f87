"""Memory of processes."""

from __future__ import annotations

import os
from pathlib import Path


def resident_mb(pid: int | None = None) -> float | None:
    """Megabytes of a process that lie in memory now; None where the system does not say.

    Args:
        pid: the process; None: this one.
    """
    try:
        pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

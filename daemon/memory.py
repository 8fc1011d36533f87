"""Memory of processes."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def loaded_for_good() -> Generator[None]:
    """Inside, Python's collector passes over all objects that are there now.

    A full collection looks at the 400,000 objects of torch and its like, and holds every thread for
    some 0.2 s meanwhile; without them it takes a moment, and comes as often as what is made in
    service asks for.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


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

"""How many files a process may have open: each subscriber is one."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

ENOUGH: Final = 65_536
"""More is not asked for."""


def allow_many() -> None:
    """Raise the limit on open files as far as the system lets this user, up to `ENOUGH`.

    At the limit ZeroMQ accepts nobody and turns in circles (measured: half a core). Where there is
    no such limit, as on Windows, nothing is done.
    """
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # it stays as it was
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))

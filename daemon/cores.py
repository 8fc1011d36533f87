"""How many of this machine's cores there are for what."""

from __future__ import annotations

import os

_FEW_CORES = 2


def automatic_threads(*, is_paced: bool = False) -> int:
    """CPU threads for the network where none are asked for: all cores but one, at least one.

    The spare core decodes. Of two cores both are taken where pictures come at their own pace
    (``is_paced``): decoding then leaves its core alone most of the time.
    """
    cores = available_cores()
    return cores if is_paced and cores <= _FEW_CORES else max(1, cores - 1)


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

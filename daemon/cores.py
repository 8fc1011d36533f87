"""How many of this machine's cores there are for what."""

from __future__ import annotations

import os

_FEW_CORES = 2
_SPINS = "5000"
"""Turns that GNU's OpenMP waits awake: some microseconds. Its default is milliseconds."""


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


def wait_asleep() -> None:
    """Have torch's threads wait for each other asleep, but for a moment; to be called before torch.

    Else, where other programs keep a core busy, one thread spins as long as the other is kept out,
    and uses up what both would need: a forward pass of 35 ms then took 700. What the environment
    says of it already stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)

"""Spools for tests: clips in them, and their names in a batch."""

from __future__ import annotations

from atlasd.daemon.spool import Spool
from atlasd.daemon.spooled import Batch


def ids(batch: Batch) -> list[str]:
    return [clip.id for clip in batch.clips]


def filled(spool: Spool, n: int) -> Spool:
    for index in range(n):
        assert spool.append(f"c{index}", b"payload %d" % index) == "stored"
    return spool

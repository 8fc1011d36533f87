"""How evaluation runs are made; what they are stands in `runspec`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..streams.packages import cache_folder


@dataclass(frozen=True, slots=True)
class Options:
    """How runs are made; what they are stands in their `RunSpec`.

    Attributes:
        out: folder of all runs.
        workers: processes; 0: this one alone.
        devices: to deal the workers to, as ``cuda:0``; the first alone where there are no workers;
            none: as the runs say.
        methods: folders with further methods.
        cache: folder of decoded clips and encoded sounds; None: the user's.
        cache_gb: that it may take; 0: nothing is kept.
        save_s: seconds between two saved states of a task that is being learned.
        checked: whether the data is known to be sound, so that it need not be read first.
    """

    out: Path
    workers: int = 0
    devices: tuple[str, ...] = ()
    methods: tuple[Path, ...] = ()
    cache: Path | None = None
    cache_gb: float = 10.0
    save_s: float = 60.0
    checked: bool = False

    @property
    def cache_folder(self) -> Path:
        """Where clips are cached."""
        return self.cache or cache_folder().parent / "clips"

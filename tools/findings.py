"""What a check of `atlasd doctor` found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..daemon.config import Config

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: name of the check.
        status: ``fail`` what is configured cannot work; ``warn`` something may be missed.
        found: what is there.
        remedy: what to do; empty where nothing need be done.
    """

    check: str
    status: Verdict
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """What is examined.

    Attributes:
        config: the configuration; the defaults where it is faulty.
        path: its file, None where there is none.
    """

    config: Config
    path: Path | None = None

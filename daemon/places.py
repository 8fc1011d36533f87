"""Where a daemon keeps what must outlive it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .config import Config


def spool_folder(config: Config, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the configured intake keeps its clips."""
    if config.intake.spool is not None:
        return config.intake.spool
    state = environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "atlasd" / "spool" / config.source.stream


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for their owner alone.

    Raises:
        OSError: it cannot be made.
    """
    for path in reversed([folder, *folder.parents]):
        path.mkdir(mode=0o700, exist_ok=True)


def learned_folder(config: Config, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the configured learner keeps what it learned."""
    return config.learner.state or spool_folder(config, environ) / "learned"


def write_whole(path: Path, text: str) -> None:
    """Write a file whole, for its owner alone: it appears only when all of it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    part.replace(path)

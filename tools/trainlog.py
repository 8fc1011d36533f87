"""What a person sees of a training run: a progress bar, and TensorBoard's curves and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from rich.progress import (
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from torch.utils.tensorboard import SummaryWriter

from .countbar import count_bar


class TrainLog:
    """Shows and records one stage of a run, as a context manager.

    Attributes:
        every: steps between two points of a curve.
    """

    def __init__(self, folder: Path, *, every: int = 10) -> None:
        self.every = every
        self._writer = SummaryWriter(str(folder))
        self._bar = count_bar(None, TimeElapsedColumn(), TextColumn("{task.fields[note]}"))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
        self._writer.close()

    def task(self, description: str, total: int, done: int = 0) -> Task:
        """Begin a line of the progress display."""
        return Task(self._bar, description, total, done)

    def scalars(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        """Record values under ``prefix/name``."""
        for name, value in values.items():
            self._writer.add_scalar(f"{prefix}/{name}", value, step)

    def picture(self, name: str, image: NDArray[np.uint8], step: int) -> None:
        """Record a picture, uint8 (H, W, 3)."""
        self._writer.add_image(name, image, step, dataformats="HWC")

    def note(self, text: str) -> None:
        """Print a line above the progress display."""
        self._bar.console.print(text, highlight=False)


class Task:
    """One line of the progress display."""

    def __init__(self, bar: Progress, description: str, total: int, done: int) -> None:
        self._bar = bar
        self._task = bar.add_task(description, total=total, completed=done, note="")

    def advance(self, note: str = "") -> None:
        """Count one more, and say something beside it."""
        self._bar.update(self._task, advance=1, note=note)

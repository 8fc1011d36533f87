"""The progress bar of work that is counted."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


def count_bar(console: Console | None, *more: ProgressColumn, transient: bool = False) -> Progress:
    """A line a task: what it is, how many of how many, the time that is left.

    Args:
        console: where to draw; None: standard output.
        more: columns behind these.
        transient: whether it goes once all is done.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        *more,
        console=console,
        transient=transient,
    )

"""`atlasd evaluate`: replays continual-learning protocols, one run or a grid of them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.progress import TimeRemainingColumn as Remaining
from rich.table import Table

from .domainchecks import domain_faults
from .launcher import Event, InProcess, Job, Launcher, Workers
from .runchecks import faults
from .runfolder import RunFolder
from .runoptions import Options
from .runspec import GridError, RunSpec

_GB = 1 << 30


class EvaluateError(Exception):
    """What keeps the runs from beginning: every fault, one a line."""


def evaluate(specs: Sequence[RunSpec], options: Options, console: Console | None = None) -> bool:
    """Make all runs that are not made yet, and tell how they went.

    Args:
        specs: the runs.
        options: where and by how many.
        console: what to tell on.

    Returns:
        Whether all are whole.

    Raises:
        EvaluateError: something is wrong with a run or its data; nothing was begun.
    """
    console = console or Console(stderr=True)
    wrong = list(faults(specs, options, console)) or list(domain_faults(specs, options, console))
    if wrong:
        raise EvaluateError("\n".join(dict.fromkeys(wrong)))
    jobs = [
        Job(
            spec,
            options.out / spec.folder,
            options.methods,
            options.cache_folder,
            int(options.cache_gb * _GB),
            spec.twin and options.out / spec.twin.folder,
            options.save_s,
        )
        for spec in sorted(specs, key=lambda spec: spec.twin is not None)  # twins come first
    ]
    left = [job for job in jobs if not RunFolder(job.folder).metrics.exists()]
    console.print(f"{len(jobs)} runs, {len(jobs) - len(left)} of them there already", style="bold")
    failures = _make(left, _launcher(options, len(left)), console) if left else {}
    console.print(_table(jobs))
    for job, why in failures.items():
        console.print(f"[red]failed[/red] {left[job].folder}: {why}", highlight=False)
    return not failures


def _launcher(options: Options, jobs: int) -> Launcher:
    if options.workers == 0 or jobs < 2:
        return InProcess(next(iter(options.devices), ""))
    return Workers(options.workers, options.out / "logs", options.devices)


def _make(jobs: Sequence[Job], launcher: Launcher, console: Console) -> dict[int, str]:
    """Make runs with a progress display; return why some failed, by number."""
    failures: dict[int, str] = {}
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Elapsed(),
        Remaining(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        whole = bar.add_task("runs", total=len(jobs), note="")
        lines: dict[int, TaskID] = {}
        shares = [0.0] * len(jobs)

        def tell(event: Event) -> None:
            spec = jobs[event.job].spec
            if event.job not in lines:
                name = f"{spec.name} {spec.protocol} {spec.order} seed {spec.seed}"
                lines[event.job] = bar.add_task(name, total=1.0, note="")
            shares[event.job] = 1.0 if event.kind != "progress" else event.share
            if event.kind == "progress":
                bar.update(lines[event.job], completed=event.share, note=event.what)
            else:
                bar.remove_task(lines[event.job])
            if event.kind == "failed":
                failures[event.job] = event.what
                bar.console.print(f"[red]failed[/red] {spec.folder}: {event.what}", highlight=False)
            bar.update(whole, completed=sum(shares))

        launcher.run(jobs, tell)
    return failures


def _table(jobs: Sequence[Job]) -> Table:
    table = Table(title="Runs")
    names = ("AP AA", "AP LA", "AP F", "J AA", "J F", "F AA")
    for name in ("system", "protocol", "seed", *names):
        table.add_column(name, justify="left" if name in ("system", "protocol") else "right")
    for job in jobs:
        path = RunFolder(job.folder).metrics
        cells = ["-"] * len(names)
        if path.exists():
            measures = json.loads(path.read_text(encoding="utf-8"))["measures"]
            cells = [_percent(measures, *name.split()) for name in names]
        spec = job.spec
        table.add_row(spec.name, f"{spec.protocol}-{spec.order}", str(spec.seed), *cells)
    return table


def _percent(measures: dict[str, dict[str, dict[str, float | None] | None]], *name: str) -> str:
    measure, what = name
    value = ((measures.get(measure) or {}).get("summary") or {}).get(what)
    return "-" if value is None else f"{100 * value:.1f}"


__all__ = ["EvaluateError", "GridError", "Options", "evaluate"]

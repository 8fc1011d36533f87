"""`atlasd evaluate`: replays continual-learning protocols, one run or a grid of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.progress import TimeRemainingColumn as Remaining
from rich.table import Table

from ..model.method import MethodError
from ..model.methods import load as load_method
from ..model.presets import PRESETS
from ..streams.avscheck import check
from ..streams.avslayout import DatasetError, Subset, find_subset
from ..streams.manifest import ProtocolError
from ..streams.packages import cache_folder
from .clipstore import read_entries
from .launcher import Event, InProcess, Job, Launcher, Workers
from .runfolder import RunFolder
from .runplan import clips_of, planned, protocol_of
from .runspec import GridError, RunSpec

_GB = 1 << 30
_ROOM_BYTES = 2 * _GB
"""What must be free on the disk that runs are written to."""


class EvaluateError(Exception):
    """What keeps the runs from beginning: every fault, one a line."""


@dataclass(frozen=True, slots=True)
class Options:
    """How runs are made; what they are stands in their `RunSpec`.

    Attributes:
        out: folder of all runs.
        workers: processes; 0: this one alone.
        devices: GPUs to deal the workers to, as ``cuda:0``; none: as the runs say.
        methods: folders with further methods.
        cache: folder of decoded clips and encoded sounds; None: the user's.
        cache_gb: that it may take; 0: nothing is kept.
        checked: whether the data is known to be sound, so that it need not be read first.
    """

    out: Path
    workers: int = 0
    devices: tuple[str, ...] = ()
    methods: tuple[Path, ...] = ()
    cache: Path | None = None
    cache_gb: float = 10.0
    checked: bool = False

    @property
    def cache_folder(self) -> Path:
        """Where clips are cached."""
        return self.cache or cache_folder().parent / "clips"


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
    if faults := list(_faults(specs, options)):
        raise EvaluateError("\n".join(dict.fromkeys(faults)))
    jobs = [
        Job(
            spec,
            options.out / spec.folder,
            options.methods,
            options.cache_folder,
            int(options.cache_gb * _GB),
            spec.twin and options.out / spec.twin.folder,
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
        return InProcess()
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


def _faults(specs: Sequence[RunSpec], options: Options) -> Iterator[str]:
    """All that can be known to be wrong before anything is computed."""
    if not specs:
        yield "there is nothing to run"
    for spec in specs:
        if spec.network not in PRESETS:
            yield f"network {spec.network!r} is unknown; choose one of {', '.join(PRESETS)}"
            continue
        if spec.features_of and spec.features_of not in PRESETS:
            yield f"features_of {spec.features_of!r} is unknown; choose one of {', '.join(PRESETS)}"
        try:
            PRESETS[spec.network].vary(spec.vary)
            load_method(spec.method, spec.options, options.methods)
        except (MethodError, ValueError) as error:
            yield f"{spec.name}: {error}"
    yield from _room(options)
    halves: dict[tuple[Path, Subset], None] = dict.fromkeys((s.data, s.subset) for s in specs)
    for root, subset in halves:
        if find_subset(root, subset) is None:
            yield (
                f"{root}: no AVSBench-like {subset} in it; name the folder that holds "
                "Single-source and Multi-sources, or compose Open-AVS: `atlasd dataset build`"
            )
            continue
        if not options.checked:
            yield from _data_faults(root, options)
        yield from _plan_faults([s for s in specs if (s.data, s.subset) == (root, subset)])


def _plan_faults(specs: Sequence[RunSpec]) -> Iterator[str]:
    """What keeps the clips of one subset from being dealt to tasks, as far as the table tells."""
    try:
        entries = list(read_entries(specs[0].data, specs[0].subset).values())
    except DatasetError as error:
        yield str(error)
        return
    for spec in specs:
        try:
            if not protocol_of(spec).needs_features:
                planned(spec, clips_of(spec, entries), None)
        except ProtocolError as error:
            yield from (f"{spec.name} {spec.protocol}: {line}" for line in error.lines)


def _room(options: Options) -> Iterator[str]:
    folder = options.out
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < _ROOM_BYTES:
        yield (
            f"{options.out}: {free / _GB:.1f} GB are free there; {_ROOM_BYTES / _GB:.0f} GB are "
            "needed: free some, or name another folder"
        )
    if not os.access(folder, os.W_OK):
        yield f"{options.out} cannot be written: name another folder"


def _data_faults(root: Path, options: Options) -> Iterator[str]:
    """What is wrong with a data set; one that was sound is not read again while it looks alike."""
    digest = hashlib.sha256()
    for subset in ("s4", "ms3"):
        found = find_subset(root, subset)
        if found is not None:
            digest.update(str(found.table.resolve()).encode() + found.table.read_bytes())
            for path in sorted(found.data.glob("*/*")):
                digest.update(f"{path} {path.stat().st_mtime_ns}".encode())
    stamp = options.cache_folder / "sound" / digest.hexdigest()[:32]
    if stamp.exists():
        return
    try:
        report = check(root)
    except DatasetError as error:
        yield str(error)
        return
    for problem in report.problems:
        if problem.severity == "error":
            yield f"{problem.path}: {problem.detail}"
    if report.ok:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()


__all__ = ["EvaluateError", "GridError", "Options", "evaluate"]

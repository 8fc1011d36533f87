"""`atlasd report`: tables, figures and a page from the runs that `atlasd evaluate` made."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from .reportdrawing import styles
from .reportformats import latex, markdown, table_csv, to_csv
from .reportgallery import gallery
from .reportpage import Section, page
from .reportruns import ReportError, read_runs
from .reportstrips import MOST_SYSTEMS
from .reportstudy import Study, study
from .reporttables import (
    LONG_COLUMNS,
    ablation_tables,
    cost_table,
    long_rows,
    main_table,
    prequential_table,
    run_rows,
    task_table,
)
from .runfolder import write_bytes, write_json
from .runmetrics import MEASURES, POOLED


@dataclass(frozen=True, slots=True)
class Options:
    """What a report is about.

    Attributes:
        measure: of the first table, the transfer plot, the radar and, where runs keep it along the
            stream, the curves.
        systems: only these, in this order; none: all, by name.
        show: whose masks are shown; none: those of the first six.
    """

    measure: str = "AP"
    systems: tuple[str, ...] = ()
    show: tuple[str, ...] = ()


def report(
    folders: Sequence[Path],
    out: Path,
    options: Options | None = None,
    console: Console | None = None,
) -> Path:
    """Write a report of all runs below some folders.

    Args:
        folders: what `atlasd evaluate` filled.
        out: folder of the report; files of an earlier one that are not written again are deleted.
        options: what it is about.
        console: what to tell on.

    Returns:
        The page.

    Raises:
        ReportError: there is nothing to report, or something that was asked for is not there.
        RunError: a file cannot be written.
    """
    options, console = options or Options(), console or Console(stderr=True)
    if out.exists() and not out.is_dir():
        raise ReportError(
            f"--out {out} is a file; name a folder, which is made where it is missing"
        )
    with Progress(console=console, transient=True) as bar:
        reading = bar.add_task("reading runs", total=None)
        runs, unfinished = read_runs(
            folders, lambda done, total: bar.update(reading, completed=done, total=total)
        )
        found = study(runs, unfinished, options.systems)
        _check(found, options)
        bar.remove_task(reading)
        drawing = bar.add_task("writing tables", total=None)
        writer = _Writer(out)
        _write(writer, found, options, lambda what: bar.update(drawing, description=what))
    writer.finish(found, options)
    for one in found.unfinished:
        console.print(f"[yellow]left out[/yellow] {one.path}: {one.why}", highlight=False)
    console.print(f"{len(found.runs)} runs of {len(found.systems)} systems: {out / 'index.html'}")
    return out / "index.html"


def _check(found: Study, options: Options) -> None:
    if not found.runs:
        reasons = "; ".join(f"{one.path}: {one.why}" for one in found.unfinished[:3])
        raise ReportError(f"no run is finished ({reasons}); finish one with `atlasd evaluate`")
    there = {name for run in found.runs for name in run.matrices}
    if options.measure not in there:
        every = (*MEASURES, *POOLED)
        raise ReportError(
            f"--measure {options.measure}: no run has it; there are "
            f"{', '.join(name for name in every if name in there)}"
        )
    if unknown := [name for name in options.show if name not in found.systems]:
        raise ReportError(
            f"--show {unknown[0]}: not among the report's systems {', '.join(found.systems)}"
        )


class _Writer:
    """Writes files below a folder and knows which."""

    def __init__(self, out: Path) -> None:
        self._out, self._index = out, out / "report.json"
        self._files: list[str] = []

    def write(self, name: str, content: str | bytes) -> None:
        data = content.encode() if isinstance(content, str) else content
        write_bytes(self._out / name, data)
        self._files.append(name)

    def finish(self, found: Study, options: Options) -> None:
        """Delete what an earlier report left, and note what this one wrote."""
        for name in self._before():
            path = (self._out / name).resolve()
            if name not in self._files and path.is_relative_to(self._out.resolve()):
                path.unlink(missing_ok=True)
        told = {
            "measure": options.measure,
            "systems": found.systems,
            "settings": [setting.stem for setting in found.settings],
            "data": [data._asdict() for data in found.data],
            "runs": [run.hash for run in found.runs],
            "unfinished": [{"path": str(u.path), "why": u.why} for u in found.unfinished],
            "notes": list(found.notes()),
            "files": self._files,
        }
        write_json(self._index, told)

    def _before(self) -> list[str]:
        try:
            return [str(n) for n in json.loads(self._index.read_text(encoding="utf-8"))["files"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []


def _write(writer: _Writer, found: Study, options: Options, tell: Callable[[str], None]) -> None:
    look = styles(found.systems)
    main = main_table(found, options.measure)
    ablations = ablation_tables(found)
    by_task, before = task_table(found, options.measure), prequential_table(found)
    costs = cost_table(found)
    others = [table for table in (by_task, before, costs) if table is not None]
    for table in (main, *ablations, *others):
        writer.write(f"tables/{table.name}.md", markdown(table))
        writer.write(f"tables/{table.name}.tex", latex(table))
        writer.write(f"tables/{table.name}.csv", table_csv(table))
    writer.write("tables/all.csv", to_csv(LONG_COLUMNS, long_rows(found)))
    writer.write("tables/runs.csv", to_csv(*run_rows(found)))
    show = options.show or found.systems[:MOST_SYSTEMS]
    drawn = gallery(found, options.measure, show, look, writer.write, tell)
    titles = [setting.title for setting in found.settings]
    sections = [
        Section("best", "Who is best", "", {main.title: main}),
        *drawn,
        Section("parts", "What each is worth", "", dict(zip(titles, ablations, strict=True))),
        *(Section(table.name, table.title, "", {table.title: table}) for table in others),
    ]
    writer.write("index.html", page(found, main, sections, look))

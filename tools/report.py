"""`atlasd report`: from a tree of runs to tables, figures and a page to look at.

The folder that is written holds ``index.html`` (all in one file), ``tables/NAME.md``, ``.csv`` and
``.tex``, ``tables/runs.csv`` (every number of every run), ``figures/NAME.png`` and ``.svg``, and
``report.json``, which lists them. Equal runs give equal bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from .reportfigures import anytimes, headline, heat_maps, radars, transfers
from .reportformats import to_csv, to_latex, to_markdown
from .reportgroups import Results, group_runs
from .reportpage import Picture, page
from .reportpalette import looks
from .reportplots import (
    draw_anytime,
    draw_headline,
    draw_heat_maps,
    draw_radars,
    draw_strips,
    draw_transfers,
    saved,
    style,
)
from .reportruns import Absent, ReportError, find_runs
from .reportstrips import strips
from .reporttables import all_tables, run_lines, title_of
from .runfolder import write_bytes

_LIST = "report.json"


@dataclass(frozen=True, slots=True)
class Report:
    """What was written.

    Attributes:
        page: the file to open.
        files: all files, relative to the folder.
        runs: that are whole.
        absent: runs that have no metrics.
    """

    page: Path
    files: tuple[str, ...]
    runs: int
    absent: tuple[Absent, ...]


def report(runs: Path, out: Path) -> Report:
    """Write a report.

    Args:
        runs: a folder of runs, as ``atlasd evaluate --out`` writes.
        out: the folder to write; of what is there an earlier report's files are replaced.

    Raises:
        ReportError: there is no whole run, a file is broken, runs clash, or the folder is another's.
        RunError: the folder cannot be written.
    """
    earlier = _earlier(out)
    found, absent = find_runs(runs)
    results = group_runs(found)
    files: dict[str, bytes] = {}
    tables = all_tables(results)
    for table in tables:
        for ending, written in (("md", to_markdown), ("csv", to_csv), ("tex", to_latex)):
            files[f"tables/{table.name}.{ending}"] = written(table).encode()
    files["tables/runs.csv"] = run_lines(results).encode()
    pictures = draw_all(results)
    for picture in pictures:
        files[f"figures/{picture.name}.png"] = picture.png
        files[f"figures/{picture.name}.svg"] = picture.svg
    files["index.html"] = page(results, tables, pictures, absent).encode()
    for name in sorted(earlier - files.keys()):
        (out / name).unlink(missing_ok=True)
    names = sorted(files)
    files[_LIST] = (json.dumps({"files": names}, indent=1) + "\n").encode()
    for name, data in files.items():
        write_bytes(out / name, data)
    return Report(out / "index.html", tuple(sorted(files)), len(found), tuple(absent))


def _earlier(out: Path) -> set[str]:
    """Files of a report that was written to a folder before.

    Raises:
        ReportError: the folder holds other things.
    """
    if out.is_file():
        raise ReportError(f"{out} is a file; name a folder for the report")
    if not out.exists() or not any(out.iterdir()):
        return set()
    try:
        told = json.loads((out / _LIST).read_text(encoding="utf-8"))["files"]
        names = {str(name) for name in told}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(
            f"{out} holds other files and no report; name a new folder, or empty this one"
        ) from error
    return {name for name in names if re.fullmatch(r"((tables|figures)/)?[\w-]+\.\w+", name)}


def draw_all(results: Results) -> list[Picture]:
    """All figures, in the order in which a page shows them."""
    with style():
        return [
            Picture(name, kind, caption, *saved(figure))
            for name, kind, caption, figure in _figures(results)
        ]


_Draw = Callable[[str, str, str], Figure | None]

_KINDS: Mapping[str, tuple[str, str]] = {
    "transfer": (
        "Forward transfer against forgetting",
        "FWT (before a task is learned) against forgetting, both of AP, with 95 % t-intervals over "
        "seeds. Upper left is best.",
    ),
    "anytime": (
        "Along the stream",
        "AP after each task (task-free: on all test clips; else on those of the tasks seen), band: "
        "95 % t-interval over seeds. Legend: A_AUC, the mean along the stream.",
    ),
    "radar": (
        "Six axes",
        "1 (the rim) is best; dotted: the best of all systems on each axis. A value below 0 is "
        "drawn at 0. Speed and Memory are against the least of the systems compared.",
    ),
    "heatmap": (
        "Task by task",
        "Max-F after each task (row) on each task's test clips (column), mean over seeds. The "
        "diagonal is the task just learned, left of it what was kept, right of it what is to come; "
        "grey was not scored.",
    ),
    "strip": (
        "Masks",
        "The middle frame of test clips, its truth, and what each system marks (p ≥ 0.5) after its "
        "last task; one seed.",
    ),
}


def _figures(results: Results) -> Iterator[tuple[str, str, str, Figure]]:
    """Name, heading, caption and figure of each."""
    look = looks(results.labels)
    for order in results.orders:
        best = headline(results, order)
        if best.labels:
            name = "headline" if order == "random" else f"headline-{order}"
            caption = f"mAP after the last task{'' if order == 'random' else f', {order} order'}."
            yield name, "", caption, draw_headline(best, look)

    def transfer(protocol: str, order: str, title: str) -> Figure | None:
        points = transfers(results, protocol, order)
        return draw_transfers(points, title, look) if points else None

    def anytime(protocol: str, order: str, title: str) -> Figure | None:
        curves = anytimes(results, protocol, order)
        return draw_anytime(curves, title, look) if curves else None

    def radar(protocol: str, order: str, title: str) -> Figure | None:
        found = [one for one in radars(results, protocol, order) if any(one.axes.values())]
        return draw_radars(found, title, look) if found else None

    def heatmap(protocol: str, order: str, title: str) -> Figure | None:
        maps = heat_maps(results, protocol, order)
        return draw_heat_maps(maps, title, look) if maps else None

    def strip(protocol: str, order: str, title: str) -> Figure | None:
        found = strips(results, protocol, order)
        return draw_strips(found, title, {n: look[n] for n in results.labels}) if found else None

    drawing: dict[str, _Draw] = {
        "transfer": transfer, "anytime": anytime, "radar": radar, "heatmap": heatmap,
        "strip": strip,
    }  # fmt: skip
    for kind, draw in drawing.items():
        heading, caption = _KINDS[kind]
        for protocol, order in results.settings:
            title = title_of(protocol, order)
            figure = draw(protocol, order, title)
            if figure is not None:
                slug = re.sub(r"[^a-z0-9]+", "-", f"{protocol} {order}".lower()).strip("-")
                yield f"{kind}-{slug}", heading, f"{title}. {caption}", figure


__all__ = ["Report", "ReportError", "report"]

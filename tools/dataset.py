"""The programs behind ``atlasd dataset build`` and ``atlasd dataset check``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ..streams import avscheck, openavs
from ..streams.avsbench import AVSBench, Entry, Split
from ..streams.avslayout import Subset
from ..streams.avsplan import Size
from .countbar import count_bar
from .overlay import blend, contact_sheet

SHEET = "contact-sheet.png"
_SHEET_CLIPS = 40
_SPLITS: tuple[Split, ...] = ("train", "val", "test", "test_novel")


def build(
    folder: Path,
    size: Size,
    *,
    seed: int = 0,
    packages: Path | None = None,
    workers: int | None = None,
    accept_content: bool = False,
    console: Console | None = None,
) -> openavs.Built:
    """Compose Open-AVS with a progress bar and leave a contact sheet in its folder.

    Args:
        folder: the data set's folder; a build that was cut short there goes on.
        size: ``ci``, ``standard`` or ``full``.
        seed: of everything random.
        packages: folder with Debian packages; None asks apt.
        workers: processes; None is one per core.
        accept_content: compose from content that differs from what is pinned.
        console: where to report; None is the terminal.

    Raises:
        PackageError, ContentError, BuildError: as `openavs.build` says.
    """
    console = console or Console()
    with count_bar(console, transient=True) as bar:
        task = bar.add_task("packages", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        built = openavs.build(
            folder,
            size,
            seed=seed,
            packages=packages,
            workers=workers,
            accept_content=accept_content,
            progress=show,
        )
    sheet = write_contact_sheet(folder)
    counts = ", ".join(f"{name} {count}" for name, count in built.counts.items())
    console.print(f"{built.dataset_id}: {counts}", soft_wrap=True)
    console.print(f"A look at it: {sheet}", soft_wrap=True)
    return built


def check(folder: Path, *, console: Console | None = None) -> bool:
    """Read all of a data set, print what is there and what is wrong; return whether it is sound.

    Raises:
        DatasetError: there is no data set in ``folder``.
    """
    console = console or Console()
    with count_bar(console, transient=True) as bar:
        task = bar.add_task("clips", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        report = avscheck.check(folder, progress=show)
    for found in report.tables():
        table = Table(*found.columns, title=found.title, title_justify="left")
        for row in found.rows:
            table.add_row(*row)
        console.print(table)
    for problem in report.problems:
        console.print(
            f"{problem.severity}: {problem.path}: {problem.detail}", soft_wrap=True, markup=False
        )
    console.print("The data set is sound." if report.ok else "The data set has errors.")
    return report.ok


def write_contact_sheet(folder: Path) -> Path:
    """Write ``contact-sheet.png``: clips from all over the data set, what sounds tinted.

    Each clip is shown by its third frame; the caption names what is heard and how it was composed.
    """
    entries = [entry for subset in ("s4", "ms3") for entry in _entries(folder, subset)]
    chosen = [entries[at] for at in _spread(len(entries), _SHEET_CLIPS)]
    images = [blend(entry.frames()[2], entry.masks()[0][2] > 0) for entry in chosen]
    captions = [f"{entry.split} {entry.kind}: {_heard(entry)}" for entry in chosen]
    path = folder / SHEET
    contact_sheet(images, captions, columns=8, cell_width_px=224).save(path)
    return path


def _entries(folder: Path, subset: Subset) -> list[Entry]:
    bench = AVSBench(folder, subset=subset)
    return [
        entry for split in ("train", "val", "test", "test_novel") for entry in bench.clips(split)
    ]


def _heard(entry: Entry) -> str:
    return "nothing in view" if entry.kind == "negative" else " + ".join(entry.categories)


def _spread(total: int, wanted: int) -> list[int]:
    return [int(at) for at in np.unique(np.linspace(0, total - 1, min(total, wanted)).round())]

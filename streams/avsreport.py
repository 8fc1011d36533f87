"""What a check of a data set found, as values and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .avslayout import Subset

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        severity: ``error`` or ``warning``.
        kind: a short stable name, such as ``missing_mask``.
        path: the file or folder.
        detail: what is there, what was expected, what to do.
    """

    severity: Severity
    kind: str
    path: Path
    detail: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table to print: a title, the columns' names, rows of cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class SubsetReport:
    """What was found of one subset.

    Attributes:
        subset: ``s4`` or ``ms3``.
        path: its folder.
        clips: clips by split and category; MS3 has the category "". ``test_novel`` is apart.
        kinds: clips by how they were composed.
        masks: masks by split that could be read.
        empty_masks: those of them that are all black.
        claims: what its counts were held against, in words, or "" where nothing is known.
    """

    subset: Subset
    path: Path
    clips: Mapping[str, Mapping[str, int]]
    kinds: Mapping[str, int]
    masks: Mapping[str, int]
    empty_masks: Mapping[str, int]
    claims: str


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a check.

    Attributes:
        root: what was checked.
        name: ``AVSBench``, the id in ``dataset.json``, or ``unnamed``.
        subsets: those that are there.
        problems: at most ``limit`` of each kind, errors first.
        totals: how many there are of each (severity, kind), shown or not.
        seconds: how long it took.
    """

    root: Path
    name: str
    subsets: tuple[SubsetReport, ...]
    problems: tuple[Problem, ...]
    totals: Mapping[tuple[Severity, str], int]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether there are no errors; warnings do not count."""
        return not any(severity == "error" for severity, _ in self.totals)

    def tables(self) -> list[Table]:
        """Clips and empty masks by split and category, then the totals of the problems."""
        tables = [_clip_table(found) for found in self.subsets]
        if self.totals:
            rows = tuple(
                (severity, kind.replace("_", " "), str(count))
                for (severity, kind), count in self.totals.items()
            )
            tables.append(Table("Problems", ("severity", "kind", "count"), rows))
        return tables

    def lines(self) -> list[str]:
        """The report as plain lines of text."""
        lines = [f"{self.root}: {self.name}, checked in {self.seconds:.1f} s"]
        for table in self.tables():
            widths = [
                max(map(len, cells)) for cells in zip(table.columns, *table.rows, strict=True)
            ]
            lines += ["", table.title]
            for row in (table.columns, *table.rows):
                cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
                lines.append("  ".join(cells).rstrip())
        if self.problems:
            lines.append("")
        lines += [f"{severity}: {line}" for severity, line in self._told()]
        lines += ["", "The data set is sound." if self.ok else "The data set has errors."]
        return lines

    def errors(self) -> list[str]:
        """What is wrong, one a line, and how much more of a kind there is; no warnings."""
        return [line for severity, line in self._told() if severity == "error"]

    def _told(self) -> list[tuple[Severity, str]]:
        told: list[tuple[Severity, str]] = [
            (found.severity, f"{found.path}: {found.detail}") for found in self.problems
        ]
        shown = Counter((found.severity, found.kind) for found in self.problems)
        for (severity, kind), count in self.totals.items():
            if more := count - shown[severity, kind]:
                told.append((severity, f"and {more} more of kind {kind.replace('_', ' ')}"))
        return told


def _clip_table(found: SubsetReport) -> Table:
    splits = tuple(found.clips)
    categories = sorted({name for by_category in found.clips.values() for name in by_category})
    rows = [
        (name or "all", *(str(found.clips[split].get(name, 0)) for split in splits))
        for name in categories
    ]
    if len(categories) > 1:
        rows.append(("all", *(str(sum(found.clips[split].values())) for split in splits)))
    rows.append(("masks", *(str(found.masks.get(split, 0)) for split in splits)))
    rows.append(("empty masks", *(str(found.empty_masks.get(split, 0)) for split in splits)))
    claims = f", held against {found.claims}" if found.claims else ""
    title = f"{'Single-source' if found.subset == 's4' else 'Multi-sources'} ({found.path}){claims}"
    return Table(title, ("clips", *splits), tuple(rows))

"""A report's tables as data: what stands in which cell, and which cells are best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..model.matrix import Spread
from .reportruns import Key
from .reportstudy import Setting, Study

MAX_F = "F"
"""The measure that tables and heat maps call Max-F: Eq. 12 over all frames of a cell at once."""

BATCH_F = {"F_batch": 4, "F_batch2": 2, "F_batch1": 1}
"""AVSBench's F, whose maximum is taken batch by batch, and of how many clips these are."""


class Number(NamedTuple):
    """A cell with a number.

    Attributes:
        mean: as it is shown: percent where its column is in percent.
        sd: likewise; NaN where there is none.
        n: of how many runs; 0: of means over unequal seeds.
        digits: after the point.
        rank: 1 the best of its column, 2 the second, 0 another or nobody's.
    """

    mean: float
    sd: float
    n: int
    digits: int = 1
    rank: int = 0


Cell = str | Number | None
"""Text, a number, or None: not known."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        name: of its files.
        title: for people.
        note: how to read it.
        groups: names over neighbouring columns, with how many each spans; the first column is
            under none.
        columns: their names, the first that of the rows' names.
        rows: one a system, its name first.
    """

    name: str
    title: str
    note: str
    groups: tuple[tuple[str, int], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def headers(self) -> tuple[str, ...]:
        """The columns' names with those of their groups."""
        over = [name for name, span in self.groups for _ in range(span)]
        over = over or [""] * (len(self.columns) - 1)
        joined = (
            f"{group} {name}".strip() for group, name in zip(over, self.columns[1:], strict=True)
        )
        return (self.columns[0], *joined)


def ranked(
    column: Sequence[Spread | None],
    better: Callable[..., float] | None = None,
    *,
    scale: float = 1,
    digits: int = 1,
) -> list[Number | None]:
    """A column's numbers with their ranks.

    Args:
        column: a value a row.
        better: ``max`` or ``min``: the best is first; None: there is no best.
        scale: of what is shown; 100 gives percent.
        digits: after the point.
    """
    means = {one.mean for one in column if one is not None}
    places: dict[float, int] = {}
    if better is not None and sum(one is not None for one in column) > 1:
        order = sorted(means, reverse=better is max)
        places = dict(zip(order, (1, 2), strict=False))
    return [
        None
        if one is None
        else Number(scale * one.mean, scale * one.sd, one.n, digits, places.get(one.mean, 0))
        for one in column
    ]


def main_table(study: Study, measure: str) -> Table:
    """Table 1 of the paper: AA and F of a measure in each setting, and their means over all."""
    settings = study.columns
    columns: list[list[Number | None]] = []
    keys: tuple[tuple[Key, Callable[..., float]], ...] = (
        ((measure, "AA"), max),
        ((measure, "F"), min),
    )
    for setting in settings:
        for key, better in keys:
            column = [study.average(name, [setting], key) for name in study.systems]
            columns.append(ranked(column, better, scale=100))
    titles = [_column_title(setting) for setting in settings]
    groups = [(title, 2) for title in titles]
    note = (
        f"Percent, mean ± standard deviation over seeds. {shown(measure)}: AA, after the last "
        "task; For.: forgetting F. Best bold, second underlined." + _grouped(study, study.settings)
    )
    if len(settings) > 1:
        for key, better in keys:
            column = [study.average(name, settings, key) for name in study.systems]
            columns.append(ranked(column, better, scale=100))
        groups.append(("Avg", 2))
        note += f" Avg: over {', '.join(titles)}, only for systems with all of them."
    once = [setting for setting in settings if setting[0].protocol != "til"]
    if len(settings) > len(once) > 1 and any(one[0].protocol == "cil" for one in once):
        for key, better in keys:
            column = [study.average(name, once, key) for name in study.systems]
            columns.append(ranked(column, better, scale=100))
        groups.append(("without TIL", 2))
        note += (
            " Without TIL: over the others. Where no mask depends on the task, a TIL run's masks "
            "are its CIL twin's, which then counts twice in Avg."
        )
    names = (shown(measure), "For.")
    return _table("table1", "Systems by setting", note, groups, names, study.systems, columns)


def _column_title(settings: Sequence[Setting]) -> str:
    if len(settings) == 1:
        return settings[0].title
    return f"{settings[0]._replace(category='').title}, mean of {len(settings)} categories"


def ablation_tables(study: Study) -> list[Table]:
    """Table 2 of the paper, one a setting: what differs in a system, and what it reaches."""
    keys: tuple[tuple[str, Key, Callable[..., float]], ...] = (
        ("mAP", ("AP", "AA"), max),
        ("LA", ("AP", "LA"), max),
        ("For.", ("AP", "F"), min),
        ("FWT", ("AP", "FWT"), max),
        ("incr.", ("AP", "mean_incremental"), max),
        ("A_AUC", ("AP", "A_AUC"), max),
        ("mIoU", ("J", "AA"), max),
        ("Max-F", (MAX_F, "AA"), max),
        *((f"b = {clips}", (measure, "AA"), max) for measure, clips in BATCH_F.items()),
    )
    note = (
        "Percent, mean ± standard deviation over seeds; mAP, mIoU and Max-F after the last task, "
        "the others of AP. incr.: mean over t of the mean over the tasks seen by then. Max-F: "
        "Eq. 12, the best F of the mean curve of a cell's frames; b: AVSBench's, the mean of the "
        "best F of each batch of b test clips (its own b is 4)."
    )
    tables: list[Table] = []
    for setting in study.settings:
        names = [name for name in study.systems if study.of(name, setting)]
        told = note + _grouped(study, (setting,))
        differences = study.differences(setting)
        columns: list[Sequence[Cell]] = [[_told(differences[name]) for name in names]]
        own = [one for one in keys if one[1][0] not in BATCH_F or _kept(study, setting, one[1])]
        for _, key, better in own:
            column = [study.spread(name, setting, *key) for name in names]
            columns.append(ranked(column, better, scale=100))
        heads = ("differs in", *(name for name, _, _ in own))
        runs = [run for name in names for run in study.of(name, setting)]
        if any(run.is_grouped and (MAX_F, "AA") not in run.values for run in runs):
            told += (
                " Max-F –: runs of earlier versions kept its curves by task, which do not say what "
                "it is over groups."
            )
        if any((measure, "AA") not in run.values for run in runs for measure in BATCH_F):
            told += " b – or without a column: runs of earlier versions did not keep it."
        title = f"{setting.title}: what differs, and what it is worth"
        tables.append(_table(f"table2-{setting.stem}", title, told, (), heads, names, columns))
    return tables


def _grouped(study: Study, settings: Sequence[Setting]) -> str:
    """A sentence on the settings whose numbers are over groups of test clips."""
    titles = [
        setting.title
        for setting in settings
        if any(run.is_grouped for name in study.systems for run in study.of(name, setting))
    ]
    if not titles:
        return ""
    return (
        f" {', '.join(titles)}: over groups of tasks with about a tenth of the test clips each, "
        "scored after each group."
    )


def cost_table(study: Study) -> Table:
    """What the runs cost, a row a setting and system."""
    keys = (
        ("train s", "train_s", 1, 1),
        ("ms a scored frame", "ms_per_frame", 1, 1),
        ("trained parameters", "trained_parameters", 1, 0),
        ("peak memory MB", "peak_memory_mb", 1, 0),
        ("method state MB", "method_state_mb", 1, 2),
    )
    places = [(name, s) for s in study.settings for name in study.systems if study.of(name, s)]
    columns: list[Sequence[Cell]] = [[setting.title for _, setting in places]]
    for _, key, scale, digits in keys:
        column = [study.spread(name, setting, "costs", key) for name, setting in places]
        columns.append(ranked(column, scale=scale, digits=digits))
    letters = {machine: chr(65 + i % 26) for i, machine in enumerate(study.machines)}
    columns.append([_machines(study, letters, *place) for place in places])
    heads = ("setting", *(name for name, *_ in keys), "machine")
    told = "; ".join(f"{letter}: {machine}" for machine, letter in letters.items())
    note = (
        "Mean ± standard deviation over seeds. Peak memory is the process's during the run, on a "
        "GPU what its tensors took there. "
        f"Machines: {told or 'not written down'}."
    )
    return _table("costs", "Costs", note, (), heads, [name for name, _ in places], columns)


def task_table(study: Study, measure: str) -> Table | None:
    """Runs whose other tables are over groups of test clips, task by task as in the paper."""
    own = f"tasks.{measure}"
    settings = [s for s in study.settings if any(_has(study, n, s, own) for n in study.systems)]
    if not settings:
        return None
    names = [n for n in study.systems if any(_has(study, n, s, own) for s in settings)]
    statistics = (("AA", max), ("LA", max), ("F", min), ("FWT", max))
    columns = [
        ranked([study.spread(n, setting, own, statistic) for n in names], better, scale=100)
        for setting in settings
        for statistic, better in statistics
    ]
    note = (
        f"{shown(measure)} in percent on each task's own test clips, as the paper has it. They are "
        "one or two, so a single clip moves these numbers; other tables are over groups of tasks."
    )
    groups = [(setting.title, len(statistics)) for setting in settings]
    heads = [shown(measure), "LA", "For.", "FWT"]
    return _table("tasks", "Task by task", note, groups, heads, names, columns)


def prequential_table(study: Study) -> Table | None:
    """Scores of a stream's frames, each before it was learned."""
    measures = ("AP", "J")
    settings = [
        s for s in study.settings
        if any(study.spread(name, s, m, "prequential") for name in study.systems for m in measures)
    ]  # fmt: skip
    if not settings:
        return None
    columns = [
        ranked(
            [study.spread(name, setting, measure, "prequential") for name in study.systems],
            max,
            scale=100,
        )
        for setting in settings
        for measure in measures
    ]
    note = (
        "Percent: each frame of the stream is predicted before it is learned; mean over all frames."
    )
    groups = [(setting.title, len(measures)) for setting in settings]
    heads = [shown(measure) for measure in measures]
    return _table("prequential", "Before learning", note, groups, heads, study.systems, columns)


def long_rows(study: Study) -> list[tuple[str | float | int, ...]]:
    """All numbers of all cells: `LONG_COLUMNS`."""
    rows: list[tuple[str | float | int, ...]] = []
    for setting in study.settings:
        for name in study.systems:
            keys = dict.fromkeys(key for run in study.of(name, setting) for key in run.values)
            for key in keys:
                found = study.spread(name, setting, *key)
                assert found is not None  # noqa: S101  a run has the key
                low, high = found.mean - found.half_width, found.mean + found.half_width
                numbers = (found.mean, found.sd, low, high, found.n)
                rows.append((name, *setting, *key, *numbers))
    return rows


LONG_COLUMNS = (
    "system", "protocol", "category", "order", "measure", "statistic",
    "mean", "sd", "low", "high", "n",
)  # fmt: skip


def run_rows(study: Study) -> tuple[list[str], list[tuple[Any, ...]]]:
    """All runs: the columns' names, and a row each; None where it has no such number."""
    keys = sorted({key for run in study.runs for key in run.values})
    heads = [
        "system",
        "protocol",
        "category",
        "order",
        "seed",
        "hash",
        "manifest",
        "data",
        "machine",
    ]
    rows = [
        (
            *(
                name,
                *setting,
                run.spec.seed,
                run.hash,
                run.manifest,
                str(run.spec.data),
                run.machine,
            ),
            *(run.values.get(key) for key in keys),
        )
        for setting in study.settings
        for name in study.systems
        for run in study.of(name, setting)
    ]
    return [*heads, *(".".join(key) for key in keys)], rows


def shown(measure: str) -> str:
    """What tables call a measure."""
    batched = {name: f"Max-F by batch of {clips}" for name, clips in BATCH_F.items()}
    return {"AP": "mAP", "J": "mIoU", MAX_F: "Max-F", **batched}.get(measure, measure)


def _table(
    name: str,
    title: str,
    note: str,
    groups: Sequence[tuple[str, int]],
    heads: Sequence[str],
    systems: Sequence[str],
    columns: Sequence[Sequence[Cell]],
) -> Table:
    """From columns to rows; ``heads`` are repeated under each group."""
    repeated = tuple(heads) * (len(groups) or 1)
    rows = tuple(zip(systems, *columns, strict=True))
    return Table(name, title, note, tuple(groups), ("system", *repeated), rows)


def _kept(study: Study, setting: Setting, key: Key) -> bool:
    """Whether any run of a setting has a number."""
    runs = (run for name in study.systems for run in study.of(name, setting))
    return any(key in run.values for run in runs)


def _has(study: Study, name: str, setting: Setting, measure: str) -> bool:
    return study.spread(name, setting, measure, "AA") is not None


def _told(differences: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in differences.items()) or "nothing"


def _machines(study: Study, letters: dict[str, str], name: str, setting: Setting) -> str | None:
    found = sorted({letters[run.machine] for run in study.of(name, setting) if run.machine})
    return ", ".join(found) or None

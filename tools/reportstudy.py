"""The runs of a report in order: systems by settings, the seeds of each cell together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from ..model.matrix import Spread, mean_sd_interval
from .reportruns import Key, ReportError, Run, Unfinished, differing

_TITLES = {
    "til": "TIL",
    "cil": "CIL",
    "dil": "DIL",
    "dil-per-category": "DIL",
    "task-free": "TF-CL",
}
_ORDERS = ("random", "similarity")
_ALIKE = {"seed", "device", "threads"}
"""What may differ between the runs of one cell."""


class Setting(NamedTuple):
    """What the systems are compared in."""

    protocol: str
    category: str
    order: str

    @property
    def title(self) -> str:
        """As the paper names it; the order only where it is not the paper's."""
        category = f" {self.category}" if self.category else ""
        return f"{_TITLES[self.protocol]}{category}{'' if self.order == 'random' else ' similar'}"

    @property
    def stem(self) -> str:
        """For names of files."""
        return "-".join(part for part in self if part)

    @property
    def rank(self) -> tuple[int, int, str]:
        """Its place: by protocol as in the paper, random order first."""
        return _ORDERS.index(self.order), list(_TITLES).index(self.protocol), self.category


class Data(NamedTuple):
    """A data set that runs learned from.

    Attributes:
        path: as the runs name it.
        id: what its ``dataset.json`` said when the runs began; "" if nothing is known of it.
    """

    path: str
    id: str

    @property
    def is_avsbench(self) -> bool:
        """Whether it passes for AVSBench: by its path, as AVSBench names itself nowhere."""
        return not self.id and "avsbench" in self.path.lower().replace("-", "").replace("_", "")


@dataclass(frozen=True)
class Study:
    """All runs of a report.

    Attributes:
        systems: their names in order; the network in brackets where one name has several.
        settings: in order.
        cells: the runs of a system in a setting by seed; none: no entry.
        unfinished: runs without results.
    """

    systems: tuple[str, ...]
    settings: tuple[Setting, ...]
    cells: Mapping[tuple[str, Setting], tuple[Run, ...]]
    unfinished: tuple[Unfinished, ...] = ()

    @property
    def runs(self) -> tuple[Run, ...]:
        """All of them, by setting, system and seed."""
        return tuple(
            run
            for setting in self.settings
            for name in self.systems
            for run in self.of(name, setting)
        )

    @property
    def data(self) -> tuple[Data, ...]:
        """The data sets."""
        return tuple(dict.fromkeys(Data(str(run.spec.data), run.data_id) for run in self.runs))

    @property
    def machines(self) -> tuple[str, ...]:
        """What the runs ran on."""
        return tuple(dict.fromkeys(run.machine for run in self.runs if run.machine))

    def of(self, system: str, setting: Setting) -> tuple[Run, ...]:
        """The runs of a cell, none where it is empty."""
        return self.cells.get((system, setting), ())

    def spread(self, system: str, setting: Setting, *key: str) -> Spread | None:
        """Mean, sd and interval over the seeds that have a value; None: none has.

        Args:
            system: which.
            setting: which.
            key: measure and statistic.
        """
        measure, statistic = key
        return spread([run.values.get((measure, statistic)) for run in self.of(system, setting)])

    @property
    def columns(self) -> tuple[tuple[Setting, ...], ...]:
        """The settings, the categories of `dil-per-category` together."""
        found: dict[tuple[str, str], tuple[Setting, ...]] = {}
        for one in self.settings:
            place = (one.protocol, one.order)
            found[place] = (*found.get(place, ()), one)
        return tuple(found.values())

    def average(self, system: str, columns: Sequence[Sequence[Setting]], key: Key) -> Spread | None:
        """The mean over columns of the means over settings and seeds; None unless all are known.

        It has a spread where all settings have the same seeds: that of the seeds' averages.
        """
        weights = [1 / len(columns) / len(column) for column in columns for _ in column]
        settings = [setting for column in columns for setting in column]
        found = [self.spread(system, setting, *key) for setting in settings]
        means = [one.mean for one in found if one is not None]
        if len(means) < len(found) or not found:
            return None
        by_seed = [
            {
                run.spec.seed: run.values[key]
                for run in self.of(system, setting)
                if key in run.values
            }
            for setting in settings
        ]
        if any(one.keys() != by_seed[0].keys() for one in by_seed):
            return Spread(fmean(means, weights), math.nan, math.nan, 0)
        return spread(
            [fmean([one[seed] for one in by_seed], weights) for seed in sorted(by_seed[0])]
        )

    def differences(self, setting: Setting) -> dict[str, dict[str, Any]]:
        """What the systems of a setting were told differently, by system."""
        flat = {name: _flat(self.of(name, setting)[0]) for name in self.systems
                if self.of(name, setting)}  # fmt: skip
        keys = dict.fromkeys(key for told in flat.values() for key in told)
        differ = [key for key in keys if len({repr(told.get(key)) for told in flat.values()}) > 1]
        return {
            name: {key: told[key] for key in differ if key in told} for name, told in flat.items()
        }

    def notes(self) -> Iterator[str]:
        """What a reader must know before comparing rows."""
        for setting in self.settings:
            seeds = {
                name: [run.spec.seed for run in self.of(name, setting)] for name in self.systems
            }
            present = {name: found for name, found in seeds.items() if found}
            most = max(present.values(), key=len)
            for name, found in present.items():
                if found != most:
                    yield (
                        f"{setting.title}: {name} has seeds {_list(found)}, others {_list(most)}; "
                        "their means are of different streams."
                    )
            yield from self._other_tasks(setting)
            runs = [run for name in present for run in self.of(name, setting)]
            if any("AP" in run.matrices and ("AP", "AA") not in run.values for run in runs):
                yield (
                    f"{setting.title}: the test frames of a task hold no object, so that mAP "
                    "has no AA there: read mIoU."
                )
        if any(len(runs) == 1 for runs in self.cells.values()):
            yield "One seed has no spread: where no ± stands, chance may decide the order."
        if len(self.machines) > 1:
            yield "The runs ran on several machines: their seconds are not comparable."
        if len(self.data) > 1:
            yield "The runs learned from several data sets: see which below."

    def _other_tasks(self, setting: Setting) -> Iterator[str]:
        first: dict[int, tuple[str, str]] = {}
        for name in self.systems:
            for run in self.of(name, setting):
                other, manifest = first.setdefault(run.spec.seed, (name, run.manifest))
                if manifest != run.manifest:
                    yield (
                        f"{setting.title}, seed {run.spec.seed}: {name} learned other tasks than "
                        f"{other}."
                    )


def spread(values: Sequence[float | None]) -> Spread | None:
    """`mean_sd_interval` of the values that are there; None: there are none."""
    there = [value for value in values if value is not None]
    return mean_sd_interval(there) if there else None


def study(
    runs: Sequence[Run], unfinished: Sequence[Unfinished] = (), systems: Sequence[str] = ()
) -> Study:
    """Put runs in order.

    Args:
        runs: from `read_runs`.
        unfinished: likewise.
        systems: only these, in this order; none: all, by name.

    Raises:
        ReportError: a system is not there, or the seeds of a cell were told different things.
    """
    networks: dict[str, set[str]] = {}
    for run in runs:
        networks.setdefault(run.spec.name, set()).add(run.spec.folder.parts[0])
    named: dict[str, list[Run]] = {}
    for run in runs:
        name = run.spec.name
        full = name if len(networks[name]) == 1 else f"{name} ({run.spec.folder.parts[0]})"
        named.setdefault(full, []).append(run)
    chosen = tuple(systems) or tuple(sorted(named))
    if unknown := [name for name in chosen if name not in named]:
        raise ReportError(
            f"--systems {unknown[0]}: no finished run is of it; there are "
            f"{', '.join(sorted(named)) or 'none'}"
        )
    cells: dict[tuple[str, Setting], tuple[Run, ...]] = {}
    for name in dict.fromkeys(chosen):
        for run in sorted(named[name], key=lambda run: run.spec.seed):
            place = (name, Setting(run.spec.protocol, run.spec.category, run.spec.order))
            cells[place] = (*cells.get(place, ()), run)
    for own in cells.values():
        _check_alike(own)
    settings = sorted({setting for _, setting in cells}, key=lambda setting: setting.rank)
    return Study(tuple(dict.fromkeys(chosen)), tuple(settings), cells, tuple(unfinished))


def _check_alike(runs: Sequence[Run]) -> None:
    for run in runs[1:]:
        if names := set(differing(runs[0].spec, run.spec)) - _ALIKE:
            raise ReportError(
                f"{runs[0].path} and {run.path} would be averaged as seeds of one system, but "
                f"differ in {', '.join(sorted(names))}; report them apart, or give their systems "
                "different names (`systems:` of a grid)"
            )


def _flat(run: Run) -> dict[str, Any]:
    """What a run was told of its system, options and variations by their own names."""
    told = run.spec.model_dump(mode="json", exclude={"system", "seed", "device", "threads", "data"})
    inner = {**told.pop("vary"), **told.pop("options")}
    return {key: value for key, value in {**told, **inner}.items() if value is not None}


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))

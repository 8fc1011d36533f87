"""What a report's figures show, as data: no number is computed while drawing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from ..model.matrix import Cost, Matrix, Spread, radar_axes
from .reportruns import Run
from .reportstudy import Setting, Study

AXES = ("Accuracy", "Retention", "Plasticity", "Stability", "Speed", "Memory")


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Scores on each task after each task.

    Attributes:
        system: whose.
        setting: in which.
        matrix: (T, T) mean over seeds: row after a task, column test task; NaN where not scored.
        n: of how many seeds.
    """

    system: str
    setting: Setting
    matrix: Matrix
    n: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a system forgets, and what it can do before it learned it."""

    system: str
    setting: Setting
    forgetting: Spread
    forward: Spread


@dataclass(frozen=True, slots=True)
class Radar:
    """The six axes of a system, and what they come from.

    Attributes:
        system: whose.
        setting: in which.
        axes: 1 is best, mean over seeds; see `matrix.radar_axes`.
        raw: ``AA``, ``LA``, ``F``, ``BWT``, ``train_s`` and ``peak_memory_mb``, means over seeds.
        n: of how many seeds.
    """

    system: str
    setting: Setting
    axes: dict[str, float]
    raw: dict[str, float]
    n: int


@dataclass(frozen=True, slots=True)
class AnytimeCurve:
    """The score along the stream.

    Attributes:
        system: whose.
        setting: in which.
        clips: (T,) learned by then, mean over seeds.
        mean: (T,) of the score over seeds.
        sd: (T,), NaN for one seed.
        n: of how many seeds.
    """

    system: str
    setting: Setting
    clips: Matrix
    mean: Matrix
    sd: Matrix
    n: int


def heat_maps(study: Study, measure: str) -> list[HeatMap]:
    """The mean matrices of a measure, to look at only: measures are computed run by run."""
    found: list[HeatMap] = []
    for setting, name, runs in _cells(study):
        matrices = [run.matrices[measure] for run in runs if measure in run.matrices]
        if matrices:
            found.append(HeatMap(name, setting, _mean(matrices), len(matrices)))
    return found


def transfers(study: Study, measure: str) -> list[Transfer]:
    """Forgetting and FWT of each system in each setting, where both are known."""
    found: list[Transfer] = []
    for setting, name, _ in _cells(study):
        lost = study.spread(name, setting, measure, "F")
        ahead = study.spread(name, setting, measure, "FWT")
        if lost is not None and ahead is not None:
            found.append(Transfer(name, setting, lost, ahead))
    return found


def radars(study: Study, measure: str) -> list[Radar]:
    """The radar of each system in each setting, where accuracy and costs are known.

    Costs are means over a system's seeds, held against the least of the setting's systems.
    """
    found: list[Radar] = []
    for setting in study.settings:
        costs = {
            name: _cost(runs)
            for name in study.systems
            if (runs := _complete(study.of(name, setting), measure))
        }
        if not costs:
            continue
        least = Cost(*(min(values) for values in zip(*costs.values(), strict=True)))
        for name, cost in costs.items():
            runs = _complete(study.of(name, setting), measure)
            axes = [radar_axes(run.matrices[measure], cost, least) for run in runs]
            raw = {key: fmean(run.values[measure, key] for run in runs)
                   for key in ("AA", "LA", "F", "BWT")}  # fmt: skip
            raw |= {"train_s": cost.seconds, "peak_memory_mb": cost.memory_bytes / 2**20}
            means = {axis: fmean(one[axis] for one in axes) for axis in AXES}
            found.append(Radar(name, setting, means, raw, len(runs)))
    return found


def anytime_curves(study: Study, measure: str) -> list[AnytimeCurve]:
    """The curves of AP, J or F along the stream, seeds matched task by task."""
    found: list[AnytimeCurve] = []
    for setting, name, runs in _cells(study):
        curves = [run.anytime[measure] for run in runs]
        clips = _mean([run.anytime["clips"] for run in runs])
        found.append(AnytimeCurve(name, setting, clips, _mean(curves), _sd(curves), len(runs)))
    return found


Rows = tuple[tuple[str, ...], list[tuple[Any, ...]]]
"""Names of columns, and rows."""

_PLACE = ("system", "protocol", "category", "order")


def heat_map_rows(maps: Iterable[HeatMap]) -> Rows:
    """A row for each cell that was scored; tasks count from 1."""
    rows = [
        (one.system, *one.setting, after + 1, task + 1, float(value), one.n)
        for one in maps
        for (after, task), value in np.ndenumerate(one.matrix)
        if not np.isnan(value)
    ]
    return (*_PLACE, "after_task", "test_task", "mean", "n"), rows


def transfer_rows(points: Iterable[Transfer]) -> Rows:
    """A row a point."""
    rows = [(one.system, *one.setting, *one.forgetting, *one.forward) for one in points]
    names = [f"{what}_{field}" for what in ("F", "FWT") for field in Spread._fields]
    return (*_PLACE, *names), rows


def radar_rows(found: Iterable[Radar]) -> Rows:
    """A row a radar: axes and raw values."""
    shown = list(found)
    names = list(shown[0].raw) if shown else []
    rows = [
        (one.system, *one.setting, *(one.axes[a] for a in AXES), *one.raw.values(), one.n)
        for one in shown
    ]
    return (*_PLACE, *AXES, *names, "n"), rows


def anytime_rows(curves: Iterable[AnytimeCurve]) -> Rows:
    """A row for each point of each curve; tasks count from 1."""
    rows = [
        (one.system, *one.setting, task + 1, float(clips), float(mean), float(sd), one.n)
        for one in curves
        for task, (clips, mean, sd) in enumerate(zip(one.clips, one.mean, one.sd, strict=True))
    ]
    return (*_PLACE, "after_task", "clips", "mean", "sd", "n"), rows


def _cells(study: Study) -> Iterator[tuple[Setting, str, tuple[Run, ...]]]:
    for setting in study.settings:
        for name in study.systems:
            if runs := study.of(name, setting):
                yield setting, name, runs


def _stacked(arrays: Sequence[Matrix]) -> Matrix:
    """Arrays of one number of axes on top of each other, the smaller filled up with NaN."""
    shape = np.max([array.shape for array in arrays], axis=0)
    out = np.full((len(arrays), *shape), np.nan)
    for place, array in enumerate(arrays):
        out[(place, *(slice(n) for n in array.shape))] = array
    return out


def _mean(arrays: Sequence[Matrix]) -> Matrix:
    """The mean of what is known of each element; NaN where nothing is."""
    stacked = _stacked(arrays)
    counts = (~np.isnan(stacked)).sum(axis=0)
    return np.where(counts, np.nansum(stacked, axis=0) / np.maximum(counts, 1), np.nan)


def _sd(arrays: Sequence[Matrix]) -> Matrix:
    """The standard deviation with n - 1; NaN where an array has none, or for one."""
    stacked = _stacked(arrays)
    return stacked.std(axis=0, ddof=1) if len(arrays) > 1 else np.full(stacked.shape[1:], np.nan)


def _complete(runs: Sequence[Run], measure: str) -> list[Run]:
    """The runs that have all that a radar needs."""
    needed = [(measure, name) for name in ("AA", "LA", "F", "BWT")]
    needed += [("costs", "train_s"), ("costs", "peak_memory_mb")]
    return [
        run
        for run in runs
        if all(key in run.values for key in needed)
        and min(run.values["costs", "train_s"], run.values["costs", "peak_memory_mb"]) > 0
    ]


def _cost(runs: Sequence[Run]) -> Cost:
    seconds = fmean(run.values["costs", "train_s"] for run in runs)
    return Cost(seconds, 2**20 * fmean(run.values["costs", "peak_memory_mb"] for run in runs))

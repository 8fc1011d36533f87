"""From the frames that a run scored to its metrics, a pure function of files and manifest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model.matrix import anytime_auc, summary
from ..model.metrics import f_measure_pooled
from ..streams.manifest import Manifest
from .clipscore import PrequentialRow
from .runfolder import UNTRAINED, Curve, FrameRow, RunFolder, read_csv
from .runspec import RunSpec
from .score import nulls

MEASURES: dict[str, Callable[[FrameRow], float]] = {
    "AP": lambda row: row.AP,
    "AUPR": lambda row: row.AUPR,
    "F_max": lambda row: row.F_max,
    "F_at": lambda row: row.F_at,
    "J": lambda row: row.J,
    "J_object": lambda row: math.nan if row.is_empty else row.J,
    "Dice_object": lambda row: math.nan if row.is_empty else row.Dice,
    "class_cil": lambda row: row.class_right,
    "class_til": lambda row: row.class_right_told,
}
"""Values of a frame that are averaged over a cell's frames, NaN left out: AP is the paper's mAP.
Besides these there are `POOLED`."""

BATCHED: dict[str, Callable[[Curve], list[float] | None]] = {
    "F_batch": lambda curve: curve.batches,
    "F_batch2": lambda curve: curve.pairs,
    "F_batch1": lambda curve: curve.singles,
}
"""AVSBench's F, whose maximum is taken in each batch of four test clips, as it does, of two or of
one, as others do: for comparison with numbers that were had so, which depend on it."""

POOLED = ("F", *BATCHED)
"""``F``, pooled over a cell's frames before its maximum is taken, and `BATCHED`."""

QUIET = 0.005
"""Share of pixels under which a mask counts as none."""


def metrics_of(files: RunFolder, spec: RunSpec, manifest: Manifest) -> dict[str, Any]:
    """All metrics of a finished run, ready for JSON.

    Returns:
        ``run`` and ``manifest`` name it; ``tasks`` describes its tasks; ``measures`` holds for each
        measure ``matrix`` (row: after a task, column: test task), ``untrained`` (a value a task)
        and ``summary`` (`matrix.summary`); ``anytime`` the curve over the stream and A_AUC; in
        task-free runs ``groups`` the same as ``measures`` over groups of test clips;
        ``prequential`` where the schedule is a stream; ``empty`` how frames in which nothing sounds
        fare at the end. Cells that were not scored are None.

    Raises:
        RunError: the scores cannot be read.
    """
    tasks = manifest.tasks[: spec.tasks or None]
    scored = {after: files.read_frames(after) for after in (UNTRAINED, *range(len(tasks)))}
    everything = spec.protocol == "task-free"
    result: dict[str, Any] = {
        "run": {
            "system": spec.name,
            "network": spec.network,
            "method": spec.method,
            "protocol": spec.protocol,
            "order": spec.order,
            "seed": spec.seed,
            "threads": spec.threads,
            "hash": spec.hash,
        },
        "manifest": manifest.sha256,
        "tasks": [
            {"name": t.name, "classes": list(t.classes), "train": len(t.train), "test": len(t.test)}
            for t in tasks
        ],
        "measures": _measures(scored, len(tasks), [(k,) for k in range(len(tasks))]),
        "anytime": _anytime(scored, [len(t.train) for t in tasks], everything),
        "empty": _empty([row for row in scored[len(tasks) - 1][0] if row.is_empty]),
    }
    if everything and not spec.tasks:
        groups = [group.tasks for group in manifest.groups("groups")]
        result["groups"] = _groups(files, scored, manifest, groups)
    path = files.path / "prequential.csv"
    if path.exists():
        result["prequential"] = _prequential(read_csv(path, PrequentialRow))
    clean = nulls(result)
    assert isinstance(clean, dict)  # noqa: S101  nulls keeps the type
    return clean


Scored = Mapping[int, tuple[Sequence[FrameRow], Mapping[int, Curve]]]


def _measures(scored: Scored, T: int, cells: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Matrices (T, number of cells), each cell a set of test tasks."""
    return _told(
        (
            name,
            [
                [_cell(scored[after], name, cell) for cell in cells]
                for after in (UNTRAINED, *range(T))
            ],
        )
        for name in (*MEASURES, *POOLED)
    )


def _told(tables: Iterable[tuple[str, Sequence[Sequence[float]]]]) -> dict[str, Any]:
    """By measure what ``metrics.json`` says of its table, whose first row is the untrained one."""
    found: dict[str, Any] = {}
    for name, rows in tables:
        untrained, matrix = np.array(rows[0]), np.array(rows[1:])
        if np.isnan(np.diag(matrix)).all():
            continue  # no classes, no frame with an object, or curves that were not kept
        found[name] = {
            "matrix": matrix.tolist(),
            "untrained": untrained.tolist(),
            "summary": _summary(matrix, untrained),
        }
    return found


def _summary(
    matrix: NDArray[np.float64], untrained: NDArray[np.float64]
) -> dict[str, float] | None:
    """`matrix.summary`, or None where a cell that it needs has no frame to average."""
    try:
        return summary(matrix, None if np.isnan(untrained).any() else untrained)
    except ValueError:
        return None


def _cell(
    scores: tuple[Sequence[FrameRow], Mapping[int, Curve]], name: str, tasks: Iterable[int]
) -> float:
    rows, curves = scores
    wanted = set(tasks)
    if name in POOLED:
        return _pooled(name, [curve for task, curve in curves.items() if task in wanted])
    of = MEASURES[name]
    return _mean(of(row) for row in rows if row.test_task in wanted)


def _pooled(name: str, curves: Sequence[Curve]) -> float:
    if name == "F":
        return f_measure_pooled([np.array(c.sum) for c in curves], [c.objects for c in curves])
    if not sum(c.objects for c in curves):
        return math.nan
    batches = [best for curve in curves if (best := BATCHED[name](curve)) is not None]
    return math.nan if len(batches) < len(curves) else fmean(itertools.chain(*batches))


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan


def _anytime(scored: Scored, sizes: Sequence[int], everything: bool) -> dict[str, Any]:
    """Scores along the stream: on all test clips, or on those of the tasks that were seen."""
    arrived = np.cumsum(sizes).tolist()
    curve: dict[str, Any] = {"clips": arrived}
    auc: dict[str, float] = {}
    for name in ("AP", "J", "F"):
        values = [
            _cell(scored[t], name, range(len(sizes) if everything else t + 1))
            for t in range(len(sizes))
        ]
        curve[name] = values
        auc[name] = math.nan if np.isnan(values).any() else anytime_auc(values, arrived)
    return {**curve, "A_AUC": auc, "A_last": {name: curve[name][-1] for name in auc}}


def _groups(
    files: RunFolder, scored: Scored, manifest: Manifest, groups: Sequence[tuple[int, ...]]
) -> dict[str, Any]:
    """What `_measures` gives, over groups of test clips after each group of tasks.

    Runs that were scored by earlier versions kept curves of F by task alone: they have none here.
    """
    clips = [set(group.clips) for group in manifest.groups("groups")]
    after = (UNTRAINED, *(tasks[-1] for tasks in groups))
    curves = [files.read_groups(task) for task in after]

    def tables() -> Iterator[tuple[str, list[list[float]]]]:
        for name, of in MEASURES.items():
            yield (
                name,
                [
                    [_mean(of(row) for row in scored[task][0] if row.clip in own) for own in clips]
                    for task in after
                ],
            )
        if all(len(own) == len(clips) for own in curves):
            for name in POOLED:
                yield name, [[_pooled(name, [curve]) for curve in own] for own in curves]

    return _told(tables())


def _empty(rows: Sequence[FrameRow]) -> dict[str, float]:
    """Frames in which nothing in view sounds: how many, their J, and how many stay without mask."""
    return {
        "frames": float(len(rows)),
        "J": _mean(row.J for row in rows),
        "quiet": _mean(float(row.marked < QUIET) for row in rows),
    }


def _prequential(rows: Sequence[PrequentialRow]) -> dict[str, Any]:
    """Means over the stream; its frames, in order, are in ``prequential.csv``."""
    return {
        "frames": len(rows),
        "J": _mean(row.J for row in rows),
        "AP": _mean(row.AP for row in rows),
    }

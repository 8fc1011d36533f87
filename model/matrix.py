"""What a continual learner gained, kept and lost, read off its matrix of results.

``A[t, k]`` is the score on task ``k`` after learning task ``t``, both from 0: row ``t`` of T, one
column a task, at least T; columns beyond T, of tasks not learned yet, are not read. A cell that
was not evaluated is NaN and none is ever averaged: a measure that needs such a cell is refused.
The equations are the paper's (arXiv 2603.08967), whose tasks count from 1. Forgetting says nothing
by itself, since who learns nothing forgets nothing: read it beside LA.

The measures are per run: compute them for each seed, then `mean_sd_interval`, never on a mean of
matrices, whose forgetting is another number.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]
_BISECTIONS = 60


def learning_accuracy(matrix: Matrix) -> float:
    """LA (Eq. 14): the mean over tasks of ``A[k, k]``, each just after it was learned.

    Args:
        matrix: float64 (T, T or more).

    Raises:
        ValueError: if the matrix is not of that shape, or a cell that is needed is NaN.
    """
    tasks = np.arange(_tasks(matrix))
    return float(_cells(matrix, "LA", tasks, tasks).mean())


def average_accuracy(matrix: Matrix) -> float:
    """AA (Eq. 15): the mean over tasks of ``A[T-1, k]``, all after the last was learned.

    Args:
        matrix: float64 (T, T or more).

    Raises:
        ValueError: if the matrix is not of that shape, or a cell that is needed is NaN.
    """
    T = _tasks(matrix)
    return float(_cells(matrix, "AA", T - 1, np.arange(T)).mean())


def forgetting(matrix: Matrix) -> float:
    """F (Eq. 16): the mean over ``k < T-1`` of ``max over t >= k of A[t, k]``, less ``A[T-1, k]``.

    The last row takes part in the maximum, so F is never below 0 and gains don't offset losses:
    `backward_transfer` shows them.

    Args:
        matrix: float64 (T, T or more); all of ``A[t, k]`` with ``k <= t`` and ``k < T-1``.

    Returns:
        F, at least 0; NaN for a single task.

    Raises:
        ValueError: if the matrix is not of that shape, or a cell that is needed is NaN.
    """
    T = _tasks(matrix)
    if T == 1:
        return math.nan
    best = [_cells(matrix, "F", np.arange(k, T), k).max() for k in range(T - 1)]
    return float(np.mean(best - matrix[T - 1, : T - 1]))


def backward_transfer(matrix: Matrix) -> float:
    """BWT (Eq. 17): the mean over ``k < T-1`` of ``A[T-1, k] - A[k, k]``; below 0 where lost.

    Args:
        matrix: float64 (T, T or more).

    Returns:
        BWT; NaN for a single task.

    Raises:
        ValueError: if the matrix is not of that shape, or a cell that is needed is NaN.
    """
    T = _tasks(matrix)
    if T == 1:
        return math.nan
    old = np.arange(T - 1)
    return float(np.mean(_cells(matrix, "BWT", T - 1, old) - _cells(matrix, "BWT", old, old)))


def forward_transfer(matrix: Matrix, baseline: ArrayLike | None = None) -> float:
    """FWT (Eq. 18): the mean over ``k >= 1`` of ``A[k-1, k]``, each just before it is learned.

    As in the paper nothing is subtracted, so that easy tasks alone make it high. With
    ``baseline`` it is FWT minus the untrained network's mean on the same tasks.

    Args:
        matrix: float64 (T, T or more); the cells right of the diagonal.
        baseline: (T or more,), the score ``b_k`` on each task before any training; ``b_0`` is
            not read.

    Returns:
        FWT; NaN for a single task.

    Raises:
        ValueError: if the matrix or the baseline are not of those shapes, or a cell that is
            needed is NaN.
    """
    T = _tasks(matrix)
    if T == 1:
        return math.nan
    new = np.arange(1, T)
    transfer = _cells(matrix, "FWT", new - 1, new).mean()
    if baseline is None:
        return float(transfer)
    untrained = np.asarray(baseline, dtype=np.float64)
    if untrained.ndim != 1 or len(untrained) < T:
        raise ValueError(f"the baseline is {untrained.shape}; it must be ({T} or more,)")
    if np.isnan(untrained[1:T]).any():
        raise ValueError(f"the baseline of task {1 + _first_nan(untrained[1:T])} is NaN")
    return float(transfer - untrained[1:T].mean())


def mean_incremental(matrix: Matrix) -> float:
    """The mean over ``t`` of the mean over ``k <= t`` of ``A[t, k]``: the average along the way.

    Args:
        matrix: float64 (T, T or more).

    Raises:
        ValueError: if the matrix is not of that shape, or a cell that is needed is NaN.
    """
    rows = [
        _cells(matrix, "the incremental mean", t, np.arange(t + 1)).mean()
        for t in range(_tasks(matrix))
    ]
    return float(np.mean(rows))


def relative_forgetting(matrix: Matrix) -> float:
    """F / LA: the share of what was learned that is gone. NaN where LA is 0, or for one task.

    Args:
        matrix: float64 (T, T or more).

    Raises:
        ValueError: as `forgetting`.
    """
    learned = learning_accuracy(matrix)
    return forgetting(matrix) / learned if learned else math.nan


def anytime_auc(values: ArrayLike, arrived: ArrayLike | None = None) -> float:
    """A_AUC: the area under the score along a stream, over the stream's length.

    Each score counts for what arrived since the one before, as in i-Blurry's `Σ A(i·Δn)·Δn` (Koh et
    al., ICLR 2022), where all steps are Δn.

    Args:
        values: (n,), the score at each evaluation, n at least 1.
        arrived: (n,), above 0 and ascending: how much had arrived at each evaluation; None: equal
            steps, so the mean of the values.

    Raises:
        ValueError: if there are no values, one is NaN, or ``arrived`` doesn't ascend from above 0
            or has not as many.
    """
    curve = _curve(values)
    if arrived is None:
        return float(curve.mean())
    at = np.asarray(arrived, dtype=np.float64)
    steps = np.diff(at, prepend=0.0)
    if at.shape != curve.shape or not (steps > 0).all():
        raise ValueError(f"arrived {at.tolist()} of {len(curve)} values; must ascend from above 0")
    return float(curve @ steps / steps.sum())


def anytime_last(values: ArrayLike) -> float:
    """A_last: the score at the end of a stream.

    Args:
        values: (n,), the score at each evaluation, n at least 1.

    Raises:
        ValueError: if there are no values, or one is NaN.
    """
    return float(_curve(values)[-1])


def summary(matrix: Matrix, baseline: ArrayLike | None = None) -> dict[str, float]:
    """All measures of a matrix by name; those that one task cannot have are NaN.

    Args:
        matrix: float64 (T, T or more), with all cells of ``k <= t`` and of ``k = t + 1``.
        baseline: (T or more,), scores before any training, or None.

    Returns:
        ``LA``, ``AA``, ``F``, ``BWT``, ``FWT``, ``FWT_delta`` (NaN without a baseline),
        ``mean_incremental`` and ``relative_F``.

    Raises:
        ValueError: as `forward_transfer`.
    """
    return {
        "LA": learning_accuracy(matrix),
        "AA": average_accuracy(matrix),
        "F": forgetting(matrix),
        "BWT": backward_transfer(matrix),
        "FWT": forward_transfer(matrix),
        "FWT_delta": math.nan if baseline is None else forward_transfer(matrix, baseline),
        "mean_incremental": mean_incremental(matrix),
        "relative_F": relative_forgetting(matrix),
    }


class Cost(NamedTuple):
    """What a method costs, measured on one machine.

    Attributes:
        seconds: of the whole run, or of any part that is the same for all methods.
        memory_bytes: at the peak.
    """

    seconds: float
    memory_bytes: float


def radar_axes(matrix: Matrix, cost: Cost, least: Cost) -> dict[str, float]:
    """The six axes of the paper's Fig. 6, which gives no formulae; these are ours. 1 is best.

    ``Accuracy`` = AA; ``Retention`` = 1 - F / LA, below 0 if F exceeds LA; ``Plasticity`` = LA;
    ``Stability`` = 1 + min(BWT, 0); ``Speed`` = least seconds / seconds and ``Memory`` = least
    bytes / bytes, against the least of the methods compared: the quickest has Speed 1, one that
    takes twice as long 1/2. Print the raw values beside them: the last two change with the company.

    Args:
        matrix: float64 (T, T or more), scores in [0, 1], not percent.
        cost: of this method.
        least: of all methods compared, this one among them: each of its values by itself.

    Returns:
        The axes by name; Retention and Stability NaN for a single task.

    Raises:
        ValueError: if a score is outside [0, 1], a cost is not above 0 or below the least, or as
            `forgetting`.
    """
    known = matrix[~np.isnan(matrix)]
    if known.size and not (known.min() >= 0 and known.max() <= 1):
        raise ValueError(f"scores lie in [{known.min()}, {known.max()}]; axes need [0, 1]")
    for name, mine, best in zip(Cost._fields, cost, least, strict=True):
        if not 0 < best <= mine:
            raise ValueError(
                f"{name} is {mine} and the least {best}; 0 < least <= {name} must hold"
            )
    lost = backward_transfer(matrix)
    return {
        "Accuracy": average_accuracy(matrix),
        "Retention": 1 - relative_forgetting(matrix),
        "Plasticity": learning_accuracy(matrix),
        "Stability": math.nan if math.isnan(lost) else 1 + min(lost, 0.0),
        "Speed": least.seconds / cost.seconds,
        "Memory": least.memory_bytes / cost.memory_bytes,
    }


class Spread(NamedTuple):
    """Several runs of one measure.

    Attributes:
        mean: of the runs.
        sd: the standard deviation of a run, with n - 1; NaN for one run.
        half_width: of the mean's 95 % interval, ``mean ± half_width``, by Student's t with n - 1
            degrees of freedom; NaN for one run.
        n: how many runs.
    """

    mean: float
    sd: float
    half_width: float
    n: int


def mean_sd_interval(values: ArrayLike) -> Spread:
    """Mean, standard deviation and 95 % interval over runs, such as seeds.

    Args:
        values: (n,), n at least 1.

    Raises:
        ValueError: if there are no values, or one is NaN.
    """
    runs = _curve(values)
    n, mean = len(runs), float(runs.mean())
    if n == 1:
        return Spread(mean, math.nan, math.nan, 1)
    sd = float(runs.std(ddof=1))
    return Spread(mean, sd, _t_quantile(n - 1) * sd / math.sqrt(n), n)


def _t_quantile(freedom: int) -> float:
    """The t that a variable of Student's distribution stays within, either side, in 95 of 100.

    By bisection of the angle ``atan(t / sqrt(freedom))``, in which the probability for whole
    degrees of freedom is a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    odd = freedom % 2
    terms = np.arange(freedom // 2, dtype=np.float64)
    tops = 2 * terms[1:] - 1 + odd
    factors = np.cumprod(np.concatenate(([1.0], tops / (tops + 1))))[: len(terms)]
    powers = 2 * terms + odd

    def within(angle: float) -> float:
        total = math.sin(angle) * float(factors @ np.cos(angle) ** powers)
        return 2 / math.pi * (angle + total) if odd else total

    low, high = 0.0, math.pi / 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 0.95 else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _tasks(matrix: Matrix) -> int:
    if matrix.ndim != 2 or not 1 <= matrix.shape[0] <= matrix.shape[1]:
        raise ValueError(f"the matrix is {matrix.shape}; it must be (T, T or more), T at least 1")
    return matrix.shape[0]


def _cells(matrix: Matrix, measure: str, rows: ArrayLike, columns: ArrayLike) -> Matrix:
    """The cells at (row, column), which ``measure`` cannot do without."""
    at, of = np.broadcast_arrays(rows, columns)
    cells = matrix[at, of].astype(np.float64)
    if np.isnan(cells).any():
        i = _first_nan(cells)
        raise ValueError(
            f"{measure} needs A[{at[i]}, {of[i]}], which is NaN: "
            f"task {of[i]} was not evaluated after task {at[i]}"
        )
    return cells


def _curve(values: ArrayLike) -> NDArray[np.float64]:
    curve = np.asarray(values, dtype=np.float64)
    if curve.ndim != 1 or not len(curve):
        raise ValueError(f"values are {curve.shape}; they must be (n,), n at least 1")
    if np.isnan(curve).any():
        raise ValueError(f"value {_first_nan(curve)} of {len(curve)} is NaN")
    return curve


def _first_nan(values: NDArray[np.float64]) -> int:
    return int(np.isnan(values).argmax())

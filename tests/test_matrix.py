"""The measures of a matrix of results: by hand, against loops, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from atlasd.model.matrix import (
    Cost,
    anytime_auc,
    anytime_last,
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
    mean_incremental,
    mean_sd_interval,
    radar_axes,
    relative_forgetting,
    summary,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

NAN = np.nan
BY_HAND = np.array(
    [
        [0.80, 0.10, NAN],
        [0.60, 0.70, 0.30],
        [0.90, 0.40, 0.50],
    ]
)
"""Task 0 falls and then gains, task 1 falls; what comes two tasks later was not evaluated."""
BASELINE = [NAN, 0.05, 0.15]


def drawn(seed, tasks=5, beyond=2):
    """A matrix with just the cells that an evaluator fills: k <= t + 1."""
    rng = np.random.default_rng(seed)
    matrix = rng.random((tasks, tasks + beyond))
    rows, columns = np.indices(matrix.shape)
    matrix[columns > rows + 1] = NAN
    return matrix


def test_by_hand():
    assert learning_accuracy(BY_HAND) == pytest.approx((0.8 + 0.7 + 0.5) / 3)
    assert average_accuracy(BY_HAND) == pytest.approx((0.9 + 0.4 + 0.5) / 3)
    assert forgetting(BY_HAND) == pytest.approx((0.0 + 0.3) / 2)  # task 0 is at its best
    assert backward_transfer(BY_HAND) == pytest.approx((0.1 - 0.3) / 2)
    assert forward_transfer(BY_HAND) == pytest.approx((0.1 + 0.3) / 2)
    assert forward_transfer(BY_HAND, BASELINE) == pytest.approx(0.2 - 0.1)
    assert mean_incremental(BY_HAND) == pytest.approx((0.8 + 0.65 + 0.6) / 3)
    assert relative_forgetting(BY_HAND) == pytest.approx(0.15 / (2 / 3))


def test_a_summary_names_every_measure():
    assert summary(BY_HAND, BASELINE) == pytest.approx(
        {
            "LA": learning_accuracy(BY_HAND),
            "AA": average_accuracy(BY_HAND),
            "F": forgetting(BY_HAND),
            "BWT": backward_transfer(BY_HAND),
            "FWT": forward_transfer(BY_HAND),
            "FWT_delta": forward_transfer(BY_HAND, BASELINE),
            "mean_incremental": mean_incremental(BY_HAND),
            "relative_F": relative_forgetting(BY_HAND),
        }
    )
    assert np.isnan(summary(BY_HAND)["FWT_delta"])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.integers(0, 3))
def test_measures_equal_loops_over_the_equations(seed, tasks, beyond):
    matrix = drawn(seed, tasks, beyond)
    baseline = np.random.default_rng(seed).random(tasks)
    last, lost, forgot, forward, along = matrix[tasks - 1], 0.0, 0.0, 0.0, 0.0
    for k in range(tasks - 1):
        forgot += max(matrix[t][k] for t in range(k, tasks)) - last[k]
        lost += last[k] - matrix[k][k]
        forward += matrix[k][k + 1]
    for t in range(tasks):
        along += sum(matrix[t][k] for k in range(t + 1)) / (t + 1)
    learned = sum(matrix[k][k] for k in range(tasks)) / tasks
    subtracted = sum(baseline[1:]) / (tasks - 1)
    expected = {
        "LA": learned,
        "AA": sum(last[:tasks]) / tasks,
        "F": forgot / (tasks - 1),
        "BWT": lost / (tasks - 1),
        "FWT": forward / (tasks - 1),
        "FWT_delta": forward / (tasks - 1) - subtracted,
        "mean_incremental": along / tasks,
        "relative_F": forgot / (tasks - 1) / learned,
    }
    given_summary = summary(matrix, baseline)
    assert given_summary == pytest.approx(expected, abs=1e-12)
    assert given_summary["F"] >= max(0.0, -given_summary["BWT"]) - 1e-12
    assert all(type(value) is float for value in given_summary.values())


def test_one_task_has_neither_forgetting_nor_transfer():
    one = np.array([[0.4, NAN]])
    measured = summary(one, [NAN, NAN])
    assert (measured["LA"], measured["AA"], measured["mean_incremental"]) == (0.4, 0.4, 0.4)
    for name in ("F", "BWT", "FWT", "FWT_delta", "relative_F"):
        assert np.isnan(measured[name])


def test_forgetting_in_relation_to_nothing_learned_is_nan():
    assert np.isnan(relative_forgetting(np.zeros((3, 3))))


@pytest.mark.parametrize(
    ("measure", "cell"),
    [
        (learning_accuracy, (1, 1)),
        (average_accuracy, (2, 0)),
        (average_accuracy, (2, 2)),
        (forgetting, (1, 0)),
        (forgetting, (2, 1)),
        (backward_transfer, (0, 0)),
        (backward_transfer, (2, 1)),
        (forward_transfer, (0, 1)),
        (mean_incremental, (1, 0)),
        (relative_forgetting, (2, 2)),
        (summary, (1, 2)),
    ],
)
def test_a_missing_cell_that_is_needed_is_refused_by_name(measure, cell):
    matrix = BY_HAND.copy()
    matrix[cell] = NAN
    with pytest.raises(ValueError, match=rf"A\[{cell[0]}, {cell[1]}\], which is NaN"):
        measure(matrix)


def test_a_missing_cell_that_is_not_needed_does_no_harm():
    matrix = BY_HAND.copy()
    matrix[2, 2] = NAN  # F and BWT look at old tasks only
    assert forgetting(matrix) == forgetting(BY_HAND)
    assert backward_transfer(matrix) == backward_transfer(BY_HAND)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (0, 0), (2, 2, 2)])
def test_what_is_no_matrix_of_results_is_refused(shape):
    for measure in (learning_accuracy, forgetting, forward_transfer, summary):
        with pytest.raises(ValueError, match="T or more"):
            measure(np.zeros(shape))


def test_a_baseline_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(2,\); it must be \(3 or more,\)"):
        forward_transfer(BY_HAND, [0.1, 0.2])
    with pytest.raises(ValueError, match="baseline of task 2 is NaN"):
        forward_transfer(BY_HAND, [0.1, 0.2, NAN])


def test_the_mean_along_a_stream_and_its_end():
    curve = [0.2, 0.4, 0.9]
    assert anytime_auc(curve) == pytest.approx(0.5)
    assert anytime_last(curve) == 0.9
    # 5 that arrived before the first, 10 before the second, 30 before the third.
    assert anytime_auc(curve, [5, 15, 45]) == pytest.approx((5 * 0.2 + 10 * 0.4 + 30 * 0.9) / 45)
    assert anytime_auc(curve, [2, 4, 6]) == pytest.approx(anytime_auc(curve))
    values, arrived = [0.1, 0.7, 0.3, 0.8], [31, 36, 41, 90]
    every_clip = np.repeat(values, np.diff(arrived, prepend=0))
    assert anytime_auc(values, arrived) == pytest.approx(every_clip.mean())
    assert anytime_auc([0.3], [7]) == anytime_auc([0.3]) == 0.3


def test_a_curve_that_is_none_is_refused():
    for measure in (anytime_auc, anytime_last, mean_sd_interval):
        with pytest.raises(ValueError, match=r"\(0,\)"):
            measure([])
        with pytest.raises(ValueError, match="value 1 of 3 is NaN"):
            measure([0.1, NAN, 0.2])
    for arrived in ([1, 2], [0, 1, 2], [1, 1, 2], [3, 2, 1], [1, 2, NAN], [[1, 2, 3]]):
        with pytest.raises(ValueError, match="must ascend from above 0"):
            anytime_auc([0.1, 0.2, 0.3], arrived)


def test_the_axes_follow_their_formulae():
    axes = radar_axes(BY_HAND, Cost(200.0, 3e9), Cost(50.0, 1.5e9))
    assert axes == pytest.approx(
        {
            "Accuracy": 0.6,
            "Retention": 1 - 0.15 / (2 / 3),
            "Plasticity": 2 / 3,
            "Stability": 1 - 0.1,
            "Speed": 0.25,
            "Memory": 0.5,
        }
    )
    gained = np.array([[0.5, 0.2], [0.9, 0.6]])
    assert radar_axes(gained, Cost(1, 1), Cost(1, 1))["Stability"] == 1
    alone = radar_axes(np.array([[0.5]]), Cost(1, 1), Cost(1, 1))
    assert np.isnan([alone["Retention"], alone["Stability"]]).all()
    assert (alone["Accuracy"], alone["Speed"]) == (0.5, 1)


def test_axes_of_percents_or_impossible_costs_are_refused():
    with pytest.raises(ValueError, match=r"\[10.0, 90.0\]; axes need \[0, 1\]"):
        radar_axes(100 * BY_HAND, Cost(1, 1), Cost(1, 1))
    for mine, least, named in (
        (Cost(1, 1), Cost(2, 1), "seconds is 1 and the least 2"),
        (Cost(1, 1), Cost(1, 2), "memory_bytes is 1 and the least 2"),
        (Cost(0, 1), Cost(0, 1), "seconds is 0"),
        (Cost(NAN, 1), Cost(1, 1), "seconds is nan"),
    ):
        with pytest.raises(ValueError, match=named):
            radar_axes(BY_HAND, mine, least)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_intervals_are_those_of_students_t(n, seed):
    values = np.random.default_rng(seed).normal(0.6, 0.1, n)
    spread = mean_sd_interval(values)
    low, high = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
    assert spread.n == n
    assert spread.mean == pytest.approx(values.mean(), abs=1e-12)
    assert spread.sd == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert spread.mean - spread.half_width == pytest.approx(low, abs=1e-9)
    assert spread.mean + spread.half_width == pytest.approx(high, abs=1e-9)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 100, 101, 5_000])
def test_the_quantile_holds_for_few_runs_and_for_many(n):
    values = np.arange(n, dtype=float)
    expected = stats.t.ppf(0.975, n - 1) * stats.sem(values)
    assert mean_sd_interval(values).half_width == pytest.approx(expected, rel=1e-9)


def test_one_run_has_a_mean_only():
    spread = mean_sd_interval([0.7])
    assert (spread.mean, spread.n) == (0.7, 1)
    assert np.isnan([spread.sd, spread.half_width]).all()

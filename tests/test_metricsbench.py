"""The bench of the metrics: its predictions are like a network's, its report is whole."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from atlasd.model.ranking import average_precision
from atlasd.tools import cli, metricsbench
from atlasd.tools.bareforward import BenchError
from atlasd.tools.metricsbench import Race, bench_metrics, predictions
from rich.console import Console
from typer.testing import CliRunner


def test_a_bench_compares_both_sides_on_the_same_predictions(tmp_path, monkeypatch):
    monkeypatch.setattr(metricsbench, "_FRAMES_A_ROUND", 2)
    text = io.StringIO()
    report = bench_metrics(
        5, json_path=tmp_path / "report.json", console=Console(file=text, width=160)
    )
    assert report.frames == 5
    assert len(report.together) == len(report.ap) == 3
    assert all(race.ours_ms > 0 and race.theirs_ms > 0 for race in report.together + report.ap)
    assert report.together_ratio == sorted(race.ratio for race in report.together)[1]
    assert report.max_difference <= 1e-6
    read = json.loads((tmp_path / "report.json").read_text())
    assert (read["frames"], len(read["ap"]), read["passed"]) == (5, 3, report.passed)
    for told in ("5 frames of 224 x 224", "scikit-learn ÷ ours", "(bar 20)", "(bar 8)"):
        assert told in text.getvalue()


@pytest.mark.parametrize(
    ("ours_first", "ours_ms", "theirs_ms"), [(True, 500, 2000), (False, 2000, 500)]
)
def test_each_side_gets_its_own_time_whichever_goes_first(
    ours_first, ours_ms, theirs_ms, monkeypatch
):
    clock = SimpleNamespace(perf_counter=iter([0.0, 1.0, 10.0, 14.0]).__next__)
    monkeypatch.setattr(metricsbench, "time", clock)
    batch = np.zeros((2, 3, 3), np.float32), np.zeros((2, 3, 3), bool)
    sides = [lambda _probs, _truth, value=value: np.array([[value]]) for value in (0.5, 0.25)]
    race, difference = metricsbench._race(*sides, batch, ours_first=ours_first)
    assert (race.ours_ms, race.theirs_ms) == (ours_ms, theirs_ms)
    assert race.ratio == theirs_ms / ours_ms
    assert difference == 0.25


@pytest.mark.parametrize(
    ("together_ms", "ap_ms", "difference", "passed"),
    [
        (20.0, 8.0, 1e-6, True),
        (19.9, 8.0, 0.0, False),
        (20.0, 7.9, 0.0, False),
        (20.0, 8.0, 2e-6, False),
        (20.0, 8.0, float("nan"), False),
    ],
)
def test_a_missed_bar_fails(together_ms, ap_ms, difference, passed):
    races = [Race(1.0, together_ms)] * 3, [Race(1.0, ap_ms)] * 3
    assert metricsbench._report(3, *races, difference, 0.9, 0.1).passed is passed


def test_predictions_are_like_a_trained_networks():
    probs, truth = predictions(40, seed=3)
    assert probs.shape == truth.shape == (40, 224, 224)
    assert (probs.dtype, truth.dtype) == (np.float32, bool)
    assert ((probs >= 0) & (probs <= 1)).all()
    share = truth.mean(axis=(1, 2))
    assert 0.01 < share.min() < 0.05
    assert 0.2 < share.max() < 0.4
    distinct = [len(np.unique(frame)) / frame.size for frame in probs]
    assert np.mean(distinct) > 0.8
    assert (probs == probs.max()).mean() > 0.001
    assert (probs == probs.min()).mean() > 0.01
    precision = average_precision(probs, truth)
    assert precision.min() < 0.7 < 0.95 < precision.max()
    again, _ = predictions(40, seed=3)
    other, _ = predictions(40, seed=4)
    np.testing.assert_array_equal(again, probs)
    assert (other != probs).any()


def test_no_frames_are_refused():
    with pytest.raises(BenchError, match="0 frames; at least 1"):
        bench_metrics(0)


def test_a_missing_scikit_learn_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(BenchError, match=r"scikit-learn.* is not installed: pip install"):
        bench_metrics(1)


@pytest.mark.parametrize("passed", [True, False])
def test_the_command_tells_by_its_exit_code_whether_the_bars_were_kept(
    passed, tmp_path, monkeypatch
):
    calls = []
    report = bench_metrics(1, console=Console(file=io.StringIO()))

    def measured(frames, *, json_path):
        calls.append((frames, json_path))
        return replace(report, passed=passed)

    monkeypatch.setattr(metricsbench, "bench_metrics", measured)
    path = tmp_path / "report.json"
    result = CliRunner().invoke(cli.app, ["bench", "metrics", "--frames", "7", "--json", str(path)])
    assert result.exit_code == (0 if passed else 1), result.output
    assert calls == [(7, path)]


def test_the_command_has_help():
    result = CliRunner().invoke(cli.app, ["bench", "metrics", "--help"])
    assert result.exit_code == 0
    assert "--frames" in result.output

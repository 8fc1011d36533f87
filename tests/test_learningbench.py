"""The bench of learning: it times what it says, and its report is whole."""

from __future__ import annotations

import io
import json

import pytest
from atlasd.tools.learningbench import bench_learning
from rich.console import Console


@pytest.mark.slow
def test_a_bench_of_learning_reports_all_it_measured(tmp_path):
    text = io.StringIO()
    report = bench_learning(
        "tiny",
        cache_preset="tiny",
        rounds=3,
        cache_rounds=1,
        bfloat16=True,
        json_path=tmp_path / "report.json",
        console=Console(file=text, width=120),
    )
    assert set(report.steps) == {"atlas", "atlas with 3 anchors", "si"}
    assert all(ratio > 0 for ratio in report.steps.values())
    assert report.cache > 0
    assert report.encoding > 0
    assert json.loads((tmp_path / "report.json").read_text())["passed"] == report.passed
    assert "atlas step" in text.getvalue()
    assert "tiny, bfloat16" in text.getvalue()


def test_a_method_keeps_three_tensors_a_parameter_and_one_for_each_further_anchor():
    report = bench_learning(
        "tiny", cache_preset="tiny", rounds=1, cache_rounds=1, console=Console(file=io.StringIO())
    )
    assert {name: round(count, 1) for name, count in report.persistent.items()} == {
        "atlas": 3.0,
        "atlas with 3 anchors": 5.0,
        "si": 3.0,
    }

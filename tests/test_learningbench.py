"""The bench of learning: it times what it says, and its report is whole."""

from __future__ import annotations

import io
import json

from atlasd.tools.learningbench import bench_learning
from rich.console import Console


def test_a_bench_of_learning_reports_all_it_measured(tmp_path):
    text = io.StringIO()
    report = bench_learning(
        "tiny",
        cache_preset="tiny",
        rounds=3,
        cache_rounds=1,
        json_path=tmp_path / "report.json",
        console=Console(file=text, width=120),
    )
    assert set(report.steps) == {"atlas", "si"}
    assert all(ratio > 0 for ratio in report.steps.values())
    assert report.cache > 0
    assert json.loads((tmp_path / "report.json").read_text())["passed"] == report.passed
    assert "atlas step" in text.getvalue()


def test_a_method_keeps_three_tensors_a_parameter_at_most(tmp_path):
    report = bench_learning(
        "tiny", cache_preset="tiny", rounds=1, cache_rounds=1, console=Console(file=io.StringIO())
    )
    assert all(2.9 < count < 3.1 for count in report.persistent.values())

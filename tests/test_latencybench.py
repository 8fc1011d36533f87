"""The bench of capture to publication, in small: a real daemon, the bare network, whole numbers."""

import io
import json

import pytest
from atlasd.tools.bareforward import BenchError
from atlasd.tools.latencybench import FRAME_MS, bench_latency
from rich.console import Console
from served import tiny_checkpoint


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_daemons_latency_is_set_beside_the_bare_network_of_the_same_run(tmp_path):
    text = io.StringIO()
    report = bench_latency(
        "tiny",
        frames=40,
        rounds=1,
        threads=1,
        capacity=2,
        weights=tiny_checkpoint(tmp_path),
        json_path=tmp_path / "latency.json",
        console=Console(file=text, width=160),
    )
    assert 0 < report.bare_ms["p50"] <= report.bare_ms["p95"]
    stages = report.stages_ms
    assert report.bar_ms == FRAME_MS + stages["infer"]["p95"]
    assert report.bare_bar_ms == FRAME_MS + report.bare_ms["p95"]
    assert report.total_ms["p50"] >= stages["infer"]["p50"] > 0
    assert {"decode", "queue", "pre", "post", "pack"} <= set(stages)
    assert report.passed == (report.total_ms["p95"] <= report.bar_ms)
    assert report.passed_bare == (report.total_ms["p95"] <= report.bare_bar_ms)
    assert (report.threads, report.capacity, report.frames) == (1, 2, 40)
    assert json.loads((tmp_path / "latency.json").read_text())["bar_ms"] == report.bar_ms
    assert "capture to publication" in text.getvalue()


@pytest.mark.parametrize(("rounds", "frames"), [(0, 10), (1, 1)])
def test_too_little_to_measure_is_refused(rounds, frames):
    with pytest.raises(BenchError, match="at least 1 round of 2"):
        bench_latency("tiny", rounds=rounds, frames=frames)

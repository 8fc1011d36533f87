"""The bench of a daemon that learns, in small: every number there, and of this run."""

from __future__ import annotations

import json

import pytest
from atlasd.tools.livebench import bench_live


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_masks_are_timed_with_the_learner_off_on_and_off(tmp_path):
    report = bench_live(frames=30, rounds=2, threads=1, json_path=tmp_path / "live.json")
    assert set(report.latency_ms) == {"off", "on"}
    assert len(report.p99_ms) == 5
    for latencies in report.latency_ms.values():
        assert 0 < latencies["p50"] <= latencies["p95"] <= latencies["p99"]
    assert report.interval[0] <= report.ratio <= report.interval[1]
    assert report.learned > 0
    assert not report.passed or report.swaps >= report.rounds
    assert report.memory_mb[0] > 100
    assert report.device == "cpu"
    assert json.loads((tmp_path / "live.json").read_text())["frames"] == 30

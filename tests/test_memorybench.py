"""The bench of memory: it sees a leak through noise, and a daemon that has none."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from atlasd.tools.memorybench import SWAPS_BAR, Growth, bench_memory
from rich.console import Console


@pytest.mark.parametrize("leak_mb", [0.0, 0.5, 5.0])
def test_a_leak_is_seen_through_noise(leak_mb):
    frames = np.arange(0, 10_000, 30)
    noise = np.random.default_rng(0).normal(0, 2, len(frames))
    growth = Growth.of(frames, 800 + leak_mb * frames / 1000 + noise)
    assert growth.rise_mb == pytest.approx(10 * leak_mb, abs=1.0)
    assert growth.noise_mb == pytest.approx(2, rel=0.2)
    assert growth.last_mb - growth.first_mb == pytest.approx(9 * leak_mb, abs=1.5)
    assert growth.is_flat is not (leak_mb > 0)


def test_a_slope_of_a_few_samples_is_refused():
    with pytest.raises(ValueError, match="at least 10"):
        Growth.of(range(9), [1.0] * 9)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_daemon_that_learns_is_watched(tmp_path):
    """In small: what it takes to be warm is still in these numbers, so the bar is not asked."""
    text = io.StringIO()
    report = bench_memory(
        frames=700, json_path=tmp_path / "memory.json", console=Console(file=text, width=120)
    )
    assert report.frames >= 700
    assert report.swaps > 0
    assert report.daemon.first_mb > 100
    assert report.learner.first_mb > 100
    assert abs(report.daemon.rise_mb) < 1000  # a picture lost with each frame would be 1500
    assert not report.passed or report.swaps >= SWAPS_BAR
    told = json.loads((tmp_path / "memory.json").read_text())
    assert told["swaps"] == report.swaps
    assert "MB in 10,000 frames" in text.getvalue()

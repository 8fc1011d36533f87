"""Latencies by stage."""

from __future__ import annotations

import numpy as np
import pytest
from atlasd.daemon.latency import Latencies


def test_percentiles_are_those_of_the_values():
    values = np.random.default_rng(0).gamma(2.0, 5.0, 1000)
    latencies = Latencies()
    for value in values:
        latencies.add({"infer": float(value)})
    told = latencies.percentiles()["infer"]
    for name, percent in (("p50", 50), ("p95", 95), ("p99", 99)):
        assert told[name] == pytest.approx(np.percentile(values, percent), abs=2e-3)


def test_older_values_give_way():
    latencies = Latencies(capacity=4)
    for value in (1000.0, 1000.0, 1.0, 2.0, 3.0, 4.0):
        latencies.add({"infer": value})
    assert latencies.percentiles()["infer"]["p50"] == 2.5
    assert latencies.percentiles(last=1)["infer"]["p50"] == 4.0


def test_nothing_measured_is_nothing_told():
    assert Latencies().percentiles() == {}


def test_a_capacity_below_one_is_refused():
    with pytest.raises(ValueError, match="capacity is 0"):
        Latencies(0)

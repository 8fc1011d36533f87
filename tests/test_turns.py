"""What something costs, by latencies without and with it in turn."""

from __future__ import annotations

import numpy as np
import pytest
from atlasd.tools.turns import Turns


def phases(count: int, effect: float, drift: float = 0.0) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [
        (40 + drift * k) * rng.lognormal(0, 0.3, 200) * (effect if k % 2 else 1.0)
        for k in range(count)
    ]


@pytest.mark.parametrize("effect", [0.5, 1.0, 2.0])
def test_the_ratio_is_that_of_the_99th_percentiles_and_lies_in_its_interval(effect):
    made = phases(21, effect)
    turns = Turns(made)
    off, on = np.concatenate(made[::2]), np.concatenate(made[1::2])
    assert turns.ratio() == np.percentile(on, 99) / np.percentile(off, 99)
    low, high = turns.interval()
    assert low < effect < high
    assert 0.8 * effect < low < turns.ratio() < high < 1.25 * effect
    told = turns.percentiles()
    assert told["on"]["p50"] == np.median(on)
    assert told["off"]["p95"] == np.percentile(off, 95)
    assert turns.p99() == tuple(np.percentile(phase, 99) for phase in made)


def test_a_machine_that_grows_slower_all_the_time_is_no_effect():
    assert Turns(phases(21, 1.0, drift=4.0)).ratio() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("sizes", [(), (3,), (3, 3), (3, 3, 3, 3), (3, 0, 3)])
def test_phases_that_are_not_off_on_and_off_are_refused(sizes):
    with pytest.raises(ValueError, match="end with one that is off"):
        Turns([[1.0] * size for size in sizes])

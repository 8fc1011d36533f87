"""What a daemon loads once is not looked at again by the collector while it serves."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from atlasd.daemon.memory import loaded_for_good, resident_mb


def test_what_is_there_is_passed_over_and_what_comes_is_collected():
    before = gc.get_freeze_count()
    with loaded_for_good():
        assert gc.get_freeze_count() > 10_000
        cycle: list[object] = []
        cycle.append(cycle)
        del cycle
        assert gc.collect() >= 1
    assert gc.get_freeze_count() <= before


def test_it_ends_with_an_error_too():
    with pytest.raises(KeyError), loaded_for_good():
        raise KeyError
    assert not gc.get_freeze_count()


def test_memory_of_this_process_is_what_the_kernel_says():
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    assert resident_mb() == pytest.approx(int(status["VmRSS"].split()[0]) * 1.024e-3, rel=0.05)

"""What a measurement was made on, and how much memory it took."""

from __future__ import annotations

import mmap
import re
import sys

import numpy as np
import pytest
from atlasd.tools.machine import forget_peak_memory, machine, peak_memory_mb


def test_a_machine_is_told_by_its_processor(tmp_path):
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor\t: 0\nmodel name\t: Fast One @ 2 GHz\nmodel name\t: other\n")
    assert re.fullmatch(r"Fast One @ 2 GHz, \d+ cores, torch \S+", machine(cpuinfo=listing))
    assert re.fullmatch(r".+, \d+ cores, torch \S+", machine(cpuinfo=tmp_path / "none"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can let a peak be forgotten")
def test_the_peak_of_what_came_before_is_forgotten():
    forget_peak_memory()
    before = peak_memory_mb()
    with mmap.mmap(-1, 64 << 20) as fresh:  # an allocator might hand out what it holds already
        np.frombuffer(fresh, np.uint8)[:] = 1
        assert 60 < peak_memory_mb() - before < 70
    forget_peak_memory()
    assert peak_memory_mb() < before + 10

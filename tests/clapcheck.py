"""How far clicks are from their flashes, in samples that came out of a source."""

from __future__ import annotations

import numpy as np
from atlasd.streams.clips import Sample


def click_after_flash_s(samples: list[Sample]) -> dict[tuple[int, int], float]:
    """Seconds from each flash to its click, by epoch and nearest whole second of its time."""
    found = {}
    flashes = [s.frame for s in samples if s.frame.image.mean() > 128]
    for flash in flashes:
        for sample in samples:
            window = sample.window
            begin_ns, end_ns = flash.pts_ns - 100_000_000, flash.pts_ns + 100_000_000
            in_window = window.start_ns <= begin_ns and end_ns <= window.end_ns
            if sample.frame.epoch != flash.epoch or not in_window:
                continue
            first = round((begin_ns - window.start_ns) * window.sample_rate_hz / 1e9)
            near = np.abs(window.samples[first : first + window.sample_rate_hz // 5])
            assert near.max() > 0.2, f"no click at the flash at {flash.pts_ns / 1e9} s"
            click_ns = window.start_ns + (first + int(near.argmax())) * 1e9 / window.sample_rate_hz
            found[flash.epoch, round(flash.pts_ns / 1e9)] = (click_ns - flash.pts_ns) / 1e9
            break
    return found

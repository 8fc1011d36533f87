"""The replay ring keeps what was shown a moment ago, within its bounds, without a copy."""

from __future__ import annotations

import pytest
from atlasd.daemon.labels import LabelError
from atlasd.daemon.replayring import ReplayRing
from hypothesis import given
from hypothesis import strategies as st
from labeled import PERIOD_NS, RATE_HZ, a_sample

BYTES = 10 * 6 * 3 + 4 * RATE_HZ


def ring_of(*samples, seconds=10.0, max_bytes=100 * BYTES) -> ReplayRing:
    ring = ReplayRing(seconds, max_bytes)
    for sample in samples:
        ring.add(sample)
    return ring


def code(ring: ReplayRing, stream="main", epoch=0, pts_ns=0) -> str:
    with pytest.raises(LabelError) as caught:
        ring.find(stream, epoch, pts_ns)
    return caught.value.code


def test_a_sample_is_found_as_it_was():
    samples = [a_sample(0), a_sample(1), a_sample(0, epoch=1), a_sample(0, stream="other")]
    ring = ring_of(*samples)
    for sample in samples:
        frame = sample.frame
        assert ring.find(frame.stream, frame.epoch, frame.pts_ns) is sample
    assert ring.size == (4, 4 * BYTES)


def test_what_is_older_than_the_seconds_is_let_go():
    ring = ring_of(*(a_sample(k) for k in range(100)), seconds=1.0)
    assert ring.size[0] == 26
    assert ring.find("main", 0, 99 * PERIOD_NS)
    assert code(ring, pts_ns=73 * PERIOD_NS) == "expired"


def test_what_is_over_the_bytes_is_let_go():
    ring = ring_of(*(a_sample(k) for k in range(10)), max_bytes=3 * BYTES)
    assert ring.size == (3, 3 * BYTES)
    assert code(ring, pts_ns=6 * PERIOD_NS) == "expired"


def test_a_ring_of_nothing_keeps_nothing():
    ring = ring_of(a_sample(3), max_bytes=0)
    assert ring.size == (0, 0)
    assert code(ring, pts_ns=3 * PERIOD_NS) == "expired"


def test_each_way_to_miss_has_its_name():
    ring = ring_of(a_sample(0), a_sample(2), a_sample(5, epoch=1))
    assert code(ring, stream="porch") == "unknown_stream"
    assert code(ring, epoch=2) == "unknown_epoch"
    assert code(ring, epoch=1, pts_ns=6 * PERIOD_NS) == "future"
    assert code(ring, pts_ns=PERIOD_NS) == "no_frame"
    assert code(ring, pts_ns=-PERIOD_NS) == "expired"


def test_nothing_shown_yet_is_told():
    with pytest.raises(LabelError, match="none yet"):
        ring_of().find("main", 0, 0)


def test_a_time_that_comes_again_in_an_epoch_takes_the_place_of_the_first():
    later = a_sample(0, capture_ns=7)
    ring = ring_of(a_sample(0), later)
    assert ring.find("main", 0, 0) is later
    assert ring.size == (1, BYTES)


@given(
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=60),
    seconds=st.floats(0.01, 0.5),
    most=st.integers(0, 6),
)
def test_the_bounds_hold_whatever_comes(steps, seconds, most):
    ring = ReplayRing(seconds, most * BYTES)
    now_ns, kept = 0, []
    for epoch, (jump, index) in enumerate(steps):
        now_ns += jump * PERIOD_NS
        sample = a_sample(index, epoch=epoch, capture_ns=now_ns)
        ring.add(sample)
        kept = [*kept, sample][-most:] if most else []
        kept = [s for s in kept if s.frame.capture_ns >= now_ns - round(seconds * 1e9)]
        assert ring.size == (len(kept), len(kept) * BYTES)
        for s in kept:
            assert ring.find("main", s.frame.epoch, s.frame.pts_ns) is s

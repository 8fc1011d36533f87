"""The ring of sound: exact windows by time, whatever the chunks were."""

from __future__ import annotations

import numpy as np
import pytest
from atlasd.streams.audio import AudioRing
from atlasd.streams.clips import NS_PER_S, AudioChunk
from hypothesis import given, settings
from hypothesis import strategies as st

RATE = 1000
MS = 1_000_000


def chunk(samples, start_ns, *, rate=RATE, epoch=0) -> AudioChunk:
    return AudioChunk(np.asarray(samples, np.float32), rate, start_ns, "main", epoch)


def counted(n, first=1) -> np.ndarray:
    """Samples that say their own number."""
    return np.arange(first, first + n, dtype=np.float32) / 1e6


def pushed(pieces, capacity_s=12.0) -> AudioRing:
    ring = AudioRing(RATE, capacity_s)
    for piece in pieces:
        ring.push(piece)
    return ring


partitions = st.lists(st.integers(1, 700), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(partitions, st.integers(-500, 4000), st.integers(1, 1500), st.integers(0, NS_PER_S))
def test_any_partition_gives_what_slicing_gives(sizes, first, length, origin_ns):
    """A window of chunked sound is the slice of the whole sound, zeros outside it."""
    sound = counted(sum(sizes))
    ring = AudioRing(RATE)
    done = 0
    for size in sizes:
        ring.push(chunk(sound[done : done + size], origin_ns + done * MS))
        done += size
    heard = ring.window(origin_ns + first * MS, length)
    expected = np.zeros(length, np.float32)
    for i in range(length):
        if 0 <= first + i < sound.size:
            expected[i] = sound[first + i]
    np.testing.assert_array_equal(heard.samples, expected)
    assert heard.gap_samples == sum(1 for i in range(length) if first + i < 0)
    assert heard.missing_tail_samples == sum(1 for i in range(length) if first + i >= sound.size)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(-60, 200)), min_size=2, max_size=12),
    st.integers(0, 2000),
    st.integers(20, 400),
)
def test_later_input_never_changes_an_earlier_answer(steps, first, length):
    """A window that is complete stays as it is, whatever comes: holes, repeats, jitter."""
    ring = AudioRing(RATE)
    at_ms = 0
    answers = []
    for size, skip_ms in steps:
        at_ms = max(0, at_ms + skip_ms)
        ring.push(chunk(counted(size, at_ms + 1), at_ms * MS))
        at_ms += size
        heard = ring.window(first * MS, length)
        if not heard.missing_tail_samples:
            answers.append(heard)
    for answer in answers:
        np.testing.assert_array_equal(answer.samples, answers[0].samples)
        assert answer.gap_samples == answers[0].gap_samples


def test_a_hole_is_zeros_and_is_counted():
    """Sound that begins 464 ms later leaves 464 zeros, and what follows keeps its time."""
    ring = pushed([chunk(counted(1000), 0), chunk(counted(1000, 1465), 1464 * MS)])
    heard = ring.window(900 * MS, 1000)
    np.testing.assert_array_equal(heard.samples[:100], counted(100, 901))
    assert not heard.samples[100:564].any()
    np.testing.assert_array_equal(heard.samples[564:], counted(436, 1465))
    assert (heard.gap_samples, heard.missing_tail_samples) == (464, 0)
    assert ring.end_ns == 2464 * MS


@pytest.mark.parametrize("jitter_ms", [-14, -1, 1, 14])
def test_jitter_below_15_ms_moves_no_sample(jitter_ms):
    """Chunks whose timestamps wander a little join without a seam."""
    ring = pushed([chunk(counted(1000), 0), chunk(counted(1000, 1001), (1000 + jitter_ms) * MS)])
    heard = ring.window(500 * MS, 800)
    np.testing.assert_array_equal(heard.samples, counted(800, 501))
    assert heard.gap_samples == 0


def test_jitter_does_not_add_up():
    """A device 0.1 % fast for 100 s stays within the jitter, because anchors move with it."""
    ring = AudioRing(RATE, 2.0)
    for i in range(1000):
        ring.push(chunk(np.zeros(100, np.float32), round(i * 100 * MS * 1.001)))
    assert ring.end_ns == pytest.approx(100.1 * NS_PER_S, abs=2 * MS)
    assert ring.window(ring.end_ns - NS_PER_S, 1000).gap_samples == 0


def test_time_that_was_heard_is_not_heard_again():
    """Overlapping sound is dropped and counted; the first stays."""
    ring = pushed([chunk(counted(1000), 0), chunk(np.ones(300), 800 * MS)])
    np.testing.assert_array_equal(ring.window(0, 1000).samples, counted(1000))
    np.testing.assert_array_equal(ring.window(1000 * MS, 100).samples, np.ones(100))
    assert ring.repeated_samples == 200


def test_memory_is_fixed_and_old_sound_leaves_as_a_gap():
    """Only the newest seconds stay; asking for older ones says that they are gone."""
    ring = AudioRing(RATE, 2.0)
    for i in range(100):
        ring.push(chunk(counted(100, i * 100 + 1), i * 100 * MS))
    np.testing.assert_array_equal(ring.window(8000 * MS, 2000).samples, counted(2000, 8001))
    old = ring.window(7000 * MS, 2000)
    assert old.gap_samples == 1000
    np.testing.assert_array_equal(old.samples[1000:], counted(1000, 8001))


def test_a_chunk_longer_than_the_ring_keeps_its_end():
    """A second of sound in a ring of half a second leaves its newest half."""
    ring = AudioRing(RATE, 0.5)
    ring.push(chunk(counted(1000), 0))
    np.testing.assert_array_equal(ring.window(500 * MS, 500).samples, counted(500, 501))
    assert ring.end_ns == NS_PER_S


def test_a_hole_longer_than_the_ring_leaves_zeros():
    """After an hour without sound the ring holds what came since."""
    ring = AudioRing(RATE, 1.0)
    ring.push(chunk(counted(1000), 0))
    ring.push(chunk(counted(100), 3600 * NS_PER_S))
    heard = ring.window(3600 * NS_PER_S - 200 * MS, 300)
    assert not heard.samples[:200].any()
    np.testing.assert_array_equal(heard.samples[200:], counted(100))
    assert heard.gap_samples == 200


def test_an_empty_ring_misses_everything():
    """Before the first sound nothing can be lost, only not have come."""
    heard = AudioRing(RATE).window(0, 100)
    assert (heard.gap_samples, heard.missing_tail_samples) == (0, 100)
    assert AudioRing(RATE).end_ns is None


def test_windows_stay_exact_after_ten_hours():
    """Sample numbers are whole numbers: no drift at 44.1 kHz, whose period is no whole ns."""
    rate, hours = 44100, 10
    ring = AudioRing(rate, 1.0)
    start_ns = hours * 3600 * NS_PER_S
    ring.push(chunk(np.zeros(10, np.float32), 0, rate=rate))
    ring.push(chunk(counted(44100), start_ns, rate=rate))
    at_ns = start_ns + round(22050 * NS_PER_S / rate)
    np.testing.assert_array_equal(ring.window(at_ns, 10).samples, counted(10, 22051))


def test_a_reset_forgets_the_epoch_before():
    """No window joins two epochs."""
    ring = pushed([chunk(counted(1000), 0)])
    ring.reset(1)
    ring.push(chunk(counted(100), 1000 * MS, epoch=1))
    heard = ring.window(900 * MS, 200)
    assert heard.gap_samples == 100
    assert not heard.samples[:100].any()


@pytest.mark.parametrize("wrong", [{"rate": 16000}, {"epoch": 3}])
def test_sound_of_another_rate_or_epoch_is_refused(wrong):
    """The error says what came and what is held."""
    with pytest.raises(ValueError, match="this ring holds 1000 Hz in epoch 0"):
        AudioRing(RATE).push(chunk(counted(10), 0, **wrong))

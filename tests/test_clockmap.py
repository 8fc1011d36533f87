"""The map of a device's clock: exact enough, without jumps, and begun anew where it must be."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from atlasd.streams.clockmap import SETTLING_NS, ClockMap
from hypothesis import given, settings
from hypothesis import strategies as st

NS_PER_S = 1_000_000_000
Delay = Callable[[random.Random], float]


def exponential(rng: random.Random) -> float:
    return rng.expovariate(1 / 10e6)


def uniform(rng: random.Random) -> float:
    return rng.uniform(0, 10e6)


def stamps(
    seconds: float, hz: float, skew_ppm: float, delay: Delay, seed: int = 0, begin_ns: int = 0
) -> Iterator[tuple[int, int, int]]:
    """(true host time, device stamp, arrival) of a device whose clock is slow by ``skew_ppm``."""
    rng = random.Random(seed)
    for i in range(round(seconds * hz)):
        true_ns = begin_ns + round(i * NS_PER_S / hz)
        device_ns = 987_654_321 + round(true_ns * (1 - skew_ppm * 1e-6))
        yield true_ns, device_ns, true_ns + round(delay(rng))


def errors_ms(clock: ClockMap, observed: Iterator[tuple[int, int, int]], warm_s: float = 1.0):
    errors = []
    for true_ns, device_ns, arrival_ns in observed:
        assert not clock.observe(device_ns, arrival_ns)
        if true_ns >= warm_s * NS_PER_S:
            errors.append((clock.host_ns(device_ns) - true_ns) / 1e6)
    return errors


@pytest.mark.parametrize("delay", [exponential, uniform])
@pytest.mark.parametrize("skew_ppm", [200, -200])
def test_an_hour_of_skew_and_jitter_leaves_milliseconds(skew_ppm, delay):
    clock = ClockMap()
    errors = errors_ms(clock, stamps(3600, 10, skew_ppm, delay))
    settled = sorted(abs(error) for error in errors[600:])
    assert max(abs(error) for error in errors) < 6
    assert settled[int(0.99 * len(settled))] < 1.5
    assert clock.skew_ppm == pytest.approx(skew_ppm, abs=40)


def test_a_constant_delay_stays_in_the_map():
    clock = ClockMap()
    errors = errors_ms(clock, stamps(30, 30, 0, lambda _: 40e6))
    assert set(errors) == {40.0}


def test_clocks_that_run_alike_without_jitter_map_exactly():
    clock = ClockMap()
    assert set(errors_ms(clock, stamps(120, 30, 0, lambda _: 0.0))) == {0.0}
    assert clock.skew_ppm == 0


@pytest.mark.parametrize("skew_ppm", [2000, -2000])
def test_skew_that_no_crystal_has_is_clamped(skew_ppm):
    clock = ClockMap()
    for _, device_ns, arrival_ns in stamps(40, 10, skew_ppm, uniform):
        clock.observe(device_ns, arrival_ns)
    assert clock.skew_ppm == (500 if skew_ppm > 0 else -500)


def test_a_slow_start_is_forgotten_before_anything_was_asked():
    """A camera's first pictures lie in the driver's queue for 130 ms and more."""
    clock = ClockMap()
    for i in range(30):
        true_ns = i * NS_PER_S // 30
        late_ns = 300_000_000 if i < 4 else 2_000_000
        assert not clock.observe(true_ns, true_ns + late_ns)
    assert clock.host_ns(NS_PER_S) == NS_PER_S + 2_000_000


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 400_000_000), st.integers(0, 90_000_000)), min_size=2, max_size=300
    ),
    st.integers(-(10**15), 10**15),
)
def test_mapped_time_has_no_jumps_whatever_arrives(observed, origin_ns):
    clock = ClockMap()
    device_ns = true_ns = 0
    mapped = []
    for advance_ns, delay_ns in observed:
        device_ns, true_ns = device_ns + advance_ns, true_ns + advance_ns
        if clock.observe(origin_ns + device_ns, true_ns + delay_ns):
            mapped.clear()
        mapped.append((device_ns, clock.host_ns(origin_ns + device_ns)))
    for (dev_a, host_a), (dev_b, host_b) in pairwise(mapped):
        steepest = 20.6e-3 if dev_a < SETTLING_NS + NS_PER_S else 1.01e-3
        assert host_b >= host_a
        assert abs((host_b - host_a) - (dev_b - dev_a)) <= steepest * (dev_b - dev_a) + 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-3_000_000_000, 3_000_000_000), min_size=1, max_size=200), st.data())
def test_no_sequence_of_stamps_breaks_it(steps, data):
    """Repeated, backward and jumping stamps: some answer, and memory that does not grow."""
    clock = ClockMap()
    device_ns = host_ns = 0
    for step_ns in steps:
        device_ns += step_ns
        host_ns += data.draw(st.integers(0, 50_000_000))
        clock.observe(device_ns, host_ns)
        clock.host_ns(device_ns)
    assert abs(clock.skew_ppm) <= 500


def test_earlier_device_times_keep_the_answer_they_had():
    clock = ClockMap()
    asked = []
    for _, device_ns, arrival_ns in stamps(40, 10, 200, exponential):
        clock.observe(device_ns, arrival_ns)
        asked.append((device_ns, clock.host_ns(device_ns)))
        for earlier_ns, answer_ns in asked[-20:]:
            assert abs(clock.host_ns(earlier_ns) - answer_ns) <= 1


def test_repeated_and_backward_stamps_teach_nothing():
    clock, other = ClockMap(), ClockMap()
    for _, device_ns, arrival_ns in stamps(20, 30, 100, exponential):
        clock.observe(device_ns, arrival_ns)
        other.observe(device_ns, arrival_ns)
        other.observe(device_ns, arrival_ns + 1_000_000)
        other.observe(device_ns - 20_000_000, arrival_ns + 2_000_000)
        assert clock.host_ns(device_ns) == other.host_ns(device_ns)


def test_one_false_stamp_in_a_crowd_moves_nothing():
    """A stamp from the future lies under the envelope, where it would stay for a minute."""
    clock = ClockMap()
    for i, (true_ns, device_ns, arrival_ns) in enumerate(stamps(60, 30, 0, exponential)):
        clock.observe(device_ns + (60_000_000 if i == 900 else 0), arrival_ns)
        if true_ns > 2 * NS_PER_S:
            assert abs(clock.host_ns(device_ns) - true_ns) < 3_000_000


@pytest.mark.parametrize("step_ms", [250, -250, 3_600_000, -3_600_000])
def test_a_step_is_told_after_a_second_and_the_map_begins_anew(step_ms):
    clock = ClockMap()
    errors_ms(clock, stamps(20, 30, 100, uniform))
    told_ns = None
    for true_ns, device_ns, arrival_ns in stamps(20, 30, 100, uniform, 1, begin_ns=20 * NS_PER_S):
        if clock.observe(device_ns + step_ms * 1_000_000, arrival_ns):
            assert told_ns is None, "told once"
            told_ns = true_ns
        if told_ns is not None and true_ns > told_ns + 2 * NS_PER_S:
            assert abs(clock.host_ns(device_ns + step_ms * 1_000_000) - true_ns) < 8_000_000
    assert told_ns is not None
    assert NS_PER_S <= told_ns - 20 * NS_PER_S <= 1.2 * NS_PER_S


def test_a_device_clock_that_starts_again_at_zero_is_a_step():
    clock = ClockMap()
    errors_ms(clock, stamps(100, 30, 0, uniform))
    told = [
        clock.observe(round(i * NS_PER_S / 30), round((100 + i / 30) * NS_PER_S)) for i in range(60)
    ]
    assert sum(told) == 1


def test_a_stall_under_a_second_is_no_step():
    clock = ClockMap()
    errors_ms(clock, stamps(20, 30, 0, uniform))
    stalled = stamps(0.9, 30, 0, lambda _: 400e6, begin_ns=20 * NS_PER_S)
    after = stamps(5, 30, 0, uniform, 2, begin_ns=21 * NS_PER_S)
    for true_ns, device_ns, arrival_ns in [*stalled, *after]:
        assert not clock.observe(device_ns, arrival_ns)
        assert abs(clock.host_ns(device_ns) - true_ns) < 3_000_000


@pytest.mark.parametrize("rate", [1.1, 2.0, 20.0])
def test_a_backlog_that_drains_is_no_step_however_long_it_takes(rate):
    """Three seconds of stall, then what was held up comes faster than it was sent."""
    clock = ClockMap()
    observed = list(stamps(20, 25, 0, exponential))
    for _, device_ns, arrival_ns in observed:
        clock.observe(device_ns, arrival_ns)
    true_ns, device_ns, _ = observed[-1]
    late_ns, step_ns = 3 * NS_PER_S, NS_PER_S // 25
    while late_ns > 0:
        true_ns, device_ns = true_ns + step_ns, device_ns + step_ns
        assert not clock.observe(device_ns, true_ns + late_ns)
        assert abs(clock.host_ns(device_ns) - true_ns) < 10_000_000
        late_ns -= round(step_ns * (1 - 1 / rate))


def test_a_stall_that_leaves_all_later_for_good_is_a_step():
    """A backlog that stops draining is the new delay."""
    clock = ClockMap()
    observed = list(stamps(20, 25, 0, exponential))
    for _, device_ns, arrival_ns in observed:
        clock.observe(device_ns, arrival_ns)
    true_ns, device_ns, _ = observed[-1]
    told_after = []
    for i in range(200):
        true_ns, device_ns = true_ns + NS_PER_S // 25, device_ns + NS_PER_S // 25
        late_ns = max(300_000_000, 1_000_000_000 - i * 20_000_000)
        if clock.observe(device_ns, true_ns + late_ns):
            told_after.append(i)
    assert len(told_after) == 1
    assert 55 <= told_after[0] <= 70


def test_single_stamps_of_zero_do_not_open_an_epoch():
    """USB cameras give 0 now and then."""
    clock = ClockMap()
    for i, (true_ns, device_ns, arrival_ns) in enumerate(stamps(60, 30, 0, uniform)):
        assert not clock.observe(0 if i % 40 == 39 else device_ns, arrival_ns)
        if true_ns > NS_PER_S:
            assert abs(clock.host_ns(device_ns) - true_ns) < 3_000_000


def test_a_map_that_has_observed_nothing_says_so():
    with pytest.raises(ValueError, match="observe"):
        ClockMap().host_ns(0)
    assert ClockMap().skew_ppm == 0

"""The ladder: which rung a deadline leaves, by times that are made up."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from atlasd.daemon.ladder import (
    FIRST_WAIT,
    LONGEST_WAIT,
    MARGIN,
    WINDOW,
    Ladder,
    default_sides,
    p95_ms,
)
from hypothesis import given, settings
from hypothesis import strategies as st

SIDES = (256, 192, 128)
QUIET_MS = (40.0, 25.0, 15.0)
DEADLINE_MS = 50.0


def made(quiet_ms=QUIET_MS, deadline_ms=DEADLINE_MS) -> Ladder:
    ladder = Ladder([32 * (len(quiet_ms) - i) for i in range(len(quiet_ms))], deadline_ms)
    ladder.calibrate([[ms] * 5 for ms in quiet_ms])
    return ladder


def served(ladder: Ladder, cost, frames: int) -> tuple[list[int], list[float]]:
    """Rungs and times of so many frames; `cost` gives a frame's ms by its rung."""
    rungs, times = [], []
    for _ in range(frames):
        rungs.append(ladder.rung)
        times.append(cost(ladder.rung))
        ladder.note(times[-1])
    return rungs, times


def changes(rungs: list[int]) -> int:
    return int(np.count_nonzero(np.diff(rungs)))


@given(st.lists(st.floats(0.1, 1000), min_size=20, max_size=WINDOW))
def test_the_p95_is_numpys_nearest_rank(times):
    assert p95_ms(times) == np.percentile(times, 95, method="inverted_cdf")


@pytest.mark.parametrize(
    ("times", "expected"), [([7.0], 7.0), ([7.0, 90.0], 7.0), ([1.0, 2.0, 3.0, 90.0], 3.0)]
)
def test_of_few_frames_one_may_be_an_outlier(times, expected):
    assert p95_ms(times) == expected


@pytest.mark.parametrize(
    ("deadline_ms", "rung"), [(500, 0), (40, 0), (39, 1), (25, 1), (20, 2), (15, 2), (1, 2)]
)
def test_it_begins_at_the_largest_rung_that_fits_or_at_the_smallest(deadline_ms, rung):
    assert made(deadline_ms=deadline_ms).rung == rung


def test_a_rung_that_seems_slower_than_a_larger_one_is_taken_for_as_fast():
    ladder = made((40.0, 70.0, 15.0))
    assert [ladder.p95_ms(rung) for rung in range(3)] == [40.0, 40.0, 15.0]


def test_a_noisy_machine_is_told_from_a_slow_network():
    ladder = Ladder(SIDES, 100.0)
    ladder.calibrate([[ms, *[3 * ms] * 6] for ms in QUIET_MS])
    assert [ladder.p95_ms(rung) for rung in range(3)] == [120.0, 75.0, 45.0]
    assert ladder.rung == 1
    served(ladder, QUIET_MS.__getitem__, FIRST_WAIT)
    assert ladder.rung == 0


def test_unmeasured_rungs_cost_by_their_area_and_the_largest_just_fits():
    ladder = Ladder(SIDES, 64.0)
    assert [ladder.p95_ms(rung) for rung in range(3)] == [64.0, 36.0, 16.0]
    assert ladder.rung == 0
    served(ladder, lambda rung: 2 * QUIET_MS[rung], WINDOW)
    assert ladder.rung == 1


def test_six_late_frames_of_a_hundred_are_too_many_and_five_are_not():
    ladder = made()
    served(ladder, lambda _: 40.0, WINDOW)
    served(ladder, lambda _: 60.0, 5)
    assert ladder.rung == 0
    ladder.note(60.0)
    assert ladder.rung == 1


def test_a_heavy_load_is_answered_by_the_rung_that_fits_under_it_at_once():
    ladder = made()
    served(ladder, lambda rung: QUIET_MS[rung], WINDOW)
    rungs, _ = served(ladder, lambda rung: 3 * QUIET_MS[rung], 7)
    assert rungs == [0] * 6 + [2]


def test_it_climbs_again_to_the_largest_that_fits_when_the_load_has_gone():
    ladder = made()
    served(ladder, lambda rung: 3 * QUIET_MS[rung], 500)
    assert ladder.rung == 2
    rungs, _ = served(ladder, lambda rung: QUIET_MS[rung], WINDOW)
    assert ladder.rung == 0
    assert changes(rungs) == 1


def test_while_the_largest_waits_for_its_next_trial_the_one_between_is_tried():
    ladder = made()
    served(ladder, lambda rung: 3 * QUIET_MS[rung], 500)
    really = (90.0, 25.0, 15.0)  # a quiet machine told 40 of the first
    rungs, _ = served(ladder, really.__getitem__, 2 * WINDOW)
    assert rungs[np.flatnonzero(np.diff(rungs))[0] + 1] == 0
    assert rungs.count(0) == 2
    assert ladder.rung == 1


def test_a_rung_that_would_just_fit_is_tried_only_after_the_longest_wait():
    ladder = made()
    served(ladder, lambda rung: 3 * QUIET_MS[rung], 500)
    just_over = 1.01 * MARGIN * DEADLINE_MS / QUIET_MS[1]
    rungs, _ = served(ladder, lambda rung: just_over * QUIET_MS[rung], LONGEST_WAIT)
    assert set(rungs[: LONGEST_WAIT // 2]) == {2}
    assert ladder.rung == 1


def test_a_trial_that_fails_doubles_the_wait_for_the_next():
    ladder = made()
    really = (80.0, 25.0, 15.0)  # a quiet machine told 40 of the first
    rungs, times = served(ladder, really.__getitem__, 20_000)
    waits = np.diff(np.flatnonzero(np.diff(rungs) < 0))
    assert waits[0] == 2 * FIRST_WAIT + 2
    assert np.all(np.diff(waits) >= 0)
    assert waits[-1] == LONGEST_WAIT + 2
    assert np.mean(np.array(times[2:]) > DEADLINE_MS) < 0.01


def test_a_trial_that_holds_makes_the_wait_short_again():
    ladder = made()
    served(ladder, (80.0, 25.0, 15.0).__getitem__, 5000)
    served(ladder, QUIET_MS.__getitem__, 2 * LONGEST_WAIT)
    assert ladder.rung == 0
    served(ladder, lambda rung: 2 * QUIET_MS[rung], WINDOW)
    rungs, _ = served(ladder, QUIET_MS.__getitem__, WINDOW + FIRST_WAIT)
    assert (rungs[0], ladder.rung) == (1, 0)


def test_an_estimate_that_is_too_high_does_not_keep_it_down_for_ever():
    """Where all frames cost the same on top, the load looks like more than it is."""
    ladder = made(deadline_ms=55.0)
    served(ladder, lambda rung: 3 * QUIET_MS[rung], 500)
    served(ladder, lambda rung: QUIET_MS[rung] + 14.0, 3 * LONGEST_WAIT)
    assert ladder.rung == 0


def test_a_rung_that_never_fits_is_never_tried():
    ladder = made(deadline_ms=30.0)
    rungs, _ = served(ladder, lambda rung: 1.1 * QUIET_MS[rung], 3 * LONGEST_WAIT)
    assert set(rungs) == {1}


@given(
    times=st.lists(st.floats(0, 200), max_size=400),
    deadline_ms=st.floats(5, 150),
    rungs=st.integers(1, 5),
)
def test_no_rung_stays_whose_p95_is_late_if_there_is_a_smaller_one(times, deadline_ms, rungs):
    ladder = made([20.0 * (rungs - i) for i in range(rungs)], deadline_ms)
    since: list[float] = []
    for ms in times:
        before = ladder.rung
        ladder.note(ms)
        since = [*since, ms][-WINDOW:]
        if ladder.rung == before and ladder.rung < rungs - 1 and len(since) >= 20:
            assert np.percentile(since, 95, method="inverted_cdf") <= deadline_ms
        if ladder.rung != before:
            since = []
        last = ladder.rung == rungs - 1
        assert last or ladder.p95_ms(ladder.rung) <= deadline_ms
        assert all(ladder.p95_ms(r) > deadline_ms for r in range(before + 1, ladder.rung))


@settings(max_examples=50, deadline=None)
@given(
    quiet_ms=st.lists(st.floats(1, 100), min_size=1, max_size=5),
    loads=st.lists(st.floats(0.5, 8), min_size=1, max_size=4),
    deadline_ms=st.floats(5, 200),
)
def test_after_a_change_of_load_it_settles_at_the_largest_that_fits(quiet_ms, loads, deadline_ms):
    quiet_ms = sorted(quiet_ms, reverse=True)
    ladder = made(quiet_ms, deadline_ms)
    for load in loads:
        costs = [load * ms for ms in quiet_ms]
        served(ladder, costs.__getitem__, 2 * LONGEST_WAIT)
        rungs, _ = served(ladder, costs.__getitem__, WINDOW)
        last = len(costs) - 1
        fits = next((r for r, ms in enumerate(costs) if ms <= deadline_ms), last)
        with_room = next((r for r, ms in enumerate(costs) if ms <= MARGIN * deadline_ms), last)
        tried = [r for r in set(rungs) if not fits <= r <= with_room]
        assert all(quiet_ms[r] <= deadline_ms for r in tried), "what never fits is not tried"
        assert sum(rungs.count(r) for r in tried) <= 2, "a trial ends after two late frames"


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), load=st.floats(0.8, 2.0), spread=st.floats(0.0, 0.3))
def test_under_noise_95_of_100_frames_are_in_time_wherever_the_smallest_rung_is(seed, load, spread):
    noise = np.random.default_rng(seed).lognormal(0.0, spread, 5000)
    costs = iter(noise * load)
    ladder = made()
    rungs, times = served(ladder, lambda rung: QUIET_MS[rung] * next(costs), len(noise))
    assert np.mean(np.array(times) > DEADLINE_MS) <= 0.05
    assert changes(rungs) <= 2 * len(noise) / FIRST_WAIT


def test_memory_is_bounded():
    rng = np.random.default_rng(0)
    ladder = made()
    sizes = []
    for _ in range(10):
        served(ladder, lambda rung: float(rng.lognormal()) * QUIET_MS[rung], 1000)
        sizes.append(len(pickle.dumps(ladder)))
    assert max(sizes) < 3000


def test_what_it_tells_is_each_rung_with_its_p95_and_its_frames():
    ladder = Ladder(SIDES, DEADLINE_MS)
    ladder.calibrate([[ms] * 5 for ms in QUIET_MS])
    served(ladder, lambda rung: 2 * QUIET_MS[rung], 10)
    told = ladder.info()
    assert (told.deadline_ms, told.rung) == (DEADLINE_MS, 1)
    assert [(r.px, r.p95_ms, r.frames) for r in told.rungs] == [
        (256, 80.0, 2),
        (192, 50.0, 8),
        (128, 30.0, 0),
    ]


@pytest.mark.parametrize(
    ("sides", "deadline_ms", "said"),
    [
        ((), 10, "has 0 rungs; 1 to 16"),
        (tuple(range(640, 0, -32)), 10, "has 20 rungs"),
        ((128, 256), 10, "must fall"),
        ((128, 128), 10, "must fall"),
        ((256, 100), 10, "multiples of 32"),
        ((256, 0), 10, "multiples of 32"),
        ((256,), 0, "must be positive"),
        ((256,), float("nan"), "must be positive"),
    ],
)
def test_what_is_no_ladder_is_refused(sides, deadline_ms, said):
    with pytest.raises(ValueError, match=said):
        Ladder(sides, deadline_ms)


def test_times_of_other_rungs_are_refused():
    with pytest.raises(ValueError, match="got times of 1 rungs; there are 3"):
        Ladder(SIDES, 10).calibrate([[1.0]])


@pytest.mark.parametrize(
    ("image_px", "sides"),
    [(256, (256, 224, 192, 160, 128)), (224, (224, 192, 160, 128)), (64, (64, 32)), (32, (32,))],
)
def test_by_default_a_ladder_goes_down_to_half_of_the_size_by_eighths(image_px, sides):
    assert default_sides(image_px) == sides


@given(st.integers(1, 32))
def test_the_default_is_a_ladder_for_every_size(steps):
    assert Ladder(default_sides(32 * steps), 10).sides_px[0] == 32 * steps

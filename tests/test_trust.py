"""Devices whose times are wrong now and then, for a while, or for good: sync holds for days."""

from __future__ import annotations

import time
from itertools import count

import cv2
import numpy as np
import pytest
from atlasd.streams.camera import Camera, CameraOptions
from atlasd.streams.capturering import CaptureRing
from atlasd.streams.clockmap import ClockMap
from atlasd.streams.driverclock import DriverClock
from atlasd.streams.hearing import Hearing
from atlasd.streams.listener import Opened
from atlasd.streams.sources import Trouble
from atlasd.streams.trust import LOST_AT, REGAINED_AFTER, Trust

NS_PER_S = 1_000_000_000
MS = 1_000_000
PERIOD_NS = 33_333_333
DELAY_NS = 25 * MS


def test_any_number_of_odd_words_far_apart_loses_no_trust():
    trust = Trust()
    for _ in range(1000):
        for can_be in [False] * 4 + [True] * 20:
            trust.judge(can_be)
            assert not trust.is_lost


def test_ten_in_a_row_or_every_second_one_for_a_while_lose_it():
    straight, alternating = Trust(), Trust()
    for _ in range(LOST_AT // 2):
        assert not straight.is_lost
        straight.judge(False)
    assert straight.is_lost
    for i in range(4 * LOST_AT):
        alternating.judge(i % 2 == 0)
    assert alternating.is_lost


def test_trust_that_was_lost_comes_back_after_a_long_run_and_not_by_halves():
    trust = Trust()
    for _ in range(1000):
        trust.judge(False)
    for i in range(4 * REGAINED_AFTER):
        trust.judge(i % 3 != 2)
    assert trust.is_lost
    for _ in range(REGAINED_AFTER):
        assert trust.is_lost
        trust.judge(True)
    assert not trust.is_lost


class Pictures:
    """A camera's stamps through `DriverClock` and `ClockMap`; errors against the truth in ms.

    The error counts from what the map says of an undisturbed picture: its constant delay.
    """

    def __init__(self):
        self.driver, self.map = DriverClock(30.0), ClockMap()
        self.now_ns = 10**15

    def give(self, n, *, lie=None, age_ns=DELAY_NS):
        errors = []
        for _ in range(n):
            self.now_ns += PERIOD_NS
            told_ns = self.now_ns if lie is None else lie(self.now_ns)
            stamp_ns = self.driver.stamp(told_ns, self.now_ns + age_ns)
            self.map.observe(stamp_ns, self.now_ns + age_ns)
            errors.append((self.map.host_ns(stamp_ns) - self.now_ns - DELAY_NS) / 1e6)
        return errors

    def stall(self):
        """The machine stands still for 0.7 s: three pictures are too old when they are grabbed."""
        base_ns = self.now_ns
        for i in range(1, 4):
            at_ns = base_ns + i * PERIOD_NS
            self.map.observe(
                self.driver.stamp(at_ns, base_ns + 700 * MS + i), base_ns + 700 * MS + i
            )
        self.now_ns = base_ns + 21 * PERIOD_NS


def test_a_machine_that_stands_still_now_and_then_keeps_its_drivers_stamps():
    """Forty stalls, each of three stamps that cannot be believed: nothing moves, before or after.

    A grab that went for the capture used to pull the map by 25 ms for two minutes.
    """
    pictures = Pictures()
    pictures.give(3000)
    for _ in range(40):
        pictures.stall()
        errors = pictures.give(600)
        assert max(abs(error) for error in errors) < 1
    assert not pictures.driver.is_given_up
    assert pictures.driver.stamp(pictures.now_ns + 1, pictures.now_ns + DELAY_NS) == (
        pictures.now_ns + 1
    )


def test_a_driver_that_is_given_up_and_comes_back_moves_nothing():
    """Its constant delay is kept, for calibration has found it."""
    pictures = Pictures()
    pictures.give(3000)
    lost = pictures.give(3000, lie=lambda _: 0)
    assert pictures.driver.is_given_up
    assert pictures.driver.usual_ns == DELAY_NS
    back = pictures.give(3000)
    assert not pictures.driver.is_given_up
    assert max(abs(error) for error in lost + back) < 1


def test_pictures_that_waited_do_not_say_what_is_usual():
    driver = DriverClock(30.0)
    for i in range(400):
        driver.stamp(i * PERIOD_NS, i * PERIOD_NS + (400 if i % 100 == 99 else 25) * MS)
    assert driver.usual_ns == pytest.approx(25 * MS, abs=2 * MS)


class Stamped:
    """A capture whose driver tells what a script says, on the host's clock."""

    def __init__(self, clock, told):
        self._clock, self._told = clock, told
        self._image = np.full((48, 64, 3), 100, np.uint8)
        self._at = count()

    def grab(self):
        time.sleep(0.0005)
        self._clock[0] += PERIOD_NS
        return True

    def get(self, prop):
        if prop == cv2.CAP_PROP_POS_MSEC:
            return self._told(next(self._at), (self._clock[0] - DELAY_NS) / 1e6)
        return 30.0 if prop == cv2.CAP_PROP_FPS else 0.0

    def retrieve(self):
        return True, self._image

    def isOpened(self):  # noqa: N802
        return True

    def set(self, prop, value):
        return True

    def release(self):
        pass


def test_a_camera_says_when_its_drivers_times_count_no_more_and_when_they_do():
    clock = [10**15]
    capture = Stamped(clock, lambda i, ms: 0.0 if 100 <= i < 200 else ms)
    camera = Camera(
        "x", CameraOptions(stall_s=1e6), open_capture=lambda _: capture, clock=lambda: clock[0]
    )
    told, late_ms, end = [], set(), time.monotonic() + 20
    while len(told) < 2:
        assert time.monotonic() < end
        pictures, troubles = camera.take(0.05)
        told += [trouble for trouble in troubles if trouble.kind == "camera_stamps"]
        late_ms |= {round((p.host_ns - p.device_ns) / 1e6) for p in pictures}
    camera.close()
    assert "as was usual, 25 ms" in told[0].detail
    assert "taken again" in told[1].detail
    assert late_ms == {25}


def heard(ring, age_s):
    ring.put(np.zeros((10, 1), np.float32), NS_PER_S, age_s, overflowed=False)
    (block,) = ring.read()
    return block


def test_a_microphone_that_says_nonsense_now_and_then_is_believed_for_days():
    ring = CaptureRing(1000, 1, keep_s=1, latency_s=0.3)
    heard(ring, 0.035)
    for _ in range(200):
        for age_s in (-1.0, 7.0, -1.0, *[0.035] * 40):
            assert heard(ring, age_s).host_ns == NS_PER_S - 35 * MS


def test_a_microphone_whose_word_counts_no_more_keeps_the_latency_that_it_had():
    """Not the one that it declares, which may be far off: sound must not move."""
    ring = CaptureRing(1000, 1, keep_s=1, latency_s=0.3)
    assert heard(ring, 0.035).presumed_ns is None
    blocks = [heard(ring, -1.0) for _ in range(20)]
    assert {block.host_ns for block in blocks} == {NS_PER_S - 35 * MS}
    assert blocks[-1].presumed_ns == 25 * MS
    assert heard(ring, 0.020).host_ns == NS_PER_S - 35 * MS
    for _ in range(REGAINED_AFTER):
        last = heard(ring, 0.035)
    assert last.presumed_ns is None


def test_what_becomes_of_a_microphones_times_is_told():
    ring, hearing = CaptureRing(1000, 1, keep_s=1, latency_s=0.3), Hearing("main", 1000, 0)
    hearing.push(Opened("mic", 1000))
    told = []
    for age_s in [0.035] * 5 + [-1.0] * 20 + [0.035] * (REGAINED_AFTER + 5):
        told += [e for e in hearing.push(heard(ring, age_s)) if isinstance(e, Trouble)]
    assert [trouble.kind for trouble in told] == ["microphone_stamps"] * 2
    assert "as was usual, 25 ms" in told[0].detail
    assert "taken again" in told[1].detail


def test_a_device_that_never_said_a_plausible_time_is_nothing_to_tell_of():
    ring = CaptureRing(1000, 1, keep_s=1, latency_s=0.3)
    blocks = [heard(ring, -1.0) for _ in range(50)]
    assert {(b.host_ns, b.presumed_ns) for b in blocks} == {(NS_PER_S - 310 * MS, None)}
    driver = DriverClock(30.0)
    grabs_ns = range(NS_PER_S, NS_PER_S + 50)
    assert [driver.stamp(0, grab_ns) for grab_ns in grabs_ns] == list(grabs_ns)
    assert not driver.is_given_up

"""Pacing against a clock that only moves when someone sleeps."""

from __future__ import annotations

import threading

import pytest
from atlasd.streams.clips import NS_PER_S
from atlasd.streams.pacing import Pacer

MS = 1_000_000


class FakeTime:
    """A clock that sleeping moves."""

    def __init__(self):
        self.now_ns = 77 * NS_PER_S
        self.slept_s = []

    def clock(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_ns += round(seconds * NS_PER_S)


@pytest.fixture
def fake() -> FakeTime:
    return FakeTime()


def test_pictures_come_when_they_are_due(fake):
    """The first at once, each next by its distance in the medium."""
    pacer = Pacer("real", fake.clock, fake.sleep)
    came_ms = []
    for pts_ms in (1000, 1040, 1055, 1200):
        assert pacer.wait_until_due(pts_ms * MS)
        came_ms.append((fake.now_ns - 77 * NS_PER_S) // MS)
    assert came_ms == [0, 40, 55, 200]


def test_lost_time_is_caught_up(fake):
    """A consumer that was slow once does not stay behind."""
    pacer = Pacer("real", fake.clock, fake.sleep)
    pacer.wait_until_due(0)
    fake.now_ns += 100 * MS
    pacer.wait_until_due(40 * MS)
    pacer.wait_until_due(120 * MS)
    assert fake.slept_s == pytest.approx([0.02])


def test_free_never_waits(fake):
    """Full speed."""
    pacer = Pacer("free", fake.clock, fake.sleep)
    assert all(pacer.wait_until_due(i * NS_PER_S) for i in range(5))
    assert fake.slept_s == []


def test_a_new_epoch_starts_at_once(fake):
    """Its times say nothing about the epoch before."""
    pacer = Pacer("real", fake.clock, fake.sleep)
    pacer.wait_until_due(0, epoch=0)
    pacer.wait_until_due(3600 * NS_PER_S, epoch=1)
    assert fake.slept_s == []
    pacer.wait_until_due(3600 * NS_PER_S + 40 * MS, epoch=1)
    assert fake.slept_s == pytest.approx([0.04])


def test_a_short_sleep_is_repeated(fake):
    """A sleep that returns early does not let a picture out early."""
    pacer = Pacer("real", fake.clock, lambda s: fake.sleep(min(s, 0.015)))
    pacer.wait_until_due(0)
    pacer.wait_until_due(40 * MS)
    assert fake.now_ns == 77 * NS_PER_S + 40 * MS


def test_stop_ends_a_wait_from_another_thread():
    """An hour's wait ends at once, and later ones do not begin."""
    pacer = Pacer("real", clock=lambda: 0)
    pacer.wait_until_due(0)
    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(pacer.wait_until_due(3600 * NS_PER_S)), daemon=True
    )
    thread.start()
    pacer.stop()
    thread.join(5)
    assert answers == [False]
    assert not pacer.wait_until_due(0)

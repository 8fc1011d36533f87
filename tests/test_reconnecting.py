"""A source that is lost comes back, says so, and does not knock too often."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from atlasd.streams.clips import AudioChunk, Sample, VideoFrame
from atlasd.streams.reconnecting import ReconnectingSource
from atlasd.streams.sources import (
    AbandonedError,
    AccessError,
    Discontinuity,
    MediaError,
    OtherKindError,
    Quiet,
    Trouble,
    UnsupportedError,
)
from atlasd.streams.synchroniser import Synchroniser

PERIOD_NS = 40_000_000


class Clock:
    def __init__(self):
        self.now_ns = 10**15

    def __call__(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


class Scripted:
    """An opening that fails, or a source that gives pictures and then what it was told."""

    stream, duration_ns, fps = "main", None, 25.0

    def __init__(self, clock, fails=None, pictures=2, ends=None, has_audio=False, **how):
        self._clock, self._fails, self._ends = clock, fails, ends
        self._pictures = pictures
        self._waits = how.get("waits", 1)
        self.kind = how.get("kind", "live")
        self.has_audio = has_audio
        self.source_size_px = how.get("size_px", (4, 4))
        self.closed = 0

    def wait(self, timeout_s: float) -> bool:
        self._waits -= 1
        if self._waits > 0:
            self._clock.sleep(timeout_s)
            return False
        if self._fails is not None:
            raise self._fails
        return True

    def __iter__(self) -> Iterator[VideoFrame]:
        for index in range(self._pictures):
            self._clock.now_ns += PERIOD_NS
            image = np.zeros((4, 4, 3), np.uint8)
            now_ns = self._clock.now_ns
            if self.has_audio:
                chunk = np.ones(1280, np.float32)
                yield AudioChunk(chunk, 32000, now_ns - PERIOD_NS, "main", 0)
            yield VideoFrame(image, now_ns, now_ns, "main", 0, index, self.source_size_px)
        if self._ends is not None:
            raise self._ends

    def close(self) -> None:
        self.closed += 1


def reconnecting(clock: Clock, script: list[Scripted], **how) -> ReconnectingSource:
    left = list(script)
    how = {"rng": random.Random(1), "sleep": clock.sleep, **how}
    return ReconnectingSource(lambda: left.pop(0), label="cam", clock=clock, **how)


def told(source, count: int) -> list:
    """Events but for quiet, the first so many."""
    found = []
    for event in source:
        if not isinstance(event, Quiet):
            found.append(event)
        if len(found) == count:
            break
    return found


def test_a_loss_is_told_with_its_reason_and_the_return_opens_an_epoch():
    clock = Clock()
    script = [Scripted(clock, ends=MediaError("the cable fell out")), Scripted(clock)]
    events = told(reconnecting(clock, script), 6)
    kinds = [type(event) for event in events]
    assert kinds == [VideoFrame, VideoFrame, Trouble, Discontinuity, VideoFrame, VideoFrame]
    assert events[2].kind == "reconnect"
    assert "the cable fell out" in events[2].detail
    assert "the cable fell out" in events[3].reason
    assert events[3].has_audio is False
    frames = [event for event in events if isinstance(event, VideoFrame)]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert [frame.epoch for frame in frames] == [0, 0, 1, 1]
    assert [frame.pts_ns for frame in frames] == sorted(frame.pts_ns for frame in frames)
    assert script[0].closed


def test_a_sender_that_ends_the_stream_is_opened_again():
    clock = Clock()
    events = told(reconnecting(clock, [Scripted(clock), Scripted(clock)]), 4)
    assert "cam ended the stream" in events[2].detail


def test_pauses_double_to_the_longest_and_are_shortened_at_random():
    clock = Clock()
    fails = [Scripted(clock, fails=MediaError("no route")) for _ in range(12)]
    source = reconnecting(clock, fails, longest_s=30.0)
    pauses, last_ns = [], None
    for event in source:
        if isinstance(event, Trouble):
            if last_ns is not None:
                pauses.append((clock.now_ns - last_ns) / 1e9)
            last_ns = clock.now_ns
        if len(pauses) == 9:
            break
    most = [1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert all(m / 2 <= p <= m + 0.1 for p, m in zip(pauses, most, strict=True))
    assert len({round(p / m, 3) for p, m in zip(pauses, most, strict=True)}) > 5


def test_who_refuses_access_is_asked_seldom():
    """Cameras lock accounts after a handful of wrong passwords."""
    clock = Clock()
    fails = [Scripted(clock, fails=AccessError("401")) for _ in range(4)]
    began_ns = clock.now_ns
    told(reconnecting(clock, fails, longest_s=30.0), 4)
    assert clock.now_ns - began_ns >= 3 * 15e9


def test_health_makes_the_next_pause_short_again():
    clock = Clock()
    script = [
        Scripted(clock, ends=MediaError("a")),
        Scripted(clock, fails=MediaError("b")),
        Scripted(clock, fails=MediaError("c")),
        Scripted(clock, pictures=500, ends=MediaError("d")),
        Scripted(clock),
    ]
    troubles = [e for e in told(reconnecting(clock, script), 509) if isinstance(e, Trouble)]
    waits = [float(trouble.detail.split(" in ")[-1].removesuffix(" s")) for trouble in troubles]
    assert waits[2] >= 2.0
    assert waits[3] <= 1.0
    assert [trouble.count for trouble in troubles] == [1, 2, 3, 4]


def test_a_source_that_dies_at_once_each_time_is_not_healthy():
    clock = Clock()
    script = [Scripted(clock, pictures=1, ends=MediaError("a")) for _ in range(8)]
    troubles = [e for e in told(reconnecting(clock, script), 18) if isinstance(e, Trouble)]
    waits = [float(trouble.detail.split(" in ")[-1].removesuffix(" s")) for trouble in troubles]
    assert waits[-1] >= 8.0


def test_one_that_is_not_there_at_the_start_is_waited_for():
    clock = Clock()
    script = [Scripted(clock, fails=MediaError("no route")), Scripted(clock, has_audio=True)]
    source = reconnecting(clock, script)
    events = told(source, 4)
    assert "no route" in events[0].detail
    assert events[1] == Discontinuity(1, events[1].reason, has_audio=True)
    assert source.has_audio
    assert isinstance(events[3], VideoFrame)


def test_limits_end_it():
    clock = Clock()
    with pytest.raises(MediaError, match="no route"):
        reconnecting(clock, [Scripted(clock, fails=MediaError("no route"))], limit=0)
    one_loss = reconnecting(clock, [Scripted(clock, ends=MediaError("gone"))], limit=0)
    with pytest.raises(MediaError, match="gone"):
        list(one_loss)
    script = [Scripted(clock, fails=MediaError("no route")) for _ in range(4)]
    with pytest.raises(MediaError, match=r"no route; given up after 3 attempts"):
        list(reconnecting(clock, script, limit=3))


def test_what_will_never_open_is_not_tried_again():
    clock = Clock()
    with pytest.raises(UnsupportedError):
        reconnecting(clock, [Scripted(clock, fails=UnsupportedError("no srt"))])


def test_a_file_ends_and_fails_like_a_file():
    clock = Clock()
    assert len(list(reconnecting(clock, [Scripted(clock, kind="file")]))) == 2
    broken = Scripted(clock, kind="file", ends=MediaError("cut off"))
    with pytest.raises(MediaError, match="cut off"):
        list(reconnecting(clock, [broken]))


def starting(steps):
    """A start that gives these one after the other; an error among them is raised."""
    left = list(steps)

    def start():
        step = left.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    return start


def test_an_opening_that_cannot_even_begin_is_tried_again():
    """A machine that has no process or memory left at the moment, at the start or later."""
    clock = Clock()
    nothing = MediaError("no process can be started")
    steps = [nothing, Scripted(clock, ends=MediaError("a")), nothing, nothing, Scripted(clock)]
    source = ReconnectingSource(
        starting(steps), label="cam", stream="door", clock=clock, sleep=clock.sleep
    )
    assert source.stream == "door"
    events = told(source, 10)
    troubles = [event.detail for event in events if isinstance(event, Trouble)]
    assert ["no process can be started" in detail for detail in troubles] == [1, 0, 1, 1]
    assert sum(isinstance(event, VideoFrame) for event in events) == 4


def test_what_was_live_is_opened_as_live():
    """Where nothing was open yet it is asked what it is."""
    clock = Clock()
    first = [Scripted(clock, fails=MediaError("not yet")), Scripted(clock)]
    later = [Scripted(clock), Scripted(clock)]
    source = ReconnectingSource(
        starting(first),
        start_live=starting(later),
        label="cam",
        clock=clock,
        sleep=clock.sleep,
    )
    frames = [event for event in told(source, 12) if isinstance(event, VideoFrame)]
    assert [frame.epoch for frame in frames] == [1, 1, 2, 2, 3, 3]


def test_one_that_turns_out_a_file_is_told_as_such_where_nothing_was_open():
    clock = Clock()
    file = Scripted(clock, kind="file")
    source = reconnecting(clock, [Scripted(clock, fails=MediaError("not yet")), file])
    with pytest.raises(OtherKindError, match="cam is a file"):
        told(source, 9)
    assert file.closed


def test_a_live_one_that_is_a_file_for_a_while_is_tried_again():
    clock = Clock()
    file = Scripted(clock, kind="file")
    events = told(reconnecting(clock, [Scripted(clock), file, Scripted(clock)]), 7)
    assert [type(event) for event in events[2:5]] == [Trouble, Trouble, Discontinuity]
    assert "is a file now" in events[3].detail
    assert file.closed


def test_a_first_opening_that_nobody_wants_any_more_ends_at_once():
    clock = Clock()
    slow = Scripted(clock, waits=10**9)
    until_ns = clock.now_ns + 2 * 10**9
    with pytest.raises(AbandonedError):
        reconnecting(clock, [slow], is_wanted=lambda: clock.now_ns < until_ns)
    assert clock.now_ns - until_ns < 50e6
    assert slow.closed


def test_quiet_comes_often_while_it_waits():
    """Between two events the clock moves by 50 ms at most, in pauses and openings too."""
    clock = Clock()
    script = [
        Scripted(clock, ends=MediaError("a")),
        Scripted(clock, fails=MediaError("b"), waits=100),
        Scripted(clock, waits=50),
    ]
    last_ns = clock.now_ns
    count = 0
    for event in reconnecting(clock, script):
        count += 1
        assert clock.now_ns - last_ns <= 50e6
        last_ns = clock.now_ns
        if isinstance(event, VideoFrame) and event.index == 3:
            break
    assert count > 150


def test_closing_ends_a_pause_and_an_opening():
    clock = Clock()
    script = [Scripted(clock, ends=MediaError("a")), Scripted(clock, waits=10**9)]
    source = reconnecting(clock, script)
    events = iter(source)
    for event in events:
        if isinstance(event, Trouble):
            break
    source.close()
    assert all(isinstance(event, Quiet) for event in events)

    clock = Clock()
    script = [Scripted(clock, ends=MediaError("a")), Scripted(clock, waits=10**9)]
    source = reconnecting(clock, script)
    events = iter(source)
    while not (clock.now_ns > 10**15 + 5e9):
        next(events)
    source.close()
    assert script[1].closed


def test_sound_may_come_and_go_with_reconnects():
    clock = Clock()
    script = [
        Scripted(clock, pictures=50, has_audio=True, ends=MediaError("a")),
        Scripted(clock, pictures=50, ends=MediaError("b")),
        Scripted(clock, pictures=50, has_audio=True, ends=MediaError("c")),
    ]
    source = reconnecting(clock, script, limit=None)
    synchroniser = Synchroniser(has_audio=source.has_audio, live=True, clock=clock)
    states: dict[int, set[str]] = {}
    samples = 0
    for event in source:
        for out in synchroniser.push(event):
            if isinstance(out, Sample):
                samples += 1
                if out.frame.index % 50 >= 30:
                    states.setdefault(out.frame.epoch, set()).add(out.window.state)
        if samples == 150:
            break
    assert states == {0: {"ok"}, 1: {"absent"}, 2: {"ok"}}

"""Pictures meet their sound: windows, states, order, bounds."""

from __future__ import annotations

import numpy as np
import pytest
from atlasd.streams import synchroniser as module
from atlasd.streams.clips import NS_PER_S, AudioChunk, Sample, VideoFrame
from atlasd.streams.sources import AudioEnded, Discontinuity, Quiet, Trouble
from atlasd.streams.synchroniser import Synchroniser
from hypothesis import given, settings
from hypothesis import strategies as st

RATE = 1000
MS = 1_000_000
IMAGE = np.zeros((4, 4, 3), np.uint8)


def frame(at_ms, *, index=0, epoch=0, capture_ns=0) -> VideoFrame:
    return VideoFrame(IMAGE, at_ms * MS, capture_ns, "main", epoch, index, (4, 4))


def sound(first_ms, last_ms, *, epoch=0) -> AudioChunk:
    """Samples at 1 kHz that say their own millisecond."""
    samples = np.arange(first_ms, last_ms, dtype=np.float32) / 1e6
    return AudioChunk(samples, RATE, first_ms * MS, "main", epoch)


def numbers(window) -> list[int]:
    return [round(float(x) * 1e6) for x in window.samples]


def run(events, **how):
    synchroniser = Synchroniser(**{"window_s": 0.1, "sample_rate_hz": RATE, **how})
    out = [result for event in events for result in synchroniser.push(event)]
    return out + synchroniser.finish()


def test_the_window_ends_at_the_picture():
    """[T - W, T): round(W · rate) samples."""
    (sample,) = run([sound(0, 500), frame(300)])
    assert numbers(sample.window) == list(range(200, 300))
    assert (sample.window.start_ns, sample.window.end_ns) == (200 * MS, 300 * MS)
    assert (sample.window.state, sample.window.gap_ms) == ("ok", 0.0)


@pytest.mark.parametrize(
    ("how", "first_ms"),
    [({"anchor": "center"}, 250), ({"lag_ms": 40.0}, 240), ({"lag_ms": -50.0}, 150)],
)
def test_anchor_and_lag_move_the_window(how, first_ms):
    """A centred window reaches past the picture; a lag shifts it."""
    (sample,) = run([sound(0, 500), frame(300)], **how)
    assert numbers(sample.window) == list(range(first_ms, first_ms + 100))


def test_a_picture_waits_for_sound_that_is_interleaved_later():
    """Nothing comes out until the window is whole."""
    synchroniser = Synchroniser(0.1, RATE)
    assert synchroniser.push(frame(200)) == []
    assert synchroniser.push(sound(0, 199)) == []
    assert synchroniser.pending == 1
    (sample,) = synchroniser.push(sound(199, 220))
    assert numbers(sample.window) == list(range(100, 200))
    assert sample.window.state == "ok"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=5, max_size=30), st.data())
def test_interleaving_does_not_change_the_samples(sizes, data):
    """Any order of pictures among the same sound gives the same windows, in order."""
    chunks, done = [], 0
    for size in sizes:
        chunks.append(sound(done, done + size))
        done += size
    frames = [frame(t, index=i) for i, t in enumerate(range(0, done, 40))]
    places = sorted(
        data.draw(st.lists(st.integers(0, len(chunks)), min_size=len(frames), max_size=len(frames)))
    )
    events = []
    for place in range(len(chunks) + 1):
        events += [f for f, p in zip(frames, places, strict=True) if p == place]
        events += chunks[place : place + 1]
    samples = run([*events, AudioEnded(0)])
    assert [s.frame.index for s in samples] == list(range(len(frames)))
    for sample in samples:
        end = sample.frame.pts_ns // MS
        expected = [t if 0 <= t < done else 0 for t in range(end - 100, end)]
        assert numbers(sample.window) == expected


def test_before_the_first_sound_the_window_is_padded_and_says_so():
    """Zeros on the left, state gap: not all of the window was heard."""
    (sample,) = run([sound(0, 100), frame(40)])
    assert numbers(sample.window) == [0] * 60 + list(range(40))
    assert (sample.window.state, sample.window.gap_ms) == ("gap", 60.0)


def test_a_hole_in_the_sound_is_told():
    """Zeros where sound was lost, with their length."""
    (sample,) = run([sound(0, 150), sound(190, 400), frame(200)])
    assert numbers(sample.window) == [*range(100, 150)] + [0] * 40 + [*range(190, 200)]
    assert (sample.window.state, sample.window.gap_ms) == ("gap", 40.0)


def test_sound_that_ends_before_the_picture_is_not_waited_for():
    """The rest is zeros: gap while part was heard, absent when nothing was."""
    half, none = run([sound(0, 150), AudioEnded(0), frame(200), frame(400, index=1)])
    assert (half.window.state, half.window.gap_ms) == ("gap", 50.0)
    assert numbers(half.window) == [*range(100, 150)] + [0] * 50
    assert (none.window.state, none.window.gap_ms) == ("absent", 0.0)


def test_without_a_sound_track_pictures_pass_at_once():
    """No sound is not a failure: zeros, absent."""
    synchroniser = Synchroniser(0.1, RATE, has_audio=False)
    (sample,) = synchroniser.push(frame(200))
    assert sample.window.state == "absent"
    assert sample.window.samples.shape == (100,)
    assert not sample.window.samples.any()


def test_a_track_that_never_sounds_is_absent():
    """A declared but empty track, at the end of the stream."""
    samples = run([frame(0), frame(40, index=1), AudioEnded(0)])
    assert [s.window.state for s in samples] == ["absent", "absent"]


def test_no_window_joins_two_epochs():
    """At a break, waiting pictures get what there is, and the new epoch starts from silence."""
    broken = Discontinuity(1, "test")
    events = [
        sound(0, 150), frame(200), broken, sound(200, 250, epoch=1), frame(240, index=1, epoch=1)
    ]  # fmt: skip
    old, event, new = run(events)
    assert event is broken
    assert numbers(old.window) == [*range(100, 150)] + [0] * 50
    assert numbers(new.window) == [0] * 60 + [*range(200, 240)]
    assert [s.window.state for s in (old, new)] == ["gap", "gap"]


def test_a_file_waits_for_five_seconds_of_media_and_no_more(monkeypatch):
    """A sound track that stops early holds back a bounded number of pictures."""
    synchroniser = Synchroniser(0.1, RATE)
    synchroniser.push(sound(0, 1000))
    most = 0
    out = []
    for i in range(1000):
        out += synchroniser.push(frame(i * 40, index=i))
        most = max(most, synchroniser.pending)
    assert most <= 126
    assert {s.window.state for s in out if s.frame.pts_ns > 1100 * MS} == {"late"}
    monkeypatch.setattr(module, "PENDING_BYTES", 10 * IMAGE.nbytes)
    synchroniser = Synchroniser(0.1, RATE)
    for i in range(100):
        synchroniser.push(frame(i * 40, index=i))
        assert synchroniser.pending <= 10


def test_a_live_picture_waits_by_the_clock_and_then_goes_late():
    """Less than half missing: the window slides back to the newest sound, and says so."""
    now = 0
    synchroniser = Synchroniser(0.1, RATE, audio_wait_ms=50, live=True, clock=lambda: now)
    synchroniser.push(sound(0, 180))
    assert synchroniser.push(frame(200, capture_ns=0)) == []
    now = 49 * MS
    assert synchroniser.poll() == []
    now = 50 * MS
    (sample,) = synchroniser.poll()
    assert sample.window.state == "late"
    assert (sample.window.start_ns, sample.window.end_ns) == (80 * MS, 180 * MS)
    assert numbers(sample.window) == list(range(80, 180))


def test_a_live_picture_far_from_any_sound_keeps_its_window():
    """With most of the window missing, sound of another time would be a lie."""
    synchroniser = Synchroniser(0.1, RATE, audio_wait_ms=0, live=True, clock=lambda: 0)
    synchroniser.push(sound(0, 140))
    (sample,) = synchroniser.push(frame(200))
    assert sample.window.state == "late"
    assert sample.window.end_ns == 200 * MS
    assert numbers(sample.window) == [*range(100, 140)] + [0] * 60


def test_trouble_passes_and_repeated_sound_becomes_trouble():
    """Nothing is lost in silence."""
    trouble = Trouble("corrupt_packet", "test", 1)
    out = run([trouble, sound(0, 500), sound(200, 300)])
    assert out[0] is trouble
    assert (out[1].kind, out[1].count) == ("repeated_audio", 1)


@pytest.mark.parametrize("how", [{"window_s": 0.0001}, {"audio_wait_ms": -1.0}])
def test_an_impossible_window_or_wait_is_refused(how):
    """The error says what came and what is allowed."""
    with pytest.raises(ValueError, match="at least one sample"):
        Synchroniser(**{"sample_rate_hz": RATE, **how})


def test_a_window_is_rounded_to_whole_samples():
    """0.96 s at 44.1 kHz is 42336 samples, and its end is the picture's time."""
    synchroniser = Synchroniser(0.96, 44100, has_audio=False)
    (sample,) = synchroniser.push(frame(2000))
    assert isinstance(sample, Sample)
    assert sample.window.samples.size == 42336
    assert sample.window.end_ns == 2 * NS_PER_S


class Live:
    """A synchroniser of a live stream, and a clock that stands at the time of its events."""

    def __init__(self, has_audio=True, **how):
        self.now_ns = 0
        how = {"audio_wait_ms": 20.0, **how}
        self.synchroniser = Synchroniser(
            0.1, RATE, has_audio=has_audio, live=True, clock=lambda: self.now_ns, **how
        )

    def push(self, event, now_ms) -> list[tuple[int, str]]:
        """(time in ms, state) of the samples that an event at a moment decides."""
        self.now_ns = now_ms * MS
        out = self.synchroniser.push(event)
        return [(o.frame.pts_ns // MS, o.window.state) for o in out if isinstance(o, Sample)]


@pytest.mark.parametrize(
    ("live", "lacks_ms", "waits"), [(True, 20, False), (True, 21, True), (False, 1, True)]
)
def test_the_last_of_a_live_window_is_not_waited_for(live, lacks_ms, waits):
    """It ends with the newest sound then, is whole, and says where it lies; a file's waits."""
    synchroniser = Synchroniser(0.1, RATE, audio_slack_ms=20, live=live, clock=lambda: 0)
    heard_ms = 200 - lacks_ms
    synchroniser.push(sound(0, heard_ms))
    samples = synchroniser.push(frame(200))
    assert bool(samples) is not waits
    if samples:
        window = samples[0].window
        assert numbers(window) == list(range(heard_ms - 100, heard_ms))
        assert (window.start_ns, window.end_ns) == ((heard_ms - 100) * MS, heard_ms * MS)
        assert (window.state, window.gap_ms) == ("ok", 0.0)


def test_a_hole_in_a_window_that_slid_back_is_told():
    synchroniser = Synchroniser(0.1, RATE, audio_slack_ms=20, live=True, clock=lambda: 0)
    synchroniser.push(sound(0, 120))
    synchroniser.push(sound(150, 190))
    (sample,) = synchroniser.push(frame(200))
    assert (sample.window.state, sample.window.gap_ms) == ("gap", 30.0)
    assert sample.window.end_ns == 190 * MS


def test_quiet_decides_a_live_picture_whose_sound_is_late():
    live = Live()
    live.push(sound(0, 100), 100)
    assert live.push(frame(120, capture_ns=120 * MS), 120) == []
    assert live.push(Quiet(), 139) == []
    assert live.push(Quiet(), 140) == [(120, "late")]


@pytest.mark.parametrize(
    ("how", "after_ms"),
    [({}, 0), ({"lag_ms": 150.0}, 150), ({"anchor": "center"}, 50), ({"lag_ms": -60.0}, 0)],
)
def test_a_live_picture_waits_from_the_end_of_its_window_on(how, after_ms):
    """Its wait is for sound that is late, not for sound that has not happened yet."""
    live = Live(**how)
    live.push(sound(0, 100), 100)
    assert live.push(frame(180, capture_ns=180 * MS), 180) == []
    assert live.push(Quiet(), 180 + after_ms + 19) == []
    assert live.push(Quiet(), 180 + after_ms + 20) == [(180, "late")]
    assert live.synchroniser.after_ns == after_ms * MS


@pytest.mark.parametrize("how", [{"lag_ms": 150.0}, {"anchor": "center"}, {"lag_ms": -60.0}])
def test_a_live_window_past_its_picture_is_whole_where_sound_comes_in_time(how):
    live = Live(audio_wait_ms=80.0, **how)
    seen = []
    for at in range(0, 2000, 20):
        if at % 40 == 0:
            seen += live.push(frame(at, capture_ns=at * MS), at)
        seen += live.push(sound(at, at + 20), at + 20)  # heard 0 to 20 ms ago
    assert {state for at, state in seen if at >= 200} == {"ok"}
    assert seen[-1][0] >= 1800 - 150


@pytest.mark.parametrize("lag_ms", [0, 2000, -2000])
def test_a_lag_does_not_shorten_a_files_wait_for_its_sound(lag_ms):
    """Five seconds of media are counted from where the window ends."""
    synchroniser = Synchroniser(0.1, RATE, lag_ms=lag_ms)
    last_ms = 5000 + max(0, lag_ms)
    for i, at in enumerate(range(0, last_ms + 1, 40)):
        assert synchroniser.push(frame(at, index=i)) == []
    (sample,) = synchroniser.push(frame(last_ms + 40, index=1000))
    assert (sample.frame.pts_ns, sample.window.state) == (0, "late")


def test_sound_that_vanishes_is_late_then_a_gap_then_absent_and_comes_back():
    """Once none came for a window's length, none is waited for: masks stay fresh."""
    live = Live()
    live.push(sound(0, 100), 100)
    seen = []
    for at in range(120, 400, 40):
        seen += live.push(frame(at, capture_ns=at * MS), at)
        seen += live.push(Quiet(), at + 20)
    assert seen[0] == (120, "late")
    assert {state for at, state in seen if at >= 200} == {"absent"}
    assert live.push(frame(440, capture_ns=440 * MS), 440) == [(440, "absent")]
    live.push(sound(400, 500), 500)
    assert live.push(frame(480, capture_ns=480 * MS), 500) == [(480, "gap")]
    live.push(sound(500, 600), 600)
    assert live.push(frame(590, capture_ns=590 * MS), 600) == [(590, "ok")]


def test_a_track_of_sound_that_never_speaks_is_absent_after_a_window():
    live = Live()
    seen = []
    for at in range(0, 200, 40):
        seen += live.push(frame(at, capture_ns=at * MS), at)
        seen += live.push(Quiet(), at + 20)
    assert seen == [(0, "late"), (40, "late"), (80, "late"), (120, "absent"), (160, "absent")]


def test_a_discontinuity_may_bring_or_take_the_sound():
    live = Live(has_audio=False)
    assert live.push(frame(0), 0) == [(0, "absent")]
    live.push(Discontinuity(1, "back", has_audio=True), 0)
    live.push(sound(0, 200, epoch=1), 200)
    assert live.push(frame(150, epoch=1), 200) == [(150, "ok")]
    live.push(Discontinuity(2, "jump"), 200)
    live.push(sound(0, 200, epoch=2), 200)
    assert live.push(frame(150, epoch=2), 200) == [(150, "ok")]
    live.push(Discontinuity(3, "back", has_audio=False), 200)
    assert live.push(frame(150, epoch=3), 200) == [(150, "absent")]

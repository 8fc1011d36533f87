"""Microphones through PortAudio, before a real sound server whose sink plays known sounds."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from atlasd.streams import listener as listener_module
from atlasd.streams.capturering import RECORDS, Block, CaptureRing
from atlasd.streams.clips import AudioChunk, Sample
from atlasd.streams.devices import DeviceOptions, DeviceSource
from atlasd.streams.hearing import Hearing
from atlasd.streams.listener import KEEP, Listener, Lost, Opened
from atlasd.streams.microphone import (
    Microphone,
    MicrophoneInfo,
    find_microphone,
    list_microphones,
)
from atlasd.streams.sources import MediaError, Trouble
from atlasd.streams.synchroniser import Synchroniser
from media import clicks, tone

NS_PER_S = 1_000_000_000


def listened(microphone, done, deadline_s=20.0):
    """Blocks until ``done(blocks)``."""
    blocks, end = [], time.monotonic() + deadline_s
    while not done(blocks):
        assert time.monotonic() < end, f"not heard in time; {len(blocks)} blocks came"
        time.sleep(0.01)
        blocks += microphone.read()
    return blocks


def sound_of(blocks):
    """The blocks as one array, after a check that none is missing."""
    for before, after in itertools.pairwise(blocks):
        assert after.position == before.position + before.samples.size
    return np.concatenate([block.samples for block in blocks]) if blocks else np.zeros(0)


def click_starts(blocks):
    loud = np.flatnonzero(np.abs(sound_of(blocks)) > 0.5)
    return loud[np.flatnonzero(np.diff(loud, prepend=-10000) > 10000)]


def loud_s(blocks, rate_hz):
    return sum(np.count_nonzero(np.abs(b.samples) > 0.05) for b in blocks) / rate_hz


@pytest.mark.slow
def test_a_tone_that_is_played_is_heard_whole_and_at_its_pitch(pulse):
    microphone = Microphone("default", 48000)
    try:
        listened(microphone, lambda blocks: blocks)
        pulse.play(tone(3.0, hz=440.0))
        blocks = listened(microphone, lambda blocks: loud_s(blocks, microphone.rate_hz) > 2.0)
    finally:
        microphone.close()
    sound = sound_of(blocks)
    first = int(np.argmax(np.abs(sound) > 0.05))
    sound = sound[first + 4800 : first + 4800 + 72000]
    time_s = np.arange(sound.size) / microphone.rate_hz
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(sound.size), 8 * sound.size))
    assert np.argmax(spectrum) * microphone.rate_hz / (8 * sound.size) == pytest.approx(440, abs=1)
    basis = np.stack([np.sin(2 * np.pi * 440 * time_s), np.cos(2 * np.pi * 440 * time_s)])
    fitted = np.linalg.lstsq(basis.T, sound, rcond=None)[0] @ basis
    assert np.abs(sound - fitted).max() < 2e-3, "one phase over 1.5 s: no sample lost or doubled"


@pytest.mark.slow
def test_clicks_keep_their_distance_and_the_hosts_time(pulse):
    """By the count of samples to a sample or two, by the host's clock to some milliseconds."""
    microphone = Microphone("default", 48000)
    try:
        listened(microphone, lambda blocks: blocks)
        pulse.play(clicks(5.0, period_s=0.5))
        blocks = listened(microphone, lambda blocks: len(click_starts(blocks)) > 5)
    finally:
        microphone.close()
    apart = np.diff(click_starts(blocks))
    assert np.count_nonzero(np.abs(apart - 24000) <= 2) >= len(apart) - 1, "the player may stall"
    starts_ns = np.array([b.host_ns - b.position * NS_PER_S / 48000 for b in blocks[-30:]])
    assert np.ptp(starts_ns) < 60e6


def test_the_microphones_are_listed_with_a_default(pulse):
    found = list_microphones()
    assert sum(info.is_default for info in found) == 1
    assert all(info.channels > 0 and info.rate_hz >= 8000 for info in found)
    assert find_microphone("default", found).is_default


def test_a_rate_that_is_not_offered_gives_way_to_the_devices_own(pulse):
    microphone = Microphone("pulse", 3_000_000)
    try:
        own = next(info for info in list_microphones() if info.name == "pulse")
        assert microphone.rate_hz == own.rate_hz
        listened(microphone, lambda blocks: blocks)
    finally:
        microphone.close()


@pytest.mark.slow
def test_a_sound_server_that_dies_costs_the_sound_only_and_its_return_is_heard(pulse):
    """The picture goes on: sound is lost, then absent, then there again, and each is told."""
    world = RealWorld()
    listener = Listener(lambda: Microphone("default"), first_sound_s=10, retry_s=0.2)
    options = DeviceOptions("0", "default", sample_rate_hz=8000)
    source = DeviceSource(RealCamera(world, fps=20), listener, options, settle_s=1.0, warm_s=0.2)
    outputs = _outputs(source)
    try:
        _until(outputs, lambda o: isinstance(o, Sample) and o.window.state == "ok")
        pulse.kill()
        lost = _until(outputs, lambda o: isinstance(o, Trouble))
        assert lost.kind == "microphone_lost"
        _until(outputs, lambda o: isinstance(o, Sample) and o.window.state == "absent")
        pulse.start()
        back = _until(outputs, lambda o: isinstance(o, Trouble))
        assert back.kind == "microphone_back"
        _until(outputs, lambda o: isinstance(o, Sample) and o.window.state == "ok")
    finally:
        source.close()
    assert not [t for t in threading.enumerate() if t.name == "atlasd-microphone"]


@pytest.mark.slow
def test_fifty_openings_leave_no_thread_and_no_file_behind(pulse):
    def opened():
        listener = Listener(lambda: Microphone("default"))
        assert told_until(listener, 1)[0] == "Opened"
        listener.close()

    opened()
    files, threads = len([*Path("/proc/self/fd").iterdir()]), threading.active_count()
    for _ in range(50):
        opened()
    assert len([*Path("/proc/self/fd").iterdir()]) <= files + 2
    assert threading.active_count() <= threads


class RealWorld:
    """A world whose clock is the host's; its origin is now."""

    def __init__(self):
        self.begin_ns = time.monotonic_ns()


class RealCamera:
    """A camera of grey pictures in real time."""

    name, size_px = "grey", (8, 8)

    def __init__(self, world, fps):
        self._world, self.fps, self._index = world, float(fps), 0
        self._grey = np.full((8, 8, 3), 90, np.uint8)

    def take(self, timeout_s):
        due_ns = self._world.begin_ns + round(self._index * NS_PER_S / self.fps)
        wait_s = (due_ns - time.monotonic_ns()) / NS_PER_S
        if wait_s > timeout_s:
            time.sleep(timeout_s)
            return [], []
        time.sleep(max(0.0, wait_s))
        self._index += 1
        from atlasd.streams.camera import Picture

        now_ns = time.monotonic_ns()
        return [Picture(self._grey, now_ns, now_ns)], []

    def close(self):
        pass


def _outputs(source):
    synchroniser = Synchroniser(0.5, source._hearing._rate_hz, audio_wait_ms=400, live=True)
    for event in source:
        yield from synchroniser.push(event)


def _until(outputs, is_it, deadline_s=40.0):
    end = time.monotonic() + deadline_s
    for output in outputs:
        if is_it(output):
            return output
        assert time.monotonic() < end, f"last came {output}"
    raise AssertionError("the source has ended")


def infos(*names):
    return [MicrophoneInfo(index, name, 2, 48000, index == 1) for index, name in enumerate(names)]


@pytest.mark.parametrize(
    ("wanted", "index"),
    [("default", 1), ("2", 2), ("usb", 2), ("HDA", 0), ("hda intel", 0), ("Monitor", 1)],
)
def test_a_microphone_is_meant_by_default_index_or_part_of_its_name(wanted, index):
    found = infos("HDA Intel", "Monitor", "Blue USB", "HDA Intel PCH")
    if wanted == "HDA":
        with pytest.raises(MediaError, match="2 microphones are meant"):
            find_microphone(wanted, found)
    else:
        assert find_microphone(wanted, found).index == index


@pytest.mark.parametrize("wanted", ["nothing like it", "7"])
def test_a_microphone_that_is_not_there_is_an_error_that_lists_what_is(wanted):
    with pytest.raises(MediaError, match="0: HDA Intel; 1: Monitor"):
        find_microphone(wanted, infos("HDA Intel", "Monitor"))


def test_without_any_microphone_the_error_says_what_to_look_at():
    with pytest.raises(MediaError, match=r"none at all.*group `audio`"):
        find_microphone("default", [])


# The ring, without a device.


def ramp(n, begin=0, channels=1):
    return np.repeat(np.arange(begin, begin + n, dtype=np.float32)[:, None], channels, axis=1)


def test_what_is_put_comes_out_in_order_with_its_time():
    ring = CaptureRing(1000, 2, keep_s=4, latency_s=0.05)
    ring.put(ramp(10, 0, 2), now_ns=NS_PER_S, age_s=0.010, overflowed=False)
    ring.put(ramp(20, 10, 2), now_ns=NS_PER_S + 20_000_000, age_s=0.020, overflowed=False)
    (block,) = ring.read()
    assert np.array_equal(block.samples, np.arange(30, dtype=np.float32))
    assert (block.position, block.lost, block.overflows) == (0, 0, 0)
    assert block.host_ns == NS_PER_S - 10_000_000
    assert block.arrival_ns == NS_PER_S + 20_000_000
    assert ring.read() == []


def test_channels_are_mixed_to_their_mean():
    ring = CaptureRing(1000, 2, keep_s=1, latency_s=0)
    ring.put(np.array([[1.0, 0.0], [0.5, -0.5]], np.float32), 1, 0.001, overflowed=False)
    assert ring.read()[0].samples.tolist() == [0.5, 0.0]


def test_an_overflow_begins_a_block_and_its_length_is_told():
    ring = CaptureRing(1000, 1, keep_s=4, latency_s=0)
    ring.put(ramp(10), 10_000_000, 0.010, overflowed=False)
    ring.put(ramp(10), 70_000_000, 0.010, overflowed=True)
    before, after = ring.read()
    assert (before.position, after.position) == (0, 60)
    assert (after.lost, after.overflows) == (50, 1)


@pytest.mark.parametrize("age_s", [-0.02, 3.0, float("nan")])
def test_an_age_that_cannot_be_gives_way_to_length_and_latency(age_s):
    ring = CaptureRing(1000, 1, keep_s=1, latency_s=0.030)
    ring.put(ramp(10), NS_PER_S, age_s, overflowed=False)
    assert ring.read()[0].host_ns == NS_PER_S - 40_000_000


def test_a_device_that_keeps_lying_about_age_is_not_asked_again():
    ring = CaptureRing(1000, 1, keep_s=1, latency_s=0.030)
    for _ in range(10):
        ring.put(ramp(10), NS_PER_S, -1.0, overflowed=False)
    ring.read()
    ring.put(ramp(10), NS_PER_S, 0.001, overflowed=False)
    assert ring.read()[0].host_ns == NS_PER_S - 40_000_000


def test_a_reader_that_sleeps_loses_the_oldest_and_sees_how_much():
    ring = CaptureRing(1000, 1, keep_s=1, latency_s=0)
    for i in range(300):
        ring.put(ramp(10, 10 * i), i * 10_000_000, 0.010, overflowed=False)
    (block,) = ring.read()
    assert block.lost == block.position == 2500
    assert np.array_equal(block.samples, np.arange(2500, 3000, dtype=np.float32))
    for i in range(3 * RECORDS):
        ring.put(ramp(1, i), i, 0.001, overflowed=False)
    (block,) = ring.read()
    assert block.samples[-1] == 3 * RECORDS - 1
    assert block.position + block.samples.size == 3000 + 3 * RECORDS


def test_the_ring_is_read_while_it_is_written_without_a_tear():
    ring = CaptureRing(48000, 1, keep_s=1, latency_s=0)
    total = 480 * 2000

    def write():
        for i in range(2000):
            ring.put(ramp(480, 480 * i), i, 0.01, overflowed=False)
            if i % 20 == 0:
                time.sleep(0)

    writer = threading.Thread(target=write)
    writer.start()
    heard = 0
    while heard < total:
        for block in ring.read():
            first = block.position
            assert np.array_equal(
                block.samples, np.arange(first, first + block.samples.size, dtype=np.float32)
            )
            heard = first + block.samples.size
    writer.join()


# The listener, with microphones that fail.


class FakeMicrophone:
    name, rate_hz = "fake", 1000

    def __init__(self, blocks=0, silence_s=0.0):
        self._blocks, self.silence_s, self.closed = blocks, silence_s, 0
        self._ring = CaptureRing(1000, 1, keep_s=1, latency_s=0)

    def read(self):
        if not self._blocks:
            self.silence_s = float("inf")
            return []
        self._blocks -= 1
        self._ring.put(ramp(10), time.monotonic_ns(), 0.01, overflowed=False)
        return self._ring.read()

    def close(self):
        self.closed += 1


def told_until(listener, count, deadline_s=10.0):
    told, end = [], time.monotonic() + deadline_s
    while sum(isinstance(t, Opened | Lost) for t in told) < count:
        assert time.monotonic() < end, told
        told += listener.take()
        time.sleep(0.005)
    return [type(t).__name__ for t in told]


def test_a_microphone_that_ends_is_closed_and_opened_again():
    made = []

    def open_microphone():
        made.append(FakeMicrophone(blocks=2))
        return made[-1]

    listener = Listener(open_microphone, retry_s=0.01)
    told = told_until(listener, 4)
    listener.close()
    assert told[:8] == ["Opened", "Block", "Block", "Lost"] * 2
    assert all(microphone.closed for microphone in made)


def test_a_microphone_that_is_not_there_is_told_once_and_tried_again():
    tries = []

    def open_microphone():
        tries.append(1)
        if len(tries) < 4:
            raise MediaError("no microphone is meant")
        return FakeMicrophone(blocks=10**6)

    listener = Listener(open_microphone, retry_s=0.005)
    assert told_until(listener, 2)[:2] == ["Lost", "Opened"]
    listener.close()


def silent_blocks(n, begin=0):
    """Of 10 ms each at 48 kHz."""
    positions = (480 * index for index in range(begin, begin + n))
    times = ((at, round(at / 48000 * NS_PER_S)) for at in positions)
    return [Block(np.zeros(480, np.float32), at, t_ns, t_ns, 0, 0) for at, t_ns in times]


def test_an_opening_outlives_the_sound_that_nobody_took_for_long():
    """Else what follows would be read as of another rate, for good."""
    given = []

    class Endless(FakeMicrophone):
        rate_hz = 48000

        def read(self):
            given.extend(blocks := silent_blocks(50, len(given)))
            return blocks

    listener = Listener(Endless)
    wait_for(lambda: len(given) > 3 * KEEP)
    told = listener.take()
    listener.close()
    assert told[0] == Opened("fake", 48000)
    assert len(told) == KEEP
    positions = [block.position for block in told[1:]]
    assert positions == list(range(positions[0], positions[0] + 480 * (KEEP - 1), 480))
    assert positions[0] > 480 * KEEP
    hearing = Hearing("cam", 32000, 0, settle_s=0)
    heard = [event for one in [*told, Lost("it is over")] for event in hearing.push(one)]
    samples = sum(chunk.samples.size for chunk in heard if isinstance(chunk, AudioChunk))
    assert samples / 32000 == pytest.approx(0.01 * (KEEP - 1), abs=0.001)


def test_openings_and_losses_that_nobody_takes_keep_their_order_and_are_bounded(monkeypatch):
    made = []

    class Short(FakeMicrophone):
        def read(self):
            self.silence_s = float("inf")
            return silent_blocks(5)

    def open_microphone():
        made.append(Short())
        return made[-1]

    def turns_after(openings):
        monkeypatch.setattr(listener_module, "KEEP", 40)
        made.clear()
        listener = Listener(open_microphone, retry_s=1e-4)
        wait_for(lambda: len(made) > openings)
        told = listener.take()
        listener.close()
        assert len(told) == 40
        return told, [type(one) for one in told if not isinstance(one, Block)]

    told, turns = turns_after(10)
    assert turns[:20] == [Opened, Lost] * 10
    assert 0 < len(told) - len(turns) <= 20
    told, turns = turns_after(30)
    assert turns in ([Opened, Lost] * 20, [Lost, Opened] * 20)


def test_an_error_of_whatever_kind_is_told_and_it_is_tried_again():
    """PortAudio's own error is none of ours, and its binding raises others."""
    errors = [RuntimeError("Host error"), OSError("no such library"), MediaError("not there")]

    def open_microphone():
        if errors:
            raise errors.pop(0)
        return FakeMicrophone(blocks=10**6)

    listener = Listener(open_microphone, retry_s=0.005)
    told = []
    wait_for(lambda: told.extend(listener.take()) or any(isinstance(t, Opened) for t in told))
    listener.close()
    assert isinstance(told[0], Lost)
    assert "RuntimeError: Host error" in told[0].reason
    assert isinstance(told[1], Opened)


def test_a_microphone_whose_reading_or_closing_raises_is_lost_and_opened_again():
    class Raising(FakeMicrophone):
        def read(self):
            if not self._blocks:
                raise RuntimeError("the stream is stopped")
            return super().read()

        def close(self):
            raise RuntimeError("and cannot be closed")

    listener = Listener(lambda: Raising(blocks=1), retry_s=0.005)
    assert told_until(listener, 4)[:6] == ["Opened", "Block", "Lost"] * 2
    listener.close()


class Hanging(FakeMicrophone):
    """It ends, and closing it lasts until the test lets go."""

    def __init__(self, release, blocks=2):
        super().__init__(blocks)
        self._release = release

    def close(self):
        self._release.wait(20)


def test_a_microphone_is_told_lost_before_a_closing_that_hangs():
    release = threading.Event()
    made = []

    def open_microphone():
        made.append(Hanging(release))
        return made[-1]

    listener = Listener(open_microphone, retry_s=0.005)
    assert told_until(listener, 2) == ["Opened", "Block", "Block", "Lost"]
    assert len(made) == 1
    release.set()
    assert told_until(listener, 1)[0] == "Opened"
    listener.close()


def test_an_opening_that_hangs_is_told_and_what_comes_of_it_too():
    release = threading.Event()

    def open_microphone():
        release.wait(20)
        return FakeMicrophone(blocks=10**6)

    listener = Listener(open_microphone, slow_s=0.1)
    told = []
    wait_for(lambda: told.extend(listener.take()) or told)
    assert [type(t) for t in told] == [Lost]
    assert "does not answer while the microphone is opened" in told[0].reason
    release.set()
    assert told_until(listener, 1)[0] == "Opened"
    listener.close()


def test_a_sound_system_that_never_answers_again_is_an_error():
    """Sooner where sound was heard before: there it has a chance to be heard again."""
    release = threading.Event()

    def taken(open_microphone, stuck_s):
        listener = Listener(open_microphone, slow_s=0.05, stuck_s=stuck_s)
        try:
            wait_for(lambda: listener.take() is None, 0.6)
        finally:
            release.set()
            listener.close()
            release.clear()

    with pytest.raises(MediaError, match=r"not answered .* while the microphone was closed"):
        taken(lambda: Hanging(release), (0.1, 60.0))
    with pytest.raises(MediaError, match=r"not answered .* while the microphone was opened"):
        taken(lambda: release.wait(20), (60.0, 0.1))
    with pytest.raises(AssertionError, match="not in time"):
        taken(lambda: Hanging(release), (60.0, 0.1))


def wait_for(condition, deadline_s=10.0):
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.005)


def test_portaudio_that_fails_is_an_error_that_passes(pulse, monkeypatch):
    import sounddevice

    def fails():
        raise sounddevice.PortAudioError("Error initializing PortAudio: Host error")

    assert list_microphones()
    with monkeypatch.context() as broken:
        broken.setattr(sounddevice, "_initialize", fails)
        for _ in range(2):
            with pytest.raises(MediaError, match="Host error"):
                list_microphones()
    assert list_microphones()


def test_a_binding_that_does_not_load_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "sounddevice.py").write_text("raise RuntimeError('Host error')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(MediaError, match=r"Host error; see that the sound server"):
        list_microphones()


def test_closing_does_not_wait_for_an_opening_that_hangs(monkeypatch):
    from atlasd.streams import listener as module

    monkeypatch.setattr(module, "CLOSE_S", 0.1)
    hang = threading.Event()

    def open_microphone():
        hang.wait(20)
        raise MediaError("too late")

    listener = Listener(open_microphone)
    began = time.monotonic()
    listener.close()
    assert time.monotonic() - began < 2
    hang.set()

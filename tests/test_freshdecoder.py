"""A decoder that is slower than its stream: pictures stay fresh, and their ages true."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque

import av
import numpy as np
import pytest
from atlasd.streams.clips import AudioChunk, Sample, VideoFrame
from atlasd.streams.containers import Damage, demux
from atlasd.streams.networkoptions import NetworkOptions
from atlasd.streams.networksource import NetworkSource
from atlasd.streams.packetline import Arrived, Overrun, PacketLine
from atlasd.streams.sources import Discontinuity, MediaError, Trouble
from atlasd.streams.synchroniser import Synchroniser
from media import write_video
from webserver import jpeg, part

NS_PER_S = 1_000_000_000
MS = 1_000_000
START_NS = 1000 * NS_PER_S
FPS = 25


def counting(time_s: float) -> np.ndarray:
    """A picture that says its number: eight squares, white for a bit that is set."""
    image = np.zeros((48, 64, 3), np.uint8)
    for bit in range(12):
        if round(time_s * FPS) >> bit & 1:
            row, column = divmod(bit, 4)
            image[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = 255
    return image


def number_of(image: np.ndarray) -> int:
    squares = image.reshape(3, 16, 4, 16, 3).mean(axis=(1, 3, 4)).ravel()
    return sum(1 << bit for bit in range(12) if squares[bit] > 128)


def film(path, seconds, *, keyframe_each=25, sound=None, **options):
    settings = {"preset": "ultrafast", "tune": "zerolatency", "g": str(keyframe_each)}
    settings |= {"keyint_min": str(keyframe_each), "sc_threshold": "0", **options}
    return write_video(path, seconds, picture=counting, sound=sound, options=settings)


class World:
    """A network that delivers packets by their times, and a clock that work moves on.

    Args:
        decode_ms: what each picture that is decoded costs.
        stall_s: (at, for): what is sent from a time on comes that much later, all at once.
        late_s: (from, to, by): what is sent in this time comes so much later, each by itself.
    """

    def __init__(self, *, decode_ms=0.0, stall_s=None, late_s=None):
        self.now_ns = START_NS
        self.decode_ms, self._stall_s = decode_ms, stall_s
        self._late_s = late_s
        self.line = None

    def clock(self):
        return self.now_ns

    def due_ns(self, time_s):
        if self._late_s is not None:
            from_s, to_s, by_s = self._late_s
            is_late = from_s <= time_s < to_s
            return START_NS + round(
                (time_s + by_s if is_late else max(time_s, to_s + by_s if time_s >= to_s else 0))
                * NS_PER_S
            )
        at_s, for_s = self._stall_s or (0.0, 0.0)
        return START_NS + round(max(time_s, at_s + for_s if time_s >= at_s else 0) * NS_PER_S)

    def open_line(self, container, streams, ended_by):
        self.line = ScriptedLine(self, container, streams)
        return self.line

    def source(self, path, **how):
        container = av.open(str(path), **how)
        options = NetworkOptions("http://camera.invalid/", origin_ns=START_NS, sample_rate_hz=8000)
        return NetworkSource(container, options, clock=self.clock, open_line=self.open_line)

    def watch(self, path, *, on_frame=None, **how):
        """(seconds, number, true age, claimed age in ms) of each picture, and other events."""
        seen, others = [], []
        with self.source(path, **how) as source:
            for event in source:
                if not isinstance(event, VideoFrame):
                    others.append(event)
                    continue
                number = number_of(event.image)
                taken_ns = START_NS + number * NS_PER_S // FPS
                true_ms, claimed_ms = (
                    (self.now_ns - since_ns) / 1e6 for since_ns in (taken_ns, event.capture_ns)
                )
                at_s = (self.now_ns - START_NS) / 1e9
                seen.append((at_s, number, true_ms, claimed_ms))
                self.now_ns += round(self.decode_ms * 1e6)
                if on_frame is not None:
                    on_frame(at_s)
        return seen, others


class ScriptedLine:
    """Packets of a file, which come when the world's clock says so."""

    def __init__(self, world, container, streams):
        self._world, self._container = world, container
        self._coming = deque(self._all(streams))
        self._waiting = deque()

    def _all(self, streams):
        last_s, first_s, pictures = 0.0, None, 0
        for packet in demux(self._container, streams):
            is_video = packet.stream.type == "video"
            if packet.dts is not None and packet.size:
                last_s = float(packet.dts * packet.time_base)
                first_s = last_s if first_s is None else first_s
            elif is_video and packet.size:  # no times: a camera's pace
                last_s, first_s, pictures = pictures / FPS, 0.0, pictures + 1
            is_key = is_video and packet.is_keyframe
            yield Arrived(packet, self._world.due_ns(last_s - (first_s or 0.0)), is_key)

    def _receive(self):
        while self._coming and self._coming[0].arrival_ns <= self._world.now_ns:
            self._waiting.append(self._coming.popleft())

    @property
    def keys(self):
        self._receive()
        return sum(arrived.is_key for arrived in self._waiting)

    def take(self):
        self._receive()
        if not self._waiting and self._coming:
            self._world.now_ns = self._coming[0].arrival_ns
            self._receive()
        return self._waiting.popleft() if self._waiting else None

    def close(self):
        self._container.close()


def test_a_sender_that_was_late_for_long_and_catches_up_puts_nothing_into_the_future(tmp_path):
    """Its clock seemed to have stepped, and then to have stepped back: no picture is told as taken
    after it came, times grow, and sound is found again."""
    world = World(late_s=(3.0, 6.0, 0.8))
    path = film(tmp_path / "film.mkv", 12, sound="tone")
    joined = Synchroniser(0.5, 8000, live=True, clock=world.clock)
    pictures, states, troubles = [], {}, []
    with world.source(path) as source:
        for event in source:
            if isinstance(event, VideoFrame):
                assert event.capture_ns <= world.now_ns
                pictures.append(event)
            elif isinstance(event, Trouble):
                troubles.append(event.kind)
            for out in joined.push(event):
                if isinstance(out, Sample):
                    states.setdefault(out.frame.epoch, []).append(out.window.state)
    epochs = [picture.epoch for picture in pictures]
    assert epochs == sorted(epochs)
    assert epochs[-1] >= 1
    times = [picture.pts_ns for picture in pictures]
    assert all(later - sooner > 0 for sooner, later in itertools.pairwise(times))
    assert "backward_pts" not in troubles
    last = pictures[-1]
    assert abs((last.capture_ns - START_NS) - (12 - 1 / FPS) * NS_PER_S) < 100 * MS
    assert states[epochs[-1]][-25:] == ["ok"] * 25


def behind(others):
    return [e for e in others if isinstance(e, Trouble) and e.kind == "behind"]


def epochs(others):
    return [e for e in others if isinstance(e, Discontinuity)]


def mjpeg_file(path, pictures):
    def shown(number):
        image = counting(number / FPS)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        return part(_jpeg_of(frame))

    path.write_bytes(b"".join(shown(number) for number in range(pictures)))
    return path


def _jpeg_of(frame):
    import io

    data = io.BytesIO()
    frame.to_image().save(data, "JPEG", quality=90)
    return data.getvalue()


@pytest.mark.parametrize("decode_ms", [0.0, 20.0])
def test_a_decoder_that_keeps_up_passes_over_nothing(tmp_path, decode_ms):
    seen, others = World(decode_ms=decode_ms).watch(film(tmp_path / "a.ts", 6.0))
    numbers = [number for _, number, _, _ in seen]
    assert numbers == list(range(numbers[0], 150))
    assert not behind(others)
    assert not epochs(others)
    assert max(true_ms for at_s, _, true_ms, _ in seen if at_s > 2) <= 80


@pytest.mark.parametrize("decode_ms", [52.0, 70.0, 150.0])
def test_pictures_between_keyframes_stay_fresh_and_truly_aged(tmp_path, decode_ms):
    """Decoding takes 1.3 periods and more: 30 s later masks were 8 s old and said to be fresh."""
    seen, others = World(decode_ms=decode_ms).watch(film(tmp_path / "a.ts", 31.0))
    late = [(true_ms, claimed_ms) for at_s, _, true_ms, claimed_ms in seen if at_s > 3]
    assert max(abs(true_ms - claimed_ms) for true_ms, claimed_ms in late) < 45
    assert max(true_ms for true_ms, _ in late) < 900
    assert not epochs(others)
    told = behind(others)
    assert told[-1].count + len(seen) == pytest.approx(31 * FPS, abs=30)
    assert "behind the stream" in told[0].detail
    assert len(told) <= 32


def test_pictures_that_stand_alone_give_way_to_the_newest(tmp_path):
    """MJPEG knows no times: 15 s later masks were 4 s old, and nothing said so."""
    path = mjpeg_file(tmp_path / "a.mjpg", 500)
    seen, others = World(decode_ms=52.0).watch(path, format="mpjpeg")
    late = [(true_ms, claimed_ms) for at_s, _, true_ms, claimed_ms in seen if at_s > 1]
    assert len(late) > 300
    assert max(abs(true_ms - claimed_ms) for true_ms, claimed_ms in late) < 1
    assert max(true_ms for true_ms, _ in late) < 200
    assert behind(others)[-1].count + len(seen) == pytest.approx(500, abs=10)
    assert not epochs(others)


def test_pictures_after_some_were_passed_over_are_whole(tmp_path):
    """Each says its own number, which a picture that is mixed with one before would not."""
    seen, _ = World(decode_ms=52.0).watch(film(tmp_path / "a.ts", 20.0, keyframe_each=10))
    numbers = [number for _, number, _, _ in seen]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] >= 20 * FPS - 15


def test_a_backlog_after_a_stall_is_old_and_opens_no_epoch(tmp_path):
    """Nothing comes for three seconds and then all at once; decoding it takes a second and more."""
    world = World(decode_ms=25.0, stall_s=(5.0, 3.0))
    seen, others = world.watch(film(tmp_path / "a.ts", 14.0, keyframe_each=250))
    assert not epochs(others)
    errors = [abs(true_ms - claimed_ms) for at_s, _, true_ms, claimed_ms in seen if at_s > 3]
    assert max(errors) < 45
    assert max(true_ms for _, _, true_ms, _ in seen) > 2500
    assert seen[-1][2] < 150


def test_a_stream_without_keyframes_that_is_too_much_is_given_up_in_words(tmp_path):
    path = film(tmp_path / "a.ts", 40.0, keyframe_each=100_000)
    with pytest.raises(MediaError, match=r"fell behind by \d+\.\d s: decoding takes longer"):
        World(decode_ms=52.0).watch(path)


def test_a_moment_of_slowness_between_keyframes_loses_nothing(tmp_path):
    """What can be caught up with is caught up with: only what is hopeless waits for a keyframe."""
    world = World(decode_ms=5.0)
    stalled = []

    def pause_once(at_s):
        if at_s > 4 and not stalled:
            stalled.append(at_s)
            world.now_ns += 700 * MS

    seen, others = world.watch(
        film(tmp_path / "a.ts", 10.0, keyframe_each=250), on_frame=pause_once
    )
    assert not behind(others)
    numbers = [number for _, number, _, _ in seen]
    assert numbers == list(range(numbers[0], 250))


def test_sound_is_whole_while_pictures_are_passed_over(tmp_path):
    path = film(tmp_path / "a.ts", 12.0, sound="tone")
    _, others = World(decode_ms=60.0).watch(path)
    chunks = [event for event in others if isinstance(event, AudioChunk)]
    seconds = sum(chunk.samples.size for chunk in chunks) / 8000
    assert seconds == pytest.approx(12.0, abs=0.3)
    assert behind(others)


# The line itself.


class SlowContainer:
    """A real container whose packets come when they are let, one by one."""

    def __init__(self, path):
        self._container = av.open(str(path))
        self.gate = threading.Semaphore(0)
        self.streams = self._container.streams
        self.is_closed = False

    def demux(self, *streams):
        for packet in self._container.demux(*streams):
            assert self.gate.acquire(timeout=20)
            yield packet

    def close(self):
        self.is_closed = True
        self._container.close()


def line_of(container, **how):
    how = {"clock": time.monotonic_ns, "ended_by": (OSError,), **how}
    return PacketLine(container, [container.streams.video[0]], **how)


def test_packets_are_stamped_when_they_come_and_not_when_they_are_taken(tmp_path):
    now = [START_NS]
    container = SlowContainer(film(tmp_path / "a.ts", 1.0))
    line = line_of(container, clock=lambda: now[0])
    container.gate.release(25)
    end = time.monotonic() + 20
    while line.keys < 1 and time.monotonic() < end:
        time.sleep(0.001)
    first = line.take()
    now[0] += 5 * NS_PER_S
    assert (first.arrival_ns, first.is_key) == (START_NS, True)
    container.gate.release(25)
    rest = []
    while (arrived := line.take()) is not None:
        rest.append(arrived)
    assert len(rest) >= 24
    line.close()
    assert container.is_closed


def test_a_line_that_nobody_takes_from_is_let_go_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("atlasd.streams.packetline.MAX_PACKETS", 10)
    line = line_of(av.open(str(film(tmp_path / "a.ts", 2.0))))
    line._thread.join(20)
    items = []
    while (arrived := line.take()) is not None:
        items.append(arrived.item)
    line.close()
    assert isinstance(items[0], Overrun)
    packets = [item for item in items if not isinstance(item, Overrun | Damage) and item.size]
    assert items[0].pictures + len(packets) == 50


def test_a_line_of_what_is_played_later_holds_its_server_up(tmp_path, monkeypatch):
    monkeypatch.setattr("atlasd.streams.packetline.MAX_PACKETS", 10)
    line = line_of(av.open(str(film(tmp_path / "a.ts", 2.0))), waits=True)
    pictures = 0
    while (arrived := line.take()) is not None:
        pictures += bool(arrived.item.size)
    line.close()
    assert pictures == 50


def test_closing_does_not_wait_for_a_server_that_says_nothing(tmp_path):
    container = SlowContainer(film(tmp_path / "a.ts", 1.0))
    line = line_of(container)
    began = time.monotonic()
    line.close()
    assert time.monotonic() - began < 5
    assert not container.is_closed, "it is in use"
    container.gate.release(1000)
    line._thread.join(20)
    assert container.is_closed


def test_jpeg_parts_are_pictures_to_begin_with(tmp_path):
    path = tmp_path / "a.mjpg"
    path.write_bytes(b"".join(part(jpeg(100)) for _ in range(5)))
    line = line_of(av.open(str(path), format="mpjpeg"))
    line._thread.join(20)
    assert line.keys == 5
    line.close()

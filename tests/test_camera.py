"""Cameras through OpenCV: a real network camera stands in for a device, a script for its ills."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections import deque
from pathlib import Path

import cv2
import numpy as np
import pytest
from atlasd.streams import devices
from atlasd.streams.camera import Camera, CameraOptions
from atlasd.streams.cameras import CameraInfo, find_camera, list_cameras
from atlasd.streams.clips import VideoFrame
from atlasd.streams.devices import DeviceOptions, DeviceSource
from atlasd.streams.driverclock import DriverClock
from atlasd.streams.sources import OPENINGS, MediaError
from webserver import WebServer, mjpeg

NS_PER_S = 1_000_000_000


@pytest.fixture
def server():
    with WebServer(mjpeg(fps=20)) as server:
        yield server


def gone(_visit):
    """The camera is off: who asks is not answered."""


def open_ffmpeg(device):
    return cv2.VideoCapture(device, cv2.CAP_FFMPEG)


def taken(camera, done, deadline_s=15.0):
    """Pictures and troubles, but for the opening, until ``done(pictures, troubles)``."""
    pictures, troubles, end = [], [], time.monotonic() + deadline_s
    while not done(pictures, troubles):
        assert time.monotonic() < end, f"{len(pictures)} pictures, {troubles}"
        more = camera.take(0.05)
        pictures += more[0]
        troubles += [trouble for trouble in more[1] if trouble.kind not in OPENINGS]
    return pictures, troubles


def test_pictures_come_in_order_with_the_time_of_their_arrival(server):
    began_ns = time.monotonic_ns()
    camera = Camera(server.url(), open_capture=open_ffmpeg)
    try:
        assert camera.size_px == (64, 48)
        pictures, _ = taken(camera, lambda pictures, _: len(pictures) >= 24)
    finally:
        camera.close()
    shades = [float(picture.bgr.mean()) for picture in pictures]
    assert np.diff(shades) == pytest.approx(3, abs=1.6), "every picture, in order"
    times_ns = [picture.host_ns for picture in pictures]
    assert times_ns == sorted(times_ns)
    assert began_ns < times_ns[0] < times_ns[-1] < time.monotonic_ns()
    spacing_ms = np.diff(times_ns[4:]).mean() / 1e6
    assert 35 < spacing_ms < 90


def test_a_media_time_that_is_not_the_hosts_clock_is_not_believed(server):
    """FFmpeg counts from 0 at a rate of its own; only the time of the grab is true."""
    camera = Camera(server.url(), open_capture=open_ffmpeg)
    try:
        pictures, _ = taken(camera, lambda pictures, _: len(pictures) >= 12)
    finally:
        camera.close()
    assert all(picture.device_ns == picture.host_ns for picture in pictures)


def test_a_camera_that_goes_away_ends_the_source_with_an_error(server):
    camera = Camera(server.url(), CameraOptions(stall_s=1.0), open_capture=open_ffmpeg)
    source = DeviceSource(camera, None, DeviceOptions("0"), warm_s=0.2)
    with source, pytest.raises(MediaError, match="given no picture for"):
        frames = 0
        for event in source:
            frames += isinstance(event, VideoFrame)
            if frames == 5:
                server.answer = gone
                server.cut()
    assert frames >= 5


@pytest.mark.slow
def test_fifty_openings_leave_no_thread_and_no_file_behind(server):
    def opened():
        camera = Camera(server.url(), open_capture=open_ffmpeg)
        camera.take(1.0)
        camera.close()

    for _ in range(3):
        opened()
    files = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(50):
        opened()
    assert not [t for t in threading.enumerate() if t.name == "atlasd-camera"]
    assert len([*Path("/proc/self/fd").iterdir()]) <= files + 4, "the server's own may linger"


@pytest.mark.device
@pytest.mark.skipif(not Path("/dev/video0").exists(), reason="needs a camera at /dev/video0")
def test_a_real_camera_gives_pictures_with_plausible_stamps():
    camera = Camera(0, CameraOptions((640, 480), 30))
    try:
        pictures, _ = taken(camera, lambda pictures, _: len(pictures) >= 60)
    finally:
        camera.close()
    ages_ms = [(picture.host_ns - picture.device_ns) / 1e6 for picture in pictures]
    assert all(0 <= age_ms < 500 for age_ms in ages_ms)
    assert np.all(np.diff([picture.device_ns for picture in pictures]) > 0)


class Script:
    """A capture that does what it is told: pictures, False, an exception, or waiting."""

    def __init__(self, *acts, last="repeat"):
        self._acts, self._last = deque(acts), last
        self.asked, self.released, self.image = {}, 0, None
        self.is_open = True

    def isOpened(self):  # noqa: N802
        return self.is_open

    def grab(self):
        act = self._acts.popleft() if self._acts else self._last
        time.sleep(0.005)
        if callable(act):
            act = act()
        if isinstance(act, Exception):
            raise act
        if isinstance(act, str):
            return self.image is not None
        self.image = act
        return act is not False

    def retrieve(self):
        return self.image is not None, self.image

    def get(self, prop):
        return {cv2.CAP_PROP_FPS: 30.0, cv2.CAP_PROP_FOURCC: 0x47504A4D}.get(prop, 0.0)

    def set(self, prop, value):
        self.asked[prop] = value
        return True

    def release(self):
        self.released += 1


def grey(width=64, height=48, shade=100):
    return np.full((height, width, 3), shade, np.uint8)


def scripted(*acts, options=None, wanted="scripted", **more):
    script = Script(*acts, **more)
    return Camera(wanted, options, open_capture=lambda _: script), script


PATIENT = CameraOptions(stall_s=1e6)


def ticking(step_ns):
    """A clock that goes on by so much each time it is read."""
    times = itertools.count(NS_PER_S, step_ns)
    return lambda: next(times)


def test_corrupt_pictures_are_told_and_passed_over():
    script = Script(grey(), None, grey().astype(np.float32), np.zeros((0, 0, 3), "u1"))
    camera = Camera("x", PATIENT, open_capture=lambda _: script, clock=ticking(NS_PER_S))
    pictures, troubles = taken(camera, lambda pictures, troubles: len(troubles) >= 3)
    camera.close()
    assert {trouble.kind for trouble in troubles} == {"corrupt_picture"}
    assert [trouble.count for trouble in troubles[:3]] == [1, 2, 3]
    assert all(picture.bgr.shape == (48, 64, 3) for picture in pictures)
    assert script.released == 1


def test_what_goes_wrong_with_each_picture_is_told_once_a_second():
    script = Script(grey(), *[None] * 40, last=grey())
    camera = Camera("x", PATIENT, open_capture=lambda _: script, clock=ticking(NS_PER_S // 8))
    _, troubles = taken(camera, lambda pictures, _: len(pictures) >= 5)
    camera.close()
    told = [trouble.count for trouble in troubles if trouble.kind == "corrupt_picture"]
    assert told[0] == 1
    assert 5 <= len(told) <= 20


def test_a_grey_picture_becomes_three_channels():
    camera, _ = scripted(grey()[:, :, 0])
    pictures, _ = taken(camera, lambda pictures, _: pictures)
    camera.close()
    assert pictures[0].bgr.shape == (48, 64, 3)


def test_another_resolution_is_told_and_pictures_go_on():
    camera, _ = scripted(*[grey()] * 5, grey(128, 96))
    _, troubles = taken(camera, lambda _, troubles: troubles)
    camera.close()
    assert troubles[0].kind == "resolution_changed"
    assert "(64, 48) to (128, 96)" in troubles[0].detail
    assert camera.size_px == (128, 96)


def test_black_pictures_are_told_once_until_there_is_light_again():
    acts = [grey()] + [grey(shade=3)] * 60 + [grey()] + [grey(shade=3)] * 60
    script = Script(*acts, last=grey())
    camera = Camera("x", PATIENT, open_capture=lambda _: script, clock=ticking(NS_PER_S // 10))
    _, troubles = taken(camera, lambda _, t: sum(x.kind == "black_picture" for x in t) >= 2)
    camera.close()
    black = [trouble for trouble in troubles if trouble.kind == "black_picture"]
    assert [trouble.count for trouble in black] == [1, 2]


def test_a_consumer_that_is_too_slow_loses_the_oldest_and_is_told():
    camera, _ = scripted(*[grey(shade=10 + i) for i in range(20)], last=grey(shade=200))
    end = time.monotonic() + 10
    while camera._counts["camera_overrun"] < 10:
        assert time.monotonic() < end
        time.sleep(0.01)
    pictures, troubles = camera.take(0.1)
    camera.close()
    assert len(pictures) == 4
    assert pictures[0].bgr[0, 0, 0] > 12
    assert [(trouble.kind, trouble.count) for trouble in troubles] == [
        ("camera_open", 1),
        ("camera_overrun", 1),
    ]


@pytest.mark.parametrize(
    ("act", "message"),
    [(False, "gave no picture within 0.3 s"), (RuntimeError("select() timeout"), "select()")],
)
def test_a_camera_that_gives_nothing_from_the_start_does_not_open(act, message):
    script = Script(act, last=False)
    with pytest.raises(MediaError, match=message.replace("(", r"\(").replace(")", r"\)")):
        Camera("x", CameraOptions(open_s=0.3), open_capture=lambda _: script)
    assert script.released == 1


def test_a_source_waits_for_its_camera_as_long_as_it_is_told(monkeypatch):
    mute = functools.partial(Camera, open_capture=lambda _: Script(last=False))
    monkeypatch.setattr(devices, "Camera", mute)
    with pytest.raises(MediaError, match=r"gave no picture within 0\.3 s"):
        devices.open_devices(DeviceOptions("x", open_timeout_s=0.3))


def test_a_camera_that_is_in_use_says_what_to_do():
    script = Script()
    script.is_open = False
    with pytest.raises(MediaError, match=r"another program may use it.*usermod -aG video"):
        Camera("x", open_capture=lambda _: script)


def test_a_camera_that_fails_on_the_way_ends_with_an_error_after_its_pictures():
    camera, script = scripted(grey(), grey(), RuntimeError("device lost"))
    pictures = []
    with pytest.raises(MediaError, match="device lost"):
        while True:
            pictures += camera.take(1.0)[0]
    camera.close()
    assert len(pictures) == 2
    assert script.released == 1


def test_a_camera_whose_node_vanishes_was_unplugged(tmp_path):
    node = tmp_path / "video0"
    node.touch()

    def unplug():
        node.unlink(missing_ok=True)
        return False

    camera, _ = scripted(grey(), grey(), unplug, last=False, wanted=str(node))
    with pytest.raises(MediaError, match="was unplugged"):
        while True:
            camera.take(1.0)
    camera.close()


def test_closing_does_not_wait_for_a_driver_that_hangs(caplog):
    hang = threading.Event()
    camera, _ = scripted(grey(), lambda: hang.wait(20))
    began = time.monotonic()
    camera.close()
    assert time.monotonic() - began < 5
    assert "left behind" in caplog.text
    hang.set()
    camera._thread.join(5)


@pytest.mark.parametrize(("size_px", "compressed"), [((1280, 720), True), ((640, 480), False)])
def test_what_is_asked_and_what_is_got_is_told(size_px, compressed):
    camera, script = scripted(grey(), options=CameraOptions(size_px, 60))
    _, troubles = taken(camera, lambda _, troubles: troubles)
    camera.close()
    assert script.asked[cv2.CAP_PROP_FRAME_WIDTH] == size_px[0]
    assert script.asked[cv2.CAP_PROP_FPS] == 60
    assert (cv2.CAP_PROP_FOURCC in script.asked) == compressed
    told = f"asked for {size_px[0]} x {size_px[1]} at 60 fps, got 64 x 48 at 30 fps, MJPG"
    assert (troubles[0].kind, troubles[0].detail) == ("camera_format", f"camera scripted: {told}")


def test_a_camera_that_gives_what_is_asked_is_no_trouble():
    camera, _ = scripted(grey(), options=CameraOptions((64, 48), 30))
    _, troubles = taken(camera, lambda pictures, _: len(pictures) > 5)
    camera.close()
    assert [t for t in troubles if t.kind == "camera_format"] == []


# Stamps of drivers.


def stamped(clock, ages_ms, period_ms=33.3, base_ms=5_000_000.0):
    """What is believed of a driver whose pictures are so old when they are grabbed."""
    results = []
    for i, age_ms in enumerate(ages_ms):
        captured_ns = round((base_ms + i * period_ms) * 1e6)
        grabbed_ns = captured_ns + round(age_ms * 1e6)
        results.append((clock.stamp(captured_ns, grabbed_ns) - captured_ns) / 1e6)
    return results


def test_a_driver_on_the_hosts_clock_is_believed_even_when_the_grab_was_late():
    assert stamped(DriverClock(30), [5, 5, 120, 87, 54, 20]) == [0] * 6


def test_a_stale_start_is_not_the_same_clock_until_a_fresh_picture_shows_it():
    assert stamped(DriverClock(30), [120, 110, 4, 5]) == [120, 110, 0, 0]


def test_stamps_on_another_clock_are_not_believed():
    clock = DriverClock(30)
    for i in range(60):
        grabbed_ns = 10**12 + i * 33_000_000
        for driver_ns in (0, i * 33_000_000, grabbed_ns + 10**9, -5):
            assert DriverClock(30).stamp(driver_ns, grabbed_ns) == grabbed_ns
        assert clock.stamp(i * 40_000_000, grabbed_ns) == grabbed_ns


def test_media_time_that_happens_to_pass_the_hosts_is_not_believed():
    """A host that has just started, and media time from 0: near each other, but another clock."""
    clock = DriverClock(30)
    got = [clock.stamp(i * 33_000_000, i * 33_000_000 + 400_000_000) for i in range(30)]
    assert got == [i * 33_000_000 + 400_000_000 for i in range(30)]


def test_a_stamp_that_repeats_gives_way_to_the_grab_less_what_is_usual():
    clock = DriverClock(30)
    assert clock.stamp(10**9, 10**9 + 5) == 10**9
    assert clock.stamp(10**9, 10**9 + 30_000_000) == 10**9 + 30_000_000 - 5


def test_a_driver_that_keeps_lying_is_asked_no_more():
    clock = DriverClock(30)
    for i in range(10):
        clock.stamp(0, 10**9 + i)
    assert clock.stamp(2 * 10**9, 2 * 10**9 + 1) == 2 * 10**9 + 1


@pytest.mark.parametrize("fps", [0, -1, float("nan"), 1e9])
def test_a_driver_without_a_rate_is_judged_by_a_slow_one(fps):
    assert stamped(DriverClock(fps), [40, 40]) == [0, 0]


# What is there.


def test_cameras_are_listed_by_number_without_their_metadata_nodes(tmp_path):
    for number, name in ((10, "Capture card"), (0, "HD Webcam"), (1, "HD Webcam")):
        folder = tmp_path / "class" / f"video{number}"
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
    (tmp_path / "class" / "videofoo").mkdir()
    found = list_cameras(
        tmp_path / "class", Path("/dev"), lambda path: (path.name != "video1", "busy")
    )
    assert found == [
        CameraInfo(0, "/dev/video0", "HD Webcam", "busy"),
        CameraInfo(10, "/dev/video10", "Capture card", "busy"),
    ]


def test_a_node_that_is_no_video_device_is_not_a_camera(tmp_path):
    (tmp_path / "class" / "video0").mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "video0").touch()
    assert list_cameras(tmp_path / "class", tmp_path / "dev") == []


def test_a_node_that_is_missing_is_a_camera_with_a_problem(tmp_path):
    (tmp_path / "class" / "video3").mkdir(parents=True)
    (info,) = list_cameras(tmp_path / "class", tmp_path)
    assert info.index == 3
    assert "does not open" in info.problem


def test_no_video4linux_means_no_cameras(tmp_path):
    assert list_cameras(tmp_path / "nowhere") == []


FOUND = [
    CameraInfo(0, "/dev/video0", "HD Webcam"),
    CameraInfo(2, "/dev/video2", "HD Webcam Pro"),
    CameraInfo(4, "/dev/video4", "Capture card"),
]


@pytest.mark.parametrize(
    ("wanted", "index"),
    [("0", 0), ("4", 4), ("/dev/video2", 2), ("capture", 4), ("hd webcam", 0), ("Pro", 2)],
)
def test_a_camera_is_meant_by_number_path_or_part_of_its_name(wanted, index):
    assert find_camera(wanted, FOUND).index == index


@pytest.mark.parametrize(
    ("wanted", "found", "message"),
    [
        ("1", FOUND, "no camera is meant by '1'; there are: 0: HD Webcam; 2: HD Webcam Pro"),
        ("webcam", FOUND, "2 cameras are meant"),
        ("/dev/video9", FOUND, "no camera is meant"),
        ("0", [], "none at all"),
    ],
)
def test_a_camera_that_is_not_there_is_an_error_that_lists_what_is(wanted, found, message):
    with pytest.raises(MediaError, match=message):
        find_camera(wanted, found)


def test_what_is_opened_is_told_once_an_opening_where_it_is_what_was_asked():
    camera, _ = scripted(grey(), options=CameraOptions((64, 48)))
    told = []
    while not told:
        told += camera.take(1.0)[1]
    told += camera.take(0.1)[1]
    camera.close()
    assert [(opening.kind, opening.count) for opening in told] == [("camera_open", 1)]
    assert told[0].detail == (
        "camera scripted: asked for 64 x 48 at its own rate, got 64 x 48 at 30 fps, MJPG"
    )

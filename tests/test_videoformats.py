"""A camera's formats, from structures packed by hand as <linux/videodev2.h> lays them out."""

from __future__ import annotations

import errno
import json
import struct

import pytest
from atlasd.daemon.config import Config
from atlasd.streams.cameras import CameraInfo
from atlasd.streams.videoformats import picture_formats
from atlasd.tools import devicechecks, devicelist
from atlasd.tools.findings import Case

DISCRETE, CONTINUOUS, STEPWISE = 1, 2, 3
"""V4L2_FRMSIZE_TYPE_* and V4L2_FRMIVAL_TYPE_*, of the same values."""
FMT, SIZES, INTERVALS = 0xC0405602, 0xC02C564A, 0xC034564B
"""_IOWR('V', 2, 64 bytes), ('V', 74, 44 bytes), ('V', 75, 52 bytes)."""


def u32(*values: int) -> bytes:
    return b"".join(struct.pack("=I", value) for value in values)


class Driver:
    """Answers as a V4L2 driver: {fourcc: [(kind of size, pixels, kind of rate, intervals)]}."""

    def __init__(self, formats: dict[int, list]) -> None:
        self._formats = formats

    def __call__(self, request: int, asked: bytes) -> bytes:
        try:
            return {FMT: self._format, SIZES: self._size, INTERVALS: self._interval}[request](asked)
        except IndexError:
            raise OSError(errno.EINVAL, "Invalid argument") from None

    def _format(self, asked: bytes) -> bytes:
        index, kind = struct.unpack_from("=II", asked)
        assert (len(asked), kind) == (64, 1)  # V4L2_BUF_TYPE_VIDEO_CAPTURE
        code = list(self._formats)[index]
        description = b"A format that it has".ljust(32, b"\0")
        return u32(index, kind, 0) + description + u32(code, 0) + bytes(12)

    def _size(self, asked: bytes) -> bytes:
        index, code = struct.unpack_from("=II", asked)
        assert len(asked) == 44
        kind, px, *_ = self._formats[code][index]
        return u32(index, code, kind) + u32(*px).ljust(24, b"\0") + bytes(8)

    def _interval(self, asked: bytes) -> bytes:
        index, code, width, height = struct.unpack_from("=IIII", asked)
        assert len(asked) == 52
        kind, intervals = next(
            (kind, intervals)
            for sizes, px, kind, intervals in self._formats[code]
            if (width, height) == ((px[0], px[1]) if sizes == DISCRETE else (px[1], px[4]))
        )
        if kind != DISCRETE:
            intervals = [tuple(sum(intervals, ()))] if index == 0 else []
        return (
            u32(index, code, width, height, kind)
            + u32(*intervals[index]).ljust(24, b"\0")
            + bytes(8)
        )


def code(letters: str, big_endian: bool = False) -> int:
    """v4l2_fourcc, and v4l2_fourcc_be."""
    return sum(ord(c) << 8 * i for i, c in enumerate(letters)) | (big_endian << 31)


WEBCAM = Driver(
    {
        code("MJPG"): [
            (DISCRETE, (1280, 720), DISCRETE, [(1, 60), (1, 30)]),
            (DISCRETE, (640, 480), DISCRETE, [(1001, 30000)]),
        ],
        code("YUYV"): [
            (STEPWISE, (32, 1920, 8, 24, 1080, 2), STEPWISE, [(1, 30), (1, 5), (1, 30)]),
        ],
        code("Y16 ", big_endian=True): [
            (CONTINUOUS, (1, 320, 1, 1, 240, 1), CONTINUOUS, [(1, 9), (1, 1), (1, 1)]),
        ],
        0x00000001: [],
    }
)


def test_formats_sizes_and_rates_are_listed():
    mjpg, yuyv, y16, odd = picture_formats("", WEBCAM)
    assert str(mjpg) == "MJPG 1280x720 at 30, 60 fps, 640x480 at 29.97 fps"
    assert str(yuyv) == "YUYV 32x24 to 1920x1080 at 5 to 30 fps"
    assert yuyv.sizes[0].step_px == (8, 2)
    assert str(y16) == "Y16-BE 1x1 to 320x240 at 1 to 9 fps"
    assert str(odd) == "0x00000001"


def test_a_driver_that_lists_formats_only_or_divides_by_zero_is_told_as_it_is():
    plain = Driver({code("GREY"): [], code("MJPG"): [(DISCRETE, (8, 8), DISCRETE, [(0, 30)])]})
    assert [str(each) for each in picture_formats("", plain)] == ["GREY", "MJPG 8x8"]


def test_a_driver_that_never_ends_is_left():
    def endless(request, asked):
        return Driver({code("MJPG"): [(DISCRETE, (8, 8), DISCRETE, [(1, 30)])]})(
            request, u32(0) + asked[4:]
        )

    found = picture_formats("", endless)
    assert len(found) == 64
    assert len(found[0].sizes) == 64


@pytest.fixture
def webcam(monkeypatch):
    info = CameraInfo(0, "/dev/video0", "Webcam")
    for module in (devicechecks, devicelist):
        monkeypatch.setattr(module, "list_cameras", lambda: [info])
        monkeypatch.setattr(module, "picture_formats", lambda path: picture_formats(path, WEBCAM))
    monkeypatch.setattr(devicelist, "list_microphones", list)


def test_the_doctor_tells_them(webcam):
    told = devicechecks.cameras(Case(Config(), None))[-1]
    assert told.status == "ok"
    assert "0: Webcam, /dev/video0: MJPG 1280x720 at 30, 60 fps, 640x480" in told.found
    assert "; Y16-BE 1x1 to 320x240 at 1 to 9 fps; " in told.found


def test_the_list_of_devices_shows_them(webcam, capsys):
    devicelist.show_devices()
    assert "YUYV 32x24 to 1920x1080 at 5 to 30 fps" in capsys.readouterr().out
    devicelist.show_devices(as_json=True)
    camera = json.loads(capsys.readouterr().out)["cameras"][0]
    assert camera["formats"][0]["sizes"][0] == {
        "least_px": [1280, 720],
        "most_px": [1280, 720],
        "step_px": [0, 0],
        "fps": [30, 60],
        "fps_is_range": False,
    }
    assert camera["offers"][2].startswith("Y16-BE")

"""A stream that is sent as it is due: whole, in time, from the beginning to each who asks."""

from __future__ import annotations

import time
from http.client import HTTPConnection
from io import BytesIO
from itertools import accumulate
from urllib.parse import urlsplit

import av
import pytest
from atlasd.tools.bench import CLIP_FPS, clip_pictures
from atlasd.tools.livecast import LiveCast, record_cast

MIMES = {"flv": "video/x-flv", "mpegts": "video/mp2t"}


@pytest.fixture(scope="module", params=MIMES)
def cast(request):
    """A container's name and what is sent of a second in it."""
    return request.param, record_cast(clip_pictures(CLIP_FPS), CLIP_FPS, request.param)


def whole(parts):
    return b"".join(part.data for part in parts)


def asked(live):
    """The answer to who asks for it."""
    connection = HTTPConnection(urlsplit(live.url).netloc)
    connection.request("GET", urlsplit(live.url).path)
    return connection.getresponse()


def test_all_of_it_comes_and_takes_as_long_as_it_shows(cast):
    container, parts = cast
    with LiveCast(parts, container) as live:
        began = time.monotonic()
        with asked(live) as answer:
            assert answer.headers["Content-Type"] == MIMES[container]
            assert "Content-Length" not in answer.headers
            assert answer.read() == whole(parts)
        assert time.monotonic() - began >= (CLIP_FPS - 1) / CLIP_FPS


def test_a_reader_who_leaves_and_an_end_in_the_middle_are_no_trouble(cast):
    container, parts = cast
    with LiveCast(parts, container) as live:
        with asked(live) as answer:
            assert answer.read(1000) == whole(parts)[:1000]
        open_still = asked(live)
        assert open_still.read(1) == whole(parts)[:1]
    open_still.close()


def test_a_picture_is_sent_when_it_is_taken_and_sound_when_it_is_over(cast):
    container, parts = cast
    ends = list(accumulate(len(part.data) for part in parts))
    with av.open(BytesIO(whole(parts))) as reader:
        packets = [
            (p.stream.type, p.pts, p.dts, p.time_base, p.duration or 0, p.pos)
            for p in reader.demux()
            if p.size and p.pos is not None
        ]
    assert all(pts == dts for _, pts, dts, *_ in packets)  # no picture waits for a later one
    start_s = min(float(pts * base) for kind, pts, _, base, _, _ in packets if kind == "video")
    late_s = {"video": [], "audio": []}
    for kind, pts, _, base, duration, place in packets:
        sent_s = next(p.due_s for p, end in zip(parts, ends, strict=True) if place < end)
        over = pts + (duration if kind == "audio" else 0)
        late_s[kind].append(sent_s - float(over * base) + start_s)
    assert len(late_s["video"]) == CLIP_FPS
    assert min(late_s["video"]) >= -1e-9
    assert max(late_s["video"]) <= 0.01
    assert len(late_s["audio"]) > 20
    assert min(late_s["audio"]) >= -1e-3  # FLV tells milliseconds
    assert max(late_s["audio"]) <= {"flv": 0.002, "mpegts": 0.066}[container]  # AAC looks ahead


def test_the_parts_are_in_order(cast):
    _, parts = cast
    dues = [part.due_s for part in parts]
    assert dues == sorted(dues)
    assert dues[0] == 0
    assert all(part.data for part in parts)

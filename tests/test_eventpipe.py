"""Events cross a pipe unchanged, and nothing that comes out of it is believed."""

from __future__ import annotations

import os
import struct
import threading

import msgpack
import numpy as np
import pytest
from atlasd.streams.clips import AudioChunk, VideoFrame
from atlasd.streams.eventpipe import (
    MAX_BODY_BYTES,
    EventPipeError,
    EventReader,
    EventWriter,
    Failed,
    Finished,
    Opened,
)
from atlasd.streams.sources import (
    AccessError,
    AudioEnded,
    Discontinuity,
    MediaError,
    Quiet,
    Trouble,
    UnsupportedError,
)

PATIENCE_S = 10.0


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield read, write
    for fd in (read, write):
        try:
            os.close(fd)
        except OSError:
            continue


def frame(side: int = 8, *, full: bool = False) -> VideoFrame:
    rng = np.random.default_rng(side)
    image = rng.integers(0, 256, (side, side + 1, 3), dtype=np.uint8)
    whole = rng.integers(0, 256, (side * 2, side * 3, 3), dtype=np.uint8) if full else None
    return VideoFrame(image, -5, 2**62, "cam", 3, 4, (side * 3, side * 2), whole)


@pytest.mark.parametrize(
    "message",
    [
        Opened("live", True, (640, 480), 29.97, None),
        Opened("file", False, (0, 0), None, 10**12),
        Discontinuity(2, "jump"),
        Discontinuity(2, "back", has_audio=False),
        AudioEnded(1),
        Trouble("no_pts", "ünd", 7),
        Failed("no such host"),
        Failed("no srt", "unsupported"),
        Failed("401", "access"),
        Finished(),
        Quiet(),
    ],
)
def test_words_come_over_unchanged(pipe, message):
    EventWriter(pipe[1]).write(message)
    assert EventReader(pipe[0], "cam").read(PATIENCE_S) == message


@pytest.mark.parametrize("full", [False, True])
def test_a_picture_comes_over_unchanged(pipe, full):
    sent = frame(8, full=full)
    EventWriter(pipe[1]).write(sent)
    got = EventReader(pipe[0], "cam").read(PATIENCE_S)
    assert isinstance(got, VideoFrame)
    np.testing.assert_array_equal(got.image, sent.image)
    assert (got.full is None) == (not full)
    if full:
        np.testing.assert_array_equal(got.full, sent.full)
    for name in ("pts_ns", "capture_ns", "stream", "epoch", "index", "source_size_px"):
        assert getattr(got, name) == getattr(sent, name)


def test_sound_comes_over_unchanged(pipe):
    sent = AudioChunk(np.linspace(-1, 1, 999, dtype=np.float32), 32000, -7, "cam", 2)
    EventWriter(pipe[1]).write(sent)
    got = EventReader(pipe[0], "cam").read(PATIENCE_S)
    assert isinstance(got, AudioChunk)
    np.testing.assert_array_equal(got.samples, sent.samples)
    assert (got.start_ns, got.sample_rate_hz, got.epoch) == (-7, 32000, 2)


def test_pictures_larger_than_the_pipe_come_in_pieces(pipe):
    """The writer waits for the reader, and the reader's timeout loses nothing."""
    sent = frame(700, full=True)
    writer = threading.Thread(target=lambda: EventWriter(pipe[1]).write(sent))
    reader = EventReader(pipe[0], "cam")
    assert reader.read(0.0) is None
    writer.start()
    got = None
    while got is None:
        got = reader.read(0.001)
    writer.join()
    np.testing.assert_array_equal(got.full, sent.full)


def test_nothing_comes_as_none_and_a_closed_pipe_is_the_end(pipe):
    reader = EventReader(pipe[0], "cam")
    assert reader.read(0.001) is None
    os.write(pipe[1], b"\x10")
    assert reader.read(0.001) is None
    os.close(pipe[1])
    with pytest.raises(EOFError):
        reader.read(PATIENCE_S)


def test_a_reader_that_left_is_heard_by_the_writer(pipe):
    os.close(pipe[0])
    with pytest.raises(BrokenPipeError):
        EventWriter(pipe[1]).write(Quiet())


def raw(head: object, body: bytes = b"") -> bytes:
    packed = head if isinstance(head, bytes) else msgpack.packb(head)
    return struct.pack("<II", len(packed), len(body)) + packed + body


PICTURE = {
    "is": "picture",
    "size_px": [2, 2],
    "source_size_px": [2, 2],
    "has_full": False,
    "pts_ns": 0,
    "capture_ns": 0,
    "epoch": 0,
    "index": 0,
}


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<II", 0, 0),
        struct.pack("<II", 2**31, 0),
        struct.pack("<II", 10, MAX_BODY_BYTES + 1),
        raw(b"\xc1"),
        raw(b"\x81"),
        raw([1, 2]),
        raw({"is": "nothing"}),
        raw({"is": ["picture"]}),
        raw({"no": "kind"}),
        raw({"is": "break"}),
        raw({"is": "trouble", "kind": "no_pts", "detail": "b", "count": "many"}),
        raw({"is": "trouble", "kind": "a", "detail": "b", "count": 1}),
        raw({"is": "trouble", "kind": ["no_pts"], "detail": "b", "count": 1}),
        raw(PICTURE, b"short"),
        raw(PICTURE | {"size_px": [-2, -2]}, bytes(12)),
        raw(PICTURE | {"size_px": [1, 2, 3]}, bytes(12)),
        raw(PICTURE | {"epoch": -1}, bytes(12)),
        raw(PICTURE | {"has_full": True}, bytes(12)),
        raw({"is": "sound", "rate_hz": 0, "start_ns": 0, "epoch": 0}, bytes(4)),
        raw({"is": "sound", "rate_hz": 1, "start_ns": 0, "epoch": 0}, bytes(3)),
    ],
)
def test_what_is_no_message_is_refused(pipe, data):
    os.write(pipe[1], data)
    with pytest.raises(EventPipeError):
        EventReader(pipe[0], "cam").read(PATIENCE_S)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UnsupportedError("a"), UnsupportedError),
        (AccessError("a"), AccessError),
        (MediaError("a"), MediaError),
        (ZeroDivisionError("a"), MediaError),
    ],
)
def test_an_error_keeps_its_kind(error, kind):
    failed = Failed.by(error)
    assert type(failed.error("other words")) is kind
    assert "a" in failed.detail

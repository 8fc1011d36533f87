"""Events of a source over a pipe between two processes.

A message is two little-endian uint32 (bytes of its head, bytes of its body), the head, one msgpack
map, and the body: samples of a picture or of sound as they lie in memory. Neither end trusts the
other: sizes are bounded before anything is allocated, and a head is read field by field.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

import msgpack
import numpy as np
from numpy.typing import NDArray

from .clips import AudioChunk, InvalidValueError, VideoFrame
from .sources import (
    AccessError,
    AudioEnded,
    Discontinuity,
    MediaError,
    Quiet,
    SourceEvent,
    SourceKind,
    Trouble,
    TroubleKind,
    UnsupportedError,
)

MAX_HEAD_BYTES: Final = 1 << 16
MAX_BODY_BYTES: Final = 1 << 28
"""Largest body: a picture of 8K, unscaled, fits with its scaled one."""
PIPE_BYTES: Final = 1 << 20
"""Wanted of the system for the pipe: a picture at model size passes without waiting."""
_PREFIX: Final = struct.Struct("<II")


class EventPipeError(Exception):
    """The other end sent what is no message."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The first message of a source that was opened: its attributes; see `sources.Source`."""

    kind: SourceKind
    has_audio: bool
    source_size_px: tuple[int, int]
    fps: float | None
    duration_ns: int | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The last message of a source that could not be opened or read.

    Attributes:
        detail: what came, what is allowed, what to do.
        kind: of error: ``unsupported`` and ``access`` as their classes in `sources` say, ``media``
            otherwise.
    """

    detail: str
    kind: Literal["media", "unsupported", "access"] = "media"

    @classmethod
    def by(cls, error: Exception) -> Failed:
        """The message of an error, of whatever library."""
        match error:
            case UnsupportedError():
                return cls(str(error), "unsupported")
            case AccessError():
                return cls(str(error), "access")
            case MediaError():
                return cls(str(error))
            case _:
                return cls(f"{type(error).__name__}: {error}")

    def error(self, detail: str) -> MediaError:
        """The error, with other words."""
        kinds = {"unsupported": UnsupportedError, "access": AccessError}
        return kinds.get(self.kind, MediaError)(detail)


@dataclass(frozen=True, slots=True)
class Finished:
    """The last message of a source that came to its end."""


Message = SourceEvent | Opened | Failed | Finished


class EventWriter:
    """Writes messages, waiting while the pipe is full. It belongs to one thread.

    Args:
        fd: the pipe's end, not closed by this.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        with suppress(OSError, AttributeError):  # not Linux, or over the user's limit
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def write(self, message: Message) -> None:
        """Write a message.

        Raises:
            BrokenPipeError: nobody reads any more.
        """
        fields, bodies = _taken_apart(message)
        head = cast("bytes", msgpack.packb(fields))
        size = sum(body.nbytes for body in bodies)
        parts = [memoryview(_PREFIX.pack(len(head), size)), memoryview(head)]
        parts += [np.ascontiguousarray(body).data.cast("B") for body in bodies if body.size]
        while parts:
            written = os.writev(self._fd, parts)
            while parts and written >= parts[0].nbytes:
                written -= parts.pop(0).nbytes
            if parts:
                parts[0] = parts[0][written:]


class EventReader:
    """Reads messages, waiting no longer than it is told. It belongs to one thread.

    Args:
        fd: the pipe's end, not closed by this; it is made non-blocking.
        stream: name that the events get.
    """

    def __init__(self, fd: int, stream: str) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._stream = stream
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._begin()

    def read(self, timeout_s: float) -> Message | None:
        """The next message, or None where it was not whole in time; the rest is read next time.

        Raises:
            EOFError: the other end is closed.
            EventPipeError: what came is no message.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if self._is_filled():
                message = self._advance()
                if message is not None:
                    return message
            else:
                left_ms = max(0.0, (deadline - time.monotonic()) * 1e3)
                if not self._poll.poll(left_ms):
                    return None

    def _begin(self) -> None:
        self._head: Mapping[str, Any] | None = None
        self._sizes: tuple[int, int] | None = None
        self._expect(_PREFIX.size)

    def _expect(self, size: int) -> None:
        self._part = np.empty(size, np.uint8)
        self._filled = 0

    def _is_filled(self) -> bool:
        """Read on; whether the part that is expected is whole."""
        view = self._part.data
        while self._filled < len(view):
            try:
                count = os.readv(self._fd, [view[self._filled :]])
            except BlockingIOError:
                return False
            if not count:
                raise EOFError("the other end of the pipe is closed")
            self._filled += count
        return True

    def _advance(self) -> Message | None:
        """Take the whole part; gives the message where it was the last."""
        if self._sizes is None:
            head, body = _PREFIX.unpack(self._part.tobytes())
            if not 0 < head <= MAX_HEAD_BYTES or body > MAX_BODY_BYTES:
                raise EventPipeError(f"a message of {head} + {body} bytes is not allowed")
            self._sizes = (head, body)
            self._expect(head)
            return None
        if self._head is None:
            self._head = _head_of(self._part.tobytes())
            if self._sizes[1]:
                self._expect(self._sizes[1])
                return None
            self._part = np.empty(0, np.uint8)
        head, body = self._head, self._part
        self._begin()
        try:
            return _put_together(head, body, self._stream)
        except (KeyError, TypeError, ValueError, InvalidValueError) as error:
            raise EventPipeError(f"a message {str(head)[:200]} is malformed: {error}") from error


def _head_of(data: bytes) -> Mapping[str, Any]:
    try:
        head = msgpack.unpackb(data, strict_map_key=True)
    except ValueError as error:
        raise EventPipeError(f"a head of {len(data)} bytes is no msgpack: {error}") from error
    if not isinstance(head, dict):
        raise EventPipeError(f"a head is a {type(head).__name__}; it must be a map")
    return cast("Mapping[str, Any]", head)


def _taken_apart(message: Message) -> tuple[dict[str, object], list[NDArray[Any]]]:
    match message:
        case VideoFrame():
            height, width, _ = message.image.shape
            fields: dict[str, object] = {
                "is": "picture",
                "size_px": (width, height),
                "source_size_px": message.source_size_px,
                "has_full": message.full is not None,
                "pts_ns": message.pts_ns,
                "capture_ns": message.capture_ns,
                "epoch": message.epoch,
                "index": message.index,
            }
            return fields, [x for x in (message.image, message.full) if x is not None]
        case AudioChunk():
            return {
                "is": "sound",
                "rate_hz": message.sample_rate_hz,
                "start_ns": message.start_ns,
                "epoch": message.epoch,
            }, [message.samples]
        case Opened():
            return {
                "is": "opened",
                "kind": message.kind,
                "has_audio": message.has_audio,
                "source_size_px": message.source_size_px,
                "fps": message.fps,
                "duration_ns": message.duration_ns,
            }, []
        case _:
            return _words_of(message), []


def _words_of(
    message: Discontinuity | AudioEnded | Trouble | Quiet | Failed | Finished,
) -> dict[str, object]:
    match message:
        case Discontinuity(epoch, reason, has_audio):
            text = _short(reason)
            return {"is": "break", "epoch": epoch, "reason": text, "has_audio": has_audio}
        case AudioEnded(epoch):
            return {"is": "silence", "epoch": epoch}
        case Trouble(kind, detail, count):
            return {"is": "trouble", "kind": kind, "detail": _short(detail), "count": count}
        case Failed(detail, kind):
            return {"is": "failed", "detail": _short(detail), "kind": kind}
        case Finished():
            return {"is": "finished"}
        case Quiet():
            return {"is": "quiet"}


def _short(text: str) -> str:
    return text if len(text) <= 4000 else f"{text[:4000]} ..."


def _put_together(head: Mapping[str, Any], body: NDArray[np.uint8], stream: str) -> Message:
    match head["is"]:
        case "picture":
            return _picture(head, body, stream)
        case "sound":
            samples = body.view(np.float32)
            rate_hz, start_ns = _whole(head["rate_hz"]), _whole(head["start_ns"])
            return AudioChunk(samples, rate_hz, start_ns, stream, _whole(head["epoch"]))
        case kind if str(kind) in _WORDS:
            return _WORDS[str(kind)](head)
        case other:
            raise ValueError(f"kind {str(other)[:40]!r} is not known")


def _opened(head: Mapping[str, Any]) -> Opened:
    fps, length_ns = head["fps"], head["duration_ns"]
    return Opened(
        "file" if head["kind"] == "file" else "live",
        bool(head["has_audio"]),
        _size(head["source_size_px"]),
        None if fps is None else float(fps),
        None if length_ns is None else _whole(length_ns),
    )


def _broken(head: Mapping[str, Any]) -> Discontinuity:
    has_audio = head["has_audio"]
    has_audio = None if has_audio is None else bool(has_audio)
    return Discontinuity(_whole(head["epoch"]), str(head["reason"]), has_audio)


def _troubled(head: Mapping[str, Any]) -> Trouble:
    kind = head["kind"]
    if kind not in get_args(TroubleKind):
        raise ValueError(f"trouble {str(kind)[:40]!r} is not known")
    return Trouble(cast("TroubleKind", kind), str(head["detail"]), _whole(head["count"]))


def _failed(head: Mapping[str, Any]) -> Failed:
    match head["kind"]:
        case "unsupported" | "access" as kind:
            return Failed(str(head["detail"]), kind)
        case _:
            return Failed(str(head["detail"]))


_WORDS: Final[Mapping[str, Callable[[Mapping[str, Any]], Message]]] = {
    "opened": _opened,
    "break": _broken,
    "silence": lambda head: AudioEnded(_whole(head["epoch"])),
    "trouble": _troubled,
    "failed": _failed,
    "finished": lambda _: Finished(),
    "quiet": lambda _: Quiet(),
}


def _picture(head: Mapping[str, Any], body: NDArray[np.uint8], stream: str) -> VideoFrame:
    width, height = _size(head["size_px"])
    source_px = _size(head["source_size_px"])
    count = width * height * 3
    whole = body[count:]
    full = whole.reshape(source_px[1], source_px[0], 3) if head["has_full"] else None
    return VideoFrame(
        image=body[:count].reshape(height, width, 3),
        pts_ns=_whole(head["pts_ns"]),
        capture_ns=_whole(head["capture_ns"]),
        stream=stream,
        epoch=_whole(head["epoch"]),
        index=_whole(head["index"]),
        source_size_px=source_px,
        full=full,
    )


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{str(value)[:40]!r} is no whole number")
    return value


def _size(value: Sequence[int]) -> tuple[int, int]:
    width, height = value
    if _whole(width) < 0 or _whole(height) < 0:
        raise ValueError(f"a size of {width} x {height} is negative")
    return width, height

"""What a source of video and sound promises, and the events it gives.

A source is opened as a context manager and iterated once. It gives events in the order in which
the medium holds them; the end of the iteration is the end of the stream. Time and media are its
business alone: it never waits for a consumer and never drops (see `mailbox` for both).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

from .clips import AudioChunk, VideoFrame

SourceKind = Literal["file", "live"]

TroubleKind = Literal[
    "corrupt_packet",
    "corrupt_frame",
    "no_pts",
    "repeated_pts",
    "backward_pts",
    "stray_pts",
    "stale_audio",
    "repeated_audio",
    "not_finite",
    "truncated",
    "too_large",
    "behind",
    "backlog",
    "reconnect",
    "camera_open",
    "camera_format",
    "camera_stamps",
    "camera_overrun",
    "resolution_changed",
    "black_picture",
    "corrupt_picture",
    "microphone_open",
    "microphone_lost",
    "microphone_back",
    "microphone_overflow",
    "microphone_hole",
    "microphone_stamps",
]
"""What can trouble a stream: docs/protocol.md and docs/devices.md say what each means."""

OPENINGS = frozenset[TroubleKind]({"camera_open", "microphone_open"})
"""Kinds of `Trouble` that are none: which device was opened, and what it gives, once an opening."""


class MediaError(Exception):
    """Media that cannot be opened or read: what came, what is allowed, what to do."""


class UnsupportedError(MediaError):
    """Media that no further attempt will open: to try again is of no use."""


class AccessError(MediaError):
    """Media whose owner refuses: many attempts in a row may lock the account."""


class OtherKindError(MediaError):
    """Media of another `SourceKind` than was promised before it was there: open it anew."""


class AbandonedError(MediaError):
    """An opening that was ended because nobody wants it any more."""


@dataclass(frozen=True, slots=True)
class Discontinuity:
    """The timeline broke: ``epoch`` begins here.

    Attributes:
        epoch: that begins.
        reason: why, in words.
        has_audio: whether the stream has sound from here on; None: as before.
    """

    epoch: int
    reason: str
    has_audio: bool | None = None


@dataclass(frozen=True, slots=True)
class AudioEnded:
    """No more sound will come in this epoch, though pictures may."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something was lost or repaired, and the stream goes on.

    ``kind`` is a stable name; ``detail`` is for people; ``count`` is how often this kind has
    happened in the stream so far.
    """

    kind: TroubleKind
    detail: str
    count: int


@dataclass(frozen=True, slots=True)
class Quiet:
    """Nothing has come for a moment, and the stream goes on.

    A live source says so at least every 50 ms, so that its reader can look at the clock.
    """


SourceEvent = VideoFrame | AudioChunk | Discontinuity | AudioEnded | Trouble | Quiet


class Source(Protocol):
    """A stream of video and sound.

    Attributes:
        stream: name of the stream.
        kind: ``file`` sources may be read slower than real time, ``live`` ones may not.
        has_audio: whether a sound track exists; a stream without one is not a failure.
        source_size_px: (width, height) of the upright picture; (0, 0) for a live source that has
            not been reached yet. Each picture says its own, which may change on the way.
        fps: nominal frames a second, for display and pacing only, or None where unknown.
        duration_ns: length, or None where unknown.
    """

    stream: str
    kind: SourceKind
    has_audio: bool
    source_size_px: tuple[int, int]
    fps: float | None
    duration_ns: int | None

    def __iter__(self) -> Iterator[SourceEvent]: ...

    def close(self) -> None:
        """Free the medium; closing twice is harmless."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

"""The pictures and the sound of an open container, from its first picture on."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import av
import av.error
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Stream
from av.video.stream import VideoStream

from .containers import Decoded, decode, find_audio, find_video
from .freshdecoder import FreshDecoder
from .packetline import Line
from .sources import MediaError

CONNECTION_ERRORS = (OSError, av.error.ExitError, av.error.HTTPError)
"""What ends a medium that comes over a network; a file's read errors are tried again."""
MAX_BEFORE_PICTURE = 10_000
"""Pieces of sound before the first picture after which a medium counts as one without pictures."""


def reason_of(error: Exception) -> str:
    """Why a connection failed, in words without its address, which a library's own hold."""
    match error:
        case av.error.ExitError():
            return "nothing came in time"
        case av.error.InvalidDataError():
            return "what it sends is no stream that FFmpeg reads; is the path right?"
        case OSError(errno=errno.EIO):
            return "it broke the connection off"
        case av.error.FFmpegError():
            return str(error.strerror)
        case _:
            return str(error)


@dataclass(frozen=True, slots=True)
class LiveReading:
    """How a live container is read.

    Attributes:
        open_line: takes the container, the streams wanted and the errors that end it, and gives
            their line; from there on the container is the line's.
        clock: host monotonic clock in nanoseconds, the line's.
        passes: whether pictures may be passed over where decoding falls behind.
    """

    open_line: Callable[[InputContainer, Sequence[Stream], tuple[type[Exception], ...]], Line]
    clock: Callable[[], int]
    passes: bool


class Tracks:
    """The first tracks of pictures and of sound that can be decoded, in the container's order.

    Args:
        container: an open container; it is closed by `close`, and where this fails.
        name: of the medium, for errors.
        is_remote: it comes over a network, and an error of the connection is its end.
        live: see `LiveReading`; None: it is read as it is decoded.

    Attributes:
        arrival_ns: host monotonic clock when the packet came that the last item was decoded from;
            None where it is not live.
        has_audio: whether there is a sound track.
        fps: nominal frames a second, or None where the container does not say.
        duration_ns: declared or estimated length, or None.
        first_picture: the first that was decoded; it comes again when this is iterated.

    Raises:
        MediaError: no picture decoded.
    """

    def __init__(
        self,
        container: InputContainer,
        name: str,
        *,
        is_remote: bool = False,
        live: LiveReading | None = None,
    ) -> None:
        self._container = container
        self._name = name
        self._live = live
        self._line: Line | None = None
        self._ended_by = CONNECTION_ERRORS if is_remote else ()
        self._read: deque[tuple[Decoded, int | None]] = deque()
        self._passed: deque[tuple[int, int]] = deque()
        self.arrival_ns: int | None = None
        try:
            self._open(name)
        except BaseException:
            self._free()
            raise

    def _open(self, name: str) -> None:
        container = self._container
        video, audio = find_video(container), find_audio(container)
        if video is None:
            found = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
            raise MediaError(
                f"{name} has no pictures that can be decoded; it holds {found}. Sound alone "
                "has nothing to segment: give a video, or convert it to H.264"
            )
        rate = video.average_rate or video.guessed_rate
        length_us = container.duration
        self.has_audio = audio is not None
        self.fps = float(rate) if rate else None
        self.duration_ns = length_us * 1000 if length_us and length_us > 0 else None
        self._decoded = self._decode(video, audio)
        for decoded, arrival_ns in islice(self._decoded, MAX_BEFORE_PICTURE):
            self._read.append((decoded, arrival_ns))
            if isinstance(decoded, av.VideoFrame):
                self.first_picture = decoded
                return
        raise MediaError(
            f"{name} has a video track ({video.codec_context.name}), but no picture of it "
            "can be decoded; copy or record it again"
        )

    def __iter__(self) -> Iterator[Decoded]:
        """Decoded pictures and sound, and what could not be read, to the end.

        Raises:
            MediaError: the connection was lost.
        """
        while self._read:
            decoded, self.arrival_ns = self._read.popleft()
            yield decoded
        for decoded, arrival_ns in self._decoded:
            self.arrival_ns = arrival_ns
            yield decoded

    def take_passed(self) -> Iterator[tuple[int, int]]:
        """(time in the container in ns, arrival) of pictures that were passed over since."""
        while self._passed:
            yield self._passed.popleft()

    def close(self) -> None:
        """Free the container; closing twice is harmless."""
        self._decoded.close()
        self._read.clear()
        self._free()

    def _free(self) -> None:
        if self._line is None:
            self._container.close()
        else:
            self._line.close()

    def _decode(
        self, video: VideoStream, audio: AudioStream | None
    ) -> Generator[tuple[Decoded, int | None], None, None]:
        try:
            if self._live is None:
                for decoded in decode(self._container, video, audio, ended_by=self._ended_by):
                    yield decoded, None
            else:
                streams = [stream for stream in (video, audio) if stream is not None]
                self._line = self._live.open_line(self._container, streams, self._ended_by)
                decoder = FreshDecoder(
                    self._line,
                    clock=self._live.clock,
                    name=self._name,
                    passes=self._live.passes,
                )
                self._passed = decoder.passed
                yield from decoder
        except self._ended_by as error:
            raise MediaError(f"{self._name} was lost: {reason_of(error)}") from None

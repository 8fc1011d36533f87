"""A container's decoded pictures and sound, in the order in which it holds them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .sources import MediaError, TroubleKind

MAX_READ_ERRORS = 100
"""Read errors in a row after which the rest of a file is taken as lost."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Something in the container could not be read: a short stable name, and words.

    ``times``: how often it happened.
    """

    kind: TroubleKind
    detail: str
    times: int = 1


Decoded = VideoFrame | AudioFrame | Damage


def open_container(path: Path) -> InputContainer:
    """Open a media file for reading.

    Raises:
        MediaError: it is missing, empty, or nothing that FFmpeg reads.
    """
    if not path.exists():
        raise MediaError(f"{path} does not exist; give the path of a video file or of a folder")
    size = path.stat().st_size
    if not size:
        raise MediaError(f"{path} is empty (0 bytes); copy or record it again")
    try:
        return av.open(str(path), metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(
            f"{path} ({size:,} bytes) cannot be opened as media: {error}. Files that FFmpeg reads "
            "are allowed (MP4, MKV, MPEG-TS, AVI, WebM, ...). If it is an MP4 whose recording or "
            "copy broke off, its index (moov) is missing: repair it, or record or copy it again"
        ) from error


def find_video(container: InputContainer) -> VideoStream | None:
    """The first stream of moving pictures that can be decoded; cover art does not count."""
    for stream in container.streams.video:
        is_cover = stream.disposition & Disposition.attached_pic
        if _has_decoder(stream) and not is_cover:
            return stream
    return None


def find_audio(container: InputContainer) -> AudioStream | None:
    """The first stream of sound that can be decoded."""
    return next((s for s in container.streams.audio if _has_decoder(s)), None)


def _has_decoder(stream: Stream) -> bool:
    """PyAV leaves out the codec context of a stream that FFmpeg knows no decoder for."""
    return getattr(stream, "codec_context", None) is not None


def decode(
    container: InputContainer,
    video: VideoStream | None,
    audio: AudioStream | None,
    *,
    ended_by: tuple[type[Exception], ...] = (),
) -> Generator[Decoded, None, None]:
    """Decode to the end, in the container's order.

    Args:
        container: an open container.
        video: its stream of pictures that is wanted, if any.
        audio: its stream of sound that is wanted, if any.
        ended_by: errors after which there is nothing to read; after others it is tried again.

    Yields:
        Decoded pictures and sound, and what could not be read and was skipped.

    Raises:
        Exception: one of ``ended_by``.
    """
    streams = [stream for stream in (video, audio) if stream is not None]
    for item in demux(container, streams, ended_by=ended_by):
        if isinstance(item, Damage):
            yield item
        else:
            yield from decode_packet(item)


def demux(
    container: InputContainer,
    streams: Sequence[Stream],
    *,
    ended_by: tuple[type[Exception], ...] = (),
) -> Generator[Packet | Damage, None, None]:
    """Packets of some streams to the end, and then an empty one of each, in the container's order.

    Args:
        container: an open container.
        streams: those of it that are wanted.
        ended_by: errors after which there is nothing to read; after others it is tried again.

    Raises:
        Exception: one of ``ended_by``.
    """
    errors = 0
    while errors < MAX_READ_ERRORS:
        try:
            for packet in container.demux(*streams):
                errors = 0
                yield packet
        except av.error.FFmpegError as error:
            if isinstance(error, ended_by):
                raise
            errors += 1
            yield Damage("corrupt_packet", f"the container could not be read: {error.strerror}")
        else:
            return
    yield Damage("truncated", f"{MAX_READ_ERRORS} read errors in a row; the rest is lost")


def decode_packet(packet: Packet) -> Iterator[Decoded]:
    """What a packet decodes to, and what of it could not be read."""
    kind = packet.stream.type
    if packet.is_corrupt:
        yield Damage("corrupt_packet", f"{kind} packet at {packet.pts} is marked corrupt")
    try:
        frames = packet.decode()
    except av.error.EOFError:
        return
    except av.error.FFmpegError as error:
        yield Damage("corrupt_packet", f"{kind} packet at {packet.pts}: {error}")
        return
    for frame in frames:
        if isinstance(frame, VideoFrame | AudioFrame):
            if frame.is_corrupt:
                yield Damage("corrupt_frame", f"{kind} at {frame.time} s was concealed in part")
            yield frame

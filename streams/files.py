"""Video files of any container that FFmpeg reads, as a source of pictures and sound."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

import av
from av.audio.frame import AudioFrame

from .clips import NS_PER_S, AudioChunk, VideoFrame
from .containers import Damage, Decoded, decode, find_audio, find_video, open_container
from .folders import FolderSource
from .pixels import Pixels
from .resampler import MonoResampler, Piece
from .sources import AudioEnded, Discontinuity, MediaError, Source, SourceEvent, SourceKind, Trouble
from .timeline import Break, Item, Odd, Placed, Timeline, Track

SHORT_NS = NS_PER_S // 2
"""A file that ends this much before the length it declares is truncated."""
DECLARE_LENGTH = ("mov", "matroska", "avi", "flv", "asf")
"""Containers whose header holds their length; that of others is estimated from the data."""
MAX_BEFORE_PICTURE = 10_000
"""Pieces of sound before the first picture after which a file counts as one without pictures."""
FALLBACK_FPS = 25.0
"""Spacing of pictures without times in a container that knows no frame rate either."""


def open_source(
    uri: str | Path,
    *,
    stream: str = "main",
    image_size_px: tuple[int, int] | None = None,
    keep_full: bool = False,
    sample_rate_hz: int = 32000,
    fps: float = 25.0,
    clock: Callable[[], int] = time.monotonic_ns,
) -> Source:
    """Open a video file or a folder of frames.

    Args:
        uri: path of a video file, or of a folder with frames and optionally a sound.
        stream: name that every event carries.
        image_size_px: (width, height) that pictures are scaled to, without keeping their aspect
            ratio; None keeps their size.
        keep_full: also keep the unscaled upright picture.
        sample_rate_hz: rate of the sound that comes out.
        fps: frame rate of a folder without ``timestamps.csv``; files have their own times.
        clock: host monotonic clock in nanoseconds.

    Returns:
        The opened source.

    Raises:
        MediaError: it cannot be opened: what came, what is allowed, what to do.
    """
    if "://" in str(uri) and not str(uri).startswith("file://"):
        raise MediaError(
            f"{uri} is an address; video files and folders of frames can be read: give a path"
        )
    path = Path(str(uri).removeprefix("file://"))
    if path.is_dir():
        return FolderSource(
            path,
            stream=stream,
            image_size_px=image_size_px,
            keep_full=keep_full,
            sample_rate_hz=sample_rate_hz,
            fps=fps,
            clock=clock,
        )
    return FileSource(
        path,
        stream=stream,
        image_size_px=image_size_px,
        keep_full=keep_full,
        sample_rate_hz=sample_rate_hz,
        clock=clock,
    )


class FileSource:
    """A video file, with or without sound.

    Every decoded picture comes out, in order, with strictly growing times within an epoch. What is
    repaired or lost on the way is told as `Trouble`: ``corrupt_packet``, ``corrupt_frame``,
    ``no_pts``, ``repeated_pts``, ``backward_pts``, ``stray_pts``, ``stale_audio``, ``not_finite``,
    ``truncated``.

    Args:
        path: the file.
        stream: name that every event carries.
        image_size_px: (width, height) that pictures are scaled to; None keeps their size.
        keep_full: also keep the unscaled upright picture.
        sample_rate_hz: rate of the sound that comes out.
        clock: host monotonic clock in nanoseconds.

    Attributes:
        kind: ``file``.
        stream: name of the stream.
        has_audio: whether the file has a sound track.
        source_size_px: (width, height) of the upright picture.
        fps: nominal frames a second, or None where the container does not say.
        duration_ns: declared or estimated length, or None.

    Raises:
        MediaError: the file cannot be opened, or no picture of it decoded.
    """

    kind: SourceKind = "file"

    def __init__(
        self,
        path: Path,
        *,
        stream: str = "main",
        image_size_px: tuple[int, int] | None = None,
        keep_full: bool = False,
        sample_rate_hz: int = 32000,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.stream = stream
        self._path = path
        self._clock = clock
        self._rate_hz = sample_rate_hz
        self._pixels = Pixels(image_size_px, keep_full=keep_full)
        self._troubles: Counter[str] = Counter()
        self._read: deque[Decoded] = deque()
        self._index = 0
        self._last_ns = 0
        self._epoch = 0
        self._raw_ns: int | None = None
        self._raw_end_ns: dict[Track, int] = {}
        self._container = open_container(path)
        try:
            self._open_tracks()
        except BaseException:
            self._container.close()
            raise

    def _open_tracks(self) -> None:
        video, audio = find_video(self._container), find_audio(self._container)
        if video is None:
            found = ", ".join(sorted({s.type for s in self._container.streams})) or "nothing"
            raise MediaError(
                f"{self._path} has no pictures that can be decoded; it holds {found}. Sound alone "
                "has nothing to segment: give a video, or convert it to H.264"
            )
        rate = video.average_rate or video.guessed_rate
        length_us = self._container.duration
        self.has_audio = audio is not None
        self.fps = float(rate) if rate else None
        self.duration_ns = length_us * 1000 if length_us and length_us > 0 else None
        self._periods_ns = deque([round(NS_PER_S / (self.fps or FALLBACK_FPS))], maxlen=9)
        self._decoded = decode(self._container, video, audio)
        for decoded in islice(self._decoded, MAX_BEFORE_PICTURE):
            self._read.append(decoded)
            if isinstance(decoded, av.VideoFrame):
                self.source_size_px = self._pixels.upright_size_px(decoded)
                return
        raise MediaError(
            f"{self._path} has a video track ({video.codec_context.name}), but no picture of it "
            "can be decoded; copy or record it again"
        )

    def __iter__(self) -> Iterator[SourceEvent]:
        timeline = Timeline[av.VideoFrame | AudioFrame](
            ("video", "audio") if self.has_audio else ("video",)
        )
        resampler = MonoResampler(self._rate_hz)
        for decoded in self._all_decoded():
            if isinstance(decoded, Damage):
                yield self._trouble(decoded.kind, decoded.detail)
                continue
            item, trouble = self._timed(decoded)
            if trouble is not None:
                yield trouble
            for placed in timeline.add(item):
                yield from self._events(placed, resampler)
        for placed in timeline.finish():
            yield from self._events(placed, resampler)
        yield from self._chunks(resampler.flush())
        if self.has_audio:
            yield AudioEnded(self._epoch)
        yield from self._truncation()

    def close(self) -> None:
        """Free the file; closing twice is harmless."""
        self._decoded.close()
        self._read.clear()
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _all_decoded(self) -> Iterator[Decoded]:
        while self._read:
            yield self._read.popleft()
        yield from self._decoded

    def _timed(
        self, frame: av.VideoFrame | AudioFrame
    ) -> tuple[Item[av.VideoFrame | AudioFrame], Trouble | None]:
        """An item with its container's time; without one it follows its track's last."""
        trouble = None
        track: Track = "video" if isinstance(frame, av.VideoFrame) else "audio"
        if isinstance(frame, AudioFrame):
            length_ns = round(frame.samples * NS_PER_S / frame.sample_rate)
            size = frame.samples * frame.layout.nb_channels * frame.format.bytes
        else:
            length_ns = int(median(self._periods_ns))
            size = sum(plane.buffer_size for plane in frame.planes)
        if frame.pts is None or not frame.time_base:
            start_ns = self._raw_end_ns.get(track, 0)
            trouble = self._trouble("no_pts", f"{track} without a time follows the last one")
        else:
            start_ns = round(frame.pts * frame.time_base * NS_PER_S)
        if track == "video":
            self._learn_period(start_ns)
        self._raw_end_ns[track] = start_ns + length_ns
        return Item(track, start_ns, start_ns + length_ns, size, frame), trouble

    def _learn_period(self, start_ns: int) -> None:
        """Follow the spacing of pictures: a nominal rate says little where it varies."""
        if self._raw_ns is not None and start_ns > self._raw_ns:
            self._periods_ns.append(start_ns - self._raw_ns)
        self._raw_ns = start_ns

    def _events(
        self,
        placed: Placed[av.VideoFrame | AudioFrame] | Break | Odd,
        resampler: MonoResampler,
    ) -> Iterator[SourceEvent]:
        if isinstance(placed, Odd):
            yield self._trouble(placed.kind, placed.detail)
        elif isinstance(placed, Break):
            yield from self._chunks(resampler.flush())
            self._epoch = placed.epoch
            yield Discontinuity(placed.epoch, placed.reason)
        elif isinstance(placed.item.payload, AudioFrame):
            not_finite = resampler.not_finite
            yield from self._chunks(resampler.push(placed.item.payload, placed.start_ns))
            if resampler.not_finite > not_finite:
                yield self._trouble("not_finite", "sound held NaN or infinity, now zeros")
        else:
            yield from self._picture(placed.item.payload, placed.start_ns)

    def _picture(self, frame: av.VideoFrame, start_ns: int) -> Iterator[Trouble | VideoFrame]:
        if self._index and start_ns <= self._last_ns:
            kind = "repeated_pts" if start_ns == self._last_ns else "backward_pts"
            yield self._trouble(
                kind, f"picture {self._index} at {start_ns} ns follows one at {self._last_ns} ns"
            )
            start_ns = self._last_ns + 1
        image, full, size_px = self._pixels.convert(frame)
        yield VideoFrame(
            image=image,
            pts_ns=start_ns,
            capture_ns=self._clock(),
            stream=self.stream,
            epoch=self._epoch,
            index=self._index,
            source_size_px=size_px,
            full=full,
        )
        self._index, self._last_ns = self._index + 1, start_ns

    def _chunks(self, pieces: list[Piece]) -> Iterator[AudioChunk]:
        for piece in pieces:
            yield AudioChunk(piece.samples, self._rate_hz, piece.start_ns, self.stream, self._epoch)

    def _truncation(self) -> Iterator[Trouble]:
        """Tell when a track ended well before the length that the container declares."""
        name = self._container.format.name
        if self._epoch or not any(declares in name for declares in DECLARE_LENGTH):
            return
        short: list[str] = []
        for track, end_ns in self._raw_end_ns.items():
            declared_ns = self._declared_end_ns(track)
            if declared_ns is not None and end_ns < declared_ns - SHORT_NS:
                end_s, declared_s = end_ns / NS_PER_S, declared_ns / NS_PER_S
                short.append(f"{track} ends at {end_s:.2f} s of {declared_s:.2f} s")
        if short:
            yield self._trouble("truncated", ", ".join(short))

    def _declared_end_ns(self, track: Track) -> int | None:
        stream = find_video(self._container) if track == "video" else find_audio(self._container)
        if stream is not None and stream.duration and stream.time_base:
            return round(((stream.start_time or 0) + stream.duration) * stream.time_base * NS_PER_S)
        if self.duration_ns is None or len(self._container.streams) > len(self._raw_end_ns):
            return None
        if self._raw_end_ns[track] < max(self._raw_end_ns.values()):
            return None
        return (self._container.start_time or 0) * 1000 + self.duration_ns

    def _trouble(self, kind: str, detail: str) -> Trouble:
        self._troubles[kind] += 1
        return Trouble(kind, detail, self._troubles[kind])

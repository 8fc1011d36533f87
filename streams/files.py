"""Video files of any container that FFmpeg reads, as a source of pictures and sound."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from av.container import InputContainer

from .addresses import is_address, is_mistaken, redacted
from .clips import NS_PER_S
from .containers import Damage, find_audio, find_video, open_container
from .presenter import Frame, Presenter
from .sources import AudioEnded, Discontinuity, MediaError, Source, SourceEvent, SourceKind, Trouble
from .timeline import Break, Odd, Placed, Timeline, Track
from .tracks import Tracks

SHORT_NS = NS_PER_S // 2
"""A file that ends this much before the length it declares is truncated."""
DECLARE_LENGTH = ("mov", "matroska", "avi", "flv", "asf")
"""Containers whose header holds their length; that of others is estimated from the data."""


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
    if is_address(str(uri)) or is_mistaken(str(uri)):
        raise MediaError(
            f"{redacted(str(uri))} is an address; video files and folders of frames can be read "
            "here: give a path, as ./NAME where the name itself has : and @"
        )
    path = Path(str(uri).removeprefix("file://"))
    if path.is_dir():
        from .folders import FolderSource

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
        path: the file; where ``container`` is given, only its name in errors.
        stream: name that every event carries.
        image_size_px: (width, height) that pictures are scaled to; None keeps their size.
        keep_full: also keep the unscaled upright picture.
        sample_rate_hz: rate of the sound that comes out.
        clock: host monotonic clock in nanoseconds.
        container: the file, opened already, as one on a web server.

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
        path: Path | str,
        *,
        stream: str = "main",
        image_size_px: tuple[int, int] | None = None,
        keep_full: bool = False,
        sample_rate_hz: int = 32000,
        clock: Callable[[], int] = time.monotonic_ns,
        container: InputContainer | None = None,
    ) -> None:
        self.stream = stream
        self._clock = clock
        self._container = container or open_container(Path(path))
        self._tracks = Tracks(self._container, str(path), is_remote=container is not None)
        self.has_audio, self.fps = self._tracks.has_audio, self._tracks.fps
        self.duration_ns = self._tracks.duration_ns
        self._presenter = Presenter(
            stream,
            image_size_px,
            keep_full=keep_full,
            sample_rate_hz=sample_rate_hz,
            fps=self.fps,
        )
        self.source_size_px = self._presenter.upright_size_px(self._tracks.first_picture)

    def __iter__(self) -> Iterator[SourceEvent]:
        timeline = Timeline[Frame](("video", "audio") if self.has_audio else ("video",))
        for decoded in self._tracks:
            if isinstance(decoded, Damage):
                yield self._presenter.trouble(decoded.kind, decoded.detail)
                continue
            item, trouble = self._presenter.item(decoded)
            if trouble is not None:
                yield trouble
            for placed in timeline.add(item):
                yield from self._events(placed)
        for placed in timeline.finish():
            yield from self._events(placed)
        yield from self._presenter.flush()
        if self.has_audio:
            yield AudioEnded(self._presenter.epoch)
        yield from self._truncation()

    def close(self) -> None:
        """Free the file; closing twice is harmless."""
        self._tracks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _events(self, placed: Placed[Frame] | Break | Odd) -> Iterator[SourceEvent]:
        if isinstance(placed, Odd):
            yield self._presenter.trouble(placed.kind, placed.detail)
        elif isinstance(placed, Break):
            yield from self._presenter.flush()
            self._presenter.epoch = placed.epoch
            yield Discontinuity(placed.epoch, placed.reason)
        else:
            yield from self._presenter.events(placed.item.payload, placed.start_ns, self._clock)

    def _truncation(self) -> Iterator[Trouble]:
        """Tell when a track ended well before the length that the container declares."""
        name = self._container.format.name
        if self._presenter.epoch or not any(declares in name for declares in DECLARE_LENGTH):
            return
        short: list[str] = []
        for track, end_ns in self._presenter.ends_ns.items():
            declared_ns = self._declared_end_ns(track)
            if declared_ns is not None and end_ns < declared_ns - SHORT_NS:
                end_s, declared_s = end_ns / NS_PER_S, declared_ns / NS_PER_S
                short.append(f"{track} ends at {end_s:.2f} s of {declared_s:.2f} s")
        if short:
            yield self._presenter.trouble("truncated", ", ".join(short))

    def _declared_end_ns(self, track: Track) -> int | None:
        stream = find_video(self._container) if track == "video" else find_audio(self._container)
        if stream is not None and stream.duration and stream.time_base:
            return round(((stream.start_time or 0) + stream.duration) * stream.time_base * NS_PER_S)
        if self.duration_ns is None or len(self._container.streams) > len(self._presenter.ends_ns):
            return None
        if self._presenter.ends_ns[track] < max(self._presenter.ends_ns.values()):
            return None
        return (self._container.start_time or 0) * 1000 + self.duration_ns

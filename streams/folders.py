"""A folder of frames with an optional sound, as a source."""

from __future__ import annotations

import csv
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from av.audio.frame import AudioFrame
from PIL import Image, ImageOps, UnidentifiedImageError

from .clips import NS_PER_S, AudioChunk, VideoFrame
from .containers import Damage, decode, find_audio, open_container
from .resampler import MonoResampler, Piece
from .sources import AudioEnded, MediaError, SourceEvent, SourceKind, Trouble, TroubleKind

FRAME_SUFFIXES = (".png", ".jpg", ".jpeg")
SOUND_SUFFIXES = (".wav", ".flac", ".ogg")
TIMES_NAME = "timestamps.csv"


def read_image(path: Path) -> Image.Image:
    """Read a picture as RGB, upright.

    Grey becomes three equal channels, 16 bits become the upper 8, alpha is composited over black,
    as for videos.

    Raises:
        MediaError: it is not a picture, or it is truncated.
    """
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened)
            upright.load()
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(
            f"{path} cannot be read as a picture: {error}; PNG and JPEG are allowed: write it again"
        ) from error
    if upright.mode.startswith("I"):
        high_bytes = np.asarray(upright, np.int64).clip(0, 65535) >> 8
        return Image.fromarray(high_bytes.astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, rgba).convert("RGB")
    return upright.convert("RGB")


def natural_key(path: Path) -> list[tuple[int, str]]:
    """Sorts ``frame2.png`` before ``frame10.png``."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in parts]


class FolderSource:
    """PNG and JPEG frames in natural order, with at most one WAV, FLAC or Ogg file.

    Frames come at a fixed rate, or at the times of ``timestamps.csv`` in the folder: a header
    ``frame,time_s``, then a file name and its seconds a line, growing; only frames listed there
    are shown. The sound begins at time zero. Frames may differ in size.

    A frame that cannot be read is told as `Trouble` (``corrupt_frame``), and the stream goes on.

    Args:
        path: the folder.
        stream: name that every event carries.
        image_size_px: (width, height) that pictures are scaled to; None keeps their size.
        keep_full: also keep the unscaled picture.
        sample_rate_hz: rate of the sound that comes out.
        fps: frames a second where there is no ``timestamps.csv``.
        clock: host monotonic clock in nanoseconds.

    Attributes:
        kind: ``file``.
        stream: name of the stream.
        has_audio: whether there is a sound.
        source_size_px: (width, height) of the first frame.
        fps: frames a second, or None with ``timestamps.csv``.
        duration_ns: time of the last frame, plus a period where the rate is fixed.

    Raises:
        MediaError: no frames, a first frame or a sound that cannot be read, several sounds, or bad
            timestamps.
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
        fps: float = 25.0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if not fps > 0:
            raise MediaError(f"fps is {fps}; it must be positive")
        self.stream = stream
        self._size_px, self._keep_full = image_size_px, keep_full
        self._rate_hz, self._clock = sample_rate_hz, clock
        self._troubles: Counter[str] = Counter()
        self._frames = _timed_frames(path, fps)
        timed = (path / TIMES_NAME).exists()
        self.fps: float | None = None if timed else fps
        self.duration_ns: int | None = self._frames[-1][1] + (0 if timed else round(NS_PER_S / fps))
        self.source_size_px = read_image(self._frames[0][0]).size
        sound = _find_sound(path)
        self._container = open_container(sound) if sound is not None else None
        if self._container is not None and find_audio(self._container) is None:
            self._container.close()
            raise MediaError(
                f"{sound} holds no sound that can be decoded; write it again, or remove it"
            )
        self.has_audio = self._container is not None

    def __iter__(self) -> Iterator[SourceEvent]:
        sound = self._read_sound()
        chunk = next(sound, None)
        for index, (path, pts_ns) in enumerate(self._frames):
            while chunk is not None and not (
                isinstance(chunk, AudioChunk) and chunk.start_ns > pts_ns
            ):
                yield chunk
                chunk = next(sound, None)
            yield from self._picture(path, pts_ns, index)
        while chunk is not None:
            yield chunk
            chunk = next(sound, None)

    def close(self) -> None:
        """Free the sound; closing twice is harmless."""
        if self._container is not None:
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

    def _picture(self, path: Path, pts_ns: int, index: int) -> Iterator[VideoFrame | Trouble]:
        try:
            picture = read_image(path)
        except MediaError as error:
            yield self._trouble("corrupt_frame", str(error))
            return
        full = np.asarray(picture)
        image = full
        if self._size_px is not None and self._size_px != picture.size:
            image = np.asarray(picture.resize(self._size_px, Image.Resampling.BILINEAR))
        yield VideoFrame(
            image=image,
            pts_ns=pts_ns,
            capture_ns=self._clock(),
            stream=self.stream,
            epoch=0,
            index=index,
            source_size_px=picture.size,
            full=full if self._keep_full else None,
        )

    def _read_sound(self) -> Iterator[AudioChunk | AudioEnded | Trouble]:
        if self._container is None:
            return
        resampler = MonoResampler(self._rate_hz)
        for decoded in decode(self._container, None, find_audio(self._container)):
            if isinstance(decoded, AudioFrame):
                not_finite = resampler.not_finite
                yield from self._chunks(resampler.push(decoded, None))
                if resampler.not_finite > not_finite:
                    yield self._trouble("not_finite", "sound held NaN or infinity, now zeros")
            elif isinstance(decoded, Damage):
                yield self._trouble(decoded.kind, decoded.detail)
        yield from self._chunks(resampler.flush())
        yield AudioEnded(0)

    def _chunks(self, pieces: list[Piece]) -> Iterator[AudioChunk]:
        for piece in pieces:
            yield AudioChunk(piece.samples, self._rate_hz, piece.start_ns, self.stream, 0)

    def _trouble(self, kind: TroubleKind, detail: str) -> Trouble:
        self._troubles[kind] += 1
        return Trouble(kind, detail, self._troubles[kind])


def _timed_frames(folder: Path, fps: float) -> list[tuple[Path, int]]:
    frames = sorted(
        (p for p in folder.iterdir() if p.suffix.lower() in FRAME_SUFFIXES), key=natural_key
    )
    if not frames:
        raise MediaError(
            f"{folder} holds no frames ({' '.join(FRAME_SUFFIXES)}); give a folder of frames "
            "or the path of a video file"
        )
    times = folder / TIMES_NAME
    if times.exists():
        return _read_times(times)
    return [(path, round(i * NS_PER_S / fps)) for i, path in enumerate(frames)]


def _read_times(path: Path) -> list[tuple[Path, int]]:
    timed: list[tuple[Path, int]] = []
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames is None or not {"frame", "time_s"} <= set(rows.fieldnames):
            raise MediaError(f"{path} begins with {rows.fieldnames}; its header is frame,time_s")
        for row in rows:
            frame = path.parent / row["frame"]
            try:
                pts_ns = round(float(row["time_s"]) * NS_PER_S)
            except (TypeError, ValueError, OverflowError) as error:
                raise MediaError(
                    f"{path}:{rows.line_num}: time_s is {row['time_s']!r}; seconds are allowed"
                ) from error
            if not frame.is_file():
                raise MediaError(f"{path}:{rows.line_num}: {frame} does not exist")
            if timed and pts_ns <= timed[-1][1]:
                raise MediaError(
                    f"{path}:{rows.line_num}: {row['time_s']} s does not come after the frame "
                    "before; times must grow"
                )
            timed.append((frame, pts_ns))
    if not timed:
        raise MediaError(f"{path} lists no frames; give each a line, or remove the file")
    return timed


def _find_sound(folder: Path) -> Path | None:
    sounds = sorted(p for p in folder.iterdir() if p.suffix.lower() in SOUND_SUFFIXES)
    if len(sounds) > 1:
        names = ", ".join(p.name for p in sounds)
        raise MediaError(f"{folder} holds several sounds ({names}); at most one is allowed")
    return sounds[0] if sounds else None

"""Masks made visible: blended pictures, contact sheets, and videos that play in a browser."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import av.audio
import av.container
import av.error
import av.video
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

SOUNDING: Color = (255, 45, 150)
TRUTH: Color = (60, 220, 120)

_TIME_BASE = Fraction(1, 90_000)
_SOUND_RATE_HZ = 48_000
_AAC_FRAME_SAMPLES = 1024


def blend(
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    color: Color = SOUNDING,
    opacity: float = 0.45,
) -> NDArray[np.uint8]:
    """Tint the masked pixels and draw their outline.

    Args:
        image: uint8 (H, W, 3) RGB.
        mask: bool, any size; it is stretched to the picture (nearest neighbour).
        color: of the tint; the outline is its lighter shade.
        opacity: of the tint, 0 to 1; at 0 only the outline is drawn, in the colour itself.

    Returns:
        uint8 (H, W, 3), a new array.
    """
    H, W, _ = image.shape
    if mask.shape != (H, W):
        mask = np.asarray(Image.fromarray(mask).resize((W, H), Image.Resampling.NEAREST))
    out = image.copy()
    tint = np.asarray(color, np.float32)
    light = tint if opacity == 0 else tint * 0.4 + 255 * 0.6
    out[mask] = (out[mask] * (1 - opacity) + tint * opacity).astype(np.uint8)
    out[_outline(mask, max(1, round(min(H, W) / 240)))] = light.astype(np.uint8)
    return out


def _outline(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """The pixels within ``width`` outside the mask, by shifts along both axes."""
    grown = mask.copy()
    for _ in range(width):
        step = grown.copy()
        step[1:] |= grown[:-1]
        step[:-1] |= grown[1:]
        step[:, 1:] |= grown[:, :-1]
        step[:, :-1] |= grown[:, 1:]
        grown = step
    return grown & ~mask


def contact_sheet(
    images: Sequence[NDArray[np.uint8]],
    captions: Sequence[str],
    *,
    columns: int = 4,
    cell_width_px: int = 320,
) -> Image.Image:
    """Pictures in a grid, each over its caption.

    Raises:
        ValueError: no picture, or another number of captions than pictures.
    """
    if not images or len(images) != len(captions):
        raise ValueError(
            f"{len(images)} pictures and {len(captions)} captions; give one or more pictures and"
            " a caption for each"
        )
    columns = min(columns, len(images))
    tallest = max(image.shape[0] / image.shape[1] for image in images)
    cell_height_px, caption_px, gap_px = math.ceil(cell_width_px * tallest), 22, 6
    rows = math.ceil(len(images) / columns)
    sheet = Image.new(
        "RGB",
        (
            columns * (cell_width_px + gap_px) + gap_px,
            rows * (cell_height_px + caption_px + gap_px) + gap_px,
        ),
        (24, 24, 28),
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x = gap_px + (i % columns) * (cell_width_px + gap_px)
        y = gap_px + (i // columns) * (cell_height_px + caption_px + gap_px)
        height = round(cell_width_px * image.shape[0] / image.shape[1])
        cell = Image.fromarray(image).resize((cell_width_px, height), Image.Resampling.LANCZOS)
        sheet.paste(cell, (x, y))
        draw.text((x + 2, y + cell_height_px + 3), caption, fill=(230, 230, 230), font=font)
    return sheet


class OverlayWriter:
    """An MP4 (H.264 and, where the medium has sound, AAC) written picture by picture.

    The pictures keep their times, so a variable frame rate stays one. The sound is read again from
    the medium itself and interleaved up to each picture. The file appears under its name only when
    it is whole: until then it is ``NAME.part``, and an exception inside the ``with`` removes it.

    Args:
        path: where the video is to stand.
        size_px: (width, height) of the pictures; odd sizes are extended by one pixel.
        sound: a medium whose first sound track goes along, or None.
        fps: nominal rate, written as a hint for players.
    """

    def __init__(
        self,
        path: Path,
        size_px: tuple[int, int],
        *,
        sound: Path | None = None,
        fps: float = 25.0,
    ) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._container = av.open(
            str(self._part), "w", format="mp4", options={"movflags": "+faststart"}
        )
        width, height = (side + side % 2 for side in size_px)
        self._video: av.video.VideoStream = self._container.add_stream(
            "libx264",
            rate=Fraction(fps).limit_denominator(1001),
            options={"crf": "20", "preset": "veryfast"},
        )
        self._video.width, self._video.height = width, height
        self._video.pix_fmt = "yuv420p"
        self._video.codec_context.time_base = _TIME_BASE
        self._sound = _SoundTrack(self._container, sound) if sound else None
        self._fps = fps
        self._last_pts = -1
        self._epoch = 0
        self._shift_ns = 0

    def write(self, image: NDArray[np.uint8], pts_ns: int, epoch: int = 0) -> None:
        """Append uint8 (H, W, 3) RGB; a new epoch goes on where the last one ended."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._shift_ns = (
                round(self._last_pts * _TIME_BASE * 1_000_000_000) - pts_ns + 40_000_000
            )
        pad = ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0))
        frame = av.VideoFrame.from_ndarray(np.pad(image, pad, mode="edge"), format="rgb24")
        seconds = Fraction(pts_ns + self._shift_ns, 1_000_000_000)
        frame.pts = self._last_pts = max(round(seconds / _TIME_BASE), self._last_pts + 1)
        frame.time_base = _TIME_BASE
        self._container.mux(self._video.encode(frame))
        if self._sound:
            self._sound.write_until(float(seconds))

    def close(self) -> None:
        """Finish the streams and give the file its name."""
        self._container.mux(self._video.encode(None))
        if self._sound:
            self._sound.finish()
        self._container.close()
        self._part.replace(self._path)

    def abandon(self) -> None:
        """Give up and leave nothing behind."""
        if self._sound:
            self._sound.close()
        self._container.close()
        self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abandon()


class _SoundTrack:
    """The sound of a medium, encoded into another container a stretch at a time."""

    def __init__(self, container: av.container.OutputContainer, path: Path) -> None:
        self._output = container
        self._input = av.open(str(path))
        self._stream: av.audio.AudioStream = container.add_stream("aac", rate=_SOUND_RATE_HZ)
        self._stream.layout = "stereo"
        self._resampler = av.AudioResampler(
            "fltp",
            "stereo",
            _SOUND_RATE_HZ,
            frame_size=self._stream.codec_context.frame_size or 1024,
        )
        starts = [
            float(s.start_time * s.time_base)
            for s in (*self._input.streams.video, *self._input.streams.audio)
            if s.start_time is not None and s.time_base
        ]
        self._origin_s = min(starts, default=0.0)
        self._frames = self._decoded()
        self._end_s = 0.0
        self._written = 0

    def _decoded(self) -> Iterator[av.AudioFrame]:
        packets = self._input.demux(audio=0)
        for packet in packets:
            try:
                yield from packet.decode()
            except av.error.InvalidDataError:
                continue  # a corrupt packet is a moment of silence, as it is in the analysis

    def write_until(self, seconds: float) -> None:
        while self._end_s <= seconds:
            frame = next(self._frames, None)
            if frame is None:
                self._end_s = math.inf
                return
            self._write(frame)

    def _write(self, frame: av.AudioFrame) -> None:
        if frame.time is None:
            return
        start_s = frame.time - self._origin_s
        if start_s + frame.samples / frame.sample_rate <= self._end_s - 0.1:
            return  # the timestamps jumped back: this stretch has been written
        self._end_s = start_s + frame.samples / frame.sample_rate
        self._encode(self._resampler.resample(frame), start_s)

    def _encode(self, frames: Sequence[av.AudioFrame], start_s: float | None) -> None:
        for frame in frames:
            due = self._written if start_s is None else round(start_s * _SOUND_RATE_HZ)
            if due - self._written > _SOUND_RATE_HZ // 20:
                self._written = due  # a hole in the sound stays a hole
            frame.pts, frame.time_base = self._written, Fraction(1, _SOUND_RATE_HZ)
            self._written += frame.samples
            self._output.mux(self._stream.encode(frame))

    def finish(self) -> None:
        self.write_until(math.inf)
        self._encode(self._resampler.resample(None), None)
        self._output.mux(self._stream.encode(None))
        self.close()

    def close(self) -> None:
        self._input.close()

"""Something to point a camera at: a flash and a click each second, as a video or a web page."""

from __future__ import annotations

from fractions import Fraction
from importlib.resources import files
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

FPS, RATE_HZ = 30, 48000
SIZE_PX = (640, 360)
FLASH_FRAMES = 4
CLICK_HZ, CLICK_S = 1800.0, 0.012


class ClapClipError(Exception):
    """Such a file cannot be made: what was asked, what can be."""


def make_clap(path: Path, seconds: int = 60) -> Path:
    """Write a video or a page that flashes and clicks.

    Args:
        path: ending in ``.mp4``, ``.mkv`` or ``.mov`` (H.264 and AAC; a flash and a click at each
            whole second but the first), or in ``.html`` (a page that needs nothing else).
        seconds: length of a video.

    Returns:
        ``path``.

    Raises:
        ClapClipError: another ending.
        OSError: it cannot be written.
    """
    match path.suffix.lower():
        case ".html":
            path.write_text(files("atlasd.tools").joinpath("clap.html").read_text("utf-8"), "utf-8")
        case ".mp4" | ".mkv" | ".mov":
            _write_video(path, seconds)
        case other:
            raise ClapClipError(
                f"{path}: {other or 'no ending'}; .html, .mp4, .mkv and .mov can be made"
            )
    return path


def _write_video(path: Path, seconds: int) -> None:
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        video.width, video.height = SIZE_PX
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        size = audio.codec_context.frame_size or 1024
        sound = _clicks(seconds, size)
        for index in range(seconds * FPS):
            container.mux(video.encode(_picture(index)))
            for start in range(*_due(index, size, sound.size)):
                container.mux(audio.encode(_sound(sound[start : start + size], start)))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def _due(index: int, size: int, total: int) -> tuple[int, int, int]:
    """Where the pieces of sound begin that belong beside a picture."""
    per_frame = RATE_HZ // FPS
    first = -(-index * per_frame // size) * size
    return first, min((index + 1) * per_frame, total), size


def _picture(index: int) -> av.VideoFrame:
    width, height = SIZE_PX
    is_flash = index >= FPS and index % FPS < FLASH_FRAMES
    image = np.full((height, width, 3), 255 if is_flash else 0, np.uint8)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    frame.pts, frame.time_base = index, Fraction(1, FPS)
    return frame


def _clicks(seconds: int, size: int) -> NDArray[np.float32]:
    """Float32 (n,), n a multiple of ``size``: a burst that begins with each second's flash."""
    n = round(CLICK_S * RATE_HZ)
    time_s = np.arange(n) / RATE_HZ
    click = np.sign(np.sin(2 * np.pi * CLICK_HZ * time_s)) * np.exp(-time_s / (CLICK_S / 4)) * 0.8
    sound = np.zeros(-(-seconds * RATE_HZ // size) * size, np.float32)
    for second in range(1, seconds):
        sound[second * RATE_HZ : second * RATE_HZ + n] = click
    return sound


def _sound(samples: NDArray[np.float32], start: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, start, Fraction(1, RATE_HZ)
    return frame

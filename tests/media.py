"""Media made in code: videos with pictures and sound whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

Picture = Callable[[float], NDArray[np.uint8]]
"""Time in seconds to uint8 (H, W, 3)."""

SOUND_CODECS = {".mp4": "aac", ".mov": "aac", ".mkv": "aac", ".ts": "aac", ".webm": "libopus"}
VIDEO_CODECS = {".webm": "libvpx"}
CLICK_S = 0.004


def clicks(
    seconds: float, rate_hz: int = 48000, *, period_s: float = 1.0, offset_s: float = 0.0
) -> NDArray[np.float32]:
    """Bursts of 2 kHz, 4 ms long, centred on each multiple of ``period_s`` plus ``offset_s``."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz - offset_s
    near_s = time_s - np.round(time_s / period_s) * period_s
    envelope = np.exp(-0.5 * (near_s / (CLICK_S / 4)) ** 2)
    envelope[np.round(time_s / period_s) < 1] = 0.0
    return (0.9 * envelope * np.cos(2 * np.pi * 2000 * near_s)).astype(np.float32)


def tone(seconds: float, rate_hz: int = 48000, *, hz: float = 440.0) -> NDArray[np.float32]:
    """A sine at half of full scale."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * hz * time_s)).astype(np.float32)


def flashes(size: tuple[int, int], *, period_s: float = 1.0) -> Picture:
    """White for the frame at each multiple of ``period_s`` (from the first), else dark grey."""
    width, height = size

    def picture(time_s: float) -> NDArray[np.uint8]:
        near = round(time_s / period_s)
        is_flash = near >= 1 and abs(time_s - near * period_s) < 1e-3
        return np.full((height, width, 3), 255 if is_flash else 16, np.uint8)

    return picture


def moving_square(size: tuple[int, int]) -> Picture:
    """A bright square that crosses a gradient: every frame differs."""
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width]
    ground = np.stack([rows * 255 // height, columns * 255 // width, rows * 0 + 60], axis=2)

    def picture(time_s: float) -> NDArray[np.uint8]:
        image = ground.astype(np.uint8)
        side = max(2, height // 4)
        left = int(time_s * 0.25 * width) % max(1, width - side)
        image[side : 2 * side, left : left + side] = (250, 240, 40)
        return image

    return picture


def irregular_times(seconds: float, seed: int = 0) -> list[float]:
    """Times of frames 15 to 70 ms apart, with one at every whole second."""
    rng = np.random.default_rng(seed)
    times = []
    for second in range(round(seconds)):
        time_s = float(second)
        while time_s < second + 0.985:
            times.append(time_s)
            time_s = round(time_s + rng.uniform(0.015, 0.07), 3)
    return times


def write_video(
    path: Path,
    seconds: float = 2.0,
    *,
    fps: float = 25.0,
    size: tuple[int, int] = (64, 48),
    picture: Picture | None = None,
    sound: NDArray[np.float32] | str | None = "tone",
    sound_rate_hz: int = 48000,
    sound_layout: str = "mono",
    sound_codec: str | None = None,
    sound_offset_s: float = 0.0,
    sound_hole_s: tuple[float, float] | None = None,
    times_s: Sequence[float] | None = None,
    jump_s: tuple[float, float] | None = None,
    rotation: float = 0.0,
    codec: str | None = None,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a video file.

    Args:
        path: where; the suffix names the container.
        seconds: length.
        fps: frames a second; also the spacing of ``times_s`` that the encoder is told.
        size: (width, height).
        picture: what is seen at a time; None is a moving square.
        sound: float32 (n,) or (channels, n), or ``tone``, ``clicks``, ``silence``; None is no
            sound track at all.
        sound_rate_hz: its rate, also in the file.
        sound_layout: its channels; mono samples go to every channel.
        sound_codec: None is what is usual in the container.
        sound_offset_s: shift of all sound against the pictures, in its timestamps.
        sound_hole_s: (from, to): packets of sound inside are lost.
        times_s: times of the frames; None is ``fps`` regular ones. Give irregular ones for VFR
            (see `irregular_times`).
        jump_s: (at, by): from a time on, all timestamps are later by some seconds.
        rotation: degrees of the display matrix, counterclockwise.
        codec: video codec; None is what is usual in the container.
        pix_fmt: pixel format in the file.
        options: of the video encoder.
        container_options: of the muxer.

    Returns:
        ``path``.
    """
    times = [i / fps for i in range(round(seconds * fps))] if times_s is None else list(times_s)
    draw = picture or moving_square(size)
    codec = codec or VIDEO_CODECS.get(path.suffix, "libx264")
    with av.open(str(path), "w", options=container_options or {}) as container:
        video = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        video.width, video.height = size
        video.pix_fmt = pix_fmt
        video.options = options or ({"preset": "veryfast"} if codec == "libx264" else {})
        tick = 1 / Fraction(fps).limit_denominator(1001) if times_s is None else Fraction(1, 60000)
        video.codec_context.time_base = tick
        if rotation:
            video.set_display_rotation(rotation)
        audio = None
        if sound is not None:
            samples = _samples(sound, seconds, sound_rate_hz)
            name = sound_codec or SOUND_CODECS.get(path.suffix, "pcm_s16le")
            audio = container.add_stream(name, rate=sound_rate_hz, layout=sound_layout)
        at_s, by_s = jump_s or (seconds, 0.0)
        packets = []
        for time_s in times:
            frame = av.VideoFrame.from_ndarray(draw(time_s), format="rgb24")
            stamp_s = time_s + (by_s if time_s >= at_s else 0.0)
            frame.pts, frame.time_base = round(stamp_s / tick), tick
            packets += video.encode(frame)
        packets += video.encode(None)
        if audio is not None:
            sounds = _encode_sound(audio, samples, sound_layout, sound_rate_hz, sound_offset_s)
            for packet in sounds:
                time_s = float(packet.pts * packet.time_base)
                if sound_hole_s and sound_hole_s[0] <= time_s < sound_hole_s[1]:
                    continue
                if time_s >= at_s:
                    packet.pts += round(by_s / packet.time_base)
                    packet.dts += round(by_s / packet.time_base)
                packets.append(packet)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    return path


def _samples(sound: NDArray[np.float32] | str, seconds: float, rate_hz: int) -> NDArray[np.float32]:
    if isinstance(sound, str):
        made = {
            "tone": lambda: tone(seconds, rate_hz),
            "clicks": lambda: clicks(seconds, rate_hz),
            "silence": lambda: np.zeros(round(seconds * rate_hz), np.float32),
        }
        return made[sound]()
    return sound


def _encode_sound(audio, samples, layout, rate_hz, offset_s):
    channels = av.AudioLayout(layout).nb_channels
    planes = np.broadcast_to(np.atleast_2d(samples), (channels, samples.shape[-1]))
    resampler = av.AudioResampler(format=audio.codec_context.format, layout=layout, rate=rate_hz)
    step = audio.codec_context.frame_size or 1024
    packets = []
    for start in range(0, planes.shape[1], step):
        piece = np.ascontiguousarray(planes[:, start : start + step], dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
        frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
        frame.pts = start + round(offset_s * rate_hz)
        for converted in resampler.resample(frame):
            packets += audio.encode(converted)
    return packets + audio.encode(None)

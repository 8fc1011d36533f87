"""A long film at little cost: small pictures and a hum, for daemons that are to run for long."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_SCENE_S, _RATE_HZ = 10, 8000
_SIZE_PX = (64, 48)


def write_film(path: Path, seconds: int = 3600, fps: int = 10) -> Path:
    """Write 64 x 48 pictures with sound; ten seconds are encoded and said again.

    Args:
        path: where, ending in ``.mkv``.
        seconds: length; an hour takes about a second and 90 MB.
        fps: pictures a second.

    Returns:
        ``path``.
    """
    width, height = _SIZE_PX
    time_s = np.arange(_RATE_HZ) / _RATE_HZ
    hum = (8000 * np.sin(2 * np.pi * 220 * time_s)).astype("<i2").tobytes()
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"tune": "zerolatency"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=_RATE_HZ, layout="mono")
        scene = _scene(video, fps)
        for index in range(fps * seconds):
            data, is_key = scene[index % len(scene)]
            container.mux(_packet(video, data, index, fps, is_key))
            if index % fps == 0:
                container.mux(_packet(audio, hum, index // fps * _RATE_HZ, _RATE_HZ, True))
    return path


def _scene(video: av.VideoStream, fps: int) -> list[tuple[bytes, bool]]:
    """A coloured ground that moves to the right: encoded pictures, the first one a key frame."""
    width, height = _SIZE_PX
    rows, columns = np.mgrid[0:height, 0:width]
    ground = np.stack([rows * 5, columns * 3, rows * 0 + 60], axis=2).astype(np.uint8)
    scene: list[tuple[bytes, bool]] = []
    for index in range(fps * _SCENE_S):
        picture = np.ascontiguousarray(np.roll(ground, index, axis=1))
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        scene += [(bytes(packet), packet.is_keyframe) for packet in video.encode(frame)]
    return scene


def _packet(
    stream: av.VideoStream | av.AudioStream, data: bytes, pts: int, ticks: int, is_key: bool
) -> av.Packet:
    packet = av.Packet(data)
    packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, ticks), is_key
    packet.pts = packet.dts = pts
    return packet

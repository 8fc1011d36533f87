"""Labels for tests: small clips whose truth is known."""

from __future__ import annotations

import io

import numpy as np
from atlasd.daemon import masks
from atlasd.daemon.labels import LabeledFrame, LabelMask, PictureData, PutClip, PutFrame, SoundData
from atlasd.streams.clips import AudioWindow, Sample, VideoFrame
from PIL import Image

RATE_HZ = 8000
SECOND_NS = 1_000_000_000
PERIOD_NS = 40_000_000


def pixels(index: int = 0, size: tuple[int, int] = (10, 6)) -> np.ndarray:
    """uint8 (H, W, 3): every pixel of every picture is different."""
    width, height = size
    grid = np.arange(height * width * 3).reshape(height, width, 3)
    return ((grid * 7 + 31 * index) % 256).astype(np.uint8)


def blob(size: tuple[int, int] = (10, 6)) -> np.ndarray:
    """bool (H, W), off the middle."""
    width, height = size
    mask = np.zeros((height, width), bool)
    mask[1 : height // 2, 2 : width - 1] = True
    return mask


def a_mask(mask: np.ndarray | None = None, enc: str = "bits") -> LabelMask:
    mask = blob() if mask is None else mask
    return LabelMask(enc=enc, shape=mask.shape, data=masks.encode(mask, enc))


def a_picture(image: np.ndarray | None = None, enc: str = "png") -> PictureData:
    image = pixels() if image is None else image
    if enc == "rgb8":
        return PictureData(enc=enc, shape=image.shape[:2], data=image.tobytes())
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, enc.upper(), **({"quality": 95} if enc == "jpeg" else {}))
    return PictureData(enc=enc, data=buffer.getvalue())


def a_sound(seconds: float = 3.0, enc: str = "f32", **fields) -> SoundData:
    ramp = np.linspace(-0.5, 0.5, round(seconds * RATE_HZ), dtype=np.float32)
    data = ramp.astype("<f4") if enc == "f32" else np.round(ramp * 32767).astype("<i2")
    values = {"sample_rate_hz": RATE_HZ, "t0_ns": 0, "data": data.tobytes()}
    return SoundData(enc=enc, **{**values, **fields})


def a_clip(clip_id: str = "clip-1", frames: int = 2, **fields) -> PutClip:
    """A whole clip: pictures at 1, 2, ... seconds, three seconds of sound."""
    labeled = tuple(
        LabeledFrame(pts_ns=(k + 1) * SECOND_NS, picture=a_picture(pixels(k)), mask=a_mask())
        for k in range(frames)
    )
    values = {"frames": labeled, "sound": a_sound(), "provenance": "drawn", "category": "dog"}
    return PutClip(id=clip_id, **{**values, **fields})


def a_reference(clip_id: str = "frame-1", pts_ns: int = 0, **fields) -> PutFrame:
    values = {"stream": "main", "epoch": 0, "mask": a_mask(), "provenance": "drawn"}
    return PutFrame(id=clip_id, pts_ns=pts_ns, **{**values, **fields})


def a_sample(index: int = 0, *, stream: str = "main", epoch: int = 0, **fields) -> Sample:
    """A sample as the pipeline gives it: picture of 10 x 6 of a source of 20 x 12."""
    pts_ns = index * PERIOD_NS
    frame = {"capture_ns": pts_ns, "source_size_px": (20, 12), **fields}
    ramp = np.linspace(-0.4, 0.4, RATE_HZ, dtype=np.float32)
    window = AudioWindow(ramp, RATE_HZ, pts_ns - SECOND_NS, pts_ns, "ok")
    video = VideoFrame(pixels(index), pts_ns, stream=stream, epoch=epoch, index=index, **frame)
    return Sample(video, window)

"""Whole recordings decoded from memory, for composing data; streams decode elsewhere."""

from __future__ import annotations

import io

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray


class RecordingError(ValueError):
    """A recording that cannot be decoded, or holds no sound: which, why."""


def decode_sound(data: bytes, name: str) -> tuple[NDArray[np.float32], int]:
    """Decode a sound file of any format that PyAV opens.

    Args:
        data: the whole file.
        name: what errors call it.

    Returns:
        float32 (n,) mono (the mean of the channels) in about [-1, 1], and its native rate in Hz.

    Raises:
        RecordingError: the data cannot be decoded or holds no sample.
    """
    try:
        with av.open(io.BytesIO(data), mode="r", metadata_errors="replace") as container:
            stream = container.streams.audio[0]
            if getattr(stream, "codec_context", None) is None:
                raise RecordingError(f"{name} is coded in a way that this FFmpeg does not know")
            resampler = av.AudioResampler(format="fltp", rate=stream.rate)
            rate_hz = stream.rate
            parts = [
                part.to_ndarray().mean(axis=0)
                for frame in (*container.decode(stream), None)
                for part in resampler.resample(frame)
            ]
    except (FFmpegError, IndexError) as error:
        raise RecordingError(f"{name} cannot be decoded: {error!r}") from error
    samples = np.concatenate(parts) if parts else np.empty(0)
    if not samples.size:
        raise RecordingError(f"{name} holds no sound")
    return samples.astype(np.float32), rate_hz

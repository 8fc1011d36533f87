"""Reads the single files of a data set: pictures, masks, sounds."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray
from PIL import Image

from .avslayout import DatasetError
from .fitting import fit_mask, fit_picture


def read_picture(path: Path, size_px: int | None = None) -> NDArray[np.uint8]:
    """Reads a picture as uint8 (H, W, 3) RGB, squashed to ``size_px`` squared where that is given.

    Raises:
        DatasetError: the file is missing or not a picture.
    """
    rgb = opened_picture(path, "a picture").convert("RGB")
    return np.asarray(rgb, dtype=np.uint8) if size_px is None else fit_picture(rgb, size_px)


def read_mask(path: Path, size_px: int | None = None) -> NDArray[np.uint8]:
    """Reads a mask as uint8 (H, W) in {0, 1}: 1 where its luminance is over 127.

    Pillow's modes 1 (dithers) and P (turns white into 225) are not used on the way.

    Raises:
        DatasetError: the file is missing or not a picture.
    """
    grey = opened_picture(path, "a mask").convert("L")
    pixels = np.asarray(grey) if size_px is None else fit_mask(grey, size_px)
    return (pixels > 127).astype(np.uint8)


def opened_picture(path: Path, what: str) -> Image.Image:
    """Opens and decodes a picture of any mode; ``what`` is what errors call it.

    Raises:
        DatasetError: the file is missing or cannot be decoded.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path}: is missing; {what} of its clip was expected there. "
            "See what else is missing with 'atlasd dataset check'"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"{path}: is not {what} that can be decoded ({error})") from error


def read_wave(path: Path) -> tuple[NDArray[np.float32], int]:
    """Reads a sound as float32 (n,) mono, the mean of its channels, and its rate in Hz.

    Raises:
        DatasetError: the file is missing, holds no sound, or cannot be decoded.
    """
    try:
        return _read_pcm16(path) or _decode(path)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path}: is missing; the sound of its clip was expected there"
        ) from error
    except (FFmpegError, OSError) as error:
        raise DatasetError(f"{path}: cannot be decoded as sound ({error})") from error


def _read_pcm16(path: Path) -> tuple[NDArray[np.float32], int] | None:
    """Reads plain 16-bit PCM, which is what AVSBench has; None for anything else.

    It takes a tenth of the time of the general way, which counts in training.
    """
    try:
        with path.open("rb") as stream, wave.open(stream) as file:
            channels, rate_hz = file.getnchannels(), file.getframerate()
            if file.getsampwidth() != 2:
                return None
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError):
        return None
    whole = len(data) // (2 * channels) * channels
    pcm = np.frombuffer(data, "<i2", count=whole).reshape(-1, channels)
    return (pcm.mean(axis=1, dtype=np.float32) / np.float32(32768)).astype(np.float32), rate_hz


def _decode(path: Path) -> tuple[NDArray[np.float32], int]:
    with av.open(str(path)) as container:
        if not container.streams.audio:
            raise DatasetError(f"{path}: holds no sound; a wav file was expected")
        stream = container.streams.audio[0]
        rate_hz = stream.sample_rate
        planar = av.AudioResampler(format="fltp")
        parts = [
            part.to_ndarray().mean(axis=0)
            for frame in container.decode(stream)
            for part in planar.resample(frame)
        ]
    if not parts:
        return np.zeros(0, dtype=np.float32), rate_hz
    return np.concatenate(parts).astype(np.float32), rate_hz

"""What networks and recorders do to sound: it is coded at a low rate and decoded again."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Literal, NamedTuple, cast

import av
import numpy as np
import soxr
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from numpy.typing import NDArray


class Codec(NamedTuple):
    """An audio codec and how it is used.

    Attributes:
        name: libavcodec's name of the encoder and the decoder.
        sample_rate_hz: of the samples that it takes.
        sample_format: of these samples, as libavcodec names it.
        kbps: lowest and highest bit rate; (0, 0) where the codec has only one.
    """

    name: str
    sample_rate_hz: int
    sample_format: Literal["fltp", "flt", "s16"]
    kbps: tuple[int, int] = (0, 0)


CODECS = (
    Codec("aac", 32_000, "fltp", (24, 64)),
    Codec("libmp3lame", 32_000, "fltp", (32, 64)),
    Codec("libopus", 48_000, "flt", (8, 40)),
    Codec("g722", 16_000, "s16"),
    Codec("pcm_mulaw", 8_000, "s16"),
)
"""Cameras and web streams, voice over IP, telephones."""

_FRAME = 960
"""Samples a frame where the codec takes any number."""

_DELAY_S = 0.1
"""More than any of the codecs holds back."""


def coded(
    wave: NDArray[np.float64], rng: np.random.Generator, sample_rate_hz: int
) -> NDArray[np.float64]:
    """Code a sound with one of `CODECS` and decode it.

    The codec's delay stays in: the result begins up to 0.1 s late, with silence.

    Args:
        wave: float64 (n,) mono; what is beyond -1..1 is turned down for the codec, and up again.
        rng: draws the codec and its bit rate.
        sample_rate_hz: rate of the sound.

    Returns:
        float64 (n,).
    """
    codec = CODECS[int(rng.integers(len(CODECS)))]
    kbps = float(rng.uniform(*codec.kbps))
    peak = max(1.0, float(np.abs(wave).max(initial=0.0)))
    there = soxr.resample((wave / peak).astype(np.float32), sample_rate_hz, codec.sample_rate_hz)
    back = np.concatenate(list(_through(codec, kbps, there)))
    heard = soxr.resample(back, codec.sample_rate_hz, sample_rate_hz)[: len(wave)]
    return np.pad(heard.astype(np.float64), (0, len(wave) - len(heard))) * peak


def _through(codec: Codec, kbps: float, wave: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """The decoded frames, float32 (m,) each."""
    encoder, decoder = (_opened(codec, mode) for mode in ("w", "r"))
    if kbps:
        encoder.bit_rate = round(kbps * 1000)
    encoder.open()
    decoder.extradata = encoder.extradata
    size = encoder.frame_size or _FRAME
    wave = np.pad(wave, (0, round(_DELAY_S * codec.sample_rate_hz)))
    wave = np.pad(wave, (0, -len(wave) % size))
    frames = [_frame(codec, wave[at : at + size], at) for at in range(0, len(wave), size)]
    for frame in (*frames, None):  # None: give what is held back
        for packet in encoder.encode(frame):
            yield from (_samples(decoded) for decoded in decoder.decode(packet))


def _opened(codec: Codec, mode: Literal["r", "w"]) -> AudioCodecContext:
    name = "mp3float" if codec.name == "libmp3lame" and mode == "r" else codec.name
    context = cast(AudioCodecContext, av.CodecContext.create(name, mode))
    context.sample_rate = codec.sample_rate_hz
    context.layout = "mono"
    if mode == "w":
        context.format = codec.sample_format
        context.time_base = Fraction(1, codec.sample_rate_hz)
    return context


def _frame(codec: Codec, samples: NDArray[np.float32], at: int) -> AudioFrame:
    if codec.sample_format == "s16":
        samples_or_ints = np.clip(samples * 32768, -32768, 32767).astype(np.int16)
    else:
        samples_or_ints = samples
    frame = AudioFrame.from_ndarray(samples_or_ints[None], codec.sample_format, "mono")
    frame.sample_rate = codec.sample_rate_hz
    frame.pts = at
    return frame


def _samples(frame: AudioFrame) -> NDArray[np.float32]:
    samples = frame.to_ndarray().reshape(-1)
    if samples.dtype == np.int16:
        return (samples / np.float32(32768)).astype(np.float32)
    return samples.astype(np.float32)

"""The values that travel: frames, windows of sound, samples and clips.

Time is ``int`` nanoseconds on one timeline per stream (``pts_ns``, its origin the earliest picture
or sound of the stream); rationals stay at the decoder's edge. ``epoch`` counts the discontinuities
of a stream (a reconnect, a jump of the timestamps): nothing joins two epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

AudioState = Literal["ok", "late", "gap", "absent"]
"""``ok`` all of the window was heard; ``late`` its end had not arrived; ``gap`` part of it was
lost; ``absent`` the stream has no sound."""

NS_PER_S = 1_000_000_000


class InvalidValueError(ValueError):
    """A value that breaks its type's promise: what came, what is allowed."""


def _check_image(image: NDArray[np.uint8], name: str) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise InvalidValueError(
            f"{name} is {image.dtype} {image.shape}; it must be uint8 (H, W, 3) RGB with H, W >= 1"
        )


@dataclass(frozen=True, slots=True, eq=False)
class VideoFrame:
    """One decoded picture.

    Attributes:
        image: uint8 (H, W, 3) RGB, upright, at the size its source was asked for (a source scales
            while it converts the colours: a network's input costs no second pass).
        pts_ns: presentation time on the stream's timeline.
        capture_ns: host monotonic clock when the picture left the decoder or the driver.
        stream: name of the stream.
        epoch: discontinuities before this frame.
        index: frames of the stream before this one, over all epochs.
        source_size_px: (width, height) of the upright picture before scaling.
        full: uint8 (H0, W0, 3), the upright picture unscaled, where the source was told to keep it.
    """

    image: NDArray[np.uint8]
    pts_ns: int
    capture_ns: int
    stream: str
    epoch: int
    index: int
    source_size_px: tuple[int, int]
    full: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        _check_image(self.image, "image")
        if self.full is not None:
            _check_image(self.full, "full")
        if self.epoch < 0 or self.index < 0:
            raise InvalidValueError(
                f"epoch {self.epoch}, index {self.index}: both count from 0 upwards"
            )


@dataclass(frozen=True, slots=True, eq=False)
class AudioChunk:
    """Consecutive decoded sound: float32 (n,) mono in [-1, 1], its first sample at ``start_ns``."""

    samples: NDArray[np.float32]
    sample_rate_hz: int
    start_ns: int
    stream: str
    epoch: int

    def __post_init__(self) -> None:
        _check_sound(self.samples, self.sample_rate_hz)


@dataclass(frozen=True, slots=True, eq=False)
class AudioWindow:
    """The sound that belongs to one frame.

    Attributes:
        samples: float32 (n,) mono in [-1, 1]; zeros where nothing was heard.
        sample_rate_hz: samples a second.
        start_ns: time of the first sample on the stream's timeline.
        end_ns: time just after the last sample.
        state: see `AudioState`.
        gap_ms: milliseconds of the window that are zeros because sound was lost.
    """

    samples: NDArray[np.float32]
    sample_rate_hz: int
    start_ns: int
    end_ns: int
    state: AudioState
    gap_ms: float = 0.0

    def __post_init__(self) -> None:
        _check_sound(self.samples, self.sample_rate_hz)
        if self.end_ns <= self.start_ns:
            raise InvalidValueError(f"window [{self.start_ns}, {self.end_ns}) ns is empty")

    @property
    def rms(self) -> float:
        """Root mean square of the samples, 0 to 1."""
        return float(np.sqrt(np.mean(np.square(self.samples, dtype=np.float64))))


def _check_sound(samples: NDArray[np.float32], sample_rate_hz: int) -> None:
    if samples.dtype != np.float32 or samples.ndim != 1:
        raise InvalidValueError(
            f"samples are {samples.dtype} {samples.shape}; they must be float32 (n,) mono"
        )
    if sample_rate_hz <= 0:
        raise InvalidValueError(f"sample_rate_hz is {sample_rate_hz}; it must be positive")


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A frame with the window of sound that belongs to it."""

    frame: VideoFrame
    window: AudioWindow


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Consecutive samples of one stream and one epoch."""

    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        if not self.samples:
            raise InvalidValueError("a clip has at least one sample; this one has none")
        epochs = {(s.frame.stream, s.frame.epoch) for s in self.samples}
        if len(epochs) > 1:
            raise InvalidValueError(f"a clip lies in one epoch of one stream; this one in {epochs}")


@dataclass(frozen=True, slots=True, eq=False)
class LabeledClip:
    """A clip with what is to be learned from it.

    Attributes:
        clip: the samples, n of them.
        masks: uint8 (n, H, W) in {0, 1}: the sounding object.
        clip_id: names the clip for ever; the same id is the same clip.
        provenance: where the labels come from, in words.
        category: the class, where one is known.
    """

    clip: Clip
    masks: NDArray[np.uint8]
    clip_id: str
    provenance: str
    category: str | None = None

    def __post_init__(self) -> None:
        n = len(self.clip.samples)
        if self.masks.dtype != np.uint8 or self.masks.ndim != 3 or self.masks.shape[0] != n:
            raise InvalidValueError(
                f"masks are {self.masks.dtype} {self.masks.shape}; they must be uint8 ({n}, H, W)"
            )
        if self.masks.size and self.masks.max() > 1:
            raise InvalidValueError(f"masks hold {self.masks.max()}; only 0 and 1 are allowed")

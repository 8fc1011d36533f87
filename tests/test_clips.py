"""The values that travel refuse what breaks their promises."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from atlasd.streams.clips import (
    AudioChunk,
    AudioWindow,
    Clip,
    InvalidValueError,
    LabeledClip,
    Sample,
    VideoFrame,
)

IMAGE = np.zeros((3, 5, 3), np.uint8)
SOUND = np.zeros(10, np.float32)


def frame(**how) -> VideoFrame:
    given = {"image": IMAGE, "pts_ns": 0, "capture_ns": 0, "stream": "main", "epoch": 0}
    return VideoFrame(**{**given, "index": 0, "source_size_px": (5, 3), **how})


def window(**how) -> AudioWindow:
    given = {"samples": SOUND, "sample_rate_hz": 1000, "start_ns": 0, "end_ns": 10_000_000}
    return AudioWindow(**{**given, "state": "ok", **how})


@pytest.mark.parametrize(
    "image",
    [IMAGE.astype(np.float32), IMAGE[..., 0], IMAGE[..., :2], np.zeros((0, 5, 3), np.uint8)],
)
def test_a_frame_is_uint8_rgb(image):
    """The error names the type and shape that came."""
    with pytest.raises(InvalidValueError, match=r"must be uint8 \(H, W, 3\) RGB"):
        frame(image=image)
    with pytest.raises(InvalidValueError, match="full is"):
        frame(full=image)


@pytest.mark.parametrize("how", [{"epoch": -1}, {"index": -1}])
def test_epoch_and_index_count_upwards(how):
    """Both begin at zero."""
    with pytest.raises(InvalidValueError, match="from 0 upwards"):
        frame(**how)


@pytest.mark.parametrize("samples", [SOUND.astype(np.float64), SOUND.reshape(2, 5)])
def test_sound_is_float32_mono(samples):
    """Chunks and windows alike."""
    with pytest.raises(InvalidValueError, match=r"float32 \(n,\) mono"):
        window(samples=samples)
    with pytest.raises(InvalidValueError, match=r"float32 \(n,\) mono"):
        AudioChunk(samples, 1000, 0, "main", 0)


def test_a_rate_is_positive_and_a_window_has_length():
    """Zero is no rate, and a window does not end before it begins."""
    with pytest.raises(InvalidValueError, match="must be positive"):
        window(sample_rate_hz=0)
    with pytest.raises(InvalidValueError, match="is empty"):
        window(end_ns=0)


def test_loudness_of_a_window():
    """RMS of a full-scale square wave is 1, of a sine 1/sqrt(2)."""
    assert window(samples=np.array([1, -1] * 5, np.float32)).rms == pytest.approx(1.0)
    sine = np.sin(2 * np.pi * np.arange(1000) / 100).astype(np.float32)
    assert window(samples=sine).rms == pytest.approx(2**-0.5, rel=1e-5)


def test_values_cannot_be_changed():
    """Frozen and slotted: no attribute is set or added."""
    value = frame()
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.epoch = 1
    with pytest.raises((AttributeError, TypeError)):
        object.__setattr__(value, "note", "x")


def test_a_clip_lies_in_one_epoch_of_one_stream():
    """And it is not empty."""
    one, other = Sample(frame(), window()), Sample(frame(epoch=1), window())
    assert len(Clip((one, one)).samples) == 2
    with pytest.raises(InvalidValueError, match="one epoch of one stream"):
        Clip((one, other))
    with pytest.raises(InvalidValueError, match="at least one sample"):
        Clip(())


def test_labels_fit_their_clip():
    """One mask a sample, of zeros and ones."""
    clip = Clip((Sample(frame(), window()),) * 2)
    LabeledClip(clip, np.ones((2, 3, 5), np.uint8), "id", "by hand", "dog")
    with pytest.raises(InvalidValueError, match=r"must be uint8 \(2, H, W\)"):
        LabeledClip(clip, np.ones((3, 3, 5), np.uint8), "id", "by hand")
    with pytest.raises(InvalidValueError, match="masks hold 255"):
        LabeledClip(clip, np.full((2, 3, 5), 255, np.uint8), "id", "by hand")

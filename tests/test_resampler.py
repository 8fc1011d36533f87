"""Decoded sound becomes mono at one rate without moving in time."""

from __future__ import annotations

import av
import numpy as np
import pytest
from atlasd.streams.clips import NS_PER_S
from atlasd.streams.resampler import MonoResampler, mix_down


def blip(seconds: float, rate_hz: int, at_s: float) -> np.ndarray:
    """A 1 kHz wave packet, band-limited far below 4 kHz, whose middle is known exactly."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz - at_s
    wave = np.exp(-0.5 * (time_s / 0.002) ** 2) * np.cos(2 * np.pi * 1000 * time_s)
    return wave.astype(np.float32)


def frame_of(samples, rate_hz: int, *, layout="mono", kind="fltp") -> av.AudioFrame:
    planes = np.atleast_2d(samples)
    if kind.endswith("p"):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes), kind, layout)
    else:
        packed = np.ascontiguousarray(planes.T.reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(packed, kind, layout)
    frame.sample_rate = rate_hz
    return frame


def resampled(samples, rate_hz, *, step=1024, times_ns=lambda t: t):
    resampler = MonoResampler(32000)
    pieces = []
    for start in range(0, samples.size, step):
        frame = frame_of(samples[start : start + step], rate_hz)
        pieces += resampler.push(frame, times_ns(round(start * NS_PER_S / rate_hz)))
    return pieces + resampler.flush()


def joined(pieces) -> np.ndarray:
    return np.concatenate([p.samples for p in pieces])


@pytest.mark.parametrize("rate_hz", [8000, 16000, 22050, 32000, 44100, 48000, 96000])
@pytest.mark.parametrize("step", [160, 1024, 5000])
def test_resampling_moves_nothing(rate_hz, step):
    """Equal to the wave packet drawn at 32 kHz, to 1e-3; any chunking, no sample more or less."""
    pieces = resampled(blip(1.0, rate_hz, 0.5), rate_hz, step=step)
    np.testing.assert_allclose(joined(pieces), blip(1.0, 32000, 0.5), atol=1e-3)
    ends = [p.start_ns + round(p.samples.size * NS_PER_S / 32000) for p in pieces]
    starts = [p.start_ns for p in pieces]
    assert starts[0] == 0
    assert np.abs(np.array(starts[1:]) - ends[:-1]).max(initial=0) <= 1


def test_milliseconds_of_matroska_move_no_sample():
    """Timestamps rounded to 1 ms stay one run, timed by the count of samples."""
    sound = blip(1.0, 44100, 0.5)
    pieces = resampled(sound, 44100, times_ns=lambda t: round(t / 1e6) * 1_000_000)
    np.testing.assert_allclose(joined(pieces), blip(1.0, 32000, 0.5), atol=1e-3)
    assert [p.start_ns for p in pieces] == [p.start_ns for p in resampled(sound, 44100)]


def test_a_hole_begins_a_new_run_where_the_timestamp_says():
    """464 ms lost: what follows is timed by its own timestamp, and nothing is filled in."""
    sound = blip(2.0, 48000, 1.5)
    late = 464_000_000
    pieces = resampled(sound, 48000, step=960, times_ns=lambda t: t + (late if t >= 10**9 else 0))
    assert joined(pieces).size == 64000
    jump = [p for p in pieces if p.start_ns >= 10**9]
    assert jump[0].start_ns == 1_464_000_000
    after = joined(jump)
    np.testing.assert_allclose(after, blip(2.0, 32000, 1.5)[32000:], atol=2e-3)


def test_a_change_of_rate_goes_on_in_time():
    """A stream that switches from 48 to 44.1 kHz keeps its timeline."""
    resampler = MonoResampler(32000)
    pieces = resampler.push(frame_of(np.zeros(48000, np.float32), 48000), 0)
    pieces += resampler.push(frame_of(np.zeros(44100, np.float32), 44100), None)
    pieces += resampler.flush()
    assert joined(pieces).size == 64000
    assert NS_PER_S in [p.start_ns for p in pieces]


@pytest.mark.parametrize(
    ("kind", "dtype", "full", "zero"),
    [
        ("u8", np.uint8, 128, 128),
        ("s16", np.int16, 32768, 0),
        ("s16p", np.int16, 32768, 0),
        ("s32", np.int32, 2**31, 0),
        ("flt", np.float32, 1, 0),
        ("dblp", np.float64, 1, 0),
    ],
)
def test_the_mean_of_the_channels_in_every_format(kind, dtype, full, zero):
    """Half of full scale left, minus a quarter right: an eighth."""
    left, right = np.full(64, zero + full / 2), np.full(64, zero - full / 4)
    mono = mix_down(
        frame_of(np.stack([left, right]).astype(dtype), 48000, layout="stereo", kind=kind)
    )
    assert mono.dtype == np.float32
    np.testing.assert_allclose(mono, np.full(64, 0.125), atol=1e-6)


def test_sound_stays_within_full_scale():
    """Overshoot of a codec or of the resampler is clipped to [-1, 1]."""
    loud = np.sign(np.sin(np.arange(48000) / 20)).astype(np.float32) * 1.5
    assert np.abs(joined(resampled(loud, 48000))).max() <= 1.0
    assert np.abs(joined(resampled(loud, 32000))).max() <= 1.0

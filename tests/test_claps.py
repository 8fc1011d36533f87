"""The offset of sound is measured from claps as it was made, and refused where it cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from atlasd.streams.claps import ClapMeter, SoundOnsets
from atlasd.streams.clips import AudioChunk, Sample, VideoFrame
from atlasd.streams.devices import DeviceOptions, DeviceSource
from atlasd.streams.files import open_source
from atlasd.streams.sources import MediaError
from atlasd.streams.synchroniser import Synchroniser
from fakedevices import FakeCamera, FakeListener, World, uniform_ms
from media import clicks, flashes, tone, write_video

NS_PER_S = 1_000_000_000


def measured(source):
    meter = ClapMeter(is_live=source.kind == "live")
    with source:
        try:
            for event in source:
                meter.push(event)
        except MediaError:
            pass
    return meter.measured()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("offset_ms", [0, 40, -120])
def test_an_offset_that_was_made_is_measured_within_5_ms(tmp_path, suffix, offset_ms):
    path = write_video(
        tmp_path / f"clap{suffix}",
        12,
        size=(160, 120),
        picture=flashes((160, 120)),
        sound=clicks(12, offset_s=offset_ms / 1e3),
    )
    found = measured(open_source(path, image_size_px=(160, 120)))
    assert found.problem == ""
    assert found.sight == "flash"
    assert found.offset_ms == pytest.approx(offset_ms, abs=5)
    assert found.spread_ms < 3
    assert found.claps >= 9


def test_flashes_that_are_small_in_a_noisy_picture_are_seen(tmp_path):
    rng = np.random.default_rng(0)

    def picture(time_s):
        image = rng.integers(40, 70, (120, 160, 3), dtype=np.uint8)
        if abs(time_s - round(time_s)) < 1e-3 and time_s > 0.5:
            image[40:60, 50:80] = 240
        return image

    sound = clicks(10, offset_s=0.08) * 0.4
    sound += rng.normal(0, 0.003, sound.size).astype(np.float32)
    path = write_video(tmp_path / "clap.mp4", 10, size=(160, 120), picture=picture, sound=sound)
    found = measured(open_source(path))
    assert found.problem == ""
    assert found.offset_ms == pytest.approx(80, abs=5)


CLAPS_S = [1.013, 2.187, 3.071, 4.322, 5.118, 6.259, 7.044, 8.301, 9.137, 10.229]


def hands(time_s):
    """Two bright hands that meet at each of `CLAPS_S`, rest, and part slowly."""
    image = np.full((120, 160, 3), 50, np.uint8)
    ahead = [clap - time_s for clap in CLAPS_S if clap >= time_s]
    behind = [time_s - clap for clap in CLAPS_S if clap < time_s]
    apart = 50.0 if not behind else min(50.0, max(0.0, behind[-1] - 0.15) * 100)
    if ahead:
        apart = min(apart, ahead[0] * 600)
    left, right = round(75 - apart), round(85 + apart)
    image[40:90, max(0, left - 20) : left] = 190
    image[40:90, right : right + 20] = 190
    return image


@pytest.mark.parametrize("offset_ms", [0, 90])
def test_hand_claps_are_measured_within_15_ms(tmp_path, offset_ms):
    rate_hz, seconds = 48000, 11.5
    sound = np.zeros(round(seconds * rate_hz), np.float32)
    rng = np.random.default_rng(1)
    for clap_s in CLAPS_S:
        at = round((clap_s + offset_ms / 1e3) * rate_hz)
        burst = rng.normal(0, 0.3, 2400) * np.exp(-np.arange(2400) / 300)
        sound[at : at + 2400] += burst.astype(np.float32)
    path = write_video(
        tmp_path / "hands.mp4", seconds, fps=30, size=(160, 120), picture=hands, sound=sound
    )
    found = measured(open_source(path))
    assert found.problem == ""
    assert found.sight == "hands"
    assert found.offset_ms == pytest.approx(offset_ms, abs=15)
    assert found.claps >= 6


@pytest.mark.parametrize("offset_ms", [0, 40, 120])
def test_devices_with_skew_and_jitter_are_measured_within_10_ms(offset_ms):
    """Their camera shows a flash that was within its last period: half of that is taken off."""
    world = World()
    camera = FakeCamera(world, fps=30, skew_ppm=150, jitter=uniform_ms(8), until_s=25)
    listener = FakeListener(world, jitter=uniform_ms(8), delay_ms=offset_ms)
    options = DeviceOptions("0", sample_rate_hz=8000)
    found = measured(DeviceSource(camera, listener, options, clock=world.clock))
    assert found.problem == ""
    half_period_ms = 1000 / 30 / 2
    assert found.offset_ms == pytest.approx(offset_ms + half_period_ms, abs=10)


def test_the_measured_offset_as_lag_brings_each_click_to_its_flash():
    def source():
        world = World()
        camera = FakeCamera(world, fps=30, jitter=uniform_ms(8), until_s=20)
        listener = FakeListener(world, jitter=uniform_ms(8), delay_ms=130)
        options = DeviceOptions("0", sample_rate_hz=8000)
        return DeviceSource(camera, listener, options, clock=world.clock), world

    lag_ms = measured(source()[0]).offset_ms
    opened, world = source()
    synchroniser = Synchroniser(
        0.4, 8000, "center", lag_ms=lag_ms, audio_wait_ms=2000, live=True, clock=world.clock
    )
    away_ms = []
    with pytest.raises(MediaError):
        for event in opened:
            samples = (each for each in synchroniser.push(event) if isinstance(each, Sample))
            for sample in samples:
                if sample.frame.image[0, 0, 0] == 255 and sample.window.state == "ok":
                    away_ms.append((np.argmax(sample.window.samples) - 1600) / 8)
    half_period_ms = 1000 / 30 / 2
    assert len(away_ms) > 12
    assert np.abs(np.array(away_ms) + half_period_ms).max() < 10


@pytest.mark.parametrize(
    ("sound", "picture", "message"),
    [
        ("silence", flashes((64, 48)), "no clap was heard"),
        (clicks(8), lambda _: np.full((48, 64, 3), 90, np.uint8), "no clap was seen"),
        (clicks(8, period_s=5), flashes((64, 48)), "at least 3 are needed"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_what_to_do(tmp_path, sound, picture, message):
    path = write_video(tmp_path / "clap.mp4", 8, size=(64, 48), picture=picture, sound=sound)
    assert message in measured(open_source(path)).problem


def test_sounds_that_have_nothing_to_do_with_the_picture_are_refused(tmp_path):
    rng = np.random.default_rng(3)
    sound = np.zeros(20 * 48000, np.float32)
    for at in rng.uniform(0.5, 19.5, 30):
        sound[round(at * 48000) : round(at * 48000) + 100] = 0.8
    path = write_video(
        tmp_path / "clap.mp4", 20, size=(64, 48), picture=flashes((64, 48)), sound=sound
    )
    assert measured(open_source(path)).problem


def chunk(samples, start_ns, rate_hz=16000):
    return AudioChunk(samples.astype(np.float32), rate_hz, start_ns, "main", 0)


def test_onsets_do_not_depend_on_how_sound_is_cut():
    sound = clicks(6, 16000) + 0.02 * tone(6, 16000)
    whole = SoundOnsets().push(chunk(sound, 0))
    assert [round(ns / NS_PER_S) for ns in whole] == [1, 2, 3, 4, 5]
    cut, onsets = SoundOnsets(), []
    for begin in range(0, sound.size, 333):
        onsets += cut.push(chunk(sound[begin : begin + 333], round(begin * 62500)))
    assert np.abs(np.array(onsets) - whole).max() < 100_000


def test_a_hole_in_the_sound_is_no_onset():
    sound = 0.3 * tone(1, 16000)
    finder = SoundOnsets()
    assert finder.push(chunk(sound, 0)) == []
    assert finder.push(chunk(sound, 3 * NS_PER_S)) == []


def test_a_loud_steady_sound_is_no_clap():
    rng = np.random.default_rng(0)
    assert SoundOnsets().push(chunk(rng.normal(0, 0.2, 160000), 0)) == []


def test_a_picture_of_another_size_begins_anew():
    meter = ClapMeter(is_live=False)
    for index, side in enumerate((32, 48, 48, 5, 5)):
        image = np.full((side, side, 3), 30 + 40 * index, np.uint8)
        meter.push(VideoFrame(image, index * 40_000_000, 0, "main", 0, index, (side, side)))
    assert len(meter.seen["flash"]) <= 2

"""The clap test: a white frame and a click each second must come out together.

The truth of these files was checked once against ffprobe's times of decoded frames and ffmpeg's
own decoder (FFmpeg 5.1): clicks lie within 0.5 ms of their flashes plus the offset asked for.
What differs between containers:

- AAC has 1024 samples of priming. MP4 says so and decoders trim it. MPEG-TS does not: 23 ms more
  sound comes out (44.1 kHz), but its timestamps begin 23 ms earlier, so the click stays with its
  frame where time is read from decoded frames. Matroska is trimmed by FFmpeg 8 and not by 5.1,
  which begins at -23 ms instead: the same click times.
- MP4 writes a late start of the sound as an edit list with ticks of 1 ms: +40 ms came out as
  +39.2 ms there, in ffprobe and here.
- Matroska's times are whole milliseconds: after a hole the sound is up to 0.5 ms off.
- MP4 and Matroska cannot hold times that go backwards: there the timeline breaks by a jump
  forward; in MPEG-TS also by a reset.
"""

from __future__ import annotations

from pathlib import Path

import media
import pytest
from atlasd.streams.clips import Sample
from atlasd.streams.files import open_source
from atlasd.streams.sources import Discontinuity
from atlasd.streams.synchroniser import Synchroniser
from clapcheck import click_after_flash_s

BAR_S = 0.005
SIZE = (64, 48)
SECONDS = 5.0
KINDS = ["regular.mp4", "regular.mkv", "regular.ts", "vfr.mp4", "vfr.mkv"]


def clap_file(path: Path, **how) -> Path:
    if path.name.startswith("vfr"):
        how["times_s"] = media.irregular_times(SECONDS)
    return media.write_video(
        path,
        SECONDS,
        size=SIZE,
        picture=media.flashes(SIZE),
        sound=media.clicks(SECONDS, 44100),
        sound_rate_hz=44100,
        **how,
    )


def samples_of(path: Path) -> tuple[list[Sample], list[Discontinuity]]:
    with open_source(path) as source:
        synchroniser = Synchroniser(has_audio=source.has_audio)
        out = [result for event in source for result in synchroniser.push(event)]
        out += synchroniser.finish()
    samples = [result for result in out if isinstance(result, Sample)]
    return samples, [result for result in out if isinstance(result, Discontinuity)]


@pytest.mark.parametrize("name", KINDS)
def test_picture_and_click_stay_together(tmp_path, name):
    """Error below 5 ms with nothing injected."""
    samples, _ = samples_of(clap_file(tmp_path / name))
    errors = click_after_flash_s(samples)
    assert len(errors) == 4
    assert max(map(abs, errors.values())) < BAR_S


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("offset_s", [0.04, -0.04])
def test_an_offset_of_the_container_is_kept(tmp_path, name, offset_s):
    """Sound 40 ms late or early in the file is 40 ms late or early in the samples."""
    samples, _ = samples_of(clap_file(tmp_path / name, sound_offset_s=offset_s))
    errors = {k: v - offset_s for k, v in click_after_flash_s(samples).items()}
    assert len(errors) == 4
    assert max(map(abs, errors.values())) < BAR_S


@pytest.mark.parametrize("name", KINDS)
def test_a_hole_of_464_ms_moves_nothing_and_is_told(tmp_path, name):
    """Clicks after lost sound are where they were, and windows over the hole say how long it is."""
    samples, _ = samples_of(clap_file(tmp_path / name, sound_hole_s=(2.3, 2.764)))
    errors = click_after_flash_s(samples)
    assert len(errors) == 4
    assert max(map(abs, errors.values())) < BAR_S
    over = [s.window for s in samples if 2.85 < s.frame.pts_ns / 1e9 < 3.2]
    assert {w.state for w in over} == {"gap"}
    assert all(w.gap_ms == pytest.approx(464, abs=30) for w in over)
    after = [s.window for s in samples if s.frame.pts_ns / 1e9 > 3.85]
    assert {w.state for w in after} == {"ok"}


@pytest.mark.parametrize("name", ["regular.mp4", "regular.mkv", "regular.ts", "vfr.mp4", "vfr.mkv"])
def test_a_jump_forward_opens_an_epoch_that_keeps_sync(tmp_path, name):
    """All timestamps 100 s later from one second on: two epochs, each in sync."""
    samples, breaks = samples_of(clap_file(tmp_path / name, jump_s=(2.5, 100.0)))
    errors = click_after_flash_s(samples)
    assert [b.epoch for b in breaks] == [1]
    assert [epoch for epoch, _ in errors] == [0, 0, 1, 1]
    assert max(map(abs, errors.values())) < BAR_S


def test_a_reset_of_the_timestamps_opens_an_epoch_that_keeps_sync(tmp_path):
    """Two recordings one after the other in one MPEG-TS: the second starts over."""
    first = clap_file(tmp_path / "first.ts").read_bytes()
    second = clap_file(tmp_path / "second.ts", sound_offset_s=0.04).read_bytes()
    both = tmp_path / "both.ts"
    both.write_bytes(first + second)
    samples, breaks = samples_of(both)
    found = click_after_flash_s(samples)
    assert [b.epoch for b in breaks] == [1]
    errors = {k: v - (0.04 if k[0] else 0.0) for k, v in found.items()}
    assert [epoch for epoch, _ in errors] == [0] * 4 + [1] * 4
    assert max(map(abs, errors.values())) < BAR_S
    assert len(samples) == 250
    times = [s.frame.pts_ns for s in samples]
    assert times == sorted(set(times))

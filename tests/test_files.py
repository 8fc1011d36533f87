"""Files of every kind come out as pictures and sound, and broken ones say what is wrong."""

from __future__ import annotations

import gc
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import media
import numpy as np
import pytest
from atlasd.streams.clips import NS_PER_S, AudioChunk, VideoFrame
from atlasd.streams.files import open_source
from atlasd.streams.sources import AudioEnded, MediaError, Trouble

SIZE = (64, 48)


class Read:
    """Everything a source gave, sorted by kind."""

    def __init__(self, path: Path, **how):
        with open_source(path, **how) as source:
            self.source = source
            self.events = list(source)
        self.frames = [e for e in self.events if isinstance(e, VideoFrame)]
        self.chunks = [e for e in self.events if isinstance(e, AudioChunk)]
        self.troubles = Counter(e.kind for e in self.events if isinstance(e, Trouble))
        self.sound = np.concatenate([c.samples for c in self.chunks] or [np.zeros(0, np.float32)])

    @property
    def times_ms(self) -> list[int]:
        return [round(f.pts_ns / 1e6) for f in self.frames]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".ts", ".avi"])
def test_every_container_gives_all_pictures_and_sound(tmp_path, suffix):
    """50 pictures 40 ms apart, two seconds of sound, in epoch 0 and without trouble."""
    codec = "mpeg4" if suffix == ".avi" else None
    read = Read(media.write_video(tmp_path / f"a{suffix}", 2.0, size=SIZE, codec=codec))
    first = read.times_ms[0]
    assert [t - first for t in read.times_ms] == [40 * i for i in range(50)]
    assert [f.index for f in read.frames] == list(range(50))
    assert read.sound.size == pytest.approx(64000, abs=0.05 * 32000)
    assert min(read.frames[0].pts_ns, read.chunks[0].start_ns) == 0
    assert isinstance(read.events[-1], AudioEnded)
    assert not read.troubles
    assert (read.source.kind, read.source.fps, read.source.source_size_px) == ("file", 25.0, SIZE)
    assert read.source.duration_ns == pytest.approx(2 * NS_PER_S, rel=0.03)


def test_pictures_are_what_was_drawn(tmp_path):
    """Lossless frames come back to within the rounding of the colour conversion."""
    path = media.write_video(tmp_path / "a.mkv", 0.4, size=SIZE, codec="ffv1", pix_fmt="yuv444p")
    drawn = media.moving_square(SIZE)
    for frame in Read(path).frames:
        expected = drawn(frame.pts_ns / 1e9).astype(int)
        assert np.abs(frame.image.astype(int) - expected).max() <= 3


def test_scaling_is_one_pass_and_keeps_the_whole_picture(tmp_path):
    """image_size_px is (width, height); keep_full adds the unscaled one."""
    path = media.write_video(tmp_path / "a.mp4", 0.2, size=SIZE)
    read = Read(path, image_size_px=(32, 40), keep_full=True, stream="cam")
    native = Read(path)
    for frame, whole in zip(read.frames, native.frames, strict=True):
        assert frame.image.shape == (40, 32, 3)
        assert frame.source_size_px == SIZE
        np.testing.assert_array_equal(frame.full, whole.image)
    assert {e.stream for e in read.frames + read.chunks} == {"cam"}


def test_pictures_own_their_memory(tmp_path):
    """Later pictures never change earlier ones."""
    path = media.write_video(tmp_path / "a.mp4", 1.0, size=SIZE)
    with open_source(path) as source:
        seen = [(e.image, e.image.copy()) for e in source if isinstance(e, VideoFrame)]
    assert all(np.array_equal(now, then) for now, then in seen)


def test_variable_frame_rate_keeps_every_time(tmp_path):
    """Times are the file's, never index over fps."""
    times = media.irregular_times(2.0)
    for suffix in (".mp4", ".mkv"):
        read = Read(media.write_video(tmp_path / f"v{suffix}", 2.0, size=SIZE, times_s=times))
        assert read.times_ms == [round(t * 1000) for t in times]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotated_phone_video_comes_upright(tmp_path, degrees):
    """The display matrix turns the picture counterclockwise, as np.rot90 does."""
    path = media.write_video(tmp_path / "r.mp4", 0.2, size=SIZE, rotation=degrees)
    read = Read(path)
    plain = Read(media.write_video(tmp_path / "p.mp4", 0.2, size=SIZE))
    expected = np.rot90(plain.frames[0].image, degrees // 90)
    np.testing.assert_array_equal(read.frames[0].image, expected)
    assert read.source.source_size_px == (expected.shape[1], expected.shape[0])
    assert Read(path, image_size_px=(20, 30)).frames[0].image.shape == (30, 20, 3)


@pytest.mark.parametrize(("hflip", "vflip"), [(True, False), (False, True)])
def test_mirrored_video_comes_unmirrored(tmp_path, hflip, vflip):
    """A display matrix may flip."""
    path = tmp_path / "f.mp4"
    drawn = media.moving_square(SIZE)(0.0)
    with av.open(str(path), "w") as container:
        track = container.add_stream("libx264", rate=25)
        track.width, track.height, track.pix_fmt = *SIZE, "yuv420p"
        track.set_display_rotation(0, hflip=hflip, vflip=vflip)
        frame = av.VideoFrame.from_ndarray(drawn, format="rgb24")
        container.mux([*track.encode(frame), *track.encode(None)])
    flipped = drawn[:, ::-1] if hflip else drawn[::-1]
    image = Read(path).frames[0].image
    assert np.abs(image.astype(int) - flipped).mean() < 6


def test_pictures_that_were_shown_are_freed_without_the_collector(tmp_path):
    """A cycle through a decoded frame would hold its buffers until a full collection."""
    path = media.write_video(tmp_path / "v.mp4", 4.0, size=SIZE)
    gc.collect()
    gc.disable()
    try:
        with open_source(path) as source:
            shown = sum(isinstance(event, VideoFrame) for event in source)
        del source
        left = gc.collect()
    finally:
        gc.enable()
    assert shown == 100
    assert left < 20


@pytest.mark.parametrize(("matrix", "number"), [("bt709", 1), ("smpte170m", 6)])
def test_the_colour_matrix_is_respected(tmp_path, matrix, number):
    """The same red from BT.709 and from BT.601."""
    red = np.broadcast_to(np.array([250, 20, 10], np.uint8), (48, 64, 3)).copy()
    path = tmp_path / "c.mkv"
    with av.open(str(path), "w") as container:
        track = container.add_stream(
            "libx264", rate=25, options={"x264-params": f"colormatrix={matrix}"}
        )
        track.width, track.height, track.pix_fmt = *SIZE, "yuv420p"
        track.codec_context.colorspace = number
        rgb = av.VideoFrame.from_ndarray(red, format="rgb24")
        yuv = rgb.reformat(format="yuv420p", dst_colorspace={1: 1, 6: 5}[number], dst_color_range=1)
        yuv.pts, yuv.time_base = 0, Fraction(1, 25)
        container.mux([*track.encode(yuv), *track.encode(None)])
    assert np.abs(Read(path).frames[0].image[20, 20].astype(int) - [250, 20, 10]).max() <= 3


@pytest.mark.parametrize(("pix_fmt", "codec"), [("yuv420p", "libx264"), ("yuvj420p", "mjpeg")])
def test_levels_are_right_in_both_ranges(tmp_path, pix_fmt, codec):
    """Limited and full range alike: a full 40 read as limited would be 28, a white 235."""
    path = media.write_video(
        tmp_path / "w.mkv",
        3.0,
        size=SIZE,
        fps=10,
        picture=lambda t: np.full((48, 64, 3), (0, 40, 255)[int(t)], np.uint8),
        codec=codec,
        pix_fmt=pix_fmt,
    )
    frames = Read(path).frames
    for i, level in ((5, 0), (15, 40), (25, 255)):
        assert np.abs(frames[i].image.astype(int) - level).max() <= 3


@pytest.mark.parametrize(
    ("size", "codec", "pix_fmt"),
    [
        ((63, 47), "ffv1", "yuv444p"),
        ((63, 47), "ffv1", "gray"),
        ((65, 49), "ffv1", "yuv420p"),
        ((1, 1), "ffv1", "yuv444p"),
        ((64, 48), "ffv1", "yuv420p10le"),
        ((64, 48), "png", "gray16be"),
    ],
)
def test_odd_sizes_grey_and_deep_pictures(tmp_path, size, codec, pix_fmt):
    """Always uint8 (H, W, 3)."""
    suffix = ".mov" if codec == "png" else ".mkv"
    path = media.write_video(
        tmp_path / f"o{suffix}", 0.2, size=size, codec=codec, pix_fmt=pix_fmt, sound=None
    )
    read = Read(path)
    assert {f.image.shape for f in read.frames} == {(size[1], size[0], 3)}
    if "gray" in pix_fmt:
        assert all(np.ptp(f.image.astype(int), axis=2).max() <= 1 for f in read.frames)


def test_alpha_is_composited_over_black(tmp_path):
    """Half transparent white is grey."""
    path = tmp_path / "a.mov"
    rgba = np.full((48, 64, 4), 255, np.uint8)
    rgba[:, 32:, 3] = 128
    with av.open(str(path), "w") as container:
        track = container.add_stream("png", rate=25)
        track.width, track.height, track.pix_fmt = *SIZE, "rgba"
        frame = av.VideoFrame.from_ndarray(rgba, format="rgba")
        container.mux([*track.encode(frame), *track.encode(None)])
    image = Read(path).frames[0].image
    assert image[10, 10].tolist() == [255, 255, 255]
    assert image[10, 50].tolist() == [128, 128, 128]


def test_4k_scales_to_the_network_size(tmp_path):
    """3840 x 2160, and the unscaled size is told."""
    path = media.write_video(
        tmp_path / "k.mp4", 0.08, size=(3840, 2160), options={"preset": "ultrafast"}
    )
    read = Read(path, image_size_px=(224, 224))
    assert [f.image.shape for f in read.frames] == [(224, 224, 3)] * 2
    assert read.frames[0].source_size_px == (3840, 2160)


@pytest.mark.parametrize(
    ("rate_hz", "layout", "codec"),
    [
        (8000, "mono", "pcm_s16le"),
        (96000, "5.1", "flac"),
        (44100, "stereo", "aac"),
        (48000, "mono", "pcm_u8"),
        (32000, "mono", "pcm_f32le"),
        (22050, "stereo", "pcm_s24le"),
        (48000, "stereo", "libopus"),
        (48000, "mono", "pcm_f64le"),
    ],
)
def test_sound_of_any_rate_layout_and_format(tmp_path, rate_hz, layout, codec):
    """The same 440 Hz tone at 32 kHz mono, at half of full scale, aligned to its first sample."""
    path = media.write_video(
        tmp_path / "s.mkv",
        1.0,
        size=SIZE,
        sound_rate_hz=rate_hz,
        sound_layout=layout,
        sound_codec=codec,
    )
    read = Read(path)
    expected = media.tone(1.0, 32000)
    n = min(read.sound.size, expected.size)
    assert n == pytest.approx(32000, abs=100)
    middle = slice(3200, n - 3200)
    tolerance = {"pcm_u8": 0.01, "aac": 0.03, "libopus": 0.06}.get(codec, 0.002)
    assert np.abs(read.sound[middle] - expected[middle]).max() < tolerance


def test_channels_are_averaged(tmp_path):
    """Left alone comes out at half its level."""
    left = np.stack([media.tone(1.0, 32000), np.zeros(32000, np.float32)])
    path = media.write_video(
        tmp_path / "s.mkv",
        1.0,
        size=SIZE,
        sound=left,
        sound_rate_hz=32000,
        sound_layout="stereo",
        sound_codec="pcm_s16le",
    )
    np.testing.assert_allclose(Read(path).sound, media.tone(1.0, 32000) / 2, atol=2e-4)


def test_sound_that_is_not_finite_becomes_zeros_and_is_told(tmp_path):
    """NaN in a float track does not reach the network."""
    sound = media.tone(1.0, 32000)
    sound[5000] = np.nan
    path = media.write_video(
        tmp_path / "n.mkv",
        1.0,
        size=SIZE,
        sound=sound,
        sound_rate_hz=32000,
        sound_codec="pcm_f32le",
    )
    read = Read(path)
    assert np.isfinite(read.sound).all()
    assert read.troubles == {"not_finite": 1}


def test_a_video_without_sound_is_no_failure(tmp_path):
    """has_audio says so; no sound event comes."""
    read = Read(media.write_video(tmp_path / "m.mp4", 0.4, size=SIZE, sound=None))
    assert not read.source.has_audio
    assert {type(e) for e in read.events} == {VideoFrame}


def test_digital_silence_is_sound(tmp_path):
    """A track of zeros exists."""
    read = Read(media.write_video(tmp_path / "z.mp4", 0.4, size=SIZE, sound="silence"))
    assert read.source.has_audio
    assert read.chunks
    assert not read.sound.any()


def test_one_picture_is_a_video(tmp_path):
    """The first is the last."""
    read = Read(media.write_video(tmp_path / "1.mp4", 0.04, size=SIZE))
    assert read.times_ms == [0]
    assert not read.troubles


def test_pictures_without_times_are_spaced_by_the_rate(tmp_path):
    """A raw H.264 stream has none; each repair is counted."""
    read = Read(media.write_video(tmp_path / "r.h264", 0.4, size=SIZE, sound=None))
    assert read.times_ms == [40 * i for i in range(10)]
    assert read.troubles == {"no_pts": 10}


def test_times_that_go_back_a_little_are_repaired_and_told(tmp_path):
    """H.264 with B-frames in AVI, which has no presentation times: order and count stay."""
    read = Read(media.write_video(tmp_path / "b.avi", 1.0, size=SIZE, codec="libx264"))
    pts = [f.pts_ns for f in read.frames]
    assert len(pts) == 25
    assert pts == sorted(set(pts))
    assert read.troubles["backward_pts"] >= 1
    assert {f.epoch for f in read.frames} == {0}


def test_repeated_times_grow_by_a_nanosecond(tmp_path):
    """Two pictures at one time: both come, in order, and the repair is told."""
    times = [0.0, 0.04, 0.0401, 0.08]
    path = media.write_video(tmp_path / "d.mkv", 0.12, size=SIZE, times_s=times, codec="ffv1",
                             pix_fmt="yuv444p")  # fmt: skip
    read = Read(path)
    pts = [f.pts_ns for f in read.frames]
    assert pts == [0, 40_000_000, 40_000_001, 80_000_000]
    assert read.troubles == {"repeated_pts": 1}


def test_capture_time_is_the_clock_that_was_given(tmp_path):
    """Stamped when the picture leaves the decoder."""
    ticks = iter(range(1000))
    path = media.write_video(tmp_path / "c.mp4", 0.2, size=SIZE)
    read = Read(path, clock=lambda: next(ticks))
    assert [f.capture_ns for f in read.frames] == list(range(5))


def broken(path: Path, seed: int = 1) -> Path:
    """Noise over bytes of the middle fifth."""
    data, rng = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(40):
        at = rng.randrange(len(data) * 4 // 10, len(data) * 6 // 10)
        data[at : at + 8] = rng.randbytes(8)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".ts", ".mp4"])
def test_corrupted_packets_are_told_and_the_rest_comes(tmp_path, suffix):
    """Damage in the middle; pictures until the end."""
    path = broken(media.write_video(tmp_path / f"c{suffix}", 4.0, size=(160, 120)))
    read = Read(path)
    assert read.troubles["corrupt_packet"] >= 1
    assert len(read.frames) > 80
    assert read.times_ms[-1] - read.times_ms[0] >= 3900
    pts = [f.pts_ns for f in read.frames]
    assert pts == sorted(set(pts))
    counts = [e.count for e in read.events if isinstance(e, Trouble) and e.kind == "corrupt_packet"]
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.parametrize("seed", [1, 3, 4])
@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".mp4"])
def test_no_damage_raises_anything_but_media_error(tmp_path, suffix, seed):
    """Whatever the noise hits, the stream ends by itself."""
    path = media.write_video(tmp_path / f"c{suffix}", 1.0, size=SIZE)
    data, rng = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(60):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)
    try:
        read = Read(path)
    except MediaError:
        return
    pts = [f.pts_ns for f in read.frames]
    assert pts == sorted(set(pts))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_file_that_breaks_off_plays_until_there_and_says_so(tmp_path, suffix):
    """With its index at the front, six tenths of a file are six tenths of the video."""
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    path = media.write_video(
        tmp_path / f"t{suffix}", 4.0, size=(160, 120), container_options=options
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    read = Read(path)
    assert 1500 < read.times_ms[-1] < 3400
    assert read.troubles["truncated"] == 1
    detail = next(e.detail for e in read.events if isinstance(e, Trouble) and e.kind == "truncated")
    assert "of 4.0" in detail


def test_an_mp4_without_its_index_is_refused_with_the_reason(tmp_path):
    """A recording that broke off before moov was written."""
    path = media.write_video(tmp_path / "t.mp4", 2.0, size=SIZE)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(MediaError, match="index \\(moov\\) is missing: repair it"):
        open_source(path)


def test_missing_empty_and_foreign_files_are_refused_with_what_to_do(tmp_path):
    """What came, what is allowed, what to do."""
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video " * 50)
    with pytest.raises(MediaError, match=r"none\.mp4 does not exist; give the path"):
        open_source(tmp_path / "none.mp4")
    with pytest.raises(MediaError, match=r"is empty \(0 bytes\); copy or record it again"):
        open_source(tmp_path / "empty.mp4")
    with pytest.raises(MediaError, match=r"\(600 bytes\) cannot be opened as media"):
        open_source(tmp_path / "text.mp4")
    with pytest.raises(MediaError, match="is an address"):
        open_source("rtsp://camera/stream")


def test_sound_alone_is_refused(tmp_path):
    """There is nothing to segment; cover art is no video."""
    path = tmp_path / "s.m4a"
    with av.open(str(path), "w") as container:
        track = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(media.tone(1.0)[None], format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux([*track.encode(frame), *track.encode(None)])
    with pytest.raises(MediaError, match="has no pictures that can be decoded; it holds audio"):
        open_source(path)


def test_a_path_may_be_a_string_or_a_file_address(tmp_path):
    """As configurations write them."""
    path = media.write_video(tmp_path / "a.mp4", 0.2, size=SIZE)
    assert len(Read(str(path)).frames) == len(Read(f"file://{path}").frames) == 5


def test_closing_twice_and_early_is_harmless(tmp_path):
    """A consumer may stop in the middle."""
    source = open_source(media.write_video(tmp_path / "a.mp4", 0.4, size=SIZE))
    next(iter(source))
    source.close()
    source.close()

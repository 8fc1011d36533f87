"""A folder of frames with a sound is a source like any other."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import media
import numpy as np
import pytest
from atlasd.streams.clips import AudioChunk, Sample, VideoFrame
from atlasd.streams.files import open_source
from atlasd.streams.folders import FolderSource
from atlasd.streams.sources import AudioEnded, MediaError, Trouble
from atlasd.streams.synchroniser import Synchroniser
from PIL import Image


def write_frames(folder: Path, count: int, *, suffix: str = ".png") -> Path:
    """Frames whose grey level is their number."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", (20, 10), (i, i, i)).save(folder / f"frame{i}{suffix}")
    return folder


def write_wav(path: Path, samples: np.ndarray, rate_hz: int = 48000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def events_of(folder: Path, **how) -> list:
    with open_source(folder, **how) as source:
        return list(source)


def frames_of(folder: Path, **how) -> list[VideoFrame]:
    return [e for e in events_of(folder, **how) if isinstance(e, VideoFrame)]


def test_frames_come_in_natural_order_at_the_rate(tmp_path):
    """frame2 comes before frame10."""
    frames = frames_of(write_frames(tmp_path / "f", 12), fps=10)
    assert [int(f.image[0, 0, 0]) for f in frames] == list(range(12))
    assert [f.pts_ns for f in frames] == [i * 100_000_000 for i in range(12)]
    assert [f.index for f in frames] == list(range(12))
    assert frames[0].source_size_px == (20, 10)


def test_what_the_source_says_of_itself(tmp_path):
    """Kind, length, rate, size, sound."""
    source = open_source(write_frames(tmp_path / "f", 12), stream="cam")
    assert isinstance(source, FolderSource)
    assert (source.kind, source.fps, source.duration_ns) == ("file", 25.0, 480_000_000)
    assert (source.source_size_px, source.has_audio, source.stream) == ((20, 10), False, "cam")
    source.close()
    source.close()


def test_timestamps_say_when_and_which(tmp_path):
    """Irregular times, only the listed frames, in the listed order."""
    folder = write_frames(tmp_path / "f", 5)
    (folder / "timestamps.csv").write_text(
        "frame,time_s\nframe3.png,0.5\nframe1.png,0.75\nframe4.png,2\n"
    )
    frames = frames_of(folder)
    assert [int(f.image[0, 0, 0]) for f in frames] == [3, 1, 4]
    assert [f.pts_ns / 1e9 for f in frames] == [0.5, 0.75, 2.0]
    assert open_source(folder).fps is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,when\n", "its header is frame,time_s"),
        ("", "its header is frame,time_s"),
        ("frame,time_s\n", "lists no frames"),
        ("frame,time_s\nframe0.png,soon\n", r"csv:2: time_s is 'soon'"),
        ("frame,time_s\nframe0.png\n", r"csv:2: time_s is None"),
        ("frame,time_s\nframe0.png,nan\n", r"csv:2: time_s is 'nan'"),
        ("frame,time_s\nframe0.png,1\nframe1.png,1\n", r"csv:3: .* times must grow"),
        ("frame,time_s\nother.png,1\n", r"csv:2: .*other\.png does not exist"),
    ],
)
def test_bad_timestamps_are_refused_with_their_line(tmp_path, text, says):
    """What came, where, what is allowed."""
    folder = write_frames(tmp_path / "f", 2)
    (folder / "timestamps.csv").write_text(text)
    with pytest.raises(MediaError, match=says):
        open_source(folder)


def test_the_sound_is_interleaved_and_ends(tmp_path):
    """Each frame gets the window that ends at it, at the asked rate."""
    folder = write_frames(tmp_path / "f", 50)
    write_wav(folder / "sound.wav", media.tone(2.0, 48000))
    expected = media.tone(2.0, 32000)
    with open_source(folder) as source:
        assert source.has_audio
        synchroniser = Synchroniser(0.5)
        events = list(source)
    assert isinstance(events[-1], AudioEnded)
    assert not isinstance(events[-2], VideoFrame)
    out = [s for e in events for s in synchroniser.push(e)] + synchroniser.finish()
    assert all(isinstance(s, Sample) for s in out)
    ready = [s for s in out if s.frame.pts_ns >= 500_000_000]
    assert {s.window.state for s in ready} == {"ok"}
    for sample in ready[::7]:
        end = round(sample.frame.pts_ns * 32000 / 1e9)
        np.testing.assert_allclose(sample.window.samples, expected[end - 16000 : end], atol=2e-3)


@pytest.mark.parametrize(("suffix", "codec"), [(".flac", "flac"), (".ogg", "libopus")])
def test_flac_and_ogg_are_sounds(tmp_path, suffix, codec):
    """Any of the three."""
    folder = write_frames(tmp_path / "f", 2)
    with av.open(str(folder / f"s{suffix}"), "w") as container:
        track = container.add_stream(codec, rate=48000, layout="mono")
        samples = (media.tone(1.0, 48000) * 32767).astype(np.int16)
        for start in range(0, 48000, 4800):
            piece = np.ascontiguousarray(samples[None, start : start + 4800])
            frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
            frame.sample_rate, frame.pts = 48000, start
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    chunks = [e for e in events_of(folder) if isinstance(e, AudioChunk)]
    assert sum(c.samples.size for c in chunks) == pytest.approx(32000, abs=700)


def test_grey_palette_alpha_and_16_bit_are_rgb(tmp_path):
    """Grey thrice; alpha over black; the upper 8 of 16 bits."""
    folder = tmp_path / "f"
    folder.mkdir()
    Image.new("L", (4, 4), 77).save(folder / "1.png")
    Image.fromarray(np.full((4, 4), 77 * 257, np.uint16)).save(folder / "2.png")
    Image.new("RGBA", (4, 4), (200, 100, 50, 128)).save(folder / "3.png")
    Image.new("LA", (4, 4), (200, 128)).save(folder / "4.png")
    Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4).save(folder / "5.png")
    Image.new("1", (4, 4), 1).save(folder / "6.png")
    Image.new("P", (4, 4), 0).save(folder / "7.png", transparency=0)
    Image.new("L", (4, 4), 77).save(folder / "8.jpg")
    Image.new("CMYK", (4, 4), (0, 0, 0, 0)).save(folder / "9.jpg")
    colours = [f.image[1, 1].tolist() for f in frames_of(folder)]
    expected = [[77] * 3, [77] * 3, [100, 50, 25], [100] * 3, [10, 200, 30]]
    expected += [[255] * 3, [0] * 3, [77] * 3, [255] * 3]
    assert np.abs(np.array(colours) - np.array(expected)).max() <= 1


def test_a_photo_that_lies_on_its_side_comes_upright(tmp_path):
    """EXIF orientation 6 is a quarter turn clockwise."""
    folder = tmp_path / "f"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, :10] = 255
    Image.fromarray(pixels).save(folder / "a.jpg", exif=exif, quality=95)
    (frame,) = frames_of(folder)
    assert frame.image.shape == (20, 10, 3)
    assert frame.image[2, 5].min() > 200
    assert frame.image[17, 5].max() < 60
    assert frame.source_size_px == (10, 20)


def test_scaling_and_the_full_picture(tmp_path):
    """As for files."""
    (frame, *_) = frames_of(write_frames(tmp_path / "f", 2), image_size_px=(8, 6), keep_full=True)
    assert frame.image.shape == (6, 8, 3)
    assert frame.full.shape == (10, 20, 3)


def test_a_frame_that_cannot_be_read_is_told_and_the_rest_comes(tmp_path):
    """A truncated PNG in the middle."""
    folder = write_frames(tmp_path / "f", 4)
    path = folder / "frame2.png"
    path.write_bytes(path.read_bytes()[:40])
    events = events_of(folder)
    assert [int(e.image[0, 0, 0]) for e in events if isinstance(e, VideoFrame)] == [0, 1, 3]
    (trouble,) = [e for e in events if isinstance(e, Trouble)]
    assert (trouble.kind, trouble.count) == ("corrupt_frame", 1)
    assert "frame2.png" in trouble.detail


def test_folders_that_are_no_source_are_refused(tmp_path):
    """No frames, several sounds, a first frame or a sound that cannot be read, no rate."""
    with pytest.raises(MediaError, match="holds no frames"):
        open_source(tmp_path)
    folder = write_frames(tmp_path / "f", 2)
    with pytest.raises(MediaError, match=r"fps is 0; it must be positive"):
        open_source(folder, fps=0)
    (folder / "a.wav").write_bytes(b"not a sound")
    with pytest.raises(MediaError, match="cannot be opened as media"):
        open_source(folder)
    write_wav(folder / "b.wav", media.tone(0.1))
    with pytest.raises(MediaError, match=r"several sounds \(a\.wav, b\.wav\)"):
        open_source(folder)

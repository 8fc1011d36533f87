"""Overlays show the mask, and their videos play with the sound at its place."""

import av
import numpy as np
import pytest
from atlasd.tools.overlay import OverlayWriter, blend, contact_sheet

GREY = np.full((60, 80, 3), 128, np.uint8)


def tone_file(path, seconds: float, start_s: float = 0.0):
    """A wave of 440 Hz as PCM in MKV, and one black picture, the sound starting at ``start_s``."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 16, 16, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        black = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))
        container.mux(video.encode(black))
        container.mux(video.encode(None))
        wave = np.sin(2 * np.pi * 440 * np.arange(round(seconds * 8000)) / 8000)
        frame = av.AudioFrame.from_ndarray((wave * 2e4).astype(np.int16)[None], layout="mono")
        frame.sample_rate, frame.pts = 8000, round(start_s * 8000)
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path


def loudness(path, rate=48_000):
    """Decoded sound of a file on its own clock: float (n,)."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    out = np.zeros(round((frames[-1].time + 1) * rate))
    for frame in frames:
        start = round(frame.time * rate)
        out[start : start + frame.samples] = frame.to_ndarray()[0]
    return out


def test_a_blend_changes_masked_and_outline_pixels_only():
    mask = np.zeros((60, 80), bool)
    mask[20:40, 30:50] = True
    changed = (blend(GREY, mask) != GREY).any(axis=2)
    assert changed[20:40, 30:50].all()
    assert changed[19, 30:50].all()
    assert not changed[:18].any()
    assert not changed[:, 53:].any()


def test_a_blend_stretches_a_smaller_mask():
    mask = np.zeros((6, 8), bool)
    mask[:, 4:] = True
    changed = (blend(GREY, mask) != GREY).any(axis=2)
    assert changed[:, 40:].all()
    assert not changed[:, :38].any()


def test_a_blend_leaves_its_input_alone():
    image = GREY.copy()
    blend(image, np.ones((60, 80), bool))
    assert (image == GREY).all()


def test_a_contact_sheet_holds_every_picture():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]
    images = [np.full((30, 40, 3), colour, np.uint8) for colour in colours]
    sheet = np.asarray(contact_sheet(images, ["a"] * 5, columns=3, cell_width_px=40))
    for colour in colours:
        assert (sheet == colour).all(axis=2).sum() >= 30 * 40


def test_a_contact_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="0 pictures"):
        contact_sheet([], [])


def test_an_overlay_keeps_variable_times_odd_sizes_and_both_streams(tmp_path):
    sound = tone_file(tmp_path / "tone.mkv", seconds=1.0)
    times_ns = [0, 40_000_000, 140_000_000, 150_000_000, 900_000_000]
    path = tmp_path / "overlay.mp4"
    with OverlayWriter(path, (81, 61), sound=sound) as writer:
        for i, pts_ns in enumerate(times_ns):
            writer.write(np.full((61, 81, 3), 40 * i, np.uint8), pts_ns)

    with av.open(str(path)) as container:
        assert [s.codec_context.name for s in container.streams] == ["h264", "aac"]
        frames = list(container.decode(video=0))
    assert [round(frame.time * 1000) for frame in frames] == [0, 40, 140, 150, 900]
    assert frames[0].format.name == "yuv420p"
    assert (frames[0].width, frames[0].height) == (82, 62)


def test_the_sound_of_an_overlay_stands_where_the_medium_has_it(tmp_path):
    sound = tone_file(tmp_path / "tone.mkv", seconds=0.5, start_s=0.7)
    path = tmp_path / "overlay.mp4"
    with OverlayWriter(path, (32, 32), sound=sound) as writer:
        for i in range(50):
            writer.write(np.zeros((32, 32, 3), np.uint8), i * 40_000_000)

    loud = np.flatnonzero(np.abs(loudness(path)) > 0.2) / 48_000
    assert loud[0] == pytest.approx(0.7, abs=0.03)
    assert loud[-1] == pytest.approx(1.2, abs=0.03)


def test_a_new_epoch_goes_on_after_the_last_picture(tmp_path):
    path = tmp_path / "overlay.mp4"
    with OverlayWriter(path, (32, 32)) as writer:
        for epoch in (0, 1):
            for i in range(3):
                writer.write(np.zeros((32, 32, 3), np.uint8), i * 40_000_000, epoch)
    with av.open(str(path)) as container:
        times = [round(frame.time * 1000) for frame in container.decode(video=0)]
    assert times == [0, 40, 80, 120, 160, 200]


def test_an_exception_leaves_no_file(tmp_path):
    def interrupted():
        with OverlayWriter(tmp_path / "overlay.mp4", (32, 32)) as writer:
            writer.write(np.zeros((32, 32, 3), np.uint8), 0)
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        interrupted()
    assert list(tmp_path.iterdir()) == []

"""Offline segmentation: what stands in the folder, and what never does."""

from __future__ import annotations

import csv
import io
import json

import av
import numpy as np
import pytest
from atlasd.streams.files import FileSource
from atlasd.streams.sources import MediaError
from atlasd.tools.segment import PARTIAL, SegmentError, segment, stretched_mask
from media import write_video
from PIL import Image
from rich.console import Console
from served import tiny_checkpoint, tiny_config

OUTPUTS = ["contact_sheet.png", "frames.csv", "masks", "masks.npz", "overlay.mp4", "summary.json"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return tiny_config(tiny_checkpoint(folder), folder, f"ipc://{folder}/bus")


def quiet() -> Console:
    return Console(file=io.StringIO())


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_everything_is_written_for_every_frame(tmp_path, config):
    video = write_video(tmp_path / "a.mp4", 1.2, size=(96, 64))
    out = tmp_path / "out"
    summary = segment(video, out, config, console=quiet())
    assert names(out) == OUTPUTS
    assert names(out / "masks") == [f"{i:06d}.png" for i in range(30)]
    with (out / "frames.csv").open() as table:
        rows = list(csv.DictReader(table))
    with np.load(out / "masks.npz", allow_pickle=False) as archive:
        masks, pts_ns = archive["masks"], archive["pts_ns"]
    assert [int(row["index"]) for row in rows] == list(range(30))
    assert [int(row["pts_ns"]) for row in rows] == pts_ns.tolist()
    areas = [float(row["mask_area"]) for row in rows]
    np.testing.assert_allclose(areas, masks.mean(axis=(1, 2)), atol=1e-6)
    assert {row["audio"] for row in rows} == {"gap", "ok"}
    assert summary["frames"] == 30
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert {"decode", "infer", "write"} <= set(summary["latency_ms"])
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 640


def test_png_masks_have_the_size_of_the_upright_picture(tmp_path, config):
    video = write_video(tmp_path / "a.mp4", 0.2, size=(96, 64), rotation=90)
    segment(video, tmp_path / "out", config, console=quiet())
    with Image.open(tmp_path / "out" / "masks" / "000000.png") as mask:
        assert mask.size == (64, 96)
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as overlay:
        picture = overlay.streams.video[0]
        assert (picture.width, picture.height) == (64, 96)


def test_the_overlay_plays_in_a_browser_and_keeps_the_times_of_the_frames(tmp_path, config):
    times_s = [0.0, 0.04, 0.2, 0.24, 0.5, 0.54, 1.0]
    video = write_video(tmp_path / "a.mp4", 1.1, times_s=times_s)
    segment(video, tmp_path / "out", config, console=quiet())
    path = tmp_path / "out" / "overlay.mp4"
    with av.open(str(path)) as overlay:
        picture, sound = overlay.streams.video[0], overlay.streams.audio[0]
        assert (picture.codec_context.name, picture.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert sound.codec_context.name == "aac"
        shown = [float(frame.time) for frame in overlay.decode(picture)]
    np.testing.assert_allclose(shown, times_s, atol=0.002)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_a_video_without_sound_gets_an_overlay_without_sound(tmp_path, config):
    video = write_video(tmp_path / "a.mp4", 0.2, sound=None)
    summary = segment(video, tmp_path / "out", config, console=quiet())
    assert summary["audio"] == {"absent": 5}
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as overlay:
        assert not overlay.streams.audio


def test_a_folder_of_frames_of_several_sizes_with_a_sound(tmp_path, config):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, size in enumerate([(40, 30), (40, 30), (20, 20)]):
        Image.new("RGB", size, (10 * i, 80, 90)).save(folder / f"{i}.png")
    with av.open(str(folder / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 4000), np.int16), format="s16", layout="mono"
        )
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
    summary = segment(folder, tmp_path / "out", config, console=quiet())
    assert summary["frames"] == 3
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as overlay:
        assert overlay.streams.audio
        assert overlay.streams.video[0].width == 40


def test_an_earlier_result_is_replaced_and_foreign_files_stay(tmp_path, config):
    out = tmp_path / "out"
    segment(write_video(tmp_path / "a.mp4", 0.4), out, config, console=quiet())
    (out / "notes.txt").write_text("mine")
    segment(write_video(tmp_path / "b.mp4", 0.2), out, config, console=quiet())
    assert names(out) == sorted([*OUTPUTS, "notes.txt"])
    assert len(names(out / "masks")) == 5


def test_a_failure_half_way_leaves_nothing_that_looks_finished(tmp_path, config, monkeypatch):
    whole = FileSource.__iter__

    def breaking(self):
        for count, event in enumerate(whole(self)):
            if count == 8:
                raise MediaError("the disk went away")
            yield event

    monkeypatch.setattr(FileSource, "__iter__", breaking)
    video, out = write_video(tmp_path / "a.mp4", 1.0), tmp_path / "out"
    with pytest.raises(MediaError, match="the disk went away"):
        segment(video, out, config, console=quiet())
    assert names(out) == []


def test_what_an_interrupted_run_left_is_cleared(tmp_path, config):
    out = tmp_path / "out"
    (out / PARTIAL).mkdir(parents=True)
    (out / PARTIAL / "overlay.mp4").write_bytes(b"half")
    segment(write_video(tmp_path / "a.mp4", 0.2), out, config, console=quiet())
    assert names(out) == OUTPUTS


def test_a_missing_medium_makes_no_folder(tmp_path, config):
    with pytest.raises(MediaError, match=r"missing\.mp4"):
        segment(tmp_path / "missing.mp4", tmp_path / "out", config, console=quiet())
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path, config):
    video = write_video(tmp_path / "a.mp4", 0.2)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SegmentError, match="cannot be written to"):
        segment(video, tmp_path / "out", config, console=quiet())


def test_stretched_masks_follow_the_logits():
    logits = np.array([[-1.0, 1.0], [-1.0, 1.0]], np.float32)
    mask = stretched_mask(logits, (8, 4), 0.5)
    assert mask.shape == (4, 8)
    assert mask.tolist() == [[False] * 4 + [True] * 4] * 4
    assert not stretched_mask(logits, (8, 4), 0.99).any()

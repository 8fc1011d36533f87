"""``atlasd dataset build`` and ``check`` as a person meets them."""

import io

import numpy as np
import pytest
from atlasd.streams import openavs
from atlasd.streams.avslayout import ClipFiles, DatasetError, Row, write_clip, write_table
from atlasd.tools import dataset
from PIL import Image
from rich.console import Console


def write_set(root, n=3):
    rows = [Row(f"dog_train_{at:04d}", "train", "dog", ("dog",)) for at in range(n)]
    rng = np.random.default_rng(0)
    for row in rows:
        masks = np.zeros((5, 224, 224), np.uint8)
        masks[:, 50:150, 60:160] = 1
        frames = np.full((5, 224, 224, 3), 90, np.uint8)
        sound = (0.1 * rng.standard_normal(80_000)).astype(np.float32)
        write_clip(root, "s4", ClipFiles(row, frames, masks, sound))
    write_table(root, "s4", rows)
    several = Row("several_train_0001", "train", None, ("cow", "dog"))
    write_clip(root, "ms3", ClipFiles(several, frames, masks, sound))
    write_table(root, "ms3", [several])


def console():
    return Console(file=io.StringIO(), width=100)


def test_a_build_reports_its_id_and_counts_and_leaves_a_contact_sheet(monkeypatch, tmp_path):
    asked = {}

    def fake_build(out, size, **options):
        asked.update(options, size=size)
        options["progress"]("clips", 1, 4)
        write_set(out)
        return openavs.Built(out, "open-avs-ci-0123", {"s4 train": 3, "ms3 train": 1})

    monkeypatch.setattr(openavs, "build", fake_build)
    out = console()
    dataset.build(tmp_path / "set", "ci", seed=4, workers=2, console=out)
    text = out.file.getvalue()
    assert "open-avs-ci-0123: s4 train 3, ms3 train 1" in text
    assert (asked["size"], asked["seed"], asked["workers"]) == ("ci", 4, 2)
    with Image.open(tmp_path / "set" / dataset.SHEET) as sheet:
        assert sheet.width > 4 * 224


def test_the_contact_sheet_tints_what_sounds(tmp_path):
    write_set(tmp_path)
    with Image.open(dataset.write_contact_sheet(tmp_path)) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3).astype(int)
    grey = np.abs(pixels - 90).max(axis=1) <= 2
    tinted = np.ptp(pixels, axis=1) > 30
    assert grey.sum() > 4 * 30_000
    assert tinted.sum() > 4 * 9_000


def test_a_sound_set_is_called_sound(tmp_path):
    write_set(tmp_path)
    out = console()
    assert dataset.check(tmp_path, console=out)
    assert "The data set is sound." in out.file.getvalue()


def test_a_damaged_set_is_told_file_by_file(tmp_path):
    write_set(tmp_path)
    frame = next(tmp_path.rglob("visual_frames/train/dog/dog_train_0001/*_2.png"))
    frame.write_bytes(b"not a picture")
    out = console()
    assert not dataset.check(tmp_path, console=out)
    text = out.file.getvalue()
    assert frame.name in text
    assert "The data set has errors." in text


def test_a_folder_without_a_set_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match="s4_meta_data"):
        dataset.check(tmp_path, console=console())

"""`atlasd score`: what it prints and writes, on a small network and small data."""

from __future__ import annotations

import io
import json
import math
import wave

import numpy as np
import pytest
from atlasd.model import checkpoints
from atlasd.model.presets import build
from atlasd.streams.catalogue import Item, content_sha256
from atlasd.streams.toyworld import write_dataset
from atlasd.tools import probe
from atlasd.tools.scorecard import score_masks
from atlasd.tools.trainoptions import TrainError
from PIL import Image
from rich.console import Console

RATE = 16_000


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    network = build("tiny", trained=False)
    network.trained = True
    folder = tmp_path_factory.mktemp("weights")
    checkpoints.save(network, folder)
    return folder


def test_masks_are_scored_by_subset_and_split_with_controls(weights, tmp_path):
    data = tmp_path / "toy"
    write_dataset(data, {"val": 1}, ms3_counts={"val": 2}, size_px=64)
    said = io.StringIO()
    results = score_masks(
        data,
        weights=weights,
        json_path=tmp_path / "new" / "scores.json",
        pictures=tmp_path / "sheets",
        console=Console(file=said, width=80),
    )
    assert list(results) == ["s4 val", "ms3 val"]
    for name in ("s4-val.png", "ms3-val.png"):
        with Image.open(tmp_path / "sheets" / name) as sheet:
            assert sheet.width > 2 * 224
    text = (tmp_path / "new" / "scores.json").read_text()
    written = json.loads(text, parse_constant=pytest.fail)  # NaN is no JSON
    for name, result in results.items():
        low, high = result["intervals"]["J by recording"]
        assert name in said.getvalue()
        assert f"{low:.2f}-{high:.2f}" in said.getvalue()
        for sound in ("own", "none", "other"):
            assert 0 <= result[sound]["J"] <= 1
            kept = written["results"][name][sound]
            assert kept == {k: None if math.isnan(v) else v for k, v in result[sound].items()}
        assert low <= result["own"]["J"] <= high


def test_a_split_without_clips_is_named(weights, tmp_path):
    data = tmp_path / "toy"
    write_dataset(data, {"val": 1}, size_px=64)
    with pytest.raises(TrainError, match="no test clips"):
        score_masks(data, weights=weights, split="test")


def tone(hz, seconds):
    file = io.BytesIO()
    samples = 0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


def test_recordings_are_heard_in_windows_short_ones_repeated_long_ones_thinned(tmp_path):
    items = []
    for name, split, seconds in (("bell", "train", 0.2), ("horn", "val", 3.2), ("bell", "val", 40)):
        path = f"/usr/{name}_{split}.wav"
        file = tmp_path / "things" / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tone(500, seconds))
        sha256 = content_sha256(file.read_bytes(), "sound")
        items.append(Item(name, (split,), "sound", "things", path, sha256, "CC0"))
    network = build("tiny", trained=False)
    heard = probe.hear(network, tmp_path, ("train", "val"), items=items)
    assert [(h.category, h.split, h.played) for h in heard] == [
        ("bell", "train", False),
        ("horn", "val", False),
        ("bell", "val", False),
    ]
    # A window a second, each half a second after the one before; at most twenty.
    assert [len(h.features) for h in heard] == [1, 5, 20]
    assert heard[0].features.shape[1] == network.audio.embedding_dim

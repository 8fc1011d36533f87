"""The clips of a data set as networks take them: kept, and never those of other files."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from atlasd.model.presets import build
from atlasd.streams.avsbench import AVSBench
from atlasd.streams.toyworld import write_dataset
from atlasd.tools.clipstore import ClipStore
from atlasd.tools.diskcache import DiskCache
from PIL import Image


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path / "toy", {"train": 1, "val": 1, "test": 1}, size_px=64)


@pytest.fixture(scope="module")
def network():
    return build("tiny", trained=False, pretrained=False, categories=())


def store(data, network, folder):
    """As a new run opens it."""
    return ClipStore(data, "s4", network, DiskCache(folder, 1 << 30), seed=0)


class Watched(DiskCache):
    """Notes the keys that are asked for."""

    def __init__(self, folder, asked):
        super().__init__(folder, 1 << 30)
        self._asked = asked

    def get(self, key, make):
        self._asked.append(key)
        return super().get(key, make)


def test_a_mask_that_was_painted_over_is_read_anew(data, network, tmp_path):
    entry = AVSBench(data, "s4").clips("test")[0]
    clip, path = f"s4/test/{entry.name}", entry.folder.mask(entry.row, 3)
    assert not store(data, network, tmp_path / "cache").truth(clip, 64)[0][2].all()
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(path)
    assert store(data, network, tmp_path / "cache").truth(clip, 64)[0][2].all()
    assert store(data, network, tmp_path / "cache").pictures(clip)[1][2].all()


def test_a_file_of_the_same_size_with_another_time_is_another(data, network, tmp_path):
    entry = AVSBench(data, "s4").clips("test")[0]
    clip, path = f"s4/test/{entry.name}", entry.folder.sound(entry.row)
    before = store(data, network, tmp_path / "cache").windows(clip)
    content, look = path.read_bytes(), path.stat()
    path.write_bytes(content[:44] + bytes(len(content) - 44))
    os.utime(path, ns=(look.st_atime_ns, look.st_mtime_ns + 1))
    after = store(data, network, tmp_path / "cache").windows(clip)
    assert before.any()
    assert not after.any()


def test_a_data_set_of_another_id_shares_nothing(data, network, tmp_path):
    """Rebuilt with an equal table, and with files that happen to look alike."""
    made: list[str] = []
    clip = f"s4/test/{AVSBench(data, 's4').clips('test')[0].name}"
    for known in ("a", "a", "b"):
        (data / "dataset.json").write_text(json.dumps({"id": known}))
        ClipStore(data, "s4", network, Watched(tmp_path, made), seed=0).truth(clip, 64)
    assert made[0] == made[1] != made[2]


def test_features_of_other_devices_and_threads_are_others(data, network, tmp_path):
    """Their last bits differ, and equal runs must give equal bytes."""
    made: list[str] = []
    clip = f"s4/test/{AVSBench(data, 's4').clips('test')[0].name}"
    for threads in (1, 1, 2):
        torch.set_num_threads(threads)
        ClipStore(data, "s4", network, Watched(tmp_path, made), seed=0).features(clip)
    keys = [key for key in made if key.startswith("features")]
    assert keys[0] == keys[1] != keys[2]


def test_what_is_in_the_cache_is_not_read_again(data, network, tmp_path):
    entry = AVSBench(data, "s4").clips("test")[0]
    clip = f"s4/test/{entry.name}"
    first = store(data, network, tmp_path / "cache").pictures(clip)
    paths = [entry.folder.frame(entry.row, k) for k in range(1, 6)]
    for path in paths:
        look = path.stat()
        path.write_bytes(bytes(look.st_size))  # unreadable, and looks as before
        os.utime(path, ns=(look.st_atime_ns, look.st_mtime_ns))
    again = store(data, network, tmp_path / "cache").pictures(clip)
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))


@pytest.mark.parametrize("frames", [(0,), (1, 3), (0, 1, 2, 3, 4)])
def test_some_sounds_are_encoded_as_if_there_were_no_others(frames, data, network, tmp_path):
    """To the last bit, by an encoder that is given these windows alone; kept under another name."""
    entry = AVSBench(data, "s4").clips("test")[0]
    clip = f"s4/test/{entry.name}"
    windows = entry.windows(1.0, network.preset.sample_rate_hz)[list(frames)]
    with torch.no_grad():
        expected = network.encode_audio(network.log_mel(torch.from_numpy(windows)))
    for _ in range(2):  # made, then from the disk
        clips = store(data, network, tmp_path / "cache")
        clips.features(clip)
        found = clips.heard(clip, frames)
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.equal(found.embedding, expected.embedding)

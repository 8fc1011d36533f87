"""Arrays on disk: kept within a bound, never half, whoever else writes there."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from atlasd.tools.diskcache import DiskCache


def test_the_cache_computes_once_and_keeps_what_fits(tmp_path):
    made: list[int] = []

    def make(n):
        made.append(n)
        return {"x": np.full(10_000, n, np.uint8)}

    cache = DiskCache(tmp_path, 60_000)
    for n in range(4):
        assert cache.get(f"key {n}", lambda n=n: make(n))["x"][0] == n
    assert DiskCache(tmp_path, 60_000).get("key 2", lambda: make(2))["x"][0] == 2
    assert made == [0, 1, 2, 3]
    for n in range(4, 12):
        cache.get(f"key {n}", lambda n=n: make(n))
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.npz")) <= 60_000


def test_the_cache_drops_the_least_recently_used(tmp_path):
    cache = DiskCache(tmp_path, 35_000)
    array = {"x": np.zeros(10_000, np.uint8)}
    for n in range(3):
        cache.get(f"key {n}", lambda: array)
    for age, n in ((30, 1), (20, 0), (10, 2)):
        path = next(iter(_files_of(tmp_path, f"key {n}")))
        os.utime(path, (1e9 - age, 1e9 - age))
    cache.get("key 3", lambda: array)
    assert not list(_files_of(tmp_path, "key 1"))
    assert list(_files_of(tmp_path, "key 2"))


def test_several_writers_keep_to_the_bound_together(tmp_path):
    """Each sees what the others wrote, but for a fiftieth of the bound each."""
    array = {"x": np.zeros(5_000, np.uint8)}
    writers = [DiskCache(tmp_path, 600_000) for _ in range(4)]
    most = 0
    for n in range(60):
        for k, writer in enumerate(writers):
            writer.get(f"{k} {n}", lambda: array)
        most = max(most, sum(file.stat().st_size for file in tmp_path.rglob("*.npz")))
    assert 500_000 < most <= 600_000 + 4 * (600_000 // 50 + 6_000)


def _files_of(folder, key):
    digest = hashlib.sha256(key.encode()).hexdigest()
    return folder.glob(f"{digest[:2]}/{digest[2:34]}.npz")


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 broken", b"no archive at all"])
def test_a_damaged_file_counts_as_missing(damage, tmp_path):
    cache = DiskCache(tmp_path, 1 << 20)
    cache.get("key", lambda: {"x": np.arange(3)})
    (path,) = tmp_path.rglob("*.npz")
    path.write_bytes(damage)
    assert cache.get("key", lambda: {"x": np.arange(4)})["x"].tolist() == [0, 1, 2, 3]


def test_a_file_that_another_process_drops_meanwhile_is_no_failure(tmp_path, monkeypatch):
    array = {"x": np.zeros(10_000, np.uint8)}
    DiskCache(tmp_path, 1 << 20).get("one", lambda: array)
    glob = Path.glob

    def raced(folder, pattern):
        for path in list(glob(folder, pattern)):
            if pattern.endswith("npz"):
                path.unlink()
            yield path

    monkeypatch.setattr(Path, "glob", raced)
    for most in (1 << 20, 10):
        cache = DiskCache(tmp_path, most)
        assert cache.get(f"two {most}", lambda: array)["x"].size == 10_000


def test_what_killed_processes_were_writing_is_swept_out_of_the_cache(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (tmp_path / "ab").mkdir()
    dead = tmp_path / "ab" / f"x.{process.pid}.part"
    alive = tmp_path / "ab" / f"x.{os.getppid()}.part"
    for path in (dead, alive):
        path.write_bytes(bytes(1000))
    DiskCache(tmp_path, 1 << 20).get("key", lambda: {"x": np.zeros(3)})
    assert (dead.exists(), alive.exists()) == (False, True)


def test_a_cache_of_nothing_keeps_nothing(tmp_path):
    cache = DiskCache(tmp_path / "none", 0)
    cache.get("key", lambda: {"x": np.arange(3)})
    assert not (tmp_path / "none").exists()

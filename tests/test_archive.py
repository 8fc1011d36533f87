"""The archive of masks."""

from __future__ import annotations

import numpy as np
import pytest
from atlasd.tools.archive import MaskArchive


def test_an_archive_gives_back_its_masks_and_times_without_pickle(tmp_path):
    rng = np.random.default_rng(0)
    masks = rng.random((7, 5, 9)) > 0.5
    with MaskArchive(tmp_path / "a.npz") as archive:
        for i, mask in enumerate(masks):
            archive.add(mask, pts_ns=i * 40, index=2 * i, epoch=i // 4)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as read:
        assert sorted(read.files) == ["epoch", "index", "masks", "pts_ns"]
        assert read["masks"].dtype == np.bool_
        np.testing.assert_array_equal(read["masks"], masks)
        assert read["pts_ns"].tolist() == [0, 40, 80, 120, 160, 200, 240]
        assert read["index"].tolist() == [0, 2, 4, 6, 8, 10, 12]
        assert read["epoch"].tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_an_exception_leaves_no_archive(tmp_path):
    with pytest.raises(KeyError), MaskArchive(tmp_path / "a.npz") as archive:
        archive.add(np.ones((2, 2), bool), pts_ns=0, index=0, epoch=0)
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_masks_of_two_shapes_are_refused(tmp_path):
    with MaskArchive(tmp_path / "a.npz") as archive:
        archive.add(np.ones((2, 2), bool), pts_ns=0, index=0, epoch=0)
        with pytest.raises(ValueError, match=r"\(3, 2\)"):
            archive.add(np.ones((3, 2), bool), pts_ns=1, index=1, epoch=0)

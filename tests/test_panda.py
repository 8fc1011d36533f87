"""PANDA: who is pasted where, pixel by pixel."""

import numpy as np
import pytest
import torch
from atlasd.model.method import MethodError
from atlasd.model.methods import load
from atlasd.model.presets import build


def prepared(preset="tiny", **options):
    method = load("panda", options)
    network = build(preset, trained=False, categories=("dog", "cow"))
    method.prepare(network)
    method.begin(None)
    return method


def batch_of(labels, valid=None):
    n, px = len(labels), 8
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, px, px, 3) * 10 + 5
    masks = torch.zeros(n, px, px, dtype=torch.uint8)
    for i in range(n):
        masks[i, i : i + 2, 1:4] = 1
    waves = torch.arange(n, dtype=torch.float32)[:, None].expand(n, 16)
    batch = {"images": images, "masks": masks, "labels": torch.tensor(labels), "waves": waves}
    return batch | {"valid": torch.tensor(valid or [True] * n)}


def test_a_tail_object_sounds_in_a_head_picture():
    batch = batch_of([0, 0, 0, 1])
    before = {name: value.clone() for name, value in batch.items()}
    made = prepared(share=1.0).transform(batch, np.random.default_rng(0))
    assert all(torch.equal(batch[name], before[name]) for name in batch), "a new batch"
    mask = before["masks"][3].bool()
    for taker in range(3):
        picture = made["images"][taker]
        assert (picture[mask] == before["images"][3][mask]).all()
        assert (picture[~mask] == before["images"][taker][~mask]).all()
        assert torch.equal(made["masks"][taker], before["masks"][3])
        assert torch.equal(made["waves"][taker], before["waves"][3])
    assert made["labels"].tolist() == [1, 1, 1, 1]
    assert torch.equal(made["images"][3], before["images"][3]), "the tail clip stays"


def test_all_frames_of_a_clip_that_is_seen_together_are_pasted():
    """Frames in pairs; the first alone is labelled, as in the single sources."""
    method = prepared("tiny-avsbench", share=1.0)
    assert method.network.clip_frames == 2
    before = batch_of([0, 0, 0, 0, 0, 0, 1, 1], [True, False] * 4)
    made = method.transform(before, np.random.default_rng(0))
    assert made["labels"].tolist() == [1] * 8
    for taker in (0, 2, 4):
        for frame in (0, 1):
            donor = before["masks"][6 + frame]
            assert torch.equal(made["masks"][taker + frame], donor)
            assert torch.equal(made["waves"][taker + frame], before["waves"][6 + frame])
            pasted = made["images"][taker + frame][donor.bool()]
            assert (pasted == before["images"][6 + frame][donor.bool()]).all()


def test_counts_run_on_and_are_blended():
    """`β·all + (1 − β)·here`: a class that was common before is still half common."""
    method = prepared(share=1.0, beta=0.5)
    method.transform(batch_of([0, 0, 0, 1]), np.random.default_rng(0))
    assert method.state["all"].tolist() == method.state["here"].tolist() == [3.0, 1.0]
    method.begin(None)
    made = method.transform(batch_of([1, 1, 1, 0]), np.random.default_rng(0))
    assert method.state["all"].tolist() == [4.0, 4.0]
    assert method.state["here"].tolist() == [1.0, 3.0]
    assert made["labels"].tolist() == [0, 0, 0, 0], "0: 2.5, 1: 3.5"


def test_as_many_of_each_class_are_left_alone():
    batch = batch_of([0, 1])
    made = prepared(share=1.0).transform(batch, np.random.default_rng(0))
    assert all(torch.equal(made[name], batch[name]) for name in batch)


def test_without_labels_any_object_goes_into_any_other_picture():
    batch = batch_of([-1, -1, -1])
    made = prepared(share=1.0).transform(batch, np.random.default_rng(0))
    for taker in range(3):
        donor = int(made["waves"][taker, 0])
        assert donor != taker
        assert torch.equal(made["masks"][taker], batch["masks"][donor])
    assert made["labels"].tolist() == [-1, -1, -1]


def test_a_clip_without_a_mask_neither_gives_nor_takes():
    batch = batch_of([0, 0, 0, 1], valid=[True, False, True, False])
    made = prepared(share=1.0).transform(batch, np.random.default_rng(0))
    assert all(torch.equal(made[name], batch[name]) for name in batch), "the tail clip has none"
    batch = batch_of([0, 0, 0, 1], valid=[True, False, True, True])
    made = prepared(share=1.0).transform(batch, np.random.default_rng(0))
    assert made["labels"].tolist() == [1, 0, 1, 1]


def test_the_same_random_numbers_make_the_same_batch():
    labels = [0] * 6 + [1] * 2
    one, two, other = (
        prepared(share=0.5).transform(batch_of(labels), np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("options", [{"share": 1.5}, {"beta": -0.5}])
def test_what_it_cannot_do_is_said(options):
    with pytest.raises(MethodError, match="both must be from 0 to 1"):
        load("panda", options)

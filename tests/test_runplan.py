"""Which clips take part in a run."""

from __future__ import annotations

from collections import Counter

import pytest
from atlasd.streams.toyworld import write_dataset
from atlasd.tools.clipstore import read_entries
from atlasd.tools.runplan import clips_of
from atlasd.tools.runspec import RunSpec


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "toy"
    counts = {"train": 7, "val": 1, "test": 1}
    return write_dataset(root, counts, ms3_counts={"train": 2, "val": 1, "test": 1}, size_px=16)


def trained(data, **told):
    spec = RunSpec(data=data, **told)
    entries = list(read_entries(data, spec.subset).values())
    return clips_of(spec, entries), clips_of(RunSpec(data=data, protocol=spec.protocol), entries)


@pytest.mark.parametrize(("wanted", "places"), [(1, [6]), (2, [3, 6]), (3, [2, 4, 6])])
def test_fewer_clips_of_a_category_are_taken_at_even_distances(data, wanted, places):
    chosen, every = trained(data, clips_per_class=wanted)
    for name in {clip.category for clip in every}:
        own = [clip.id for clip in every if clip.category == name and clip.split == "train"]
        taken = {clip.id for clip in chosen if clip.category == name and clip.split == "train"}
        assert taken == {own[place] for place in places}
    held_out = [clip for clip in every if clip.split != "train"]
    assert [clip for clip in chosen if clip.split != "train"] == held_out


@pytest.mark.parametrize("wanted", [0, 7, 100])
def test_all_take_part_where_there_are_no_more(data, wanted):
    chosen, every = trained(data, clips_per_class=wanted)
    assert chosen == every
    assert set(Counter(c.category for c in every if c.split == "train").values()) == {7}


def test_clips_without_a_category_all_take_part(data):
    chosen, every = trained(data, protocol="task-free", clips_per_class=1)
    assert {clip.category for clip in every} == {None}
    assert chosen == every

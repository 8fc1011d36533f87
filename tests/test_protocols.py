"""Protocols deal each clip once, to tasks of exact size, the same way each time."""

import json
import math
from collections import Counter
from hashlib import blake2b, sha256
from itertools import chain as joined
from pathlib import Path

import numpy as np
import pytest
from atlasd.streams.avsbench import AVSBench, Entry
from atlasd.streams.avscheck import AVSBENCH_S4
from atlasd.streams.avslayout import Row, SubsetFolder
from atlasd.streams.blur import blur, share, soften
from atlasd.streams.draws import draw, shuffled, uniform
from atlasd.streams.kmeans import chain, kmeans, nearest
from atlasd.streams.protocols import (
    ClipInfo,
    Manifest,
    Protocol,
    ProtocolError,
    Task,
    clip_info,
    describe,
    make_manifests,
)
from atlasd.streams.splits import task_sizes
from atlasd.streams.toyworld import write_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

seeds = st.integers(0, 10_000)
percents = st.floats(0, 100, allow_nan=False) | st.sampled_from([0, 10, 30, 50, 100])
quick = settings(max_examples=40, deadline=None)


def clips_of(counts: dict[str | None, tuple[int, int, int]], subset: str = "s4") -> list[ClipInfo]:
    """So many clips of train, val and test for each category."""
    return [
        ClipInfo(f"{subset}/{split}/{category}-{number}", split, subset, category)
        for category, numbers in counts.items()
        for split, count in zip(("train", "val", "test"), numbers, strict=True)
        for number in range(count)
    ]


S4 = clips_of({name: (n - 2 * test, test, test) for name, (n, test) in AVSBENCH_S4.items()})
MS3 = clips_of({None: (296, 64, 64)}, "ms3")


@st.composite
def labeled_sets(draw_from: st.DrawFn) -> list[ClipInfo]:
    """Small sets whose categories have any names that a text can be."""
    names = draw_from(
        st.lists(st.text(min_size=1, max_size=6), min_size=3, max_size=9, unique=True)
    )
    numbers = st.tuples(st.integers(1, 6), st.integers(0, 2), st.integers(1, 3))
    return clips_of({name: draw_from(numbers) for name in names})


def split_ids(clips: list[ClipInfo], split: str) -> list[str]:
    return sorted(clip.id for clip in clips if clip.split == split)


def trained(manifest: Manifest) -> list[str]:
    return [clip for task in manifest.tasks for clip in task.train]


def the_manifest(protocol: Protocol, clips: list[ClipInfo], **options) -> Manifest:
    (manifest,) = make_manifests(protocol, clips, **options)
    return manifest


def category_of(clips: list[ClipInfo]) -> dict[str, str | None]:
    return {clip.id: clip.category for clip in clips}


# Draws


def test_a_draw_is_a_keyed_hash_of_its_words() -> None:
    """The definition, written out: it must not change, or no seed gives its old stream again."""
    digest = blake2b("7\0order\0dög".encode(), digest_size=8).digest()
    assert draw(7, "order", "dög") == int.from_bytes(digest, "big")
    assert uniform(7, "order", "dög") == pytest.approx(int.from_bytes(digest, "big") / 2**64)


@quick
@given(items=st.lists(st.text(), unique=True), seed=seeds)
def test_a_shuffle_does_not_depend_on_the_order_that_it_is_given(
    items: list[str], seed: int
) -> None:
    assert shuffled(items, seed, "x") == shuffled(items[::-1], seed, "x")
    assert sorted(shuffled(items, seed, "x")) == sorted(items)


def test_a_shuffle_is_uniform() -> None:
    """Each of the 24 orders of four items comes 1/24 of the time, within four deviations."""
    count = 4800
    orders = Counter(tuple(shuffled("abcd", seed, "x")) for seed in range(count))
    assert len(orders) == 24
    deviation = math.sqrt(count / 24 * 23 / 24)
    assert all(abs(found - count / 24) < 4 * deviation for found in orders.values())


# Splits


def test_the_papers_splits() -> None:
    assert task_sizes("11-2", 23) == (11, 2, 2, 2, 2, 2, 2)
    assert task_sizes("31-5", 296) == (31, *[5] * 53)
    assert task_sizes("31-5", 296, tasks=50) == (31, *[5] * 49)


@quick
@given(base=st.integers(1, 40), step=st.integers(1, 12), available=st.integers(1, 120))
def test_sizes_of_any_split_add_up(base: int, step: int, available: int) -> None:
    split = f"{base}-{step}"
    if available < base:
        with pytest.raises(ProtocolError, match=f"needs at least {base} classes"):
            task_sizes(split, available)
        return
    kept = task_sizes(split, available, remainder="keep")
    dropped = task_sizes(split, available, remainder="drop")
    assert sum(kept) == available
    assert available - sum(dropped) == (available - base) % step
    assert dropped == (base, *[step] * ((available - base) // step))
    assert all(0 < size <= step for size in kept[1:])


@quick
@given(base=st.integers(1, 40), step=st.integers(1, 12), available=st.integers(2, 60))
def test_the_splits_that_a_refusal_names_fit(base: int, step: int, available: int) -> None:
    try:
        task_sizes(f"{base}-{step}", available)
    except ProtocolError as error:
        named = str(error).partition("splits that fit: ")[2].partition(";")[0].split(", ")
        assert named, "two classes or more can be split 1-1 at least"
        for split in named:
            assert sum(task_sizes(split, available)) == available


def test_a_remainder_is_refused_with_what_fits() -> None:
    with pytest.raises(ProtocolError) as caught:
        make_manifests(Protocol("cil", split="10-2"), S4)
    assert str(caught.value) == (
        "split 10-2 leaves 1 of 23 classes over; splits that fit: 9-2, 11-2, 10-1, 10-13; or set "
        "remainder to 'drop' or 'keep'"
    )


# TIL and CIL


@pytest.mark.parametrize("name", ["til", "cil"])
def test_avsbench_s4_makes_seven_tasks_of_11_and_2_classes(name: str) -> None:
    manifest = the_manifest(Protocol(name), S4, source="AVSBench")
    category = category_of(S4)
    assert [len(task.classes) for task in manifest.tasks] == [11, 2, 2, 2, 2, 2, 2]
    assert manifest.left_over == ()
    assert sorted(manifest.classes) == sorted(AVSBENCH_S4)
    assert manifest.classes == tuple(name for task in manifest.tasks for name in task.classes)
    for task in manifest.tasks:
        for split, ids in (("train", task.train), ("val", task.val), ("test", task.test)):
            assert sorted(ids) == sorted(
                clip.id for clip in S4 if clip.split == split and category[clip.id] in task.classes
            )


def test_til_and_cil_learn_the_same_stream() -> None:
    til, cil = (the_manifest(Protocol(name, seed=3), S4) for name in ("til", "cil"))
    assert til.tasks == cil.tasks
    assert til.sha256 != cil.sha256


@quick
@given(
    clips=labeled_sets(),
    seed=seeds,
    percent=st.tuples(percents, percents),
    soft=st.integers(0, 4),
    base=st.integers(1, 3),
    step=st.integers(1, 3),
    remainder=st.sampled_from(["drop", "keep"]),
)
def test_tasks_of_classes_hold_every_clip_once(
    clips: list[ClipInfo],
    seed: int,
    percent: tuple[float, float],
    soft: int,
    base: int,
    step: int,
    remainder: str,
) -> None:
    sharp = Protocol("cil", split=f"{base}-{step}", seed=seed, remainder=remainder)
    blurry = Protocol(
        "cil",
        split=f"{base}-{step}",
        seed=seed,
        remainder=remainder,
        disjoint_percent=percent[0],
        blurry_percent=percent[1],
        soft_clips=soft,
    )
    home, manifest = the_manifest(sharp, clips), the_manifest(blurry, clips)
    assert sorted((*trained(manifest), *manifest.left_over)) == split_ids(clips, "train")
    assert manifest.sizes == home.sizes
    assert [task.classes for task in manifest.tasks] == [task.classes for task in home.tasks]
    classes = [name for task in manifest.tasks for name in task.classes]
    assert len(classes) == len(set(classes))
    assert (remainder == "drop") or set(classes) == {clip.category for clip in clips}
    category = category_of(clips)
    for task, sharp_task in zip(manifest.tasks, home.tasks, strict=True):
        assert task.test == sharp_task.test, "boundaries are blurred for training alone"
        assert {category[clip] for clip in sharp_task.train} == set(task.classes)
        assert {category[clip] for clip in task.test} == set(task.classes)
    homes = {clip: task.index for task in home.tasks for clip in task.train}
    now = {clip: task.index for task in manifest.tasks for clip in task.train}
    assert {move.clip for move in manifest.moved} == {c for c in now if now[c] != homes[c]}
    assert all(
        (move.home, move.task) == (homes[move.clip], now[move.clip]) for move in manifest.drawn
    )


@quick
@given(clips=labeled_sets(), seed=seeds, shuffle=st.randoms())
def test_a_seed_means_one_stream_whatever_the_order_of_the_table(
    clips: list[ClipInfo], seed: int, shuffle
) -> None:
    protocol = Protocol("cil", split="1-1", seed=seed, blurry_percent=30, soft_clips=2)
    first = the_manifest(protocol, clips)
    again = clips.copy()
    shuffle.shuffle(again)
    assert the_manifest(protocol, again) == first
    assert the_manifest(protocol, again).sha256 == first.sha256


@pytest.mark.parametrize("name", ["til", "cil", "dil-per-category", "task-free"])
def test_another_seed_gives_another_stream(name: str) -> None:
    streams = {
        tuple(task.train for task in make_manifests(Protocol(name, seed=seed), S4)[0].tasks)
        for seed in range(5)
    }
    assert len(streams) == 5


def test_what_a_seed_gives_is_pinned() -> None:
    """A run that names its seed can be repeated after the next release."""
    clips = clips_of(dict.fromkeys(("á", "b", "c"), (2, 0, 1)))
    manifest = the_manifest(Protocol("cil", split="1-1", blurry_percent=50), clips)
    assert manifest.classes == tuple(
        sorted(
            "ábc", key=lambda name: blake2b(f"0\0order\0{name}".encode(), digest_size=8).digest()
        )
    )
    assert [task.train for task in manifest.tasks] == [
        ("s4/train/b-0", "s4/train/b-1"),
        ("s4/train/á-0", "s4/train/c-1"),
        ("s4/train/á-1", "s4/train/c-0"),
    ]


def test_fewer_tasks_leave_classes_over() -> None:
    manifest = the_manifest(Protocol("cil", tasks=3), S4)
    category = category_of(S4)
    assert len(manifest.tasks) == 3
    assert len(manifest.classes) == 15
    assert {category[clip] for clip in manifest.left_over} == set(AVSBENCH_S4) - set(
        manifest.classes
    )
    (whole,) = manifest.groups("whole")
    assert {category[clip] for clip in whole.clips} == set(manifest.classes)


def test_clips_of_test_novel_are_in_no_task() -> None:
    novel = ClipInfo("s4/test/novel", "test_novel", "s4", "race_car")
    unknown = ClipInfo("s4/test/other", "test_novel", "s4", "a category of its own")
    assert the_manifest(Protocol("cil"), [novel, *S4, unknown]) == the_manifest(Protocol("cil"), S4)


# Order by similarity


def line_features(clips: list[ClipInfo], places: dict[str | None, float]) -> np.ndarray:
    """Two dimensions: the place of a clip's category, and a little of its own."""
    rng = np.random.default_rng(0)
    rows = [(places[clip.category], 0.0) for clip in clips]
    return np.array(rows) + rng.normal(scale=1e-3, size=(len(clips), 2))


@pytest.mark.parametrize("seed", range(5))
def test_similar_classes_follow_each_other(seed: int) -> None:
    """From the first on, the next class is the nearest of those that are left."""
    places = {name: float(n**2) for n, name in enumerate(sorted(AVSBENCH_S4))}
    protocol = Protocol("cil", split="1-1", order="similarity", seed=seed)
    manifest = the_manifest(protocol, S4, features=line_features(S4, places))
    left = [places[name] for name in manifest.classes]
    while len(left) > 1:
        here, *left = left
        assert abs(left[0] - here) == min(abs(place - here) for place in left)


def test_the_first_class_of_a_chain_is_drawn() -> None:
    places = {name: float(n) for n, name in enumerate(sorted(AVSBENCH_S4))}
    features = line_features(S4, places)
    firsts = {
        the_manifest(Protocol("cil", order="similarity", seed=seed), S4, features=features).classes[
            0
        ]
        for seed in range(8)
    }
    assert len(firsts) > 3


@pytest.mark.parametrize("seed", range(3))
def test_similar_clips_come_in_one_chunk_and_are_tested_there(seed: int) -> None:
    """Six contexts of five clips, split 5-5: each chunk is one of them."""
    clips = clips_of({str(context): (5, 0, 1) for context in range(6)}, "ms3")
    category = category_of(clips)
    features = line_features(clips, {str(context): 10.0 * context for context in range(6)})
    protocol = Protocol("task-free", split="5-5", order="similarity", seed=seed)
    manifest = the_manifest(protocol, clips, features=features)
    for task in manifest.tasks:
        assert len({category[clip] for clip in (*task.train, *task.test)}) == 1
    order = [int(category[task.test[0]]) for task in manifest.tasks]
    assert abs(order[1] - order[0]) == 1, "the nearest context comes next"


def test_features_belong_to_clips_not_to_places() -> None:
    clips = MS3[::-1]
    features = np.random.default_rng(0).normal(size=(len(MS3), 4))
    protocol = Protocol("task-free", order="similarity")
    first = the_manifest(protocol, MS3, features=features)
    assert the_manifest(protocol, clips, features=features[::-1]).tasks == first.tasks
    assert the_manifest(protocol, MS3, features=features[::-1]).tasks != first.tasks


# Task-free


def test_avsbench_ms3_makes_the_papers_50_chunks_and_lists_20_left_over() -> None:
    manifest = the_manifest(Protocol("task-free"), MS3)
    assert manifest.sizes == (31, *[5] * 49)
    assert len(manifest.left_over) == 20
    assert sorted((*trained(manifest), *manifest.left_over)) == split_ids(MS3, "train")
    assert manifest.classes == ()
    assert all(task.classes == () for task in manifest.tasks)


@pytest.mark.parametrize("options", [{"tasks": 54}, {"remainder": "refuse"}, {"remainder": "keep"}])
def test_all_296_clips_make_54_chunks(options: dict[str, object]) -> None:
    manifest = the_manifest(Protocol("task-free", **options), MS3)
    assert manifest.sizes == (31, *[5] * 53)
    assert manifest.left_over == ()
    assert [len(task.test) for task in manifest.tasks] == [11, *[1] * 53]


def test_ms3s_test_clips_are_grouped_in_three_ways() -> None:
    manifest = the_manifest(Protocol("task-free"), MS3)
    tests = split_ids(MS3, "test")
    paper, groups, whole = (manifest.groups(name) for name in ("paper", "groups", "whole"))
    assert [len(group.clips) for group in paper] == [15, *[1] * 49]
    assert [group.clips for group in paper] == [task.test for task in manifest.tasks]
    assert [len(group.clips) for group in groups] == [15, 4, 7, 6, 6, 7, 6, 7, 6]
    for group in groups:
        assert group.clips == tuple(c for task in group.tasks for c in manifest.tasks[task].test)
    for grouping in (paper, groups, whole):
        assert sorted(clip for group in grouping for clip in group.clips) == tests
        assert [task for group in grouping for task in group.tasks] == list(range(50))
    assert len(whole) == 1


@quick
@given(train=st.integers(1, 120), spare=st.integers(0, 20), seed=seeds, val=st.integers(0, 30))
def test_smaller_sets_make_as_many_full_chunks_as_fit(
    train: int, spare: int, seed: int, val: int
) -> None:
    if train < 31:
        with pytest.raises(ProtocolError, match="needs at least 31 training clips"):
            make_manifests(Protocol("task-free"), clips_of({None: (train, val, 9)}))
        return
    tasks = 1 + (train - 31) // 5
    clips = clips_of({None: (train, val, tasks + spare)})
    manifest = the_manifest(Protocol("task-free", seed=seed), clips)
    assert manifest.sizes == (31, *[5] * (tasks - 1))
    assert len(manifest.left_over) == (train - 31) % 5
    assert sorted(clip for task in manifest.tasks for clip in task.val) == split_ids(clips, "val")
    assert [len(task.test) for task in manifest.tasks] == [spare + 1, *[1] * (tasks - 1)]


@pytest.mark.parametrize("order", ["random", "similarity"])
def test_what_is_left_over_does_not_depend_on_the_order(order: str) -> None:
    features = np.random.default_rng(1).normal(size=(len(MS3), 3))
    manifest = the_manifest(Protocol("task-free", order=order), MS3, features=features)
    assert manifest.left_over == the_manifest(Protocol("task-free"), MS3).left_over


# Blurry and soft boundaries


def test_the_papers_blur_draws_14_of_276_clips() -> None:
    """M = 10 % of the N = 50 % of all clips: 13.8, although 10 % of a task of five is none."""
    manifest = the_manifest(Protocol("task-free", blurry_percent=10), MS3)
    assert len(manifest.drawn) == 14
    assert manifest.sizes == (31, *[5] * 49)
    assert manifest.left_over == the_manifest(Protocol("task-free"), MS3).left_over
    assert 0 < len(manifest.moved) <= 14


@quick
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    seed=seeds,
    disjoint=percents,
    blurry=percents,
)
def test_blur_draws_exactly_its_fraction_and_keeps_sizes(
    sizes: list[int], seed: int, disjoint: float, blurry: float
) -> None:
    stream = [[f"{task}/{clip}" for clip in range(size)] for task, size in enumerate(sizes)]
    after, drawn = blur(stream, seed=seed, disjoint_percent=disjoint, blurry_percent=blurry)
    blurrable = math.floor(sum(sizes) * (100 - disjoint) / 100 + 0.5)
    assert len(drawn) == math.floor(blurrable * blurry / 100 + 0.5)
    assert [len(task) for task in after] == sizes
    before, now = ([*joined.from_iterable(tasks)] for tasks in (stream, after))
    assert sorted(before) == sorted(now)
    assert all(was in drawn for was, clip in zip(before, now, strict=True) if was != clip)


def test_disjoint_classes_keep_to_their_task() -> None:
    """N = 50 % of 23 classes: 12 (halves up) are blurry, and 30 % of their clips are drawn."""
    protocol = Protocol("cil", blurry_percent=30)
    manifest = the_manifest(protocol, S4)
    category = category_of(S4)
    blurry = {category[move.clip] for move in manifest.drawn}
    assert len(blurry) == 12
    count = sum(category[clip] in blurry for clip in split_ids(S4, "train"))
    assert len(manifest.drawn) == share(count, 30)
    for task in manifest.tasks:
        foreign = {category[clip] for clip in task.train} - set(task.classes)
        assert foreign <= blurry


def test_a_larger_m_draws_more_of_the_same() -> None:
    drawn = [
        {move.clip for move in the_manifest(Protocol("cil", blurry_percent=m), S4).drawn}
        for m in (0, 10, 30, 100)
    ]
    assert drawn[0] == set()
    assert drawn[0] < drawn[1] < drawn[2] < drawn[3]


@pytest.mark.parametrize("percent", [(100, 100), (0, 0), (100, 0)])
def test_no_blur_at_n_100_or_m_0(percent: tuple[float, float]) -> None:
    protocol = Protocol("cil", disjoint_percent=percent[0], blurry_percent=percent[1])
    manifest = the_manifest(protocol, S4)
    assert manifest.drawn == ()
    assert manifest.tasks == the_manifest(Protocol("cil"), S4).tasks


def test_a_drawn_clip_comes_home_once_in_as_many_times_as_there_are_tasks() -> None:
    stream = [[f"{task}/{clip}" for clip in range(20)] for task in range(5)]
    home = 0
    for seed in range(100):
        after, _ = blur(stream, seed=seed, disjoint_percent=0, blurry_percent=100)
        home += sum(clip[0] == str(task) for task, clips in enumerate(after) for clip in clips)
    assert home / (100 * 100) == pytest.approx(1 / 5, abs=0.02)


def test_a_soft_boundary_is_a_linear_ramp() -> None:
    """At slot i of the 2w about a boundary a clip of the later task has the chance (i + ½) / 2w."""
    count, width = 2000, 5
    stream = [[f"a{n}" for n in range(12)], [f"b{n}" for n in range(14)]]
    later = np.zeros(26)
    for seed in range(count):
        after, exchanged = soften(stream, seed=seed, soft_clips=width)
        clips = [*after[0], *after[1]]
        assert [len(task) for task in after] == [12, 14]
        assert sum(clip[0] == "a" for clip in after[1]) * 2 == len(exchanged)
        later += [clip[0] == "b" for clip in clips]
    expected = np.concatenate([np.zeros(7), (np.arange(10) + 0.5) / 10, np.ones(9)])
    deviations = np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(later / count - expected) <= 4 * deviations).all()


@quick
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9), seed=seeds, soft=st.integers(0, 9)
)
def test_soft_boundaries_keep_sizes_and_reach_the_neighbours_alone(
    sizes: list[int], seed: int, soft: int
) -> None:
    stream = [[f"{task}/{clip}" for clip in range(size)] for task, size in enumerate(sizes)]
    after, exchanged = soften(stream, seed=seed, soft_clips=soft)
    assert [len(task) for task in after] == sizes
    assert sorted(joined.from_iterable(after)) == sorted(joined.from_iterable(stream))
    came = {clip for task, clips in enumerate(after) for clip in clips if clip[0] != str(task)}
    assert came == exchanged
    for task, clips in enumerate(after):
        assert all(abs(int(clip.partition("/")[0]) - task) <= 1 for clip in clips)


def test_soft_boundaries_of_a_protocol_are_recorded() -> None:
    manifest = the_manifest(Protocol("cil", soft_clips=40), S4)
    home = the_manifest(Protocol("cil"), S4)
    assert manifest.sizes == home.sizes
    assert manifest.moved == manifest.drawn != ()
    assert all(abs(move.home - move.task) == 1 for move in manifest.moved)


# Domains


def blobs(counts: tuple[int, int, int], domains: int, seed: int = 0):
    """Clips of three categories whose features lie in so many clear heaps, and their heaps."""
    clips = clips_of(dict.fromkeys(("a", "b", "c"), counts))
    centres = 50 * np.random.default_rng(seed).normal(size=(domains, 6))
    heaps = np.arange(len(clips)) % domains
    noise = np.random.default_rng(seed + 1).normal(size=(len(clips), 6))
    return clips, centres[heaps] + noise, {c.id: int(h) for c, h in zip(clips, heaps, strict=True)}


@pytest.mark.parametrize("order", ["random", "similarity"])
def test_a_domain_is_a_cluster_of_all_categories(order: str) -> None:
    clips, features, heap = blobs((14, 7, 7), 7)
    manifest = the_manifest(Protocol("dil", order=order), clips, features=features)
    assert len(manifest.tasks) == 7
    for split in ("train", "val", "test"):
        ids = [clip for task in manifest.tasks for clip in getattr(task, split)]
        assert sorted(ids) == split_ids(clips, split)
    for task in manifest.tasks:
        assert len({heap[clip] for clip in (*task.train, *task.val, *task.test)}) == 1
    assert sorted(task.domain for task in manifest.tasks) == list(range(7))
    assert manifest.classes == ("a", "b", "c")
    assert [task.classes for task in manifest.tasks] == [("a", "b", "c"), *[()] * 6]


@settings(max_examples=15, deadline=None)
@given(
    train=st.integers(4, 12),
    domains=st.integers(1, 4),
    seed=seeds,
    soft=st.integers(0, 3),
    m=percents,
    rng=st.integers(0, 100),
)
def test_domains_hold_every_clip_once(
    train: int, domains: int, seed: int, soft: int, m: float, rng: int
) -> None:
    clips = clips_of({"a": (train, 3, 1), "ß": (train, 0, 40)})
    features = np.random.default_rng(rng).normal(size=(len(clips), 3))
    protocol = Protocol("dil", tasks=domains, seed=seed, soft_clips=soft, blurry_percent=m)
    try:
        manifest = the_manifest(protocol, clips, features=features)
    except ProtocolError as error:
        assert "have no test clip" in str(error)
        return
    assert sorted(trained(manifest)) == split_ids(clips, "train")
    assert len(manifest.tasks) == domains
    assert all(manifest.sizes)
    assert the_manifest(protocol, clips, features=features) == manifest


def test_a_domain_without_test_clips_is_refused() -> None:
    clips = clips_of({"a": (20, 0, 2)})
    places = np.array([0.0, 9.0])[np.arange(22) % 2]
    places[20:] = 0.0
    with pytest.raises(
        ProtocolError,
        match=r"domains 1 have no test clip \(the 2 domains have 2, 0\)|domains 0 have .* 0, 2",
    ):
        make_manifests(Protocol("dil", tasks=2), clips, features=places[:, None])


@pytest.mark.parametrize("order", ["random", "similarity"])
def test_per_category_each_category_comes_in_seven_even_parts(order: str) -> None:
    features = np.random.default_rng(0).normal(size=(len(S4), 4))
    manifests = make_manifests(Protocol("dil-per-category", order=order), S4, features=features)
    assert [manifest.category for manifest in manifests] == sorted(AVSBENCH_S4)
    for manifest in manifests:
        own = [clip for clip in S4 if clip.category == manifest.category]
        assert len(manifest.tasks) == 7
        assert max(manifest.sizes) - min(manifest.sizes) <= 1
        assert sorted(trained(manifest)) == split_ids(own, "train")
        assert sorted(clip for task in manifest.tasks for clip in task.test) == split_ids(
            own, "test"
        )
        assert manifest.classes == manifest.tasks[0].classes == (manifest.category,)
    assert len({manifest.sha256 for manifest in manifests}) == 23


# K-means


@pytest.mark.parametrize("k", [2, 7, 12])
@pytest.mark.parametrize("d", [2, 8])
@pytest.mark.parametrize("seed", range(4))
def test_kmeans_is_as_good_as_scikit_learns(k: int, d: int, seed: int) -> None:
    points, _ = make_blobs(150, d, centers=k, cluster_std=1.0, random_state=seed)
    theirs = KMeans(k, n_init=10, random_state=0).fit(points)
    assert kmeans(points, k, seed=seed).inertia <= 1.05 * theirs.inertia_


@quick
@given(k=st.integers(1, 12), n=st.integers(12, 90), d=st.integers(1, 8), seed=seeds)
def test_kmeans_ends_where_lloyd_changes_nothing(k: int, n: int, d: int, seed: int) -> None:
    """Each point is with the nearest centre, each centre is the mean of its points."""
    points = np.random.default_rng(seed).normal(size=(n, d))
    clusters = kmeans(points, k, seed=seed)
    assert set(clusters.labels.tolist()) == set(range(k))
    for cluster in range(k):
        members = points[clusters.labels == cluster]
        np.testing.assert_allclose(clusters.centres[cluster], members.mean(axis=0), atol=1e-9)
    distances = ((points[:, None] - clusters.centres) ** 2).sum(axis=2)
    np.testing.assert_array_equal(clusters.labels, distances.argmin(axis=1))
    np.testing.assert_array_equal(clusters.labels, nearest(points, clusters.centres))
    assert clusters.inertia == pytest.approx(distances.min(axis=1).sum(), abs=1e-9)


@quick
@given(n=st.integers(1, 12), distinct=st.integers(1, 3), seed=seeds, data=st.data())
def test_equal_points_fill_all_clusters(n: int, distinct: int, seed: int, data) -> None:
    k = data.draw(st.integers(1, n))
    points = (np.arange(n) % distinct).astype(np.float64)[:, None]
    clusters = kmeans(points, k, seed=seed)
    assert sorted(set(clusters.labels.tolist())) == list(range(k))
    assert np.isfinite(clusters.centres).all()


def test_kmeans_repeats_itself() -> None:
    points = np.random.default_rng(0).normal(size=(200, 5))
    first, again = (kmeans(points, 6, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first.labels, again.labels)
    np.testing.assert_array_equal(first.centres, again.centres)


def test_a_cloud_far_from_the_origin_is_clustered_as_well() -> None:
    points, heaps = make_blobs(60, 3, centers=3, cluster_std=0.1, random_state=0)
    labels = kmeans(points + 1e7, 3, seed=0).labels
    assert len(set(zip(labels.tolist(), heaps.tolist(), strict=True))) == 3


@pytest.mark.parametrize("k", [0, 4])
def test_kmeans_refuses_clusters_that_cannot_be(k: int) -> None:
    with pytest.raises(ValueError, match="it must be 1 to 3"):
        kmeans(np.zeros((3, 2)), k, seed=0)


def test_a_chain_along_a_line_keeps_its_order() -> None:
    places = np.array([[4.0], [0.0], [1.0], [9.0], [2.0]])
    assert chain(places, start=1) == [1, 2, 4, 0, 3]
    assert chain(places[:1], start=0) == [0]


# Manifests on disk


FEATURES = np.random.default_rng(0).normal(size=(len(S4), 4))
ALL = [
    Protocol("til", blurry_percent=10, soft_clips=5),
    Protocol("cil", split="12-4", remainder="keep", order="similarity", seed=2**40),
    Protocol("dil", tasks=3),
    Protocol("dil-per-category", tasks=2, blurry_percent=33.3),
    Protocol("task-free", split="100-50", tasks=9),
]


@pytest.mark.parametrize("protocol", ALL, ids=lambda protocol: protocol.name)
def test_what_was_written_is_read(protocol: Protocol, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "manifest.json"
    for manifest in make_manifests(protocol, S4, source="Ünïcode", features=FEATURES)[:2]:
        manifest.write(path)
        assert Manifest.read(path) == manifest
        assert Manifest.read(path).sha256 == manifest.sha256
        assert [file.name for file in path.parent.iterdir()] == ["manifest.json"]


@settings(quick, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(clips=labeled_sets(), seed=seeds, source=st.text())
def test_any_names_go_through_a_file(
    clips: list[ClipInfo], seed: int, source: str, tmp_path: Path
) -> None:
    protocol = Protocol("cil", split="1-1", seed=seed, blurry_percent=50)
    manifest = the_manifest(protocol, clips, source=source)
    manifest.write(tmp_path / "manifest.json")
    assert Manifest.read(tmp_path / "manifest.json") == manifest


def test_a_source_whose_path_is_no_text_can_be_written(tmp_path: Path) -> None:
    manifest = the_manifest(Protocol("cil"), S4, source="data/\udcff")
    manifest.write(tmp_path / "manifest.json")
    assert Manifest.read(tmp_path / "manifest.json").source == "data/?"


def written(tmp_path: Path) -> tuple[Path, dict]:
    path = tmp_path / "manifest.json"
    clips = clips_of(dict.fromkeys("abcd", (3, 1, 1)))
    the_manifest(Protocol("cil", split="2-1", blurry_percent=60), clips).write(path)
    return path, json.loads(path.read_text(encoding="utf-8"))


def leaves(value: object, at: tuple = ()) -> list[tuple]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [found for key, inner in items for found in leaves(inner, (*at, key))]
    return [at]


def test_any_change_is_noticed(tmp_path: Path) -> None:
    path, document = written(tmp_path)
    assert len(leaves(document)) > 40
    for *way, last in leaves(document):
        changed = json.loads(json.dumps(document))
        place = changed
        for key in way:
            place = place[key]
        place[last] = f"{place[last]}x"
        path.write_text(json.dumps(changed))
        with pytest.raises(ProtocolError, match=r"changed after it was written|is of format"):
            Manifest.read(path)


def signed(document: dict) -> str:
    """The hash as it is documented: of canonical JSON without the hash itself."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps({**content, "sha256": sha256(canonical.encode()).hexdigest()})


def test_the_hash_is_of_canonical_json(tmp_path: Path) -> None:
    path, document = written(tmp_path)
    assert json.loads(signed(document)) == document
    path.write_text(signed(document))
    assert Manifest.read(path).sha256 == document["sha256"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "is of format 2; this program reads 1"),
        ({"tasks": None}, "is no whole manifest"),
        ({"left_over": "a"}, "is no whole manifest"),
        ({"left_over": ["s4/train/a-0"]}, "'s4/train/a-0' comes 2 times"),
    ],
)
def test_a_manifest_that_is_none_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    path, document = written(tmp_path)
    path.write_text(signed(document | change))
    with pytest.raises(ProtocolError, match=message):
        Manifest.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[1, 2]", "no manifest of a protocol"),
        (b'{"tasks": []}', "no manifest of a protocol"),
        (b'{"format": 1, "sha256": "\\ud800", "x": "\\ud800"}', "changed after it was written"),
    ],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(ProtocolError, match=message):
        Manifest.read(path)
    with pytest.raises(ProtocolError, match="cannot be read"):
        Manifest.read(tmp_path / "missing.json")


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        the_manifest(Protocol("cil"), S4).write(tmp_path / "manifest.json")
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


def test_a_manifest_keeps_its_promises() -> None:
    tasks = (Task(1, "base", ("x", "x"), (), (), ()),)
    with pytest.raises(ProtocolError) as caught:
        Manifest(Protocol("cil"), "", tasks, ("x",), (), ())
    assert caught.value.lines == (
        "training clip 'x' comes 3 times",
        "task 1 stands at place 0",
        "task 0 has no test clips",
    )


def test_a_manifest_as_a_table() -> None:
    clips = clips_of({"a": (3, 1, 2), "b": (4, 0, 1), "c": (5, 2, 3)})
    protocol = Protocol("cil", split="2-1", disjoint_percent=0, blurry_percent=100)
    manifest = the_manifest(protocol, clips)
    rows = describe(manifest)
    assert [row["task"] for row in rows] == [0, 1]
    assert [row["name"] for row in rows] == ["base", "increment 1"]
    assert [row["new_classes"] for row in rows] == [", ".join(t.classes) for t in manifest.tasks]
    assert sum(row["train"] for row in rows) == 12
    assert (sum(row["val"] for row in rows), sum(row["test"] for row in rows)) == (3, 6)
    category = category_of(clips)
    for row, task in zip(rows, manifest.tasks, strict=True):
        assert row["moved"] == sum(category[clip] not in task.classes for clip in task.train)


# Refusals


def test_all_that_is_wrong_with_a_protocol_is_told_at_once() -> None:
    with pytest.raises(ProtocolError) as caught:
        Protocol(
            "xil",
            split="11:2",
            order="sorted",
            seed=-1,
            tasks=0,
            remainder="some",
            disjoint_percent=float("nan"),
            blurry_percent=100.5,
            soft_clips=-2,
        )
    assert [line.split(";")[0] for line in caught.value.lines] == [
        "protocol is 'xil'",
        "order is 'sorted'",
        "remainder is 'some'",
        "split is '11:2'",
        "seed is -1",
        "tasks is 0",
        "soft_clips is -2",
        "disjoint_percent (N) is nan",
        "blurry_percent (M) is 100.5",
    ]
    assert str(caught.value) == "\n".join(caught.value.lines)


@pytest.mark.parametrize(
    "split", ["0-2", "11-0", "11", "-", "11-2-2", " 11-2", "11-2\n", "١١-٢", "1e1-2", "9" * 5000]
)
def test_a_split_is_two_whole_numbers(split: str) -> None:
    with pytest.raises(ProtocolError, match="two whole numbers from 1"):
        Protocol("cil", split=split)


def test_a_dil_protocol_has_no_split() -> None:
    with pytest.raises(ProtocolError) as caught:
        Protocol("dil", split="11-2", remainder="keep")
    assert len(caught.value.lines) == 2


def test_defaults_are_filled_in() -> None:
    assert (Protocol("til").split, Protocol("til").remainder) == ("11-2", "refuse")
    assert (Protocol("task-free").split, Protocol("task-free").remainder) == ("31-5", "drop")
    assert (Protocol("dil").split, Protocol("dil").tasks) == ("", 7)
    assert Protocol("cil", blurry_percent=10) == Protocol("cil", blurry_percent=10.0)


def test_all_that_is_wrong_with_the_clips_is_told_at_once() -> None:
    clips = [
        *clips_of({"a": (2, 1, 1), "no test": (2, 1, 0), "no train": (0, 1, 1)}),
        ClipInfo("s4/train/a-0", "train", "s4", "a"),
        ClipInfo("odd", "dev", "s4", "a"),
        ClipInfo("ms3/train/x", "train", "ms3"),
    ]
    features = np.zeros((3, 2))
    with pytest.raises(ProtocolError) as caught:
        make_manifests(Protocol("cil", order="similarity"), clips, features=features)
    assert list(caught.value.lines) == [
        "ids of several clips: s4/train/a-0; each clip must have its own",
        "unknown splits: odd 'dev'; allowed are train, val, test, test_novel",
        "protocol cil needs the class of each clip; there is none for ms3/train/x (AVSBench's MS3 "
        "names no classes)",
        "classes with too few train clips: no train (0); each needs at least 1",
        "classes with too few test clips: no test (0); each needs at least 1",
        "split 11-2 needs at least 11 classes; there are 3; splits that fit: 1-2, 1-1",
        "features are (3, 2); expected a row for each of 12 clips",
    ]


@pytest.mark.parametrize(
    ("protocol", "clips", "message"),
    [
        (Protocol("cil"), [], "there are no train clips"),
        (Protocol("task-free"), clips_of({None: (40, 0, 0)}), "there are no test clips"),
        (Protocol("task-free"), clips_of({None: (61, 0, 6)}), "6 test clips .* to 7 tasks"),
        (Protocol("task-free", tasks=55), MS3, "at most 54 of 296 training clips"),
        (Protocol("task-free", split="30-5", remainder="refuse"), MS3, "leaves 1 of 296"),
        (Protocol("cil", tasks=8), S4, "at most 7 of 23 classes"),
        (Protocol("cil"), MS3, "ms3/train/None-3, ms3/train/None-4 and 419 more"),
        (Protocol("dil"), clips_of({"a": (6, 1, 1)}), "6 train clips cannot be 7 domains"),
        (Protocol("dil"), S4, "protocol dil compares clips: features are needed"),
        (Protocol("cil", order="similarity"), S4, "order similarity compares clips"),
        (Protocol("dil-per-category"), clips_of({"a": (7, 0, 6)}), r"few test clips: a \(6\)"),
    ],
)
def test_clips_that_do_not_fit_are_refused(
    protocol: Protocol, clips: list[ClipInfo], message: str
) -> None:
    with pytest.raises(ProtocolError, match=message):
        make_manifests(protocol, clips)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros(len(MS3)), "expected a row for each"),
        (np.zeros((len(MS3), 0)), "expected a row for each"),
        (np.zeros((len(MS3), 2), dtype=complex), "expected real numbers"),
        (np.full((len(MS3), 2), np.nan, dtype=np.float32), "are not finite"),
        (np.full((len(MS3), 2), 1e200), "are not finite, or beyond 1e"),
    ],
)
def test_features_that_do_not_fit_are_refused(features: np.ndarray, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        make_manifests(Protocol("task-free"), MS3, features=features)


def test_the_clip_with_a_bad_feature_is_named() -> None:
    features = np.zeros((len(MS3), 2), dtype=np.float32)
    features[3, 1] = np.inf
    with pytest.raises(ProtocolError, match=r"for ms3/train/None-3$"):
        make_manifests(Protocol("task-free"), MS3, features=features)


# Clips of a data set


def test_a_clip_has_the_id_that_its_data_will_have(tmp_path: Path) -> None:
    counts = {"train": 1, "val": 1, "test": 1}
    root = write_dataset(tmp_path / "toy", counts, ms3_counts=counts, size_px=32)
    for subset in ("s4", "ms3"):
        data = AVSBench(root, subset)
        entries = [entry for split in counts for entry in data.clips(split)]
        infos = [clip_info(entry) for entry in entries]
        assert len({info.id for info in infos}) == len(infos)
        for entry, info in zip(entries[:3], infos, strict=False):
            assert info.id == entry.labeled_clip(32).clip_id
        assert [info.category for info in infos] == [entry.category for entry in entries]
        assert {info.subset for info in infos} == {subset}
        protocol = Protocol("cil" if subset == "s4" else "task-free", split="1-1")
        assert sorted(trained(the_manifest(protocol, infos))) == split_ids(infos, "train")


def test_a_novel_clip_is_test_novel() -> None:
    row = Row("x", "test", "dog", ("dog",), novel=True)
    info = clip_info(Entry(row, SubsetFolder(Path("s"), "s4")))
    assert info == ClipInfo("s4/test/x", "test_novel", "s4", "dog")

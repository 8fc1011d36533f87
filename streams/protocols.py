"""Continual-learning protocols: from the clips of a data set to ordered tasks.

The protocols of "Can You Hear, Localize, and Segment Continually?" (arXiv 2603.08967), "the paper":
TIL, CIL and DIL on single-source clips, task-free on multi-source clips. What the paper leaves open
is decided here and said where it is decided. Nothing of a clip is read but its id, split and class;
where clips are compared, the caller gives their features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from .avsbench import Entry, Split
from .blur import blur, soften
from .draws import draw, shuffled
from .kmeans import Clusters, chain, kmeans, nearest
from .manifest import (
    Grouping,
    Manifest,
    Move,
    Name,
    Order,
    Protocol,
    ProtocolError,
    Remainder,
    ScoreGroup,
    Task,
    describe,
)
from .splits import sizes_of

__all__ = [
    "ClipInfo",
    "Grouping",
    "Manifest",
    "Move",
    "Name",
    "Order",
    "Protocol",
    "ProtocolError",
    "Remainder",
    "ScoreGroup",
    "Task",
    "clip_info",
    "describe",
    "make_manifests",
]

SCORE_GROUPS = 10
"""Most groups of test clips of a task-free run, of about a tenth of them each."""
LARGEST_FEATURE = 1e100
_PARTS: tuple[Split, ...] = ("train", "val", "test")
_SPLITS: dict[str, Split] = {split: split for split in get_args(Split)}


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """What a protocol needs to know of a clip.

    Attributes:
        id: unique; `clip_info` gives that of `Entry.labeled_clip`.
        split: ``train``, ``val`` or ``test``; clips of ``test_novel`` are in no protocol.
        subset: ``s4`` or ``ms3``, or whatever the caller's clips are of.
        category: the class with which the clip comes (of Open-AVS's negatives, in which nothing
            in view sounds, the silent one that they are filed under), or None.
    """

    id: str
    split: Split
    subset: str = ""
    category: str | None = None


def clip_info(entry: Entry) -> ClipInfo:
    """What a protocol needs to know of a data set's clip."""
    subset = entry.folder.subset
    split = "test_novel" if entry.novel else _SPLITS[entry.split]
    return ClipInfo(f"{subset}/{entry.split}/{entry.name}", split, subset, entry.category)


def make_manifests(
    protocol: Protocol,
    clips: Sequence[ClipInfo],
    *,
    source: str = "",
    features: NDArray[np.floating] | None = None,
) -> tuple[Manifest, ...]:
    """Deals the clips of a data set to the tasks of a protocol.

    The same clips, in whatever order, and the same protocol make the same manifest (that of
    clusters: on the same machine; see `kmeans`). Within a task training clips come in random order.

    - ``til``, ``cil``: a split of 11-2 brings 11 classes in the first task and 2 in each later one,
      with all their clips. Order ``similarity`` goes from the mean of a class's training features
      always to the nearest that is left, from a random start.
    - ``dil``: the domains are the clusters of the training clips' features (the paper does not say
      what a domain is); val and test clips belong to the nearest centre. Order ``similarity``
      chains the centres likewise. Domains differ in size.
    - ``dil-per-category``: the paper's definition taken by its letter, domains inside one category:
      its clips in chunks of equal size (by one clip). Order ``random`` makes them alike; with
      ``similarity`` the clips come cluster after cluster, chained.
    - ``task-free``: chunks of clips by a split of 31-5. Clips left over are drawn at random, first.
      Order ``similarity`` clusters the others into as many pseudo-contexts as there are tasks,
      chains these and cuts their clips to the tasks' sizes. Of n test clips (val clips likewise)
      the T tasks get n - T + 1, 1, 1, …, as 64 = 15 + 49·1 must be dealt to 50; with ``similarity``
      in the order of the contexts that they are nearest to. Where there are fewer val clips than
      tasks, the last tasks have none.

    Args:
        protocol: what is wanted.
        clips: all of a data set; those of ``test_novel`` are passed over.
        source: id or path of the data set, to be written down.
        features: (N, D), a row for each of ``clips``, in their order, finite; compared by
            Euclidean distance as they are. May be None unless `Protocol.needs_features`.

    Returns:
        One manifest; of ``dil-per-category`` one for each category, sorted by name.

    Raises:
        ProtocolError: the clips or the features do not fit the protocol, all faults together; or
            a domain that clustering found has no test clip.
    """
    if faults := list(_faults(protocol, clips, features)):
        raise ProtocolError(faults)
    pool = _pool(clips, features)
    source = source.encode(errors="replace").decode()  # a path may hold bytes that are no text
    if protocol.name == "dil-per-category":
        return tuple(
            _category_manifest(protocol, pool.of(category), source, category)
            for category in pool.categories
        )
    if protocol.by_class:
        deal = _classes(protocol, pool)
    elif protocol.name == "dil":
        deal = _domains(protocol, pool)
    else:
        deal = _chunks(protocol, pool)
    return (_manifest(protocol, pool, source, deal),)


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    """The clips of train, val and test, sorted by id, each with its row of features."""

    clips: tuple[ClipInfo, ...]
    points: dict[str, NDArray[np.float64]]

    def ids(self, split: Split, categories: Iterable[str | None] = ()) -> list[str]:
        """Ids of a split, of all or of some categories."""
        wanted = set(categories)
        return [
            clip.id
            for clip in self.clips
            if clip.split == split and (not wanted or clip.category in wanted)
        ]

    @property
    def categories(self) -> list[str]:
        return sorted({clip.category for clip in self.clips if clip.category})

    def of(self, category: str) -> _Pool:
        """The clips of one category."""
        return _Pool(tuple(c for c in self.clips if c.category == category), self.points)

    def features(self, ids: Sequence[str]) -> NDArray[np.float64]:
        """(N, D); N > 0."""
        return np.stack([self.points[clip] for clip in ids])

    def nearest(self, ids: Sequence[str], clusters: Clusters) -> list[int]:
        """The cluster that each clip belongs to."""
        return nearest(self.features(ids), clusters.centres).tolist() if ids else []


@dataclass(slots=True)
class _Draft:
    """A task before its boundaries are blurred."""

    name: str
    train: list[str]
    val: list[str]
    test: list[str]
    classes: list[str] = field(default_factory=list[str])
    domain: int | None = None


@dataclass(frozen=True, slots=True)
class _Deal:
    drafts: list[_Draft]
    classes: list[str]
    left_over: list[str] = field(default_factory=list[str])


def _pool(clips: Sequence[ClipInfo], features: NDArray[np.floating] | None) -> _Pool:
    used = sorted((clip for clip in clips if clip.split in _PARTS), key=lambda clip: clip.id)
    if features is None:
        return _Pool(tuple(used), {})
    rows = np.asarray(features, dtype=np.float64)
    return _Pool(tuple(used), dict(zip((clip.id for clip in clips), rows, strict=True)))


def _classes(protocol: Protocol, pool: _Pool) -> _Deal:
    names, seed = pool.categories, protocol.seed
    if protocol.order == "similarity":
        means = [pool.features(pool.ids("train", [name])).mean(axis=0) for name in names]
        names = [names[place] for place in _chained(np.stack(means), seed)]
    else:
        names = shuffled(names, seed, "order")
    sizes = sizes_of(protocol, len(names))
    drafts = [
        _Draft(_name(index), *(pool.ids(part, new) for part in _PARTS), classes=new)
        for index, new in enumerate(_cut(names, sizes))
    ]
    used, dropped = names[: sum(sizes)], names[sum(sizes) :]
    return _Deal(drafts, used, pool.ids("train", dropped) if dropped else [])


def _domains(protocol: Protocol, pool: _Pool) -> _Deal:
    train, seed = pool.ids("train"), protocol.seed
    k = protocol.tasks or 1
    clusters = _clusters(protocol, pool, train, k)
    members = {part: [list[str]() for _ in range(k)] for part in _PARTS}
    for part in _PARTS:
        ids = pool.ids(part)
        labels = clusters.labels if part == "train" else pool.nearest(ids, clusters)
        for clip, domain in zip(ids, labels, strict=True):
            members[part][domain].append(clip)
    if untested := [str(domain) for domain in range(k) if not members["test"][domain]]:
        sizes = ", ".join(str(len(ids)) for ids in members["test"])
        raise ProtocolError(
            [
                f"domains {', '.join(untested)} have no test clip (the {k} domains have {sizes}); "
                "ask for fewer tasks, or take another seed or other features"
            ]
        )
    if protocol.order == "similarity":
        order = _chained(clusters.centres, seed)
    else:
        order = [int(domain) for domain in shuffled(map(str, range(k)), seed, "order")]
    drafts = [
        _Draft(f"domain {domain}", *(members[part][domain] for part in _PARTS), domain=domain)
        for domain in order
    ]
    drafts[0].classes = pool.categories
    return _Deal(drafts, pool.categories)


def _chunks(protocol: Protocol, pool: _Pool) -> _Deal:
    sizes = sizes_of(protocol, len(pool.ids("train")))
    val, test = (_dealt(len(pool.ids(part)), len(sizes)) for part in ("val", "test"))
    deal = _chunked(protocol, pool, {"train": sizes, "val": val, "test": test})
    return _Deal(deal.drafts, pool.categories, deal.left_over)


def _category_manifest(protocol: Protocol, pool: _Pool, source: str, category: str) -> Manifest:
    tasks = protocol.tasks or 1
    deal = _chunked(protocol, pool, {part: _even(len(pool.ids(part)), tasks) for part in _PARTS})
    deal.drafts[0].classes = [category]
    for number, draft in enumerate(deal.drafts, 1):
        draft.name = f"part {number} of {tasks}"
    return _manifest(protocol, pool, source, _Deal(deal.drafts, [category]), category)


def _chunked(protocol: Protocol, pool: _Pool, sizes: dict[Split, Sequence[int]]) -> _Deal:
    """Cuts each split to tasks of these sizes, in the order of the protocol."""
    seed, count = protocol.seed, sum(sizes["train"])
    ids = {part: shuffled(pool.ids(part), seed, "order") for part in _PARTS}
    ids["train"], left_over = ids["train"][:count], sorted(ids["train"][count:])
    if protocol.order == "similarity":
        clusters = _clusters(protocol, pool, sorted(ids["train"]), len(sizes["train"]))
        rank = np.argsort(_chained(clusters.centres, seed))  # cluster to place in the chain
        for part in _PARTS:
            place = dict(zip(ids[part], rank[pool.nearest(ids[part], clusters)], strict=True))
            ids[part].sort(key=place.__getitem__)
    cut = zip(*(_cut(ids[part], sizes[part]) for part in _PARTS), strict=True)
    return _Deal([_Draft(_name(n), *parts) for n, parts in enumerate(cut)], [], left_over)


def _name(index: int) -> str:
    return f"increment {index}" if index else "base"


def _cut(items: Sequence[str], sizes: Iterable[int]) -> list[list[str]]:
    left = iter(items)
    return [[next(left) for _ in range(size)] for size in sizes]


def _even(count: int, parts: int) -> list[int]:
    return [count // parts + (part < count % parts) for part in range(parts)]


def _dealt(count: int, tasks: int) -> list[int]:
    """Clips a task: n - T + 1, 1, 1, …, as 15 + 49·1; of fewer clips than tasks one each."""
    if count < tasks:
        return [1] * count + [0] * (tasks - count)
    return [count - tasks + 1] + [1] * (tasks - 1)


def _clusters(protocol: Protocol, pool: _Pool, ids: Sequence[str], k: int) -> Clusters:
    return kmeans(pool.features(ids), k, seed=draw(protocol.seed, "k-means"))


def _chained(centres: NDArray[np.float64], seed: int) -> list[int]:
    start = shuffled(map(str, range(len(centres))), seed, "start")[0]
    return chain(centres, int(start))


def _manifest(
    protocol: Protocol, pool: _Pool, source: str, deal: _Deal, category: str = ""
) -> Manifest:
    """Shuffles within tasks, blurs and softens their boundaries, and forms the test groups."""
    seed = protocol.seed
    homes = [shuffled(draft.train, seed, "within") for draft in deal.drafts]
    stream, blurred = blur(
        homes,
        seed=seed,
        disjoint_percent=protocol.disjoint_percent,
        blurry_percent=protocol.blurry_percent,
        kinds={clip.id: clip.category or "" for clip in pool.clips} if protocol.by_class else None,
    )
    stream, softened = soften(stream, seed=seed, soft_clips=protocol.soft_clips)
    home = {clip: index for index, task in enumerate(homes) for clip in task}
    return Manifest(
        protocol=protocol,
        source=source,
        tasks=tuple(
            Task(
                index=index,
                name=draft.name,
                train=tuple(train),
                test=tuple(draft.test),
                val=tuple(draft.val),
                classes=tuple(draft.classes),
                domain=draft.domain,
            )
            for index, (draft, train) in enumerate(zip(deal.drafts, stream, strict=True))
        ),
        left_over=tuple(deal.left_over),
        classes=tuple(deal.classes),
        score_groups=tuple(_score_groups(protocol, [draft.test for draft in deal.drafts])),
        drawn=tuple(
            Move(clip, home[clip], index)
            for index, task in enumerate(stream)
            for clip in task
            if clip in blurred or clip in softened
        ),
        category=category,
    )


def _score_groups(protocol: Protocol, tests: Sequence[Sequence[str]]) -> Iterator[ScoreGroup]:
    for index, test in enumerate(tests):
        yield ScoreGroup("paper", (index,), tuple(test))
    if protocol.name == "task-free":
        for members in _tenths([len(test) for test in tests]):
            clips = (clip for task in members for clip in tests[task])
            yield ScoreGroup("groups", tuple(members), tuple(clips))
    clips = (clip for test in tests for clip in test)
    yield ScoreGroup("whole", tuple(range(len(tests))), tuple(clips))


def _tenths(sizes: Sequence[int]) -> list[list[int]]:
    """Tasks in a row, together where the middles of their test clips are in the same tenth of all.

    A task is never divided, so a large one leaves fewer than `SCORE_GROUPS`.
    """
    middles = np.cumsum(sizes) - np.array(sizes) / 2
    tenths = (SCORE_GROUPS * middles / sum(sizes)).astype(int).tolist()
    return [[task for task, _ in run] for _, run in groupby(enumerate(tenths), itemgetter(1))]


def clip_faults(protocol: Protocol, clips: Sequence[ClipInfo]) -> Iterator[str]:
    """All reasons why these clips cannot be dealt that show without their features.

    What only the features tell is whether each domain of ``dil`` has a test clip.
    """
    counts = Counter(clip.id for clip in clips)
    if twice := [clip for clip, count in counts.items() if count > 1]:
        yield f"ids of several clips: {_some(twice)}; each clip must have its own"
    if odd := [f"{clip.id} {clip.split!r}" for clip in clips if clip.split not in _SPLITS]:
        yield f"unknown splits: {_some(odd)}; allowed are {', '.join(_SPLITS)}"
    there = {clip.split for clip in clips}
    for part in ("train", "test"):
        if part not in there:
            yield f"there are no {part} clips"
    if protocol.by_class or protocol.name == "dil-per-category":
        yield from _category_faults(protocol, clips)
    else:
        yield from _chunk_faults(protocol, Counter(clip.split for clip in clips))


def _faults(
    protocol: Protocol, clips: Sequence[ClipInfo], features: NDArray[np.floating] | None
) -> Iterator[str]:
    yield from clip_faults(protocol, clips)
    if features is not None:
        yield from _feature_faults(clips, features)
    elif protocol.needs_features:
        what = "protocol dil" if protocol.name == "dil" else "order similarity"
        yield f"{what} compares clips: features are needed, a row for each of {len(clips)} clips"


def _category_faults(protocol: Protocol, clips: Sequence[ClipInfo]) -> Iterator[str]:
    used = [clip for clip in clips if clip.split in _PARTS]
    if unnamed := [clip.id for clip in used if not clip.category]:
        yield (
            f"protocol {protocol.name} needs the class of each clip; there is none for "
            f"{_some(unnamed)} (AVSBench's MS3 names no classes)"
        )
    names = sorted({clip.category for clip in used if clip.category})
    counts = Counter((clip.category, clip.split) for clip in used)
    least = 1 if protocol.by_class else protocol.tasks or 1
    for part in ("train", "test"):
        few = [f"{name} ({counts[name, part]})" for name in names if counts[name, part] < least]
        if few:
            yield f"classes with too few {part} clips: {_some(few)}; each needs at least {least}"
    if protocol.by_class:
        try:
            sizes_of(protocol, len(names))
        except ProtocolError as error:
            yield from error.lines


def _chunk_faults(protocol: Protocol, counts: Counter[Split]) -> Iterator[str]:
    if protocol.name == "dil":
        if counts["train"] < (protocol.tasks or 1):
            yield f"{counts['train']} train clips cannot be {protocol.tasks} domains"
        return
    try:
        tasks = len(sizes_of(protocol, counts["train"]))
    except ProtocolError as error:
        yield from error.lines
        return
    if counts["test"] < tasks:
        yield (
            f"{counts['test']} test clips cannot be dealt to {tasks} tasks; each needs one, so "
            f"ask for at most {counts['test']} tasks or larger ones"
        )


def _feature_faults(clips: Sequence[ClipInfo], features: NDArray[np.floating]) -> Iterator[str]:
    if features.ndim != 2 or features.shape[1] == 0 or len(features) != len(clips):
        yield f"features are {features.shape}; expected a row for each of {len(clips)} clips"
    elif features.dtype.kind not in "fiu":
        yield f"features are {features.dtype}; expected real numbers"
    else:
        fine = np.abs(features.astype(np.float64)) < LARGEST_FEATURE  # nor is what is not finite
        if bad := [clips[row].id for row in np.flatnonzero(~fine.all(axis=1)).tolist()]:
            yield f"features are not finite, or beyond {LARGEST_FEATURE:g}, for {_some(bad)}"


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

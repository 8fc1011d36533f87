"""The stream experiment's clips: what a base learns, what then streams into the daemon, what tests.

A base is trained on the first half of the classes; the other half comes as a stream in small groups
of classes whose boundaries are blurred, and nobody tells the daemon where they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..streams.avsbench import Entry
from ..streams.manifest import Protocol
from ..streams.protocols import ClipInfo, clip_info, make_manifests
from .clipstore import read_entries
from .runplan import at_even_distances


@dataclass(frozen=True, slots=True)
class StudyOptions:
    """What is repeated.

    Attributes:
        data: a data set in AVSBench's layout, with single sources.
        out: the experiment's folder; what is there is not made again.
        seeds: of the classes' order, the base's random parts, the stream.
        preset: the network.
        image_px: side of its input.
        clips_per_class: training clips of each class.
        tests_per_class: test clips of each class, a frame of each.
        base_epochs: passes over the base's clips.
        lr: learning rate of all systems.
        blur: percent of the stream's clips that change places.
        fps: frames a second of the video that masks are made of meanwhile.
        quiet_s: seconds of masks before the first clip and after the last.
    """

    data: Path
    out: Path
    seeds: tuple[int, ...] = (0, 1, 2)
    preset: str = "atlas-lite"
    image_px: int = 96
    clips_per_class: int = 30
    tests_per_class: int = 6
    base_epochs: int = 8
    lr: float = 3e-3
    blur: int = 20
    fps: int = 5
    quiet_s: float = 20.0


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """The clips of one seed.

    Attributes:
        old: classes that the base learns.
        new: classes that stream in.
        base: clips that the base learns.
        stream: clips in their order of arrival.
        tests: clips of old and of new classes, by ``old`` and ``new``.
        entries: all clips by id.
    """

    old: tuple[str, ...]
    new: tuple[str, ...]
    base: tuple[str, ...]
    stream: tuple[str, ...]
    tests: Mapping[str, tuple[str, ...]]
    entries: Mapping[str, Entry]


def plan_of(options: StudyOptions, seed: int) -> StudyPlan:
    """Deal a data set's clips.

    Raises:
        DatasetError: there is no such data set.
        ProtocolError: it has too few classes or clips.
    """
    entries = read_entries(options.data, "s4")
    clips = [clip_info(entry) for entry in entries.values()]
    clips = at_even_distances(clips, "train", options.clips_per_class)
    clips = at_even_distances(clips, "test", options.tests_per_class)
    classes = sorted({clip.category for clip in clips if clip.category})
    half = len(classes) // 2
    (dealt,) = make_manifests(
        Protocol("cil", split=f"{half}-{len(classes) - half}", seed=seed), clips, source="study"
    )
    old, new = (task.classes for task in dealt.tasks)
    of_new = [clip for clip in clips if clip.category in new]
    size = 2 if len(new) % 2 == 0 else 1
    (stream,) = make_manifests(
        Protocol(
            "cil",
            split=f"{size}-{size}",
            seed=seed,
            blurry_percent=options.blur,
            disjoint_percent=0,
        ),
        of_new,
        source="study",
    )
    return StudyPlan(
        old=old,
        new=new,
        base=_ids(clips, "train", old),
        stream=tuple(clip for task in stream.tasks for clip in task.train),
        tests={"old": _ids(clips, "test", old), "new": _ids(clips, "test", new)},
        entries=entries,
    )


def _ids(clips: Sequence[ClipInfo], split: str, classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(c.id for c in clips if c.split == split and c.category in classes)

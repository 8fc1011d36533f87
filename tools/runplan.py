"""Which clips a run learns and scores, in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..model.adapting import holds_base
from ..model.avsbench import AvsBenchPreset
from ..model.method import Method
from ..model.presets import PRESETS
from ..streams.avsbench import Entry, Split
from ..streams.avslayout import FRAMES_PER_CLIP
from ..streams.manifest import Manifest, Protocol, ProtocolError
from ..streams.protocols import ClipInfo, clip_faults, clip_info, make_manifests
from .runspec import RunSpec


def protocol_of(spec: RunSpec) -> Protocol:
    """The protocol that a run asks for.

    Raises:
        ProtocolError: something in it is not allowed.
    """
    return Protocol(
        name=spec.protocol,
        split=spec.split,
        order=spec.order,
        seed=spec.seed,
        tasks=spec.protocol_tasks or None,
        remainder=spec.remainder,
        disjoint_percent=spec.blur_disjoint,
        blurry_percent=spec.blurred,
        soft_clips=spec.soft_clips,
    )


def clips_of(spec: RunSpec, entries: Iterable[Entry]) -> list[ClipInfo]:
    """The clips that take part: all, or so many training clips of each category.

    Fewer are taken at even distances: a data set may list one kind of clips after the other.
    """
    clips = [
        clip_info(entry)
        for entry in entries
        if spec.protocol != "dil-per-category" or entry.category == spec.category
    ]
    return at_even_distances(clips, "train", spec.clips_per_class)


def at_even_distances(clips: Sequence[ClipInfo], split: Split, most: int) -> list[ClipInfo]:
    """Of each category so many clips of a split, at even distances; all others as they are.

    Args:
        clips: in the data set's order.
        split: whose clips are thinned out.
        most: of each category; 0 takes all. Clips without a category all stay.
    """
    if not most:
        return list(clips)
    there = Counter(clip.category for clip in clips if clip.split == split)
    wanted = {name: min(most, there[name]) for name in there if name}
    passed: Counter[str | None] = Counter()
    chosen: list[ClipInfo] = []
    for clip in clips:
        if clip.split == split and clip.category in wanted:
            k, n, m = passed[clip.category], there[clip.category], wanted[clip.category]
            passed[clip.category] += 1
            if (k + 1) * m // n == k * m // n:
                continue
        chosen.append(clip)
    return chosen


def plan_faults(spec: RunSpec, clips: Sequence[ClipInfo]) -> Iterator[str]:
    """What keeps clips from being dealt to a run's tasks, as far as it shows without features."""
    try:
        protocol = protocol_of(spec)
        if protocol.needs_features:
            yield from clip_faults(protocol, clips)
        else:
            planned(spec, clips, None)
    except ProtocolError as error:
        yield from error.lines


def method_faults(spec: RunSpec, method: Method) -> Iterator[str]:
    """What a run asks for that its method or its network cannot do."""
    if method.needs_boundaries and spec.consolidate != "oracle":
        yield (
            f"{spec.method} works only where boundaries are told: consolidate is "
            f"{spec.consolidate}, oracle is needed"
        )
    if method.needs_classes and spec.subset == "ms3":
        yield f"{spec.method} needs class labels; {spec.protocol} has none"
    preset = PRESETS[spec.network]
    if spec.loss == "avsbench" and not isinstance(preset, AvsBenchPreset):
        yield (
            f"loss avsbench is of AVSBench's network, and {spec.network} is another: set loss to "
            "atlas, or network to avsbench or avsbench-lite"
        )
    if spec.start and method.trainable == "decoder":
        yield (
            f"{spec.method} trains nothing of the visual backbone, and parts {spec.parts} trains "
            "LoRA on it: choose another method, or no start"
        )
    if spec.base == "ship" and not holds_base(method):
        yield f"{spec.method} holds no base: set base to zero, or choose atlas"
    frames = preset.vary(spec.vary).clip_frames
    if frames not in (1, FRAMES_PER_CLIP):
        yield (
            f"{spec.network} sees {frames} frames together, which would divide or mix clips of "
            f"{FRAMES_PER_CLIP}: set vary.clip_frames to 1 or {FRAMES_PER_CLIP}"
        )


def planned(
    spec: RunSpec, clips: Sequence[ClipInfo], features: NDArray[np.float64] | None
) -> Manifest:
    """The run's tasks.

    Args:
        spec: what is asked for.
        clips: from `clips_of`.
        features: (N, D), a row a clip, where the protocol compares clips.

    Raises:
        ProtocolError: the clips do not fit the protocol, or there is nothing to score.
    """
    if spec.protocol == "dil-per-category" and not clips:
        raise ProtocolError(
            [f"category is {spec.category!r}; dil-per-category needs one that the data has"]
        )
    (manifest,) = make_manifests(protocol_of(spec), clips, source=str(spec.data), features=features)
    without = [task.name for task in manifest.tasks[: spec.tasks or None] if not task.val]
    if spec.score == "val" and without:
        raise ProtocolError([f"score is val, and there are no val clips in {', '.join(without)}"])
    return manifest

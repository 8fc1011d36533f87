"""Boundaries between tasks that are not sharp: blurry ones and soft ones.

A stream is a list of tasks, a task a list of clip ids, all different. Both functions exchange clips
between slots of the stream, so that the size of each task stays exactly what it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from .draws import shuffled, uniform

Stream = list[list[str]]


def share(count: int, percent: float) -> int:
    """``percent`` % of ``count`` things, rounded to a whole number, halves up."""
    return math.floor(count * percent / 100 + 0.5)


def blur(
    stream: Sequence[Sequence[str]],
    *,
    seed: int,
    disjoint_percent: float,
    blurry_percent: float,
    kinds: Mapping[str, str] | None = None,
) -> tuple[Stream, frozenset[str]]:
    """Permutes the slots of some clips among themselves, over the whole stream.

    i-Blurry's N and M (Koh et al., arXiv 2110.10031), over the stream at once: by task, M % of five
    clips rounds to none. Of the kinds, N % stay disjoint; of all clips of the others M % are drawn,
    and their slots are permuted uniformly. As in i-Blurry a drawn clip may come back to its own
    task. Both numbers are rounded, halves up; with the same seed a smaller M draws a part of what a
    larger one draws.

    Args:
        stream: the clips of each task, in order.
        seed: of the draws.
        disjoint_percent: N, 0 to 100. At 100 nothing moves.
        blurry_percent: M, 0 to 100. At 0 nothing moves.
        kinds: the kind (class) of every clip; None: each clip is a kind of its own.

    Returns:
        The stream, and which clips were drawn.
    """
    clips = [clip for task in stream for clip in task]
    kind_of = {clip: clip for clip in clips} if kinds is None else kinds
    found = {kind_of[clip] for clip in clips}
    blurry = set(shuffled(found, seed, "kinds")[: share(len(found), 100 - disjoint_percent)])
    pool = [clip for clip in clips if kind_of[clip] in blurry]
    drawn = shuffled(pool, seed, "blurry")[: share(len(pool), blurry_percent)]
    chosen = frozenset(drawn)
    slots = (slot for slot, clip in enumerate(clips) if clip in chosen)
    for slot, clip in zip(slots, shuffled(drawn, seed, "slots"), strict=True):
        clips[slot] = clip
    return _cut(clips, stream), chosen


def soften(
    stream: Sequence[Sequence[str]], *, seed: int, soft_clips: int
) -> tuple[Stream, frozenset[str]]:
    """Turns each boundary into a linear ramp (as van de Ven's fuzzy boundaries), sizes exact.

    The ramp reaches w slots to either side of a boundary: ``soft_clips``, or half of the smaller of
    the two tasks where that is less, so that no ramp meets the next. The pair of slots at distance
    d = ½, 1½, … w - ½ before and behind the boundary exchange their clips with probability
    ½ - d / 2w. So over the 2w slots the chance of a clip of the later task grows in equal steps
    from 1/4w to 1 - 1/4w, and w / 2 clips cross a boundary on average, half in either direction.

    Args:
        stream: the clips of each task, in order.
        seed: of the draws.
        soft_clips: slots to either side, from 0, at which nothing moves.

    Returns:
        The stream, and which clips were exchanged.
    """
    clips = [clip for task in stream for clip in task]
    exchanged: set[str] = set()
    boundary = 0
    for earlier, later in pairwise(stream):
        boundary += len(earlier)
        width = min(soft_clips, len(earlier) // 2, len(later) // 2)
        for step in range(width):
            before, behind = boundary - 1 - step, boundary + step
            chance = 0.5 - (step + 0.5) / (2 * width)
            if uniform(seed, "soft", clips[before], clips[behind]) < chance:
                exchanged |= {clips[before], clips[behind]}
                clips[before], clips[behind] = clips[behind], clips[before]
    return _cut(clips, stream), frozenset(exchanged)


def _cut(clips: Sequence[str], stream: Sequence[Sequence[str]]) -> Stream:
    left = iter(clips)
    return [[next(left) for _ in task] for task in stream]

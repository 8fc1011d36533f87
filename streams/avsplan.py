"""Which clips Open-AVS holds: a list that follows from the size and one seed.

What keeps the picture from telling what sounds is decided here: three quarters of the single-source
clips show silent objects of sounding categories too, and come in pairs of the same picture where
the other object sounds; in some clips nothing in view sounds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .avslayout import Kind, Row, Subset
from .catalogue import CATEGORIES

Size = Literal["ci", "standard", "full"]

RECIPE = 2
"""Grows with each change of what is composed from the same content and seed."""

PER_CATEGORY: dict[Size, tuple[int, int, int]] = {
    "ci": (6, 2, 2),
    "standard": (60, 15, 20),
    "full": (150, 32, 32),
}
"""Single-source clips per category in train, val and test; half of test is novel."""

SEVERAL: dict[Size, tuple[int, int, int]] = {
    "ci": (16, 4, 8),
    "standard": (200, 40, 60),
    "full": (296, 64, 64),
}
"""Multi-source clips in train, val and test; half of test is novel."""

_NEGATIVE_SHARE, _PAIRED_SHARE = 0.07, 0.75


class PlanError(ValueError):
    """Clips that cannot be planned: why, what is needed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One clip to compose.

    Attributes:
        subset: ``s4`` or ``ms3``.
        row: its line in the table, recordings and cut-outs still empty.
        objects: categories of the objects in view; which stands in front is drawn when staged.
        spans: for each object the whole seconds (start, end) during which it sounds; a silent
            one has none.
        scene: seed of the picture; both clips of a pair have the same.
        sound: seed of the sound.
    """

    subset: Subset
    row: Row
    objects: tuple[str, ...]
    spans: tuple[tuple[tuple[int, int], ...], ...]
    scene: str
    sound: str

    @property
    def pool(self) -> str:
        """The pool of cut-outs: the split, or ``novel``."""
        return "novel" if self.row.novel else self.row.split


def planned(
    size: Size,
    seed: int,
    *,
    categories: Sequence[str] = CATEGORIES,
    novel: Sequence[str] = CATEGORIES,
) -> list[Plan]:
    """List all clips of a data set.

    Args:
        size: how many.
        seed: the data set's.
        categories: all categories.
        novel: those that have cut-outs never seen in training.

    Raises:
        PlanError: too few categories to show two side by side.
    """
    plans: list[Plan] = []
    for split, single, several in zip(
        ("train", "val", "test"), PER_CATEGORY[size], SEVERAL[size], strict=True
    ):
        halves = (False, True) if split == "test" else (False,)
        for unseen in halves:
            shown = list(novel if unseen else categories)
            group = f"{seed}/{split}{'/novel' * unseen}"
            prefix = f"{split}_novel" if unseen else split
            n = single // len(halves)
            plans += _single_source(group, prefix, split, unseen, shown, n)
            plans += _multi_source(group, prefix, split, unseen, shown, several // len(halves))
    return plans


def _single_source(
    group: str, prefix: str, split: str, novel: bool, categories: list[str], n: int
) -> Iterator[Plan]:
    """Plan ``n`` clips per category: negatives, lone objects, and swap pairs."""
    rng = generator(group, "single")
    order = [str(c) for c in rng.permutation(categories * n)]
    negatives = round(_NEGATIVE_SHARE * len(order))
    paired = 2 * round(_PAIRED_SHARE * (len(order) - negatives) / 2)
    lone = len(order) - negatives - paired
    numbers = dict.fromkeys(categories, 0)

    def name(category: str) -> str:
        numbers[category] += 1
        return f"{category}_{prefix}_{numbers[category]:04d}"

    def plan(
        own: str, category: str, kind: Kind, objects: Sequence[str], sounding: int | None,
        scene: str, pair: str | None = None,
    ) -> Plan:  # fmt: skip
        heard = () if sounding is None else (category,)
        row = Row(own, split, category, heard, kind, novel, pair)
        whole = ((0, 5),)
        spans = tuple(whole if at == sounding else () for at in range(len(objects)))
        return Plan("s4", row, tuple(objects), spans, f"{group}/{scene}", f"{group}/{own}")

    for category in order[:negatives]:
        own = name(category)
        others = _others(rng, categories, [category], int(rng.integers(3)))
        yield plan(own, category, "negative", [category, *others], None, own)
    for category in order[negatives : negatives + lone]:
        own = name(category)
        yield plan(own, category, "plain", [category], 0, own)
    for first, second in _couples(rng, order[negatives + lone :]):
        objects = [first, second, *_others(rng, categories, [first, second], rng.random() < 0.35)]
        one, other = name(first), name(second)
        yield plan(one, first, "distractor", objects, 0, one, other)
        yield plan(other, second, "swap", objects, 1, one, one)


def _multi_source(
    group: str, prefix: str, split: str, novel: bool, categories: list[str], n: int
) -> Iterator[Plan]:
    """Plan ``n`` clips in which two or three objects sound, each in whole seconds of its own."""
    rng = generator(group, "several")
    for number in range(1, n + 1):
        sounding = int(rng.integers(2, 4))
        objects = _others(rng, categories, [], min(3, sounding + (rng.random() < 0.5)))
        spans: list[tuple[tuple[int, int], ...]] = []
        for at in range(len(objects)):
            length = int(rng.integers(2, 6))
            start = int(rng.integers(0, 6 - length))
            spans.append(((start, start + length),) if at < sounding else ())
        name = f"several_{prefix}_{number:04d}"
        row = Row(name, split, None, tuple(sorted(objects[:sounding])), "plain", novel)
        yield Plan("ms3", row, tuple(objects), tuple(spans), f"{group}/{name}", f"{group}/{name}")


def _others(
    rng: np.random.Generator, categories: Sequence[str], taken: Sequence[str], n: int
) -> list[str]:
    free = [category for category in categories if category not in taken]
    return [str(category) for category in rng.permutation(free)[:n]]


def _couples(rng: np.random.Generator, order: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pair up an even number of categories so that no pair holds one twice."""
    firsts, seconds = list(order[::2]), list(order[1::2])
    for at, first in enumerate(firsts):
        for _ in range(1000):
            if seconds[at] != first:
                break
            to = int(rng.integers(len(seconds)))
            if seconds[to] != first and firsts[to] != seconds[at]:
                seconds[at], seconds[to] = seconds[to], seconds[at]
        else:
            raise PlanError(
                f"no other category is left to stand beside {first}; a catalogue needs at least "
                "three categories with cut-outs in every split"
            )
    return zip(firsts, seconds, strict=True)


def generator(*parts: str) -> np.random.Generator:
    """Return the generator that belongs to a name; the recipe is part of every name."""
    digest = hashlib.blake2b("|".join((str(RECIPE), *parts)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))

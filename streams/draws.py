"""Seeded draws that depend on nothing but their words.

A draw is a keyed hash, not the state of a generator: it is the same on every machine and with every
release of NumPy, it does not depend on the order in which clips are listed, and one draw more or
less changes no other. Of two draws of k and l > k items with equal words, the first is part of the
second.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

_BITS = 64


def draw(seed: int, *words: str) -> int:
    """A whole number, uniform in [0, 2^64), that belongs to ``seed`` and ``words``."""
    text = "\0".join((str(seed), *words))
    return int.from_bytes(blake2b(text.encode(), digest_size=_BITS // 8).digest())


def uniform(seed: int, *words: str) -> float:
    """A number, uniform in [0, 1), that belongs to ``seed`` and ``words``."""
    return (draw(seed, *words) >> 11) / (1 << (_BITS - 11))  # the 53 bits that a float holds


def shuffled(items: Iterable[str], seed: int, *words: str) -> list[str]:
    """``items``, which differ from each other, in an order that belongs to ``seed``, ``words``."""
    return sorted(items, key=lambda item: (draw(seed, *words, item), item))

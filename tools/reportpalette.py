"""How a system looks in every figure: one colour, one marker, one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_COLOURS = (
    "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#882255",
    "#999933", "#117733", "#aa4499", "#661100", "#777777", "#44aa99", "#111111",
)  # fmt: skip
"""Okabe and Ito's, then Paul Tol's muted, without those that vanish on white. Fifteen colours
cannot all be told apart by everyone, so markers differ, too."""

_MARKERS = "osD^vP*Xph<>d8H"
_LINES = ("-", "--", "-.", ":")


@dataclass(frozen=True, slots=True)
class Look:
    """A system's colour (``#rrggbb``), marker and line style."""

    colour: str
    marker: str
    line: str


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """The look of each system, by its row from the last, which is the one that is proposed.

    Up to 15 all colours differ; markers and lines tell the further ones apart.
    """
    found: dict[str, Look] = {}
    for place, label in enumerate(reversed(labels)):
        turn = place // len(_COLOURS)
        found[label] = Look(
            _COLOURS[place % len(_COLOURS)],
            _MARKERS[(place + turn) % len(_MARKERS)],
            _LINES[(place + turn) % len(_LINES)],
        )
    return found

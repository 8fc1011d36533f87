"""What a person orders of the learner, and what it answers; they travel as labels do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from .fields import ADDED, Many, Text
from .infos import VersionInfo
from .wire import VERSION, Checked, Count, Name, Prose, Version

OrderName = Literal[
    "pause", "resume", "checkpoint", "consolidate", "versions", "rollback", "release", "discard"
]

OrderId = Annotated[str, Text(128, r"[^\s\x00-\x1f\x7f]+")]

MAX_VERSIONS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Order(Checked):
    """An order to the learner.

    Attributes:
        v: version of the wire.
        request: comes back with the answer.
        order: ``pause`` learn nothing until ``resume``; ``checkpoint`` keep what was accepted, now;
            ``consolidate`` let the method keep it, once it is judged; ``versions`` what can be gone
            back to;
            ``rollback`` go back; ``release`` a batch that was set aside, or ``discard`` it.
        version: to go back to; empty: the newest before the one that is served.
        batch: to release or discard.
        id: names the order: sent again under it, it is not carried out again but answered as it
            was, or will be; None: it is another order each time.
    """

    op: ClassVar[str] = "learner"
    v: Version = VERSION
    request: Count = 0
    order: OrderName
    version: Name = ""
    batch: Count = 0
    id: OrderId | None = field(default=None, metadata=ADDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried(Checked):
    """An order was carried out.

    Attributes:
        v: version of the wire.
        request: the request's number.
        order: the order.
        detail: what was done, in words.
        versions: what can be gone back to now, oldest first.
    """

    v: Version = VERSION
    request: Count
    order: OrderName
    detail: Prose
    versions: Annotated[tuple[VersionInfo, ...], Many(MAX_VERSIONS)] = ()

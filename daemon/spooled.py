"""What the spool gives and tells: clips, batches, states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ClipState = Literal["pending", "journaled", "quarantined", "consumed", "discarded", "deleted"]
Outcome = Literal["stored", "replaced", "same", "consumed", "discarded"]
"""What became of a clip that was put: ``same`` was there already, ``consumed`` was learned before,
``discarded`` was set aside by the learner and thrown away by a person."""


@dataclass(frozen=True, slots=True)
class StoredClip:
    """A clip as it lies in the spool."""

    id: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """What is learned in one go.

    Attributes:
        number: from 1; the cursor once it is learned.
        seed: of everything random in learning it.
        clips: in the order in which they were journaled; none: nothing is learned, the method keeps
            what it knows, as a person ordered.
    """

    number: int
    seed: int
    clips: tuple[StoredClip, ...]


@dataclass(frozen=True, slots=True)
class SetAside:
    """A batch in quarantine: its number, why, and the ids of its clips that are still there."""

    number: int
    reason: str
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """What the spool holds.

    Attributes:
        clips: by state; ids whose payload is gone count too.
        held: clips whose payload is kept; of them those that are neither pending nor quarantined
            do not count against the quota.
        bytes: of these payloads.
        oldest_ns: when the oldest pending clip was stored, nanoseconds since 1970; None: none is.
        journaled_up_to: number of the last batch, 0 before the first.
        finished_up_to: cursor of the newest checkpoint.
        retired_up_to: cursor of the oldest kept checkpoint.
        set_aside: batches in quarantine.
    """

    clips: dict[ClipState, int]
    held: int
    bytes: int
    oldest_ns: int | None
    journaled_up_to: int
    finished_up_to: int
    retired_up_to: int
    set_aside: tuple[SetAside, ...]


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a learner could go on with.

    Attributes:
        pending: clips that are in no batch yet.
        oldest_ns: when the oldest of them was stored, nanoseconds since 1970; None: there is none.
        journaled: whether a batch that was journaled before comes next.
    """

    pending: int
    oldest_ns: int | None
    journaled: bool


@dataclass(frozen=True, slots=True)
class Rebased:
    """What became of clips when other checkpoints than before came to a spool.

    Attributes:
        waiting: clips that these do not hold and that wait again.
        gone: clips that these do not hold and whose payloads are deleted.
    """

    waiting: int
    gone: int

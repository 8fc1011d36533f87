"""What status says of the parts of a daemon."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from .fields import Real
from .wire import Checked, Count, Counts, Name, Prose


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeInfo(Checked):
    """How the intake of labeled clips does.

    Attributes:
        endpoint: where labels are put.
        state: ``failed`` takes no more labels; masks go on.
        detail: the failure in words.
        clips: clips in the spool by state: ``pending``, ``journaled``, ``quarantined``,
            ``consumed``, ``discarded``, ``deleted``.
        held: clips whose payload is kept.
        bytes: of these payloads.
        oldest_s: seconds that the oldest pending clip has waited, None where none waits.
        batches: batches handed to the learner so far.
        aside: batches in quarantine.
        answered: requests granted since the daemon began, by outcome.
        refused: requests refused since the daemon began, by code.
        replay_frames: frames that labels can refer to.
        replay_bytes: their size with their sound.
    """

    endpoint: Name
    state: Literal["running", "failed"] = "running"
    detail: Prose = ""
    clips: Counts = field(default_factory=dict[str, int])
    held: Count = 0
    bytes: Count = 0
    oldest_s: Annotated[float, Real(0, 1e12)] | None = None
    batches: Count = 0
    aside: Count = 0
    answered: Counts = field(default_factory=dict[str, int])
    refused: Counts = field(default_factory=dict[str, int])
    replay_frames: Count = 0
    replay_bytes: Count = 0

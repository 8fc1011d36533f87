"""What status says of the parts of a daemon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from .fields import ADDED, Many, Real, Whole
from .wire import Checked, Count, Counts, Fraction, MaskSide, Milliseconds, Name, Prose

MAX_REASONS: Final = 16
MAX_RUNGS: Final = 16
Reasons = Annotated[Mapping[Name, Prose], Many(MAX_REASONS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RungInfo(Checked):
    """An input size of the network.

    Attributes:
        px: side of the square pictures that the network sees.
        p95_ms: milliseconds that 95 % of its frames take at most: measured where it is in use,
            else expected at the present load.
        frames: that it was used for so far.
    """

    px: MaskSide
    p95_ms: Milliseconds
    frames: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderInfo(Checked):
    """How the deadline is kept.

    Attributes:
        deadline_ms: milliseconds that the network may take for a frame.
        rung: that the next frame takes, an index into `rungs`.
        rungs: from the largest to the smallest.
    """

    deadline_ms: Milliseconds
    rung: Annotated[int, Whole(0, MAX_RUNGS - 1)]
    rungs: Annotated[tuple[RungInfo, ...], Many(MAX_RUNGS)]


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
        reasons: why the latest of them are there, up to 16, by number; None: none is. Since 1.2.
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
    reasons: Reasons | None = field(default=None, metadata=ADDED)
    answered: Counts = field(default_factory=dict[str, int])
    refused: Counts = field(default_factory=dict[str, int])
    replay_frames: Count = 0
    replay_bytes: Count = 0


LearnerState = Literal[
    "starting", "waiting", "learning", "paused", "halted", "restarting", "failed", "stopped"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerInfo(Checked):
    """How the learner does.

    Attributes:
        state: ``waiting`` for clips; ``paused`` by a person; ``halted`` it cannot keep what it
            learns, as where the disk is full, and tries again; ``restarting`` after its process
            died; ``failed`` it died too often and is not started again until `resume`.
        detail: the state in words.
        method: that learns.
        version: of the newest weights that the canary passed.
        batch: number of the last batch in them; 0: none, they are the base.
        candidate: number of the batch that is learned and not yet judged; 0: none.
        clips: learned ever, in the checkpoints and since.
        steps: of the optimizer ever.
        consolidations: of the method ever, whatever brought them about; 0 for one that keeps
            nothing.
        refused: batches that the canary set aside since the learner began.
        score: mean J of the latest frames, up to 256, each predicted before it was learned; None
            before the first.
        a_auc: mean J over all frames of the stream so far, likewise, those of refused batches too:
            the area under the curve of scores at any time. Those of a batch that was refused since
            the newest checkpoint are not counted any more where the learner dies.
        checkpoint: number of the last batch in the newest checkpoint.
        restarts: of the learner's process since the daemon began.
        pid: of the learner's process, 0 where there is none.
    """

    state: LearnerState
    detail: Prose = ""
    method: Name = ""
    version: Name = ""
    batch: Count = 0
    candidate: Count = 0
    clips: Count = 0
    steps: Count = 0
    consolidations: Count = 0
    refused: Count = 0
    score: Fraction | None = None
    a_auc: Fraction | None = None
    checkpoint: Count = 0
    restarts: Count = 0
    pid: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionInfo(Checked):
    """Weights that can be gone back to.

    Attributes:
        version: their name, which masks carry.
        parent: the version before; empty: the base.
        batch: number of the last batch in them.
        clips: learned in them.
        a_auc: as in `LearnerInfo`, None before the first batch.
        made_s: when, seconds since 1970.
        served: whether the learner's newest word was to serve them.
        path: of their checkpoint.
    """

    version: Name
    parent: Name = ""
    batch: Count = 0
    clips: Count = 0
    a_auc: Fraction | None = None
    made_s: Annotated[float, Real(0, 1e12)] = 0.0
    served: bool = False
    path: Prose = ""

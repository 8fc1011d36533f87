"""What a learner is told and what it tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LearningRules:
    """When to learn, what to trust, what to keep.

    Attributes:
        clips: of a batch.
        wait_s: how long a clip waits for a batch to fill.
        canary_drop: a candidate whose mean J on the next batch lies by more than this below that of
            the accepted weights, or of the best before, is refused.
        canary_wait_s: how long a candidate waits for a next batch before it is published unjudged.
        checkpoint_s: least seconds between two checkpoints.
    """

    clips: int = 8
    wait_s: float = 10.0
    canary_drop: float = 0.1
    canary_wait_s: float = 10.0
    checkpoint_s: float = 30.0


Reason = Literal["learned", "unjudged", "refused", "consolidated", "rollback", "resumed"]


@dataclass(frozen=True, slots=True)
class Publication:
    """Weights to be served from now on.

    Attributes:
        version: their name.
        parent: the version that was served before.
        batch: number of the last batch in them.
        reason: ``learned`` and accepted; ``unjudged``; ``refused`` a candidate, so that these come
            back; ``consolidated``: the same weights, held on to; ``rollback`` by a
            person; ``resumed`` from a checkpoint.
        categories: what their class head knows.
        tensors: of the serving form, see `OnlineLearner.serving`.
    """

    version: str
    parent: str
    batch: int
    reason: Reason
    categories: tuple[str, ...]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Happening:
    """Something to be told to whoever watches; see `messages.Event`."""

    kind: str
    detail: str
    data: Mapping[str, bool | int | float | str] = field(
        default_factory=dict[str, bool | int | float | str]
    )


Notice = Publication | Happening

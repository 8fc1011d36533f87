"""PANDA: pastes rare classes into pictures of common ones, for another method to learn.

The paper grafts patches that CLIP finds most like "an image of a {tail class}" into pictures of
head classes, within a task, and blends class counts over tasks by β. Known from its abstract and
notes alone: β's schedule is not, so it is a constant here.

Here the masks are known, so what sounds is pasted pixel by pixel, and its sound takes the place of
the other's (ours): the pasted object alone sounds, the mask and the label are its own. Counts of a
class are `β·(seen in all segments) + (1 − β)·(seen in this one)`; classes above the mean are head,
below it tail. Without labels every clip counts alike: any object is pasted into any other picture.
(Clusters of frozen features could stand for classes there. They would need a pass over the stream
before it is learned.) Where the network sees a clip's frames together all of them are pasted.

The paper adds it to other methods: ``panda+dgr``, or before any other. By itself it is PANDA over
Finetune. ATLAS's authors do not say over what they ran it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ..losses import NO_LABEL
from ..method import Batch, Method, MethodError, Segment, labels_of


@dataclass(eq=False)
class PANDA(Method):
    """Pastes, and leaves the rest to the methods that it is composed with.

    State: ``all`` and ``here``, examples of each class so far and in this segment.

    Attributes:
        share: of the pictures that may receive an object, those that do.
        beta: β.
    """

    mixes_clips: ClassVar[bool] = True
    strength: ClassVar[str] = "share"

    share: float = 0.5
    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not 0 <= self.beta <= 1:
            raise MethodError(f"share {self.share}, beta {self.beta}: both must be from 0 to 1")

    def begin(self, segment: Segment | None) -> None:
        """Counts the segment anew."""
        if "here" in self.state:
            self.state["here"] = torch.zeros_like(self.state["here"])

    def transform(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Pastes tail objects into head pictures of the batch."""
        if self.share == 0:
            return batch
        labels = labels_of(batch).cpu().numpy()
        self._count(labels)
        T = self.network.clip_frames
        valid = batch["valid"].cpu().numpy()
        sounding = batch["masks"].flatten(1).any(dim=1).cpu().numpy() & valid
        head, tail = self._sides(labels[::T])
        donors = np.flatnonzero(tail & _any_frame(sounding, T))
        takers = np.flatnonzero(head & _any_frame(valid, T))
        batch = {name: value.clone() for name, value in batch.items()}
        source = {name: value.clone() for name, value in batch.items()}
        for taker in takers[rng.random(len(takers)) < self.share]:
            others = donors[donors != taker]
            if len(others):
                donor = int(rng.choice(others))
                for frame in range(T):
                    _paste(batch, source, int(taker) * T + frame, donor * T + frame)
        return batch

    def _count(self, labels: NDArray[np.int64]) -> None:
        found = labels[labels != NO_LABEL]
        if not len(found):
            return
        seen = torch.from_numpy(np.bincount(found)).double()
        for name in ("all", "here"):
            held = self.state.get(name, seen.new_zeros(0))
            longest = max(len(held), len(seen))
            parts = [F.pad(part, (0, longest - len(part))) for part in (held, seen)]
            self.state[name] = parts[0] + parts[1]

    def _sides(self, labels: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which clips are of head classes, and which of tail classes, by their labels."""
        everyone = np.ones(len(labels), np.bool_)
        if "all" not in self.state or (labels == NO_LABEL).all():
            return everyone, everyone
        counts = self.beta * self.state["all"] + (1 - self.beta) * self.state["here"]
        counts = counts.numpy()
        mean = counts[counts > 0].mean()
        own = np.where(labels == NO_LABEL, mean, counts[np.maximum(labels, 0)])
        return own > mean, own < mean


def _any_frame(frames: NDArray[np.bool_], T: int) -> NDArray[np.bool_]:
    """Of each clip, whether one of its T frames is so."""
    return np.logical_or.reduce(frames.reshape(-1, T), axis=1)


def _paste(batch: Batch, source: Batch, taker: int, donor: int) -> None:
    """Put the sounding object of one frame, with its sound, into another."""
    mask = source["masks"][donor].bool()
    batch["images"][taker][mask] = source["images"][donor][mask]
    for name in batch:
        if name != "images":
            batch[name][taker] = source[name][donor]

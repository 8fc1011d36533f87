"""PANDA: pastes rare classes into pictures of common ones, for another method to learn.

The paper grafts patches that CLIP finds most like "an image of a {tail class}" into pictures of
head classes, within a task, and blends class counts over tasks by β. Known from its abstract and
notes alone: β's schedule is not, so it is a constant here.

What is ours, as pictures have masks and sounds here:

- What sounds is pasted pixel by pixel, in all frames that the network sees together.
- Its sound takes the place of the other's (``sound`` ``replace``): the pasted object alone sounds,
  the mask and the label are its own. Or both sound at equal loudness (``mix``): the mask is then
  the pasted object's and what is left of the other's; the label, of which there is one, is still
  the pasted object's.
- Counts of a class are `β·(clips in all segments) + (1 − β)·(clips in this one)`; classes above the
  mean are head, below it tail.
- Without labels clusters of sounds stand for classes: `onlinekmeans` over the frozen embeddings, as
  a stream lets nobody pass over it before it is learned. There are as many as the single sources
  have classes, of which the several sources are made too. ``clusters`` 0: any object is pasted into
  any other picture.

The paper adds it to other methods: ``panda+dgr``, or before any other. By itself it is PANDA over
Finetune. ATLAS's authors do not say over what they ran it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..losses import NO_LABEL
from ..method import Batch, Method, MethodError, Segment, labels_of
from ..onlinekmeans import OnlineKMeans

SILENT = 1e-6
"""The RMS under which a sound is none, and cannot be brought to another's loudness."""

Flags = NDArray[np.bool_]


@dataclass(eq=False)
class PANDA(Method):
    """Pastes, and leaves the rest to the methods that it is composed with.

    State: ``all`` and ``here``, clips of each class so far and in this segment; ``cluster.all`` and
    ``cluster.here`` likewise, and ``cluster.means`` and ``cluster.counts`` of `OnlineKMeans`.

    Attributes:
        share: of the pictures that may receive an object, those that do.
        beta: β.
        sound: ``replace`` or ``mix``.
        clusters: that stand for classes where a batch has no label; 0: none do.
    """

    counts_on_host: ClassVar[bool] = True
    strength: ClassVar[str] = "share"

    share: float = 0.5
    beta: float = 0.5
    sound: str = "replace"
    clusters: int = 23

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not 0 <= self.beta <= 1:
            raise MethodError(f"share {self.share}, beta {self.beta}: both must be from 0 to 1")
        if self.sound not in ("replace", "mix"):
            raise MethodError(f"sound is {self.sound!r}; allowed are 'replace' and 'mix'")
        if self.clusters < 0 or self.clusters == 1:
            raise MethodError(f"clusters is {self.clusters}; it must be 0 or at least 2")
        vars(self)["mixes_clips"] = self.sound == "mix"  # a sound that takes a place is no new one

    def begin(self, segment: Segment | None) -> None:
        """Counts the segment anew where one is told; a stream goes on."""
        for name in ("here", "cluster.here"):
            if segment is not None and name in self.state:
                self.state[name] = torch.zeros_like(self.state[name])

    def transform(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Pastes tail objects into head pictures of the batch."""
        if self.share == 0:
            return batch
        if self.sound == "mix" and "waves" not in batch:
            raise MethodError("panda's sound is mix, and these sounds are encoded: give waves")
        T = self.network.clip_frames
        valid = batch["valid"].cpu().numpy()
        sounding = batch["masks"].flatten(1).any(dim=1).cpu().numpy() & valid
        head, tail = self._sides(batch, T)
        donors = np.flatnonzero(tail & _any_frame(sounding, T))
        takers = np.flatnonzero(head & _any_frame(valid, T))
        batch = {name: value.clone() for name, value in batch.items()}
        source = {name: value.clone() for name, value in batch.items()}
        for taker in takers[rng.random(len(takers)) < self.share]:
            others = donors[donors != taker]
            if len(others):
                donor = int(rng.choice(others))
                for frame in range(T):
                    at = int(taker) * T + frame
                    _paste(batch, source, at, donor * T + frame)
                    if self.sound == "mix":
                        _keep(batch, source, at)
        return batch

    def _sides(self, batch: Batch, T: int) -> tuple[Flags, Flags]:
        """Which clips are of head classes, and which of tail classes."""
        labels = labels_of(batch).cpu().numpy()[::T]
        if (labels != NO_LABEL).any():
            return self._weighed(labels, "")
        if self.clusters:
            return self._weighed(self._clustered(batch, T), "cluster.")
        everyone = np.ones(len(labels), np.bool_)
        return everyone, everyone

    def _clustered(self, batch: Batch, T: int) -> NDArray[np.int64]:
        """The cluster of each clip, by the mean of its frames' sounds."""
        if "embedding" in batch:
            embedding = batch["embedding"]
        else:
            embedding = self.network.encode_audio(self.network.log_mel(batch["waves"])).embedding
        points = embedding.double().cpu().unflatten(0, (-1, T)).mean(dim=1)  # (clips, De)
        points = F.normalize(points, dim=1)
        if "cluster.means" in self.state:
            held = (self.state[f"cluster.{name}"].clone() for name in ("means", "counts"))
            known = OnlineKMeans(*held)
        else:
            known = OnlineKMeans.empty(self.clusters, points.shape[1])
        found = [known.observe(point) for point in points]
        self.state |= {"cluster.means": known.means, "cluster.counts": known.counts}
        return np.array(found)

    def _weighed(self, labels: NDArray[np.int64], kind: str) -> tuple[Flags, Flags]:
        """Count clips; which of them are of classes above the mean, and which below it?"""
        seen = torch.from_numpy(np.bincount(labels[labels != NO_LABEL])).double()
        for name in (f"{kind}all", f"{kind}here"):
            held = self.state.get(name, seen.new_zeros(0))
            longest = max(len(held), len(seen))
            parts = [F.pad(part, (0, longest - len(part))) for part in (held, seen)]
            self.state[name] = parts[0] + parts[1]
        blended = self.beta * self.state[f"{kind}all"] + (1 - self.beta) * self.state[f"{kind}here"]
        counts = blended.numpy()
        mean = counts[counts > 0].mean()
        own = np.where(labels == NO_LABEL, mean, counts[np.maximum(labels, 0)])
        return own > mean, own < mean


def _any_frame(frames: Flags, T: int) -> Flags:
    """Of each clip, whether one of its T frames is so."""
    return np.logical_or.reduce(frames.reshape(-1, T), axis=1)


def _paste(batch: Batch, source: Batch, taker: int, donor: int) -> None:
    """Put the sounding object of one frame, with its sound, into another."""
    mask = source["masks"][donor].bool()
    batch["images"][taker][mask] = source["images"][donor][mask]
    for name in batch:
        if name != "images":
            batch[name][taker] = source[name][donor]


def _keep(batch: Batch, source: Batch, taker: int) -> None:
    """Let what sounded before go on, beside what was pasted."""
    batch["masks"][taker] |= source["masks"][taker]
    batch["valid"][taker] &= source["valid"][taker]
    batch["waves"][taker] = at_0_db(source["waves"][taker], batch["waves"][taker])


def at_0_db(first: Tensor, second: Tensor) -> Tensor:
    """Two sounds (n,) at once, the second as loud as the first; as they are where one is silent."""
    loud, other = first.square().mean().sqrt(), second.square().mean().sqrt()
    if min(float(loud), float(other)) < SILENT:
        return first + second
    return first + second * (loud / other)

"""Batches of a segment's clips for the training loop, and its data for consolidation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.losses import NO_LABEL
from ..model.training import Batch
from ..streams.avslayout import FRAMES_PER_CLIP
from .clipstore import ClipStore
from .views import draw_view, varied_colours


@dataclass(frozen=True, slots=True)
class Arrival:
    """Clips are learned as they arrive, like the live learner's.

    Attributes:
        together: clips that are learned together, no step goes beyond them (`learner.clips`); 0:
            what a step takes.
        passes: over what is learned together, before what comes next (`learner.passes`).
        masked: encode the sounds of the frames with masks alone, as the live learner has no others;
            see `ClipStore.heard`.
    """

    together: int = 0
    passes: int = 1
    masked: bool = False


class _Step(NamedTuple):
    """A step of a stream.

    Attributes:
        numbers: of the frames.
        is_new: whether they come for the first time.
        group: number of what is learned together, from 0.
        begins: whether its first step.
    """

    numbers: NDArray[np.int64]
    is_new: bool
    group: int
    begins: bool


class ClipFeed:
    """Batches of labeled frames (or of whole clips); the same for the same seed, epoch and step.

    Where ``variants`` is over 1, each picture is seen in another view and other colours and each
    sound in one of so many variations. Iterated, it gives every frame once, as it is.
    """

    def __init__(
        self,
        store: ClipStore,
        clips: Sequence[str],
        labels: Mapping[str, int],
        *,
        batch: int,
        seed: tuple[int, ...],
        variants: int = 1,
        clip_frames: int = 1,
        raw_sounds: bool = False,
        arrival: Arrival | None = None,
    ) -> None:
        """Lists the frames.

        Args:
            store: where the clips are.
            clips: ids, in order of arrival.
            labels: the row of the class head for each clip whose class is known.
            batch: frames a step.
            seed: of the order, the views and the variations.
            variants: of each sound.
            clip_frames: frames that the network takes together: 1, or all 5 of a clip.
            raw_sounds: give sounds as waves, for methods that mix them.
            arrival: how clips are learned in their order; None: all are shuffled.

        Raises:
            ValueError: no clip has a mask.
        """
        self._store = store
        self._labels = labels
        self._seed = seed
        self._variants = variants
        self._raw = raw_sounds
        self._masked = arrival is not None and arrival.masked and clip_frames == 1
        self._items: list[tuple[str, tuple[int, ...]]] = []
        for clip in clips:
            labeled = np.flatnonzero(store.pictures(clip)[2]).tolist()
            if clip_frames > 1:
                self._items += [(clip, tuple(range(FRAMES_PER_CLIP)))] if labeled else []
            else:
                self._items += [(clip, (frame,)) for frame in labeled]
        if not self._items:
            raise ValueError(f"none of {len(clips)} clips has a mask to learn from")
        self._size = max(1, batch // clip_frames)
        self._arrival = None if arrival is None else self._arriving(clips, arrival)

    @property
    def steps(self) -> int:
        """Batches an epoch; the last may be smaller."""
        return len(self._arrival or self._cut(self._all))

    def is_new(self, step: int) -> bool:
        """Whether a step's frames come for the first time in their epoch."""
        return self._arrival is None or self._arrival[step].is_new

    @property
    def groups(self) -> int:
        """Of a stream: how often clips are learned together; 0 where all are shuffled."""
        return 0 if self._arrival is None else self._arrival[-1].group + 1

    def come(self, step: int) -> tuple[int, list[str]] | None:
        """What arrives at a step of a stream: its number and its clips; None: nothing new does."""
        at = None if self._arrival is None else self._arrival[step]
        if at is None or not at.begins:
            return None
        group = [each.numbers for each in self._arrival or () if each.group == at.group]
        clips = (self._items[int(number)][0] for numbers in group for number in numbers)
        return at.group, list(dict.fromkeys(clips))

    def __call__(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """The epoch's batches from ``first_step`` on."""
        if self._arrival is None:
            order = np.random.default_rng((*self._seed, epoch)).permutation(self._all)
            chosen = self._cut(order)
        else:
            chosen = [step.numbers for step in self._arrival]
        for step in range(first_step, self.steps):
            rng = np.random.default_rng((*self._seed, epoch, step))
            yield self._batch(chosen[step], rng if self._variants > 1 else None)

    def __iter__(self) -> Iterator[Batch]:
        for numbers in self._cut(self._all):
            yield self._batch(numbers, None)

    @property
    def _all(self) -> NDArray[np.int64]:
        return np.arange(len(self._items))

    def _cut(self, numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [numbers[at : at + self._size] for at in range(0, len(numbers), self._size)]

    def _arriving(self, clips: Sequence[str], arrival: Arrival) -> list[_Step]:
        """The steps of the stream."""
        groups = self._cut(self._all)
        if arrival.together:
            places = {clip: place // arrival.together for place, clip in enumerate(clips)}
            group = [places[clip] for clip, _ in self._items]
            groups = np.split(self._all, np.flatnonzero(np.diff(group)) + 1)
        return [
            _Step(numbers, number == 0, at, number == 0 and place == 0)
            for at, each in enumerate(groups)
            for number in range(arrival.passes)
            for place, numbers in enumerate(self._cut(each))
        ]

    def _batch(self, chosen: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        images: list[NDArray[np.uint8]] = []
        masks: list[NDArray[np.uint8]] = []
        valid: list[bool] = []
        labels: list[int] = []
        sounds: list[Mapping[str, Tensor]] = []
        for number in chosen:
            clip, shown = self._items[int(number)]
            frames, truth, labeled = self._store.pictures(clip)
            picture, mask = frames[list(shown)], truth[list(shown)]
            if rng is not None:
                picture, mask = _varied(picture, mask, rng)
            images.append(picture)
            masks.append(mask)
            valid += labeled[list(shown)].tolist()
            labels += [self._labels.get(clip, NO_LABEL)] * len(shown)
            sounds.append(self._sound(clip, shown, rng))
        return {
            "images": torch.from_numpy(np.concatenate(images)),
            "masks": torch.from_numpy(np.concatenate(masks)),
            "valid": torch.tensor(valid),
            "labels": torch.tensor(labels),
            **{name: torch.cat([sound[name] for sound in sounds]) for name in sounds[0]},
        }

    def _sound(
        self, clip: str, shown: tuple[int, ...], rng: np.random.Generator | None
    ) -> dict[str, Tensor]:
        at = list(shown)
        if self._raw:
            return {"waves": torch.from_numpy(self._store.windows(clip)[at])}
        variant = 0 if rng is None else int(rng.integers(self._variants))
        if self._masked and not variant:
            labeled = np.flatnonzero(self._store.pictures(clip)[2]).tolist()
            features = self._store.heard(clip, labeled)
            at = [labeled.index(frame) for frame in shown]
        else:
            features = self._store.features(clip, variant)
        return {"tokens": features.tokens[at], "embedding": features.embedding[at]}


def _varied(
    frames: NDArray[np.uint8], masks: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One view and one change of colours for all frames of a clip."""
    view = draw_view(rng, frames.shape[2], frames.shape[1])
    key = int(rng.integers(1 << 62))
    pictures = [
        varied_colours(view.of_picture(frame), np.random.default_rng(key)) for frame in frames
    ]
    return np.stack(pictures), np.stack([view.of_mask(mask) for mask in masks])

"""Batches of a segment's clips for the training loop, and its data for consolidation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.losses import NO_LABEL
from ..model.training import Batch
from ..streams.avslayout import FRAMES_PER_CLIP
from .clipstore import ClipStore
from .views import draw_view, varied_colours


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
        in_order: bool = False,
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
            in_order: as they arrive, not shuffled.

        Raises:
            ValueError: no clip has a mask.
        """
        self._store = store
        self._labels = labels
        self._seed = seed
        self._variants = variants
        self._raw = raw_sounds
        self._in_order = in_order
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

    @property
    def steps(self) -> int:
        """Batches an epoch; the last may be smaller."""
        return -(-len(self._items) // self._size)

    def __call__(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """The epoch's batches from ``first_step`` on."""
        order = np.arange(len(self._items))
        if not self._in_order:
            order = np.random.default_rng((*self._seed, epoch)).permutation(order)
        for step in range(first_step, self.steps):
            rng = np.random.default_rng((*self._seed, epoch, step))
            chosen = order[step * self._size : (step + 1) * self._size]
            yield self._batch(chosen, rng if self._variants > 1 else None)

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.steps):
            chosen = np.arange(len(self._items))[step * self._size : (step + 1) * self._size]
            yield self._batch(chosen, None)

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

"""Scores a network on test clips, and on the clips of a stream before it learns them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..model.losses import NO_LABEL
from ..model.method import Batch, Method, Segment
from ..model.metrics import FrameScores, best_of_batches
from ..model.network import Network, Output
from ..model.teacher import answer
from ..streams.avslayout import FRAMES_PER_CLIP
from .clipstore import ClipStore
from .runfolder import Curve, FrameRow
from .runspec import RunSpec

_FRAMES = 20
"""Frames in one forward pass: four clips."""

_BATCHES = (4, 2, 1)
"""Clips in a batch of a test, over which AVSBench's F takes maxima: its own, and what others had
(AVSegFormer 2; COMBO and most later ones 1)."""

_MIDDLE = 2


@dataclass(frozen=True, slots=True)
class PrequentialRow:
    """A frame of a stream, predicted before it was learned.

    Attributes:
        task: of the stream, from 0.
        step: of the task, from 0.
        frame: of the batch, from 0.
        J: AVSBench's, at the network's size.
        AP: NaN where the truth is empty.
    """

    task: int
    step: int
    frame: int
    J: float
    AP: float


class ClipScorer:
    """Predicts and scores."""

    def __init__(self, network: Network, method: Method, store: ClipStore, spec: RunSpec) -> None:
        self._network, self._method, self._store, self._spec = network, method, store, spec

    def score(
        self,
        clips: Sequence[str],
        after: int,
        test_task: int,
        segment: Segment,
        rows: Mapping[str, int],
    ) -> tuple[list[FrameRow], NDArray[np.float64]]:
        """Score a task's test clips.

        Args:
            clips: their ids.
            after: the task that was learned last.
            test_task: the task that the clips belong to.
            segment: that task, as methods know it.
            rows: of the class head, by class.

        Returns:
            A row a frame, and its curve of F, float64 (number of frames, 255).
        """
        found: list[FrameRow] = []
        scores = FrameScores(full=True)
        self._network.eval()
        for chosen in self._chunks(clips):
            probs, right, told = self._predict(self._batch(chosen, rows), segment)
            part = FrameScores(full=True)
            part.add(probs, np.stack([self._truth(clip, frame) for clip, frame in chosen]))
            scores.merge(part)
            columns = part.per_frame() | {"class_right": right, "class_right_told": told}
            del columns["empty"]
            found += [
                FrameRow(
                    after, test_task, clip, frame, **{n: float(c[i]) for n, c in columns.items()}
                )
                for i, (clip, frame) in enumerate(chosen)
            ]
        return found, scores.curves

    def pooled(self, curves: NDArray[np.float64]) -> Curve:
        """What pools to F over several sets of frames.

        Args:
            curves: of F, of all scored frames of some clips, clip by clip, as `score` gives them.
        """
        objects = curves[~np.isnan(curves[:, 0])]
        frames = 1 if self._one else FRAMES_PER_CLIP
        batches = (best_of_batches(curves, clips * frames).tolist() for clips in _BATCHES)
        return Curve(objects.sum(axis=0).tolist(), len(objects), *batches)

    def examples(
        self, clips: Sequence[str], segments: Sequence[Segment]
    ) -> dict[str, NDArray[np.generic]]:
        """What a person would look at: the middle frame of some clips, with truth and prediction.

        Args:
            clips: ids.
            segments: the task of each.

        Returns:
            ``clips`` (n,) ids, ``frames`` (n,) from 0, ``images`` uint8 (n, px, px, 3), ``truth``
            bool (n, px, px), ``probs`` uint8 (n, px, px) = round(255·p).
        """
        self._network.eval()
        px = self._spec.score_px
        images: list[NDArray[np.uint8]] = []
        probs: list[NDArray[np.uint8]] = []
        for clip, segment in zip(clips, segments, strict=True):
            found, _, _ = self._predict(self._batch([(clip, k) for k in range(5)], {}), segment)
            probs.append(np.round(255 * found[_MIDDLE].cpu().numpy()).astype(np.uint8))
            images.append(self._store.entries[clip].frames(px)[_MIDDLE])
        return {
            "clips": np.array(clips),
            "frames": np.full(len(clips), _MIDDLE),
            "images": np.stack(images),
            "truth": np.stack([self._truth(clip, _MIDDLE) for clip in clips]),
            "probs": np.stack(probs),
        }

    def prequential(self, batch: Batch, task: int, step: int) -> list[PrequentialRow]:
        """Score a batch of the stream that comes next, at the network's size."""
        was_training = self._network.training
        self._network.eval()
        probs, _, _ = self._predict(dict(batch), None, resize=False)
        self._network.train(was_training)
        valid = batch["valid"].numpy()
        truth = batch["masks"].numpy().astype(np.bool_)
        scores = FrameScores(full=True)
        scores.add(probs, truth)
        found = scores.per_frame()
        return [
            PrequentialRow(task, step, int(i), float(found["J"][i]), float(found["AP"][i]))
            for i in np.flatnonzero(valid)
        ]

    def _chunks(self, clips: Sequence[str]) -> Iterator[list[tuple[str, int]]]:
        """(clip, frame) pairs, so many as one forward pass takes; clips are never divided."""
        chunk: list[tuple[str, int]] = []
        for number, clip in enumerate(clips):
            chunk += [(clip, frame) for frame in ([number % 5] if self._one else range(5))]
            if len(chunk) >= _FRAMES:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    @property
    def _one(self) -> bool:
        """Whether a single frame of each clip is scored."""
        return self._spec.score_frames == "one" and self._network.clip_frames == 1

    def _batch(self, chosen: Sequence[tuple[str, int]], rows: Mapping[str, int]) -> Batch:
        entries = self._store.entries
        images = [self._store.pictures(clip)[0][frame] for clip, frame in chosen]
        features = [self._store.features(clip) for clip, _ in chosen]
        frames = [frame for _, frame in chosen]
        labels = [
            NO_LABEL if entries[c].kind == "negative" else rows.get(entries[c].category or "", -1)
            for c, _ in chosen
        ]
        return {
            "images": torch.from_numpy(np.stack(images)),
            "labels": torch.tensor(labels),
            "tokens": torch.stack([f.tokens[i] for f, i in zip(features, frames, strict=True)]),
            "embedding": torch.stack(
                [f.embedding[i] for f, i in zip(features, frames, strict=True)]
            ),
        }

    @torch.no_grad()
    def _predict(
        self, batch: Batch, segment: Segment | None, *, resize: bool = True
    ) -> tuple[Tensor, NDArray[np.float64], NDArray[np.float64]]:
        """What is predicted, where the network is.

        Returns:
            Probabilities (N, px, px); whether the class was told right, and within the task.
        """
        device = next(self._network.parameters()).device
        batch = {name: value.to(device) for name, value in batch.items()}
        if "waves" in batch:
            features = self._network.encode_audio(self._network.log_mel(batch["waves"]))
            batch |= {"tokens": features.tokens, "embedding": features.embedding}
        out = answer(self._network, batch)
        plain = self._method.predict(batch, out, None)
        told = self._method.predict(batch, out, segment)
        logits = (told if self._spec.protocol == "til" else plain).mask_logits.float()
        px = self._spec.score_px
        if resize and logits.shape[-2:] != (px, px):
            logits = F.interpolate(logits[:, None], (px, px), mode="bilinear", align_corners=False)[
                :, 0
            ]
        return torch.sigmoid(logits), _right(plain, batch), _right(told, batch)

    def _truth(self, clip: str, frame: int) -> NDArray[np.bool_]:
        return self._store.truth(clip, self._spec.score_px)[0][frame]


def _right(out: Output, batch: Batch) -> NDArray[np.float64]:
    """1 where the likeliest class is the label, 0 where not, NaN where there is no class."""
    labels = batch["labels"].cpu().numpy()
    if out.class_logits is None or not out.class_logits.shape[1]:
        return np.full(len(labels), np.nan)
    guessed = out.class_logits.argmax(dim=1).cpu().numpy()
    return np.where(labels == NO_LABEL, np.nan, (guessed == labels).astype(np.float64))

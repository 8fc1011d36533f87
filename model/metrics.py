"""How good masks are: J (mIoU) and F, with their conventions for empty masks stated.

Two traps of the public code are kept apart here. J scores a frame whose truth is empty by the
share of pixels that were predicted background (AVSBench's rule), so the mean hides how often a
network draws something where nothing sounds: `FrameScores.summary` also gives both kinds of frame
apart. AVSBench's F takes its maximum over thresholds inside each batch and so depends on the batch
size of the test; `f_measure_batch` reproduces it, `f_measure_dataset` (ACL-SSL's form) averages
over all frames first and is the one to report. Threshold 0 marks every pixel, so neither falls
below ``1.3a / (0.3a + 1)`` for an object that covers the share ``a`` of the frame; F at 0.5 does.

Everything is computed in float64 from counts of pixels. AP, AUPR and the best F of each frame by
itself are in `ranking`; `FrameScores` keeps them too where it is asked to.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .ranking import (
    BETA_SQUARED,
    Masks,
    RankingScores,
    Scores,
    check_frames,
    on_the_host,
    ranking_scores,
)

_EPS = 1e-7
_TINY = 1e-20
_THRESHOLDS = np.linspace(0.0, 1.0 - 1e-10, 255).astype(np.float32)


def frame_iou(pred: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """J of each frame, AVSBench's rule.

    Args:
        pred: bool (N, H, W), the predicted masks (AVSBench: probability > 0.5).
        truth: bool (N, H, W), the true masks.

    Returns:
        float64 (N,) in [0, 1]: intersection over union, or for an empty truth the share of
        pixels predicted background.

    Raises:
        ValueError: if the shapes differ or are not (N, H, W).
    """
    check_frames(pred, truth)
    n = len(pred)
    area = pred.shape[1] * pred.shape[2]
    flat_pred = pred.reshape(n, area).astype(bool, copy=False)
    flat_truth = truth.reshape(n, area).astype(bool, copy=False)
    inter = np.count_nonzero(flat_pred & flat_truth, axis=1).astype(np.float64)
    union = np.count_nonzero(flat_pred | flat_truth, axis=1).astype(np.float64)
    empty = ~flat_truth.any(axis=1)
    return np.where(empty, (area - union) / (area + _EPS), inter / (union + _EPS))


def mean_iou(pred: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """The mean of `frame_iou` over frames, NaN for none."""
    return _mean(frame_iou(pred, truth))


def frame_dice(pred: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Dice of each frame: twice the intersection over the sum of both areas.

    An empty truth has no overlap to measure. The convention here is all or nothing: 1 if the
    prediction is empty too, else 0, which is far from J's share of background. So keep frames with
    and without an object apart in means, as `FrameScores.summary` does.

    Args:
        pred: bool (N, H, W), the predicted masks.
        truth: bool (N, H, W), the true masks.

    Returns:
        float64 (N,) in [0, 1].

    Raises:
        ValueError: if the shapes differ or are not (N, H, W).
    """
    check_frames(pred, truth)
    axes = (1, 2)
    inter = np.count_nonzero(pred & truth, axis=axes).astype(np.float64)
    areas = np.count_nonzero(pred, axis=axes) + np.count_nonzero(truth, axis=axes)
    return np.divide(2 * inter, areas, out=np.ones(len(pred)), where=areas > 0)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _f_scores(
    hits: NDArray[np.float64], marked: NDArray[np.float64], positive: NDArray[np.float64]
) -> NDArray[np.float64]:
    precision = hits / (marked + _TINY)
    recall = hits / (positive + _TINY)
    divisor = BETA_SQUARED * precision + recall
    scores = (1.0 + BETA_SQUARED) * precision * recall / np.where(divisor > 0, divisor, 1.0)
    return np.where(positive > 0, scores, np.nan)


def f_curves(probs: NDArray[np.float32], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """F of each frame at 255 thresholds from 0 to 1, with ``prob >= threshold`` as in AVSBench.

    Args:
        probs: float32 (N, H, W) in [0, 1].
        truth: bool (N, H, W).

    Returns:
        float64 (N, 255), the rows of frames with an empty truth NaN.

    Raises:
        ValueError: if the shapes differ or are not (N, H, W), or a value is no probability.
    """
    check_frames(probs, truth)
    if probs.size and not (probs.min() >= 0.0 and probs.max() <= 1.0):
        raise ValueError(
            f"probabilities lie in [{probs.min()}, {probs.max()}]; they must be in [0, 1], no NaN"
        )
    n, bins = len(probs), len(_THRESHOLDS) + 1
    curves = np.full((n, len(_THRESHOLDS)), np.nan)
    for i in range(n):
        target = truth[i].ravel().astype(bool, copy=False)
        if not target.any():
            continue
        met = np.searchsorted(_THRESHOLDS, probs[i].ravel(), side="right")
        marked = np.bincount(met, minlength=bins).astype(np.float64)
        hits = np.bincount(met[target], minlength=bins).astype(np.float64)
        marked = marked[::-1].cumsum()[::-1][1:]
        hits = hits[::-1].cumsum()[::-1][1:]
        curves[i] = _f_scores(hits, marked, np.full_like(hits, np.count_nonzero(target)))
    return curves


def f_measure_pooled(curve_sums: Sequence[NDArray[np.float64]], objects: Sequence[int]) -> float:
    """F over several sets of frames as if they were one, from `FrameScores.curve_sum` of each.

    Args:
        curve_sums: each set's sum of `f_curves` over its frames with an object, float64 (255,).
        objects: how many such frames each has.

    Returns:
        F in [0, 1] as `f_measure_dataset` of all frames, NaN if no frame has an object.

    Raises:
        ValueError: if there are not as many counts as sums.
    """
    if len(curve_sums) != len(objects):
        raise ValueError(f"{len(curve_sums)} sums of curves with {len(objects)} counts of frames")
    total = sum(objects)
    return float(np.sum(curve_sums, axis=0).max()) / total if total else float("nan")


def _best_of_mean(curves: NDArray[np.float64]) -> float:
    scored = curves[~np.isnan(curves[:, 0])]
    return float(scored.mean(axis=0).max()) if len(scored) else float("nan")


def f_measure_dataset(probs: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """F over a data set: the curves' mean over all frames with an object, then its maximum.

    Args:
        probs: float32 (N, H, W) in [0, 1].
        truth: bool (N, H, W).

    Returns:
        F in [0, 1], NaN if no frame has an object.
    """
    return _best_of_mean(f_curves(probs, truth))


def f_measure_batch(
    probs: NDArray[np.float32], truth: NDArray[np.bool_], frames_per_batch: int
) -> float:
    """F as AVSBench computes it: the maximum inside each batch, then the mean over batches.

    For comparison with published numbers only: it depends on the batch size, which papers rarely
    state, and a batch without any object counts as 0.

    Args:
        probs: float32 (N, H, W) in [0, 1].
        truth: bool (N, H, W).
        frames_per_batch: frames, not clips: five times the clips of an AVSBench batch.

    Returns:
        F in [0, 1], NaN for no frames.

    Raises:
        ValueError: as `f_curves`, or if ``frames_per_batch`` is below 1.
    """
    return _mean(best_of_batches(f_curves(probs, truth), frames_per_batch))


def best_of_batches(curves: NDArray[np.float64], frames_per_batch: int) -> NDArray[np.float64]:
    """What `f_measure_batch` averages: the maximum inside each batch.

    Args:
        curves: float64 (N, 255), `f_curves` of all frames in the order of the test.
        frames_per_batch: frames; the last batch may have fewer.

    Returns:
        float64, one a batch, 0 for a batch without any object.

    Raises:
        ValueError: if ``frames_per_batch`` is below 1.
    """
    if frames_per_batch < 1:
        raise ValueError(f"frames_per_batch is {frames_per_batch}; it must be at least 1")
    starts = range(0, len(curves), frames_per_batch)
    batches = [_best_of_mean(curves[s : s + frames_per_batch]) for s in starts]
    return np.nan_to_num(np.array(batches, dtype=np.float64), nan=0.0)


def f_measure_at(pred: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """F of each frame for masks already decided, NaN where the truth is empty.

    Args:
        pred: bool (N, H, W).
        truth: bool (N, H, W).

    Returns:
        float64 (N,).
    """
    check_frames(pred, truth)
    axes = (1, 2)
    hits = np.count_nonzero(pred & truth, axis=axes).astype(np.float64)
    marked = np.count_nonzero(pred, axis=axes).astype(np.float64)
    positive = np.count_nonzero(truth, axis=axes).astype(np.float64)
    return _f_scores(hits, marked, positive)


class FrameScores:
    """Scores of frames as they come, kept per frame, so that a test set need not fit in memory.

    Attributes:
        threshold: a pixel belongs to the mask where its probability is above this.
        full: whether Dice, AP, AUPR and the best F of each frame are kept too; their sort costs
            about as much as all the rest.
    """

    def __init__(self, threshold: float = 0.5, *, full: bool = False) -> None:
        self.threshold = threshold
        self.full = full
        self._iou: list[NDArray[np.float64]] = []
        self._f_at: list[NDArray[np.float64]] = []
        self._curves: list[NDArray[np.float64]] = []
        self._marked: list[NDArray[np.float64]] = []
        self._dice: list[NDArray[np.float64]] = []
        self._ranking: list[RankingScores] = []

    def add(self, probs: Scores, truth: Masks) -> None:
        """Score more frames.

        Args:
            probs: float32 (N, H, W) in [0, 1], an array or a tensor on any device; `full` scores
                of a tensor on a CUDA device are computed there.
            truth: bool (N, H, W), likewise.

        Raises:
            ValueError: if the shapes differ or are not (N, H, W), or a value is no probability;
                nothing was added then.
        """
        host, mask = on_the_host(probs, truth)
        curves = f_curves(host, mask)
        pred = host > self.threshold
        if self.full:
            self._ranking.append(ranking_scores(probs, truth))
            self._dice.append(frame_dice(pred, mask))
        self._curves.append(curves)
        self._iou.append(frame_iou(pred, mask))
        self._f_at.append(f_measure_at(pred, mask))
        self._marked.append(pred.mean(axis=(1, 2), dtype=np.float64))

    def merge(self, other: FrameScores) -> None:
        """Add what another has scored, after what is here: as if its frames were added here.

        Raises:
            ValueError: if ``threshold`` or ``full`` differ.
        """
        mine, its = (self.threshold, self.full), (other.threshold, other.full)
        if mine != its:
            raise ValueError(f"scores of (threshold, full) {mine} cannot take in those of {its}")
        self._iou += other._iou
        self._f_at += other._f_at
        self._curves += other._curves
        self._marked += other._marked
        self._dice += other._dice
        self._ranking += other._ranking

    @property
    def iou(self) -> NDArray[np.float64]:
        """float64 (N,), J of each frame."""
        return _joined(self._iou)

    @property
    def empty(self) -> NDArray[np.bool_]:
        """Bool (N,), the frames whose truth is empty."""
        return np.isnan(_joined(self._f_at))

    @property
    def marked(self) -> NDArray[np.float64]:
        """float64 (N,), the share of pixels that the predicted mask covers."""
        return _joined(self._marked)

    @property
    def curves(self) -> NDArray[np.float64]:
        """float64 (N, 255), `f_curves` of each frame."""
        return np.concatenate(self._curves) if self._curves else np.empty((0, len(_THRESHOLDS)))

    @property
    def curve_sum(self) -> NDArray[np.float64]:
        """float64 (255,), the sum of `curves` over frames with an object, for pooling."""
        return self.curves[~self.empty].sum(axis=0)

    @property
    def objects(self) -> int:
        """How many frames have an object."""
        return int(np.count_nonzero(~self.empty))

    def f_batch(self, frames_per_batch: int) -> float:
        """`f_measure_batch` of all frames in the order in which they were added."""
        return _mean(best_of_batches(self.curves, frames_per_batch))

    def per_frame(self) -> dict[str, NDArray[np.float64] | NDArray[np.bool_]]:
        """Every score of every frame by name, each (N,): the columns of a table of frames.

        ``empty`` (bool) tells frames without an object; ``J`` is `frame_iou`, ``F_at`` F at the
        threshold, ``marked`` the share of pixels in the mask; where `full`, also ``Dice``, ``AP``,
        ``AUPR`` and ``F_max``. NaN where a score is not defined.
        """
        always = {"J": self.iou, "F_at": _joined(self._f_at), "marked": self.marked}
        return {"empty": self.empty, **always, **self._details()}

    def _details(self) -> dict[str, NDArray[np.float64]]:
        if not self.full:
            return {}
        return {
            "Dice": _joined(self._dice),
            "AP": _joined([ranking.ap for ranking in self._ranking]),
            "AUPR": _joined([ranking.aupr for ranking in self._ranking]),
            "F_max": _joined([ranking.f_max for ranking in self._ranking]),
        }

    def summary(self) -> dict[str, float]:
        """All scores by name; NaN where there was nothing to score.

        ``J`` over all frames, ``J_object`` and ``J_empty`` over those with and without an object;
        ``F`` is `f_measure_dataset`, ``F_at`` the mean of F at the threshold; ``quiet`` is the
        share of empty frames where under 0.5 % of the pixels were marked; ``frames`` counts.
        Where `full`, also ``Dice_object`` and ``Dice_empty``, and over the frames with an object
        the means ``AP`` (the paper's mAP), ``AUPR`` and ``F_max`` (each frame at its own best).
        """
        iou, empty = self.iou, self.empty
        scores = {
            "J": _mean(iou),
            "J_object": _mean(iou[~empty]),
            "J_empty": _mean(iou[empty]),
            "F": _best_of_mean(self.curves),
            "F_at": _mean(_joined(self._f_at)[~empty]),
            "quiet": _mean((self.marked[empty] < 0.005).astype(np.float64)),
            "frames": float(len(iou)),
        }
        details = self._details()
        if details:
            dice = details.pop("Dice")
            scores |= {"Dice_object": _mean(dice[~empty]), "Dice_empty": _mean(dice[empty])}
            scores |= {name: _mean(values[~empty]) for name, values in details.items()}
        return scores


def _joined(parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate(parts) if parts else np.empty(0)

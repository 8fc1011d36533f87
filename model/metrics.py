"""How good masks are: J (mIoU) and F, with their conventions for empty masks stated.

Two traps of the public code are kept apart here. J scores a frame whose truth is empty by the
share of pixels that were predicted background (AVSBench's rule), so the mean hides how often a
network draws something where nothing sounds: `FrameScores.summary` also gives both kinds of frame
apart. AVSBench's F takes its maximum over thresholds inside each batch and so depends on the batch
size of the test; `f_measure_batch` reproduces it, `f_measure_dataset` (ACL-SSL's form) averages
over all frames first and is the one to report. Threshold 0 marks every pixel, so neither falls
below ``1.3a / (0.3a + 1)`` for an object that covers the share ``a`` of the frame; F at 0.5 does.

Everything is computed in float64 from counts of pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BETA_SQUARED = 0.3
"""Weight of recall against precision in F (AVSBench's)."""

_EPS = 1e-7
_TINY = 1e-20
_THRESHOLDS = np.linspace(0.0, 1.0 - 1e-10, 255).astype(np.float32)


def _check(pred: NDArray[np.generic], truth: NDArray[np.generic]) -> None:
    if pred.ndim != 3 or pred.shape != truth.shape:
        raise ValueError(
            f"predictions {pred.shape} and truth {truth.shape}: both must be (N, H, W) alike"
        )


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
    _check(pred, truth)
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
    _check(probs, truth)
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
    """
    if frames_per_batch < 1:
        raise ValueError(f"frames_per_batch is {frames_per_batch}; it must be at least 1")
    curves = f_curves(probs, truth)
    starts = range(0, len(curves), frames_per_batch)
    batches = [_best_of_mean(curves[s : s + frames_per_batch]) for s in starts]
    return _mean(np.nan_to_num(np.array(batches, dtype=np.float64), nan=0.0))


def f_measure_at(pred: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """F of each frame for masks already decided, NaN where the truth is empty.

    Args:
        pred: bool (N, H, W).
        truth: bool (N, H, W).

    Returns:
        float64 (N,).
    """
    _check(pred, truth)
    axes = (1, 2)
    hits = np.count_nonzero(pred & truth, axis=axes).astype(np.float64)
    marked = np.count_nonzero(pred, axis=axes).astype(np.float64)
    positive = np.count_nonzero(truth, axis=axes).astype(np.float64)
    return _f_scores(hits, marked, positive)


class FrameScores:
    """Scores of frames as they come, kept per frame, so that a test set need not fit in memory.

    Attributes:
        threshold: a pixel belongs to the mask where its probability is above this.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold
        self._iou: list[NDArray[np.float64]] = []
        self._f_at: list[NDArray[np.float64]] = []
        self._curves: list[NDArray[np.float64]] = []
        self._marked: list[NDArray[np.float64]] = []

    def add(self, probs: NDArray[np.float32], truth: NDArray[np.bool_]) -> None:
        """Score more frames: probabilities float32 (N, H, W) and truth bool (N, H, W)."""
        pred = probs > self.threshold
        self._iou.append(frame_iou(pred, truth))
        self._f_at.append(f_measure_at(pred, truth))
        self._curves.append(f_curves(probs, truth))
        self._marked.append(pred.mean(axis=(1, 2), dtype=np.float64))

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

    def summary(self) -> dict[str, float]:
        """All scores by name; NaN where there was nothing to score.

        ``J`` over all frames, ``J_object`` and ``J_empty`` over those with and without an object;
        ``F`` is `f_measure_dataset`, ``F_at`` the mean of F at the threshold; ``quiet`` is the
        share of empty frames where under 0.5 % of the pixels were marked; ``frames`` counts.
        """
        iou, empty = self.iou, self.empty
        curves = np.concatenate(self._curves) if self._curves else np.empty((0, 255))
        return {
            "J": _mean(iou),
            "J_object": _mean(iou[~empty]),
            "J_empty": _mean(iou[empty]),
            "F": _best_of_mean(curves),
            "F_at": _mean(_joined(self._f_at)[~empty]),
            "quiet": _mean((self.marked[empty] < 0.005).astype(np.float64)),
            "frames": float(len(iou)),
        }


def _joined(parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate(parts) if parts else np.empty(0)

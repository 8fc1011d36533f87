"""The metrics, against loops in float64 and scikit-learn, and their conventions by hand."""

from __future__ import annotations

import numpy as np
import pytest
from atlasd.model.metrics import (
    FrameScores,
    f_curves,
    f_measure_at,
    f_measure_batch,
    f_measure_dataset,
    frame_iou,
    mean_iou,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import fbeta_score, jaccard_score

THRESHOLDS = np.linspace(0, 1 - 1e-10, 255)


def frames(seed, n=6, size=12, empty=()):
    """Probabilities that follow the truth loosely; the truth of the frames ``empty`` is empty."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, size, size)) < 0.3
    truth[list(empty)] = False
    probs = np.clip(0.5 * truth + rng.normal(0.25, 0.2, truth.shape), 0, 1).astype(np.float32)
    return probs, truth


def f_loop(prob, truth):
    """F of one frame at every threshold, as the formula says; the thresholds in float32."""
    scores = []
    for threshold in THRESHOLDS.astype(np.float32):
        marked = prob >= threshold
        hits = float(np.sum(marked & truth))
        precision = hits / (float(marked.sum()) + 1e-20)
        recall = hits / (float(truth.sum()) + 1e-20)
        divisor = 0.3 * precision + recall
        scores.append(0.0 if divisor == 0 else 1.3 * precision * recall / divisor)
    return np.array(scores)


def test_iou_of_frames_with_an_object_is_scikit_learns_jaccard():
    probs, truth = frames(0)
    pred = probs > 0.5
    expected = [jaccard_score(t.ravel(), p.ravel()) for p, t in zip(pred, truth, strict=True)]
    assert frame_iou(pred, truth) == pytest.approx(expected, abs=1e-6)
    assert mean_iou(pred, truth) == pytest.approx(np.mean(expected), abs=1e-6)


def test_iou_of_an_empty_frame_is_the_share_predicted_background():
    truth = np.zeros((3, 4, 4), dtype=bool)
    pred = np.zeros((3, 4, 4), dtype=bool)
    pred[1, :2] = True
    pred[2] = True
    assert frame_iou(pred, truth) == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)


def test_f_at_a_threshold_is_scikit_learns_f_beta():
    probs, truth = frames(1, empty=[2])
    pred = probs > 0.5
    scores = f_measure_at(pred, truth)
    assert np.isnan(scores[2])
    for i in (0, 1, 3, 4, 5):
        expected = fbeta_score(truth[i].ravel(), pred[i].ravel(), beta=np.sqrt(0.3))
        assert scores[i] == pytest.approx(expected, abs=1e-9)


def test_f_curves_equal_a_loop_over_thresholds():
    probs, truth = frames(2, empty=[4])
    probs[0, 0, :3] = [0.0, 1.0, np.float32(THRESHOLDS[100])]
    curves = f_curves(probs, truth)
    assert curves.shape == (6, 255)
    assert np.isnan(curves[4]).all()
    for i in (0, 1, 2, 3, 5):
        np.testing.assert_allclose(curves[i], f_loop(probs[i], truth[i]), atol=1e-12)


def test_f_of_a_data_set_averages_curves_before_the_maximum():
    probs, truth = frames(3, n=8, empty=[1, 5])
    loops = np.array([f_loop(probs[i], truth[i]) for i in range(8) if i not in (1, 5)])
    assert f_measure_dataset(probs, truth) == pytest.approx(loops.mean(axis=0).max(), abs=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_f_by_batch_takes_each_batchs_maximum_and_counts_a_batch_without_objects_as_zero(size):
    probs, truth = frames(4, n=8, empty=[0, 1, 6])
    expected = []
    for start in range(0, 8, size):
        rows = [
            f_loop(probs[i], truth[i]) for i in range(start, min(start + size, 8)) if truth[i].any()
        ]
        expected.append(np.mean(rows, axis=0).max() if rows else 0.0)
    assert f_measure_batch(probs, truth, size) == pytest.approx(np.mean(expected), abs=1e-12)


def test_the_conventions_at_the_edges():
    """The vectors that were measured on the public code."""
    full, none = np.ones((1, 6, 6), bool), np.zeros((1, 6, 6), bool)
    half = none.copy()
    half[:, :3] = True
    as_probs = lambda mask: mask.astype(np.float32)  # noqa: E731

    assert mean_iou(none, none) == pytest.approx(1, abs=1e-6)
    assert np.isnan(f_measure_dataset(as_probs(none), none))
    assert mean_iou(half, none) == pytest.approx(0.5, abs=1e-6)
    assert mean_iou(none, full) == 0
    assert f_measure_dataset(as_probs(none), full) == pytest.approx(1.0)  # threshold 0 marks all
    assert f_measure_at(none, full)[0] == 0
    assert mean_iou(half, half) == pytest.approx(1, abs=1e-6)
    assert f_measure_dataset(as_probs(half), half) == pytest.approx(1.0)
    # An all-zero prediction keeps F's floor 1.3a / (0.3a + 1), here for a = 1/2.
    assert f_measure_dataset(as_probs(none), half) == pytest.approx(0.65 / 1.15)


masks = hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6))


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(0, 2**32 - 1))
def test_scores_stay_in_their_range_and_truth_scores_best(truth, seed):
    rng = np.random.default_rng(seed)
    pred = rng.random(truth.shape) < 0.5
    scores = frame_iou(pred, truth)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (frame_iou(truth, truth) > 1 - 1e-6).all()
    object_frames = truth.any(axis=(1, 2))
    f = f_measure_at(pred, truth)
    assert (np.isnan(f) == ~object_frames).all()
    assert ((f[object_frames] >= 0) & (f[object_frames] <= 1)).all()
    assert f_measure_at(truth, truth)[object_frames] == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(masks, st.integers(0, 2**32 - 1))
def test_the_order_of_the_frames_and_of_the_pixels_does_not_matter(truth, seed):
    rng = np.random.default_rng(seed)
    probs = rng.random(truth.shape, dtype=np.float32)
    order = rng.permutation(len(truth))
    shuffled = probs[order][:, ::-1], truth[order][:, ::-1]
    np.testing.assert_allclose(
        frame_iou(probs > 0.5, truth)[order], frame_iou(shuffled[0] > 0.5, shuffled[1])
    )
    a, b = f_measure_dataset(probs, truth), f_measure_dataset(*shuffled)
    assert np.isnan(a) == np.isnan(b)
    assert np.isnan(a) or a == pytest.approx(b, abs=1e-12)


def test_scores_added_in_parts_equal_scores_of_the_whole():
    probs, truth = frames(5, n=9, empty=[3, 7])
    probs[3] = 0.1
    probs[7] = 0.9
    scores = FrameScores()
    for start in (0, 4, 5):
        stop = {0: 4, 4: 5, 5: 9}[start]
        scores.add(probs[start:stop], truth[start:stop])
    summary = scores.summary()
    iou = frame_iou(probs > 0.5, truth)
    some = np.array([i not in (3, 7) for i in range(9)])
    assert summary["J"] == pytest.approx(iou.mean())
    assert summary["J_object"] == pytest.approx(iou[some].mean())
    assert summary["J_empty"] == pytest.approx(0.5, abs=1e-6)
    assert summary["F"] == pytest.approx(f_measure_dataset(probs, truth))
    assert summary["F_at"] == pytest.approx(np.nanmean(f_measure_at(probs > 0.5, truth)))
    assert summary["quiet"] == 0.5
    assert summary["frames"] == 9
    assert (scores.empty == ~some).all()


def test_no_frames_give_nan_and_not_an_error():
    summary = FrameScores().summary()
    assert summary.pop("frames") == 0
    assert np.isnan(list(summary.values())).all()
    assert np.isnan(mean_iou(np.zeros((0, 2, 2), bool), np.zeros((0, 2, 2), bool)))


def test_wrong_input_is_named():
    good = np.zeros((2, 3, 3), dtype=np.float32)
    truth = np.zeros((2, 3, 3), dtype=bool)
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        frame_iou(truth[0], truth[0])
    with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
        f_curves(np.zeros((2, 3, 4), np.float32), truth)
    for bad in (-0.1, 1.5, np.nan):
        probs = good.copy()
        probs[1, 1, 1] = bad
        with pytest.raises(ValueError, match="probabilities"):
            f_curves(probs, truth)
    with pytest.raises(ValueError, match="frames_per_batch is 0"):
        f_measure_batch(good, truth, 0)

"""The metrics, against loops in float64 and scikit-learn, and their conventions by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from atlasd.model.metrics import (
    FrameScores,
    f_curves,
    f_measure_at,
    f_measure_batch,
    f_measure_dataset,
    f_measure_pooled,
    frame_dice,
    frame_iou,
    mean_iou,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, f1_score, fbeta_score, jaccard_score

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


def test_dice_is_scikit_learns_f1_and_all_or_nothing_where_the_truth_is_empty():
    probs, truth = frames(6, empty=[1, 4])
    probs[4] = 0.1
    pred = probs > 0.5
    assert pred[1].any()
    scores = frame_dice(pred, truth)
    assert (scores[1], scores[4]) == (0, 1)
    for i in (0, 2, 3, 5):
        assert scores[i] == pytest.approx(f1_score(truth[i].ravel(), pred[i].ravel()), abs=1e-12)


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


DETAILS = ("Dice", "AP", "AUPR", "F_max")


def added(probs, truth, *, parts=1, full=True):
    scores = FrameScores(full=full)
    for some in np.array_split(np.arange(len(probs)), parts):
        scores.add(probs[some], truth[some])
    return scores


def test_full_scores_of_each_frame_can_be_had_by_name_and_on_average():
    probs, truth = frames(7, n=9, empty=[3, 7])
    scores = added(probs, truth, parts=3)
    columns = scores.per_frame()
    assert set(columns) == {"empty", "J", "F_at", "marked", *DETAILS}
    assert all(len(column) == 9 for column in columns.values())
    some = ~columns["empty"]
    assert np.flatnonzero(~some).tolist() == [3, 7]
    expected = [
        average_precision_score(truth[i].ravel(), probs[i].ravel()) for i in some.nonzero()[0]
    ]
    np.testing.assert_allclose(columns["AP"][some], expected, atol=1e-12)
    for name in ("AP", "AUPR", "F_max", "F_at"):
        assert (np.isnan(columns[name]) == ~some).all()
    np.testing.assert_array_equal(columns["J"], frame_iou(probs > 0.5, truth))
    np.testing.assert_array_equal(columns["Dice"], frame_dice(probs > 0.5, truth))

    summary = scores.summary()
    assert summary["AP"] == pytest.approx(np.mean(expected), abs=1e-12)
    for name in ("AUPR", "F_max"):
        assert summary[name] == pytest.approx(columns[name][some].mean(), abs=1e-12)
    assert summary["Dice_object"] == pytest.approx(columns["Dice"][some].mean(), abs=1e-12)
    assert summary["Dice_empty"] == 0  # both have pixels marked


def test_what_was_not_asked_for_is_not_kept():
    probs, truth = frames(8)
    scores = added(probs, truth, full=False)
    assert set(scores.per_frame()) == {"empty", "J", "F_at", "marked"}
    assert set(scores.summary()) == {"J", "J_object", "J_empty", "F", "F_at", "quiet", "frames"}


def test_a_frames_best_f_is_at_least_that_at_any_of_the_255_thresholds():
    probs, truth = frames(9, n=8)
    best = added(probs, truth).per_frame()["F_max"]
    at_thresholds = f_curves(probs, truth).max(axis=1)
    assert (best >= at_thresholds - 1e-12).all()
    assert (best > at_thresholds + 1e-9).any()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_scores_in_parts_or_merged_equal_scores_at_once(parts, cut, seed):
    probs, truth = frames(seed, n=9, size=6, empty=[2, 8])
    whole = added(probs, truth)
    merged = added(probs[:cut], truth[:cut])
    merged.merge(added(probs[cut:], truth[cut:]))
    for scores in (added(probs, truth, parts=parts), merged):
        for name, column in whole.per_frame().items():
            np.testing.assert_array_equal(scores.per_frame()[name], column, err_msg=name)
        np.testing.assert_array_equal(scores.curves, whole.curves)
        assert scores.summary() == whole.summary()


def test_scores_of_another_kind_are_not_merged():
    with pytest.raises(ValueError, match=r"\(0.5, True\) cannot take in those of \(0.5, False\)"):
        FrameScores(full=True).merge(FrameScores())
    with pytest.raises(ValueError, match=r"0\.4"):
        FrameScores().merge(FrameScores(0.4))


def test_f_of_cells_can_be_pooled_and_taken_by_batch():
    probs, truth = frames(10, n=10, empty=[0, 1, 6])
    cells = [added(probs[s], truth[s], full=False) for s in (slice(2), slice(2, 5), slice(5, 10))]
    assert [cell.objects for cell in cells] == [0, 3, 4]
    assert not cells[0].curve_sum.any()
    pooled = f_measure_pooled([c.curve_sum for c in cells], [c.objects for c in cells])
    assert pooled == pytest.approx(f_measure_dataset(probs, truth), abs=1e-12)
    assert np.isnan(f_measure_pooled([cells[0].curve_sum], [0]))
    assert np.isnan(f_measure_pooled([], []))
    with pytest.raises(ValueError, match="1 sums of curves with 2 counts"):
        f_measure_pooled([cells[0].curve_sum], [0, 1])
    whole = added(probs, truth, parts=4)
    for size in (1, 3, 10):
        assert whole.f_batch(size) == f_measure_batch(probs, truth, size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_score_as_arrays_do(dtype):
    probs, truth = frames(11, empty=[2])
    tensor = torch.from_numpy(probs).to(dtype).requires_grad_()
    scores = FrameScores(full=True)
    scores.add(tensor, torch.from_numpy(truth))
    expected = added(tensor.detach().float().numpy(), truth).per_frame()
    for name, column in scores.per_frame().items():
        np.testing.assert_array_equal(column, expected[name], err_msg=name)


def test_frames_that_are_refused_leave_nothing_behind():
    probs, truth = frames(12, empty=[1])
    scores = added(probs, truth)
    before = scores.summary()
    broken = probs.copy()
    broken[3, 0, 0] = np.nan
    for bad, error in ((broken, "probabilities"), (probs.astype(np.float64), "float64")):
        with pytest.raises(ValueError, match=error):
            scores.add(bad, truth)
    assert scores.summary() == before
    assert all(len(column) == 6 for column in scores.per_frame().values())


@pytest.mark.parametrize("full", [False, True])
def test_no_frames_give_nan_and_not_an_error(full):
    summary = FrameScores(full=full).summary()
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

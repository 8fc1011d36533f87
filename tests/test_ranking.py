"""AP, AUPR and the best F of frames, against scikit-learn and their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from atlasd.model.ranking import average_precision, ranking_scores, ranking_scores_batched
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score, precision_recall_curve

ALL = ("ap", "aupr", "f_max")


def by_scikit_learn(scores, truth):
    """Rows of AP, AUPR and best F, NaN where the truth is empty."""
    rows = []
    for score, target in zip(
        scores.reshape(len(scores), -1), truth.reshape(len(truth), -1), strict=True
    ):
        if not target.any():
            rows.append([np.nan] * 3)
            continue
        precision, recall, _ = precision_recall_curve(target, score)
        divisor = 0.3 * precision + recall
        f = 1.3 * precision * recall / np.where(divisor > 0, divisor, 1)
        rows.append([average_precision_score(target, score), auc(recall, precision), f.max()])
    return np.array(rows).reshape(-1, 3)


def table(scores):
    return np.stack([getattr(scores, name) for name in ALL], axis=1)


def batched(scores, truth):
    return ranking_scores_batched(torch.from_numpy(scores), torch.from_numpy(truth))


def check(scores, truth):
    expected = by_scikit_learn(scores, truth)
    for score in (ranking_scores, batched):
        given_scores = score(scores, truth)
        assert all(getattr(given_scores, name).dtype == np.float64 for name in ALL)
        np.testing.assert_allclose(table(given_scores), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(average_precision(scores, truth), expected[:, 0], rtol=0, atol=1e-12)


def drawn(seed, shape=(4, 9, 11), share=0.2):
    rng = np.random.default_rng(seed)
    truth = rng.random(shape) < share
    truth[:, 0, 0] = True
    return rng.random(shape, dtype=np.float32), truth


KINDS = {
    "distinct": lambda scores: scores,
    "a few levels": lambda scores: np.round(scores * 5) / np.float32(5),
    "all equal": lambda scores: np.full_like(scores, 0.3),
    "all zero": np.zeros_like,
    "saturated": lambda scores: np.clip(3 * scores - 1, 0, 1),
    "logits": lambda scores: 20 * scores - 10,
    "logits with ties": lambda scores: np.round(20 * scores - 10),
    "signed zeros": lambda scores: np.copysign(0 * scores, scores - np.float32(0.5)),
    "denormal": lambda scores: np.round(scores * 9).astype(np.float32) * np.float32(1e-45),
    "beside one another": lambda scores: 1 - np.round(scores * 7) * np.float32(2**-24),
    "huge": lambda scores: (scores - np.float32(0.5)) * np.float32(1e36),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.01, 0.2, 0.9])
def test_all_kinds_of_scores_give_scikit_learns_numbers(kind, share):
    scores, truth = drawn(1, share=share)
    scores = KINDS[kind](scores).astype(np.float32)
    check(scores, truth)


def test_scores_that_follow_the_truth_give_scikit_learns_numbers():
    scores, truth = drawn(2, (6, 40, 40))
    check(np.clip(0.6 * truth + 0.5 * scores, 0, 1).astype(np.float32), truth)
    check(np.where(truth, 0.9, 0.8 * scores).astype(np.float32), truth)


def test_infinite_scores_which_scikit_learn_refuses_are_ranked_beyond_all_others():
    scores, truth = drawn(9)
    highest, lowest = scores > 0.7, scores < 0.1
    infinite, finite = scores.copy(), scores.copy()
    infinite[highest], infinite[lowest] = np.inf, -np.inf
    finite[highest], finite[lowest] = 2, -1
    for score in (ranking_scores, batched):
        np.testing.assert_array_equal(table(score(infinite, truth)), table(score(finite, truth)))


def test_one_true_pixel_and_only_true_pixels_and_none():
    scores, truth = drawn(3, (5, 8, 8))
    truth[:] = False
    truth[0, 3, 3] = truth[1].flat[scores[1].argmax()] = truth[2].flat[scores[2].argmin()] = True
    truth[3] = True
    check(scores, truth)
    given_scores = ranking_scores(scores, truth)
    assert (given_scores.ap[1], given_scores.ap[3], given_scores.f_max[3]) == (1, 1, 1)
    assert given_scores.ap[2] == 1 / 64
    assert np.isnan(table(given_scores)[4]).all()


def test_by_hand():
    """Four pixels, the first and the third from the top true; then the lower two tied."""
    scores = np.array([[[0.9, 0.8], [0.7, 0.1]], [[0.9, 0.8], [0.7, 0.7]]], np.float32)
    truth = np.array([[[1, 0], [1, 0]]] * 2, dtype=bool)
    given_scores = ranking_scores(scores, truth)
    assert given_scores.ap == pytest.approx([(1 + 2 / 3) / 2, (1 + 2 / 4) / 2])
    assert given_scores.aupr == pytest.approx([(1 + (1 / 2 + 2 / 3) / 2) / 2, (1 + 1 / 2) / 2])
    # F = 1.3 P R / (0.3 P + R): at 0.9 P = 1, R = 1/2; at 0.7 P = 2/3, R = 1.
    assert given_scores.f_max == pytest.approx([0.65 / 0.8] * 2)
    assert 1.3 * 2 / 3 / (0.2 + 1) < 0.65 / 0.8


pictures = st.tuples(
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
    st.integers(1, 7),
    st.sampled_from([2, 4, 50, 10**6]),
)


def picture(seed, frames, size, levels):
    rng = np.random.default_rng(seed)
    shape = (frames, size, size)
    scores = (rng.integers(0, levels, shape) / levels).astype(np.float32)
    return scores, rng.random(shape) < rng.random()


@settings(max_examples=150, deadline=None)
@given(pictures)
def test_any_scores_give_scikit_learns_numbers_within_the_range(drawn_picture):
    scores, truth = picture(*drawn_picture)
    check(scores, truth)
    values = table(ranking_scores(scores, truth))
    known = truth.any(axis=(1, 2))
    assert (np.isnan(values).any(axis=1) == ~known).all()
    assert ((values[known] > 0) & (values[known] <= 1)).all()
    share = truth.mean(axis=(1, 2))[known]
    assert (values[known, 2] >= 1.3 * share / (0.3 * share + 1) - 1e-12).all()  # all marked


@settings(max_examples=60, deadline=None)
@given(pictures)
def test_only_the_order_of_scores_counts(drawn_picture):
    scores, truth = picture(*drawn_picture)
    values = table(ranking_scores(scores, truth))
    levels, ranks = np.unique(scores, return_inverse=True)
    for grown in (np.exp2(np.arange(len(levels)) % 100 / 100 + 1), np.arange(len(levels)) - 20.0):
        moved = np.sort(grown).astype(np.float32)[ranks].reshape(scores.shape)
        if len(np.unique(moved)) == len(levels):
            np.testing.assert_array_equal(table(ranking_scores(moved, truth)), values)
            np.testing.assert_array_equal(average_precision(moved, truth), values[:, 0])


@settings(max_examples=60, deadline=None)
@given(pictures)
def test_the_place_of_a_pixel_does_not_count(drawn_picture):
    scores, truth = picture(*drawn_picture)
    order = np.random.default_rng(0).permutation(scores[0].size)
    moved, target = (
        frames.reshape(len(frames), -1)[:, order].reshape(frames.shape)
        for frames in (scores, truth)
    )
    np.testing.assert_array_equal(
        table(ranking_scores(moved, target)), table(ranking_scores(scores, truth))
    )


@pytest.mark.parametrize("score", [ranking_scores, batched])
def test_a_frame_scores_the_same_alone_and_among_others(score, monkeypatch):
    scores, truth = drawn(4, (7, 10, 10))
    truth[5] = False
    whole = table(score(scores, truth))
    monkeypatch.setattr("atlasd.model.ranking._BATCH_PIXELS", 200)
    for n in (1, 2, 3):
        parts = [table(score(scores[i : i + n], truth[i : i + n])) for i in range(0, 7, n)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(table(score(scores, truth)), whole)


def test_views_and_tensors_score_as_arrays_do():
    scores, truth = drawn(5, (3, 12, 16))
    expected = table(ranking_scores(scores, truth))
    doubled = np.repeat(scores, 2, axis=2)[:, :, ::2]
    turned = np.ascontiguousarray(scores.transpose(2, 1, 0)).transpose(2, 1, 0)
    for view in (doubled, turned):
        np.testing.assert_array_equal(table(ranking_scores(view, truth)), expected)
    learned = torch.from_numpy(scores).requires_grad_()
    for target in (truth, torch.from_numpy(truth), truth.astype(np.uint8)):
        np.testing.assert_array_equal(table(ranking_scores(learned, target)), expected)
        np.testing.assert_array_equal(average_precision(learned, target), expected[:, 0])
        np.testing.assert_allclose(
            table(ranking_scores_batched(learned, target)), expected, atol=1e-12
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_are_ranked_with_their_ties(dtype):
    scores, truth = drawn(6, (2, 20, 20))
    short = torch.from_numpy(scores).to(dtype)
    expected = by_scikit_learn(short.float().numpy(), truth)
    for score in (ranking_scores, ranking_scores_batched):
        np.testing.assert_allclose(table(score(short, truth)), expected, atol=1e-12)
    if dtype is torch.float16:
        np.testing.assert_allclose(
            table(ranking_scores(short.numpy(), truth)), expected, atol=1e-12
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_gives_the_same_numbers():
    scores, truth = drawn(7, (50, 100, 100))
    expected = table(ranking_scores(scores, truth))
    there = torch.from_numpy(scores).cuda(), torch.from_numpy(truth).cuda()
    np.testing.assert_allclose(table(ranking_scores(*there)), expected, atol=1e-12)
    np.testing.assert_allclose(average_precision(*there), expected[:, 0], atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 4)])
def test_no_frames_and_no_pixels(shape):
    scores, truth = np.zeros(shape, np.float32), np.zeros(shape, bool)
    for score in (ranking_scores, batched):
        assert table(score(scores, truth)).shape == (shape[0], 3)
        assert np.isnan(table(score(scores, truth))).all()
    assert average_precision(scores, truth).shape == (shape[0],)


@pytest.mark.parametrize("score", [average_precision, ranking_scores, batched])
def test_wrong_input_is_named(score):
    scores, truth = drawn(8)
    with pytest.raises(ValueError, match=r"\(4, 9, 11\) and truth \(3, 9, 11\)"):
        score(scores, truth[1:])
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        score(scores[0], truth[0])
    with pytest.raises(ValueError, match=r"float64; they must be float32"):
        score(scores.astype(np.float64), truth)
    for value in (np.nan, -np.nan):
        broken = scores.copy()
        broken[1, 2, 3] = value
        with pytest.raises(ValueError, match="NaN: it has no rank"):
            score(broken, truth)

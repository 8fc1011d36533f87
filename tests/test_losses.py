"""The losses, against loops in float64 written from the formulae."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from atlasd.model.losses import NO_LABEL, mask_loss, mask_terms, total_loss


@dataclass
class Out:
    mask_logits: torch.Tensor
    class_logits: torch.Tensor | None = None


def reference(logits, masks, valid):
    """BCE and Dice with +1 smoothing, frame by frame, pixel by pixel."""
    bces, dices = [], []
    for frame, mask, ok in zip(logits, masks, valid, strict=True):
        if not ok:
            continue
        x, t = np.float64(frame).ravel(), np.float64(mask).ravel()
        p = 1 / (1 + np.exp(-x))
        bces.append(-np.mean(t * np.log(p) + (1 - t) * np.log(1 - p)))
        dices.append(1 - (2 * np.sum(p * t) + 1) / (np.sum(p) + np.sum(t) + 1))
    return np.mean(bces), np.mean(dices)


def batch(seed=0, n=4, size=9):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, size, size)).astype(np.float32)
    masks = (rng.random((n, size, size)) < 0.3).astype(np.uint8)
    return logits, masks


def test_mask_terms_are_the_mean_over_the_valid_frames():
    logits, masks = batch()
    valid = np.array([True, False, True, True])
    bce, dice = mask_terms(*map(torch.from_numpy, (logits, masks, valid)))
    expected = reference(logits, masks, valid)
    assert (float(bce), float(dice)) == pytest.approx(expected, rel=1e-5)
    total = mask_loss(*map(torch.from_numpy, (logits, masks, valid)))
    assert float(total) == pytest.approx(sum(expected), rel=1e-5)


def test_a_frame_without_a_mask_adds_no_loss_and_no_gradient():
    logits, masks = map(torch.from_numpy, batch())
    logits.requires_grad_()
    valid = torch.tensor([True, True, False, True])
    mask_loss(logits, masks, valid).backward()
    assert logits.grad[2].abs().max() == 0
    assert logits.grad[3].abs().max() > 0


def test_a_batch_without_any_mask_is_a_zero_that_can_be_differentiated():
    logits, masks = map(torch.from_numpy, batch())
    logits.requires_grad_()
    loss = mask_loss(logits, masks, torch.zeros(4, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad.abs().max() == 0


def test_an_empty_mask_costs_nothing_when_nothing_is_predicted_and_pulls_towards_it_otherwise():
    empty = torch.zeros(1, 8, 8)
    valid = torch.ones(1, dtype=torch.bool)
    assert float(mask_loss(torch.full((1, 8, 8), -30.0), empty, valid)) < 1e-6
    logits = torch.zeros(1, 8, 8, requires_grad=True)
    mask_loss(logits, empty, valid).backward()
    assert (logits.grad > 0).all()


def test_classes_count_half_and_only_where_they_are_known():
    logits, masks = map(torch.from_numpy, batch())
    valid = torch.ones(4, dtype=torch.bool)
    scores = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0], [9.0, -9.0]])
    labels = torch.tensor([0, 0, NO_LABEL, NO_LABEL])
    terms = total_loss(Out(logits, scores), masks, valid, labels)
    expected = np.mean([np.log1p(np.exp(-2.0)), np.log1p(np.exp(1.0))])
    assert float(terms["ce"]) == pytest.approx(expected, rel=1e-6)
    assert float(terms["loss"]) == pytest.approx(
        float(terms["bce"] + terms["dice"]) + 0.5 * expected, rel=1e-6
    )


def test_terms_weigh_what_they_are_told():
    logits, masks = map(torch.from_numpy, batch())
    scores, labels = torch.tensor([[2.0, 0.0]] * 4), torch.zeros(4, dtype=torch.int64)
    terms = total_loss(
        Out(logits, scores), masks, torch.ones(4, dtype=bool), labels,
        dice_weight=0.25, class_weight=3.0,
    )  # fmt: skip
    expected = terms["bce"] + 0.25 * terms["dice"] + 3 * np.log1p(np.exp(-2.0))
    assert float(terms["loss"]) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("labels", [None, torch.full((4,), NO_LABEL)])
def test_without_labels_there_is_no_class_term(labels):
    logits, masks = map(torch.from_numpy, batch())
    terms = total_loss(Out(logits, torch.zeros(4, 2)), masks, torch.ones(4, dtype=bool), labels)
    assert "ce" not in terms
    assert float(terms["loss"]) == pytest.approx(float(terms["bce"] + terms["dice"]))


def test_half_precision_logits_are_scored_in_single_precision():
    logits, masks = map(torch.from_numpy, batch())
    valid = torch.ones(4, dtype=torch.bool)
    half = mask_loss(logits.bfloat16(), masks, valid)
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(mask_loss(logits, masks, valid)), rel=1e-2)


@pytest.mark.parametrize(
    ("logits", "masks", "valid"),
    [((2, 4, 4), (2, 4, 5), (2,)), ((2, 1, 4, 4), (2, 1, 4, 4), (2,)), ((2, 4, 4),) * 2 + ((3,),)],
)
def test_shapes_that_do_not_fit_are_named(logits, masks, valid):
    with pytest.raises(ValueError, match=r"must be \(B, H, W\)"):
        mask_terms(torch.zeros(logits), torch.zeros(masks), torch.ones(valid, dtype=torch.bool))

"""RanPAC: the ridge regression against scikit-learn and a float64 closed form."""

import numpy as np
import pytest
import torch
from atlasd.model.method import MethodError
from atlasd.model.methods import load
from atlasd.model.methods.ranpac import RIDGES, best_ridge, solve
from atlasd.model.network import Output
from sklearn.linear_model import Ridge


def batches(n_batches=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    for _ in range(n_batches):
        labels = torch.randint(0, 3, (15,), generator=draw)
        tokens = torch.randn(15, 2, 2, 6, generator=draw) + labels[:, None, None, None]
        masks = (torch.rand(15, 8, 8, generator=draw) > 0.5).float()
        batch = {"images": torch.zeros(15, 1), "labels": labels, "masks": masks}
        out = Output(torch.zeros(15, 8, 8), torch.zeros(15, 3), tokens)
        yield batch | {"valid": torch.ones(15, dtype=torch.bool)}, out


def learned(order=None, **options):
    method = load("ranpac", {"projections": 12, **options})
    shown = list(batches())
    for i in order or range(len(shown)):
        method.learn(*shown[i])
    method.settle()
    return method, shown


def hidden(method, tokens):
    draw = torch.Generator().manual_seed(0)
    W = torch.randn(6, 12, generator=draw).double().numpy()
    return np.maximum(tokens.double().numpy() @ W, 0)


def test_the_class_weights_are_scikit_learns_ridge():
    method, shown = learned()
    h = hidden(method, torch.cat([out.fused.mean(dim=(1, 2)) for _, out in shown]))
    y = np.eye(3)[torch.cat([batch["labels"] for batch, _ in shown]).numpy()]
    ridge = float(method.state["classes.ridge"])
    theirs = Ridge(alpha=ridge, fit_intercept=False, solver="cholesky").fit(h, y)
    np.testing.assert_allclose(method.state["classes.weight"].numpy(), theirs.coef_.T, atol=1e-4)
    closed = np.linalg.solve(h.T @ h + ridge * np.eye(12), h.T @ y)
    np.testing.assert_allclose(method.state["classes.weight"].numpy(), closed, atol=1e-4)
    batch, out = shown[0]
    scores = method.predict(batch, out, None).class_logits.numpy()
    np.testing.assert_allclose(scores, h[:15] @ closed, atol=1e-4)


def test_the_ridge_is_the_one_with_the_least_error_on_every_fifth_frame():
    method, shown = learned()
    h = hidden(method, torch.cat([out.fused.mean(dim=(1, 2)) for _, out in shown]))
    y = np.eye(3)[torch.cat([batch["labels"] for batch, _ in shown]).numpy()]
    held = (np.arange(len(h)) + 1) % 5 == 0
    errors = {}
    for ridge in RIDGES:
        A = np.linalg.solve(h[~held].T @ h[~held] + ridge * np.eye(12), h[~held].T @ y[~held])
        errors[ridge] = ((h[held] @ A - y[held]) ** 2).sum()
    chosen = float(method.state["classes.ridge"])
    assert errors[chosen] <= min(errors.values()) * (1 + 1e-4)


def test_masks_of_tokens_are_a_ridge_on_shares():
    method, shown = learned(masks="ridge_pixels")
    h = hidden(method, torch.cat([out.fused.flatten(0, 2) for _, out in shown]))
    masks = torch.cat([batch["masks"] for batch, _ in shown]).double().numpy()
    shares = masks.reshape(-1, 2, 4, 2, 4).mean(axis=(2, 4)).reshape(-1, 1)
    ridge = float(method.state["masks.ridge"])
    closed = np.linalg.solve(h.T @ h + ridge * np.eye(12), h.T @ shares)
    np.testing.assert_allclose(method.state["masks.weight"].numpy(), closed, atol=1e-4)


def test_neither_order_nor_segments_matter_to_the_sums():
    one, _ = learned()
    two, _ = learned(order=[2, 0, 3, 1])
    three = load("ranpac", {"projections": 12})
    for batch, out in batches():
        three.learn(batch, out)
        three.settle()
    for other in (two, three):
        torch.testing.assert_close(
            one.state["classes.all"], other.state["classes.all"], rtol=1e-5, atol=1e-4
        )


def test_what_is_not_positive_definite_is_passed_over():
    singular = torch.cat([torch.ones(3, 3), torch.ones(3, 1)], dim=1).double()
    assert solve(singular - 2 * torch.eye(3, 4).double(), 1e-8) is None
    assert best_ridge(singular, torch.zeros_like(singular)) == 1.0


@pytest.mark.parametrize("options", [{"masks": "none"}, {"projections": 0}, {"seed": -1}])
def test_options_out_of_bounds_are_named(options):
    with pytest.raises(MethodError, match=next(iter(options))):
        load("ranpac", options)

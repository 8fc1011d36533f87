"""FeCAM: means, covariances and distances against NumPy."""

import numpy as np
import pytest
import torch
from atlasd.model.method import MethodError
from atlasd.model.methods import load
from atlasd.model.network import Output


def shown(seed=0):
    draw = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(4):
        labels = torch.randint(0, 3, (16,), generator=draw)
        tokens = torch.randn(16, 2, 2, 5, generator=draw) + labels[:, None, None, None]
        masks = torch.zeros(16, 8, 8)
        masks[:, :4, :4] = 1
        batch = {"images": torch.zeros(16, 1), "labels": labels, "masks": masks}
        batch["valid"] = torch.ones(16, dtype=torch.bool)
        made.append((batch, Output(torch.zeros(16, 8, 8), torch.zeros(16, 3), tokens)))
    return made


def learned(**options):
    method = load("fecam", options)
    for batch, out in shown():
        method.learn(batch, out)
    method.settle()
    return method


def reference(x, data, alpha1, alpha2, shrinkages=1):
    """Squared Mahalanobis distances as §3 of the paper says, in float64."""
    covariance = np.cov(data.T)
    D = len(covariance)
    eye = np.eye(D)
    for _ in range(shrinkages):
        off = covariance[~np.eye(D, dtype=bool)].mean()
        covariance = covariance + alpha1 * np.trace(covariance) / D * eye + alpha2 * off * (1 - eye)
    deviation = np.sqrt(np.diag(covariance))
    inverse = np.linalg.inv(covariance / np.outer(deviation, deviation))
    away = x - data.mean(axis=0)
    return np.einsum("nd,de,ne->n", away, inverse, away)


def scaled(tokens, power):
    x = tokens.double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.sign(x) * np.abs(x) ** power


@pytest.mark.parametrize(
    ("alpha1", "alpha2", "power", "shrinkages"), [(1.0, 0.0, 1.0, 1), (1.0, 1.0, 0.5, 2)]
)
def test_class_distances_are_numpys(alpha1, alpha2, power, shrinkages):
    """The authors' settings for ViTs and for ResNets."""
    method = learned(alpha1=alpha1, alpha2=alpha2, power=power, shrinkages=shrinkages)
    x = scaled(torch.cat([out.fused.mean(dim=(1, 2)) for _, out in shown()]), power)
    labels = torch.cat([batch["labels"] for batch, _ in shown()]).numpy()
    batch, out = shown()[0]
    found = -method.predict(batch, out, None).class_logits.numpy()
    for label in range(3):
        expected = reference(x[:16], x[labels == label], alpha1, alpha2, shrinkages)
        np.testing.assert_allclose(found[:, label], expected, rtol=1e-3, atol=1e-4)


def test_masks_are_the_nearer_of_background_and_what_sounds():
    method = learned(masks="tokens")
    tokens = torch.cat([out.fused for _, out in shown()])  # (64, 2, 2, 5)
    labels = torch.cat([batch["labels"] for batch, _ in shown()]).numpy()
    sounds = scaled(tokens[:, 0, 0], 1.0)
    silent = scaled(tokens.flatten(1, 2)[:, 1:].flatten(0, 1), 1.0)
    x = scaled(tokens[:16].flatten(0, 2), 1.0)
    near = np.min([reference(x, sounds[labels == c], 1.0, 0.0) for c in range(3)], axis=0)
    expected = reference(x, silent, 1.0, 0.0) - near
    features = tokens[:16].flatten(0, 2)
    far = method.distances("tokens", features)
    found = far[:, 0] - far[:, 1:].amin(dim=1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_a_class_that_was_never_seen_is_never_said_and_stays_finite():
    method = load("fecam")
    batch, out = shown()[0]
    batch["labels"] = torch.zeros_like(batch["labels"])
    method.learn(batch, out)
    method.settle()
    logits = method.predict(batch, out, None).class_logits
    assert torch.isfinite(logits).all()
    assert (logits.argmax(dim=1) == 0).all()


@pytest.mark.parametrize("options", [{"masks": "no"}, {"alpha1": 0.0}, {"power": 2.0}])
def test_options_out_of_bounds_are_named(options):
    with pytest.raises(MethodError, match=next(iter(options))):
        load("fecam", options)

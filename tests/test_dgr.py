"""DGR: the weights of the class head's rows and its balance, by hand."""

import math

import numpy as np
import pytest
import torch
from atlasd.model.method import MethodError
from atlasd.model.methods import load
from atlasd.model.methods.dgr import log_shares, row_weights
from atlasd.model.network import Output
from atlasd.model.presets import build


def weights(norms, clips, known, attenuation=1.0):
    found = row_weights(torch.tensor(norms), torch.tensor(clips), known, attenuation)
    return found.double().numpy()


def test_within_the_first_segment_rows_learn_as_the_slowest_does():
    np.testing.assert_allclose(weights([1.0, 2.0, 4.0], [3, 3, 3], 0), [1, 0.5, 0.25])


def test_old_and_new_rows_are_weighed_apart_and_then_against_each_other():
    """Φ̄_new/Φ̄_old = 3/6: old rows get half, new ones half times exp(−2/4)."""
    found = weights([4.0, 8.0, 2.0, 4.0], [1, 1, 5, 5], 2)
    new = 0.5 * math.exp(-0.5)
    np.testing.assert_allclose(found, [0.5, 0.25, new, 0.5 * new], rtol=1e-6)


def test_no_group_is_ever_raised():
    found = weights([1.0, 1.0, 8.0, 8.0], [1, 1, 5, 5], 2, attenuation=0.1)
    np.testing.assert_allclose(found, [1, 1, 1, 1])


def test_an_old_class_without_an_example_learns_from_the_distillation_alone():
    found = weights([0.0, 0.0, 2.0, 4.0], [0, 0, 5, 5], 2)
    np.testing.assert_allclose(found, [0, 0, 1, 0.5])


def test_a_new_class_that_has_not_come_yet_changes_nothing():
    np.testing.assert_allclose(weights([2.0, 4.0, 0.0], [1, 1, 0], 0), [1, 0.5, 1])


def test_shares_are_at_least_a_thousandth():
    found = log_shares(torch.tensor([0.0, 1.0, 3.0])).numpy()
    np.testing.assert_allclose(found, np.log([1e-3, 0.25, 0.75]), rtol=1e-6)
    assert torch.isfinite(log_shares(torch.zeros(3))).all()


@pytest.mark.parametrize("options", [{"lam": -1.0}, {"temperature": 0.0}, {"attenuation": -1.0}])
def test_options_out_of_bounds_are_named(options):
    with pytest.raises(MethodError, match=next(iter(options))):
        load("dgr", options)


def test_the_balance_weighs_as_much_as_the_class_loss_that_is_learned():
    """λ_cls·(balanced − plain): by half the weight it is half, by none nothing."""
    network = build("tiny", trained=False, categories=("dog", "cow"))
    px = network.preset.image_px
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 2, generator=draw)
    out = Output(torch.zeros(3, px, px), logits, torch.zeros(3, 1, 1, 1))
    batch = {
        "images": torch.zeros(3, px, px, 3, dtype=torch.uint8),
        "masks": torch.ones(3, px, px, dtype=torch.uint8),
        "valid": torch.ones(3, dtype=torch.bool),
        "labels": torch.tensor([0, 0, 1]),
    }
    found = {}
    for weight in (0.5, 0.25, 0.0):
        method = load("dgr")
        method.weigh_classes(weight)
        method.prepare(network)
        method.begin(None)
        found[weight] = float(method.extra_loss(batch, out)["class_balance"])
    shares = np.log([2 / 3, 1 / 3])
    balanced, plain = (
        torch.nn.functional.cross_entropy(x, batch["labels"])
        for x in (logits.double() + torch.from_numpy(shares), logits.double())
    )
    assert found[0.5] == pytest.approx(0.5 * float(balanced - plain), rel=1e-5)
    assert found[0.25] == pytest.approx(found[0.5] / 2)
    assert found[0.0] == 0

"""LoRA: what it adds, how it merges, and the state that PEFT reads."""

import numpy as np
import pytest
import torch
from atlasd.model.lora import (
    adapter_config,
    adapter_state,
    base_state,
    inject,
    load_adapter_state,
    lora_maps,
    merge,
    merged_state,
)
from atlasd.model.presets import build
from atlasd.model.pretrained import WeightsError
from torch import nn

RANK, ALPHA = 8, 16.0


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(24, 72)
        self.proj = nn.Linear(24, 24)

    def forward(self, x):
        return self.qkv(x)


def attention():
    torch.manual_seed(0)
    net = Attention()
    inject(net, "qkv", RANK, ALPHA)
    return net


def pointwise():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(12, 20, 1, bias=False), nn.ReLU())
    inject(net, "0", RANK, ALPHA)
    return net


def convolution():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(6, 10, 3, stride=2, padding=1), nn.ReLU())
    inject(net, "0", RANK, ALPHA)
    return net


def stir(net):
    """Gives every pair values, so that it adds something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if ".lora_" in name:
                parameter.normal_(0, 0.2)
    return net


CASES = [(attention, (2, 5, 24)), (pointwise, (2, 12, 3, 4)), (convolution, (2, 6, 5, 7))]


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_a_fresh_pair_adds_nothing(make, shape):
    net, x = make(), torch.randn(shape)
    (lora,) = lora_maps(net).values()
    assert torch.equal(lora(x), lora.base_layer(x))
    for _, _, pair in lora.named_slices():
        assert torch.count_nonzero(pair.lora_B) == 0
        assert torch.count_nonzero(pair.lora_A) == pair.lora_A.numel()


def test_only_query_and_value_rows_of_a_fused_map_move():
    """W = W0 + (alpha / r)·B·A on rows 0..23 and 48..71, in float64."""
    net, x = stir(attention()), torch.randn(2, 5, 24)
    (lora,) = lora_maps(net).values()
    weight = lora.base_layer.weight.detach().double().numpy()
    expected = weight.copy()
    for start, stop, pair in lora.named_slices():
        A, B = (m.detach().double().numpy() for m in (pair.lora_A, pair.lora_B))
        expected[start:stop] += ALPHA / RANK * B @ A
    assert np.array_equal(expected[24:48], weight[24:48])
    assert not np.allclose(expected[:24], weight[:24])
    y = x.double().numpy() @ expected.T + lora.base_layer.bias.detach().double().numpy()
    np.testing.assert_allclose(net(x).detach().numpy(), y, atol=1e-5)


def test_a_pointwise_convolution_is_a_linear_map():
    net, x = stir(pointwise()), torch.randn(2, 12, 3, 4)
    (lora,) = lora_maps(net).values()
    ((_, _, pair),) = lora.named_slices()
    A, B = (m.detach().double().numpy() for m in (pair.lora_A, pair.lora_B))
    weight = lora.base_layer.weight.detach().double().numpy()[:, :, 0, 0] + 2.0 * B @ A
    expected = np.einsum("oc,bchw->bohw", weight, x.double().numpy())
    np.testing.assert_allclose(lora(x).detach().numpy(), expected, atol=1e-5)


def test_a_convolution_is_the_dense_one_of_its_merged_kernels():
    """Kernels by PEFT's own arithmetic for 3x3: `conv2d(Aᵀ, B)ᵀ`, and by hand in NumPy."""
    net, x = stir(convolution()), torch.randn(2, 6, 5, 7)
    (lora,) = lora_maps(net).values()
    state = adapter_state(net)
    A, B = (state[f"base_model.model.0.lora_{letter}.weight"].double() for letter in "AB")
    base = lora.base_layer.weight.detach().double()
    by_peft = torch.nn.functional.conv2d(A.permute(1, 0, 2, 3), B).permute(1, 0, 2, 3)
    by_hand = np.einsum("or,rikl->oikl", B.numpy()[:, :, 0, 0], A.numpy())
    np.testing.assert_allclose(by_peft.numpy(), by_hand, atol=1e-12)
    dense = nn.Conv2d(6, 10, 3, stride=2, padding=1).double()
    dense.weight = nn.Parameter(base + ALPHA / RANK * by_peft)
    dense.bias = nn.Parameter(lora.base_layer.bias.detach().double())
    expected = dense(x.double()).detach().numpy()
    np.testing.assert_allclose(lora(x).detach().numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(
        lora.merged().weight.numpy(), dense.weight.detach().numpy(), atol=1e-6
    )


@pytest.mark.parametrize("make", [attention, pointwise, convolution])
def test_a_merged_state_is_that_of_the_merged_network(make):
    net = stir(make())
    found = merged_state(net)
    assert lora_maps(net), "the maps stay"
    merge(net)
    expected = net.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_only_the_pairs_learn(make, shape):
    net = make()
    net(torch.randn(shape)).square().sum().backward()
    for name, parameter in net.named_parameters():
        trains = ".lora_" in name or name.startswith("proj")
        assert parameter.requires_grad == trains
        assert name.startswith("proj") or (parameter.grad is not None) == trains


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_merging_keeps_the_output_and_leaves_w0_alone(make, shape):
    net, x = stir(make()), torch.randn(shape)
    expected = net(x)
    (lora,) = lora_maps(net).values()
    pristine = lora.base_layer.weight.clone()
    first = lora.merged().weight
    assert torch.equal(lora.merged().weight, first), "merging twice starts from W0 both times"
    merge(net)
    assert not lora_maps(net)
    assert torch.equal(lora.base_layer.weight, pristine)
    torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)


def test_a_state_has_pefts_names_and_shapes():
    assert {n: tuple(t.shape) for n, t in adapter_state(attention()).items()} == {
        "base_model.model.qkv.lora_A.weight": (16, 24),
        "base_model.model.qkv.lora_B.weight": (72, 16),
    }
    assert {n: tuple(t.shape) for n, t in adapter_state(pointwise()).items()} == {
        "base_model.model.0.lora_A.weight": (8, 12, 1, 1),
        "base_model.model.0.lora_B.weight": (20, 8, 1, 1),
    }
    assert {n: tuple(t.shape) for n, t in adapter_state(convolution()).items()} == {
        "base_model.model.0.lora_A.weight": (8, 6, 3, 3),
        "base_model.model.0.lora_B.weight": (10, 8, 1, 1),
    }


def test_a_joined_pair_with_pefts_arithmetic_gives_the_same_output():
    """PEFT computes base(x) + (lora_alpha / r)·B(A(x)) with r = 16 and lora_alpha = 32."""
    net, x = stir(attention()), torch.randn(2, 5, 24)
    config = adapter_config(net)
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (16, 32.0, ["qkv"])
    state = adapter_state(net)
    A = state["base_model.model.qkv.lora_A.weight"]
    B = state["base_model.model.qkv.lora_B.weight"]
    base = lora_maps(net)["qkv"].base_layer
    joined = base(x) + config["lora_alpha"] / config["r"] * (x @ A.T) @ B.T
    torch.testing.assert_close(net(x), joined, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_a_state_goes_out_and_comes_back(make, shape):
    net, other, x = stir(make()), make(), torch.randn(shape)
    load_adapter_state(other, adapter_state(net), "adapter")
    assert torch.equal(other(x), net(x))


def test_the_base_keeps_its_names():
    plain = set(Attention().state_dict())
    assert set(base_state(attention())) == plain


def test_a_pair_over_other_rows_is_refused():
    state = adapter_state(stir(attention()))
    state["base_model.model.qkv.lora_B.weight"][30] = 1.0
    with pytest.raises(WeightsError, match="not zero outside rows"):
        load_adapter_state(attention(), state, "adapter")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.popitem(), "missing base_model.model.qkv.lora_B.weight"),
        (lambda s: s.update(x=torch.zeros(1)), "unknown x"),
        (
            lambda s: s.update({"base_model.model.qkv.lora_A.weight": torch.zeros(4, 24)}),
            r"shape \(4, 24\)",
        ),
        (lambda s: s["base_model.model.qkv.lora_A.weight"].fill_(torch.inf), "not finite"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, message):
    net = attention()
    state = adapter_state(net)
    change(state)
    with pytest.raises(WeightsError, match=message):
        load_adapter_state(net, state, "adapter")


def test_targets_that_match_nothing_are_refused():
    with pytest.raises(ValueError, match="match no module"):
        inject(Attention(), "query", RANK, ALPHA)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.LayerNorm(4),
    ],
)
def test_targets_that_are_no_linear_maps_are_refused(layer):
    with pytest.raises(ValueError, match="needs a linear map"):
        inject(nn.Sequential(layer), "0", RANK, ALPHA)


def test_alpha_scales_what_lora_adds_and_rank_divides_it():
    """Against `W0 + (alpha / r)·B·A` by hand, in a preset that is varied."""
    network = build("tiny", vary={"lora_alpha": 24, "lora_rank": 4})
    module = next(iter(lora_maps(network).values()))
    with torch.no_grad():
        for pair in module.pairs:
            pair.lora_B.normal_()
    A, B = module.joined()
    change = module.merged().weight - module.base_layer.weight
    torch.testing.assert_close(change.flatten(1), 6 * B @ A, rtol=1e-4, atol=1e-5)
    assert {found.alpha for found in lora_maps(network).values()} == {24}
    assert {found.alpha for found in lora_maps(build("tiny")).values()} == {16}
    network.adapt_decoder(2)
    assert {found.scale for found in lora_maps(network.decoder).values()} == {12}

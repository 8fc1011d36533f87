"""Pyramids of maps: they are timm's, and LoRA sits in PVT's attention."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from atlasd.model import checkpoints, presets
from atlasd.model.lora import (
    adapter_config,
    adapter_state,
    base_state,
    load_adapter_state,
    lora_maps,
    merge,
)
from atlasd.model.presets import PRESETS, PVT_ATTENTION, build, load
from atlasd.model.pretrained import WeightsError
from atlasd.model.pyramid import GridEncoder, PyramidEncoder, pvt_v2
from atlasd.model.visual import LoraSpec, efficientnet_lite0, load_backbone
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import nn

NONE = LoraSpec("", rank=0)


def tiny_pvt():
    """A PVT v2 of a few thousand parameters."""
    return PyramidVisionTransformerV2(
        depths=(1, 1, 2, 1), embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), num_classes=0
    )


def stir(module):
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".lora_" in name:
                parameter.normal_(0, 0.2)
    return module


@pytest.fixture
def tiny_pvt_preset(monkeypatch):
    preset = replace(
        PRESETS["tiny"],
        name="tiny-pvt",
        visual=lambda rank: GridEncoder(tiny_pvt(), 16, PVT_ATTENTION._replace(rank=rank)),
    )
    monkeypatch.setitem(presets.PRESETS, preset.name, preset)
    return preset


def test_pvt_maps_are_timms():
    encoder = PyramidEncoder(pvt_v2("b0"), NONE).eval()
    reference = timm.create_model("pvt_v2_b0", pretrained=False, features_only=True).eval()
    state = encoder.backbone.state_dict()
    reference.load_state_dict({n.replace("stages.", "stages_"): t for n, t in state.items()})
    frames = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found, expected = encoder(frames), reference(frames)
    assert encoder.map_dims == (32, 64, 160, 256)
    assert [tuple(m.shape[1:]) for m in found] == [
        (32, 16, 24),
        (64, 8, 12),
        (160, 4, 6),
        (256, 2, 3),
    ]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_efficientnet_maps_are_timms():
    encoder = PyramidEncoder(efficientnet_lite0(), NONE).eval()
    reference = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True)
    reference.load_state_dict(encoder.backbone.state_dict())
    frames = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = encoder(frames), reference.eval()(frames)
    assert encoder.map_dims == tuple(m.shape[1] for m in found)
    for one, other in zip(found, expected[1:], strict=True):
        torch.testing.assert_close(one, other)


def test_b5_has_the_stages_that_avsbench_was_made_for():
    with torch.device("meta"):
        encoder = PyramidEncoder(pvt_v2("b5"), NONE)
    assert encoder.map_dims == (64, 128, 320, 512)
    assert [len(stage.blocks) for stage in encoder.backbone.stages] == [3, 6, 40, 3]
    assert sum(p.numel() for p in encoder.parameters()) == 81_443_008


def test_a_grid_has_tokens_at_stride_16_and_skips_at_8_and_4():
    encoder = GridEncoder(tiny_pvt(), 12, PVT_ATTENTION)
    tokens, skips = encoder(torch.randn(2, 3, 64, 96))
    assert tokens.shape == (2, 4, 6, 12)
    assert [tuple(s.shape) for s in skips] == [(2, 16, 8, 12), (2, 8, 16, 24)]
    assert encoder.skip_dims == (16, 8)


def test_pairs_sit_on_query_and_key_value_from_stride_16_on():
    encoder = PyramidEncoder(tiny_pvt(), PVT_ATTENTION)
    blocks = ("stages.2.blocks.0", "stages.2.blocks.1", "stages.3.blocks.0")
    expected = {f"{block}.attn.{part}" for block in blocks for part in ("q", "kv")}
    assert set(lora_maps(encoder.backbone)) == expected
    encoder.backbone.requires_grad_(False)
    for name, parameter in encoder.backbone.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    maps = encoder(torch.randn(1, 3, 64, 64))
    assert [m.requires_grad for m in maps] == [False, False, True, True]


def test_fresh_pairs_add_nothing_and_merged_ones_stay():
    frames = torch.randn(1, 3, 64, 64)
    encoder, plain = PyramidEncoder(tiny_pvt(), PVT_ATTENTION), PyramidEncoder(tiny_pvt(), NONE)
    plain.backbone.load_state_dict(base_state(encoder.backbone))
    with torch.no_grad():
        for one, other in zip(encoder(frames), plain(frames), strict=True):
            assert torch.equal(one, other)
        adapted = stir(encoder)(frames)
        assert not torch.allclose(adapted[3], plain(frames)[3], atol=1e-3)
        merge(encoder.backbone)
        for one, other in zip(encoder(frames), adapted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_key_value_pair_moves_keys_and_values():
    """W = W0 + (alpha / r)·B·A over all rows, in float64."""
    encoder = stir(PyramidEncoder(tiny_pvt(), PVT_ATTENTION))
    lora = lora_maps(encoder.backbone)["stages.3.blocks.0.attn.kv"]
    ((start, stop, pair),) = lora.named_slices()
    assert (start, stop) == (0, 64)
    A, B = (m.detach().double().numpy() for m in (pair.lora_A, pair.lora_B))
    base = lora.base_layer
    weight = base.weight.detach().double().numpy() + 2.0 * B @ A
    x = torch.randn(2, 5, 32)
    expected = x.double().numpy() @ weight.T + base.bias.detach().double().numpy()
    np.testing.assert_allclose(lora(x).detach().numpy(), expected, atol=1e-5)


def test_an_adapter_goes_out_under_pefts_names_and_comes_back():
    encoder, other = (PyramidEncoder(tiny_pvt(), PVT_ATTENTION) for _ in range(2))
    state = adapter_state(stir(encoder).backbone)
    config = adapter_config(encoder.backbone)
    assert (config["r"], config["lora_alpha"]) == (8, 16.0)
    assert set(state) == {
        f"base_model.model.{path}.lora_{letter}.weight"
        for path in config["target_modules"]
        for letter in "AB"
    }
    assert state["base_model.model.stages.3.blocks.0.attn.kv.lora_B.weight"].shape == (64, 8)
    other.backbone.load_state_dict(
        {n: t for n, t in encoder.backbone.state_dict().items() if ".lora_" not in n}, strict=False
    )
    load_adapter_state(other.backbone, state, "adapter")
    frames = torch.randn(1, 3, 64, 64)
    for one, two in zip(encoder(frames), other(frames), strict=True):
        assert torch.equal(one, two)


def test_published_weights_are_taken_without_their_classifier():
    donor = timm.create_model("pvt_v2_b0", pretrained=False)
    encoder = PyramidEncoder(pvt_v2("b0"), PVT_ATTENTION)
    load_backbone(encoder.backbone, donor.state_dict(), "donor")
    frames = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder.eval()(frames)[3], donor.eval().forward_features(frames))
    state = {n: t for n, t in donor.state_dict().items() if n != "patch_embed.norm.bias"}
    with pytest.raises(WeightsError, match=r"missing patch_embed\.norm\.bias"):
        load_backbone(encoder.backbone, state, "donor")


def test_a_network_over_pvt_comes_back_and_serves(tiny_pvt_preset, tmp_path):
    network = build(tiny_pvt_preset.name)
    stir(network.visual)
    network.trained = True
    frames, log_mel = torch.randn(2, 3, 64, 64), torch.randn(2, 1, 101, 64)
    checkpoints.save(network, tmp_path / "w.safetensors")
    found = load(tmp_path / "w.safetensors")
    with torch.no_grad():
        expected = network(frames, log_mel).mask_logits
        assert torch.equal(found(frames, log_mel).mask_logits, expected)
        served = network.for_serving()(frames, log_mel).mask_logits
    assert (served - expected).abs().max() <= 1e-4
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.visual.modules())


def test_atlas_pvt_trains_pairs_neck_and_what_follows():
    with torch.device("meta"):
        network = PRESETS["atlas-pvt"].network()
    trainable = {n for n, p in network.named_parameters() if p.requires_grad}
    backbone = {n for n in trainable if n.startswith("visual.backbone.")}
    assert len(backbone) == 2 * 2 * (6 + 3)
    assert all(".attn." in n and ".lora_" in n for n in backbone)
    assert {n.split(".")[0] for n in trainable} == {"visual", "conditioning", "fusion", "decoder"}
    # r = 8 on q (D to D) and kv (D to 2·D): 6 blocks with D = 320, 3 with D = 512
    pairs = sum(p.numel() for n, p in network.named_parameters() if n in backbone)
    assert pairs == 8 * (6 * (2 * 320 + 3 * 320) + 3 * (2 * 512 + 3 * 512))

"""The network: its parts against closed forms, what trains, and what serves."""

import copy

import numpy as np
import pytest
import timm
import torch
from atlasd.model import checkpoints
from atlasd.model.decoder import PRIOR, Decoder
from atlasd.model.fusion import ClassHead, Conditioning, Fusion
from atlasd.model.lora import LoraMap, merge
from atlasd.model.presets import PRESETS, WeightsError, build, load
from torch import nn


def stirred(preset, **options):
    """A random network whose every trainable part and statistic has a say."""
    network = build(preset, trained=False, pretrained=False, **options)
    torch.manual_seed(5)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
        for parameter in network.trainable_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return network


def inputs(network, batch=2, size=None):
    size = size or network.preset.image_px
    torch.manual_seed(6)
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
    wave = torch.randn(batch, network.preset.sample_rate_hz) * 0.1
    return network.normalise(images), network.log_mel(wave)


@pytest.mark.parametrize("preset", ["tiny", "atlas-lite", "atlas"])
def test_a_network_gives_a_logit_for_each_pixel(preset):
    network = stirred(preset)
    frames, log_mel = inputs(network, batch=1)
    with torch.no_grad():
        out = network(frames, log_mel)
    size = network.preset.image_px
    assert out.mask_logits.shape == (1, size, size)
    assert torch.isfinite(out.mask_logits).all()
    assert out.mask_logits.std() > 0
    if network.preset.categories:
        assert out.class_logits.shape == (1, len(network.preset.categories))
    else:
        assert out.class_logits is None


@pytest.mark.parametrize("size", [160, 192, 256])
def test_other_input_sizes_give_masks_of_their_size(size):
    network = stirred("atlas-lite")
    with torch.no_grad():
        out = network(*inputs(network, batch=1, size=size))
    assert out.mask_logits.shape == (1, size, size)


def test_without_conditioning_only_the_audio_tokens_are_heard():
    network = build("tiny", vary={"conditioning": 0})
    frames, log_mel = inputs(network, batch=1)
    with torch.no_grad():
        audio = network.encode_audio(log_mel)
        expected = network.forward_features(frames, audio).mask_logits
        other = audio._replace(embedding=audio.embedding + 1)
        assert torch.equal(network.forward_features(frames, other).mask_logits, expected)
        louder = audio._replace(tokens=audio.tokens + torch.randn_like(audio.tokens))
        assert not torch.equal(network.forward_features(frames, louder).mask_logits, expected)


def test_a_frozen_backbone_without_lora_and_skips_still_trains_the_rest():
    network = build("tiny", vary={"lora_rank": 0, "skips": 0})
    names = {name.partition(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert names == {"visual", "conditioning", "fusion", "decoder"}
    assert not any("backbone" in n for n, p in network.named_parameters() if p.requires_grad)
    assert not any("lateral" in name for name, _ in network.named_parameters())


def test_pictures_are_scaled_to_minus_one_to_one():
    images = torch.arange(48, dtype=torch.uint8).reshape(1, 4, 4, 3) * 5
    found = build("tiny").normalise(images)
    expected = (images.numpy() / 255.0 - 0.5) / 0.5
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).numpy(), expected, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("preset", ["tiny", "atlas-lite"])
def test_serving_keeps_the_logits(preset):
    network = stirred(preset)
    frames, log_mel = inputs(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    served = network.for_serving()
    with torch.no_grad():
        expected, found = network(frames, log_mel), served(frames, log_mel)
    assert (found.mask_logits - expected.mask_logits).abs().max() <= 1e-4
    if expected.class_logits is not None:
        assert (found.class_logits - expected.class_logits).abs().max() <= 1e-4
    assert not served.trainable_parameters()
    kinds = [type(m) for m in served.modules()]
    assert LoraMap not in kinds
    # what is left are the audio front's per-band statistics, which no convolution precedes
    assert sum(issubclass(kind, nn.BatchNorm2d) for kind in kinds) == 1
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_cached_audio_features_give_the_same_masks():
    network = stirred("tiny")
    frames, log_mel = inputs(network)
    with torch.no_grad():
        features = network.encode_audio(log_mel)
        expected = network(frames, log_mel).mask_logits
        assert torch.equal(network.forward_features(frames, features).mask_logits, expected)


def test_training_moves_trainable_parts_and_nothing_else():
    """A frozen EfficientNet in `train()` would move its BatchNorm statistics."""
    network = stirred("tiny").train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.trainable_parameters(), lr=1e-2)
    network(*inputs(network)).mask_logits.square().mean().backward()
    optimizer.step()
    moved = {n for n, tensor in network.state_dict().items() if not torch.equal(tensor, before[n])}
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    assert moved == trainable
    assert all(".lora_" in name for name in trainable if name.startswith("visual.backbone."))
    assert not any(name.startswith("audio.") for name in trainable)
    parts = {name.split(".")[0] for name in trainable}
    assert parts == {"visual", "conditioning", "fusion", "decoder"}


@pytest.mark.parametrize("preset", ["tiny", "atlas-lite"])
def test_trainable_parts_hold_no_batch_norm(preset):
    network = build(preset, trained=False, pretrained=False)
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert name.startswith(("visual.backbone.", "audio."))
    assert all(not m.training for m in network.train().visual.backbone.modules())
    assert all(not m.training for m in network.audio.modules())
    assert network.decoder.training


def test_sound_changes_the_mask_once_trained_parts_say_so():
    network = stirred("tiny")
    frames, log_mel = inputs(network)
    with torch.no_grad():
        loud, silent = network(frames, log_mel), network(frames, torch.full_like(log_mel, -100))
    assert (loud.mask_logits - silent.mask_logits).abs().max() > 1e-3


def test_a_seed_gives_one_network_and_leaves_the_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = build("tiny", seed=1), build("tiny", seed=1), build("tiny", seed=2)
    assert torch.equal(torch.rand(1), expected)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name])
    assert not torch.equal(one.decoder.entry.weight, other.decoder.entry.weight)


@pytest.mark.parametrize("preset", ["tiny", "tiny-avsbench"])
def test_an_adapted_decoder_starts_as_it_was_and_trains_lora_alone(preset):
    network = stirred(preset)
    if network.clip_frames > 1:
        network.clip_frames = 1
    frames, log_mel = inputs(network)
    with torch.no_grad():
        expected = network(frames, log_mel).mask_logits
    convolutions = sum(isinstance(m, nn.Conv2d) for m in network.decoder.modules())
    network.adapt_decoder(3)
    network.train()
    found = network(frames, log_mel).mask_logits
    assert torch.equal(found.detach(), expected)
    found.square().mean().backward()
    trains = {n for n, p in network.decoder.named_parameters() if p.requires_grad}
    assert trains == {n for n, _ in network.decoder.named_parameters() if ".lora_" in n}
    assert len(trains) == 2 * convolutions
    assert all(p.grad is not None for n, p in network.decoder.named_parameters() if n in trains)
    alphas = {m.alpha for m in network.decoder.modules() if isinstance(m, LoraMap)}
    backbones = {m.alpha for m in network.visual.modules() if isinstance(m, LoraMap)}
    assert alphas == backbones
    with pytest.raises(ValueError, match="adapted once"):
        network.adapt_decoder(3)


@pytest.mark.parametrize("preset", ["tiny", "tiny-avsbench", "atlas-lite"])
def test_an_adapted_decoder_serves_and_is_kept_merged(preset, tmp_path):
    network = stirred(preset)
    if network.clip_frames > 1:
        network.clip_frames = 1
    network.adapt_decoder(3)
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in network.decoder.named_parameters():
            if ".lora_" in name:
                parameter.normal_(0, 0.05)
    frames, log_mel = inputs(network)
    checkpoints.save(network, tmp_path / "weights.safetensors")
    served, loaded = network.for_serving(), load(tmp_path / "weights.safetensors")
    assert not any(isinstance(m, LoraMap) for m in (*served.modules(), *loaded.decoder.modules()))
    with torch.no_grad():
        expected = network(frames, log_mel).mask_logits
        for other in (served, loaded):
            assert (other(frames, log_mel).mask_logits - expected).abs().max() <= 1e-4
    with pytest.raises(WeightsError, match="build the network anew"):
        checkpoints.apply(network, checkpoints.read(tmp_path / "weights.safetensors"))


def test_a_rank_of_zero_adapts_no_decoder():
    with pytest.raises(ValueError, match="rank is 0"):
        build("tiny").adapt_decoder(0)


def test_an_untrained_network_refuses_to_serve_and_names_the_command():
    network = build("tiny")
    with pytest.raises(WeightsError, match=r"never trained.*`atlasd train --preset tiny`"):
        network.require_trained()
    network.trained = True
    network.require_trained()


def test_conditioning_starts_as_the_identity_and_then_scales_and_shifts():
    torch.manual_seed(0)
    conditioning = Conditioning(audio_dim=6, dim=4, hidden_dim=5)
    tokens, embedding = torch.randn(2, 3, 3, 4), torch.randn(2, 6)
    assert torch.equal(conditioning(tokens, embedding), tokens)
    nn.init.constant_(conditioning.out.bias[:4], 0.5)
    nn.init.constant_(conditioning.out.bias[4:], 2.0)
    torch.testing.assert_close(conditioning(tokens, embedding), tokens * 1.5 + 2.0)


@pytest.mark.parametrize("heads", [1, 2])
def test_fusion_is_cross_attention_with_a_residual_and_layer_norm(heads):
    """F = LayerNorm(X̄ + softmax(QKᵀ/√d)·V), head by head in float64."""
    torch.manual_seed(0)
    fusion = Fusion(audio_dim=6, dim=8, heads=heads).double()
    tokens = torch.randn(2, 3, 2, 8, dtype=torch.float64)
    audio = torch.randn(2, 5, 6, dtype=torch.float64)
    x = tokens.reshape(2, 6, 8).numpy()

    def linear(layer, value):
        return value @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()

    q, k, v = (
        linear(fusion.query, x),
        *(linear(m, audio.numpy()) for m in (fusion.key, fusion.value)),
    )
    heard = np.zeros_like(x)
    for part in np.split(np.arange(8), heads):
        scores = q[:, :, part] @ k[:, :, part].transpose(0, 2, 1) / np.sqrt(len(part))
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        heard[:, :, part] = weights @ v[:, :, part]
    y = x + heard
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    found = fusion(tokens, audio).detach().numpy().reshape(2, 6, 8)
    np.testing.assert_allclose(found, y, atol=1e-9)


def test_heads_must_divide_the_token():
    with pytest.raises(ValueError, match="heads is 3"):
        Fusion(audio_dim=6, dim=8, heads=3)


def test_a_fresh_decoder_takes_little_for_sounding():
    torch.manual_seed(0)
    decoder = Decoder(16, (16, 8, 8), (4, 4))
    skips = (torch.randn(4, 4, 8, 8), torch.randn(4, 4, 16, 16))
    logits = decoder(torch.randn(4, 4, 4, 16), skips, torch.Size((64, 64)))
    assert logits.shape == (4, 64, 64)
    assert abs(torch.sigmoid(logits).mean() - PRIOR) < 0.1


def test_a_decoder_works_without_skips_and_refuses_one():
    decoder = Decoder(16, (16, 8, 8))
    assert decoder(torch.randn(1, 4, 4, 16), (), torch.Size((64, 64))).shape == (1, 64, 64)
    with pytest.raises(ValueError, match="two skips or none"):
        Decoder(16, (16, 8, 8), (4,))


def test_a_class_head_grows_and_keeps_what_it_knows():
    torch.manual_seed(0)
    head, tokens = ClassHead(8, 3), torch.randn(2, 4, 4, 8)
    before = head(tokens)
    head.grow(5)
    assert head(tokens).shape == (2, 5)
    torch.testing.assert_close(head(tokens)[:, :3], before)
    with pytest.raises(ValueError, match="has 5 classes; it cannot shrink"):
        head.grow(4)


def test_a_fresh_vit_encoder_gives_timms_tokens():
    encoder = PRESETS["atlas"].visual(8).eval()
    frames = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found = encoder(frames)
        expected = encoder.backbone.forward_features(frames)[:, 1:].reshape(1, 14, 14, 768)
    torch.testing.assert_close(found.tokens, expected)
    assert [tuple(s.shape) for s in found.skips] == [(1, 768, 14, 14)] * 2
    with torch.no_grad():
        assert encoder(torch.randn(1, 3, 160, 160)).tokens.shape == (1, 10, 10, 768)


def test_the_lite_encoder_gives_timms_maps():
    encoder = build("atlas-lite", trained=False).visual
    reference = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True)
    plain = copy.deepcopy(encoder.backbone)
    merge(plain)  # fresh pairs add nothing
    reference.load_state_dict(plain.state_dict())
    frames = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found = encoder(frames)
        maps = reference.eval()(frames)
    assert found.tokens.shape == (1, 14, 14, 192)
    torch.testing.assert_close(found.skips[0], maps[2])
    torch.testing.assert_close(found.skips[1], maps[1])

"""AVSBench's network: TPAVI against loops, what a clip shares, what trains and serves."""

import numpy as np
import pytest
import torch
from atlasd.model import checkpoints
from atlasd.model.audio import AudioFeatures
from atlasd.model.decoder import PRIOR
from atlasd.model.neck import Neck
from atlasd.model.presets import PRESETS, build, load
from atlasd.model.pretrained import WeightsError
from atlasd.model.refinenet import RefineDecoder, ResidualUnit
from atlasd.model.tpavi import Tpavi
from torch import nn

FORMS = ["weights.safetensors", "weights"]


def stirred(preset="tiny-avsbench", **options):
    """A random network whose every trainable part and statistic has a say."""
    network = build(preset, trained=False, pretrained=False, **options)
    torch.manual_seed(5)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
            if isinstance(module, Tpavi):
                module.norm_z.weight.fill_(1.0)
            if isinstance(module, Neck):
                for conv in module.convs:
                    conv.weight.mul_(10)
        for parameter in network.trainable_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return network


def inputs(network, batch=4, size=None):
    size = size or network.preset.image_px
    generator = torch.Generator().manual_seed(6)
    frames = torch.randn(batch, 3, size, size, generator=generator)
    return frames, torch.randn(batch, 1, 101, 64, generator=generator)


def linear(layer, value):
    weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    return value @ weight.T + bias


def tpavi_by_loops(tpavi, maps, embedding, T):
    """The paper's Eq. 1 and 2 with the whole (N, N) affinity, in float64."""
    n, D, h, w = maps.shape
    N, groups = T * h * w, tpavi.norm_z.num_groups
    result = np.empty(maps.shape)
    for first in range(0, n, T):
        X = maps[first : first + T].transpose(0, 2, 3, 1).reshape(N, D)
        A = np.repeat(linear(tpavi.align, embedding[first : first + T]), h * w, axis=0)
        theta, phi, g = linear(tpavi.theta, X), linear(tpavi.phi, A), linear(tpavi.g, X)
        y = np.zeros((N, D // 2))
        for i in range(N):
            for j in range(N):
                y[i] += theta[i] @ phi[j] / N * g[j]
        update = linear(tpavi.w_z, y)
        parts = update.reshape(N, groups, D // groups)
        mean, var = (f(parts, axis=(0, 2), keepdims=True) for f in (np.mean, np.var))
        update = ((parts - mean) / np.sqrt(var + 1e-5)).reshape(N, D)
        scale, shift = (p.detach().double().numpy() for p in tpavi.norm_z.parameters())
        z = X + update * scale + shift
        z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5)
        result[first : first + T] = z.reshape(T, h, w, D).transpose(0, 3, 1, 2)
    return result


@pytest.mark.parametrize("T", [1, 3])
def test_tpavi_is_the_papers_attention(T):
    torch.manual_seed(0)
    tpavi = Tpavi(audio_dim=6, dim=16).double()
    nn.init.normal_(tpavi.norm_z.weight)
    nn.init.normal_(tpavi.norm_z.bias)
    maps, embedding = torch.randn(2 * T, 16, 3, 2).double(), torch.randn(2 * T, 6).double()
    found = tpavi(maps, embedding, T).detach().numpy()
    expected = tpavi_by_loops(tpavi, maps.numpy(), embedding.numpy(), T)
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_fresh_tpavi_only_normalises():
    tpavi = Tpavi(audio_dim=6, dim=16)
    maps = torch.randn(4, 16, 3, 2)
    found = tpavi(maps, torch.randn(4, 6), 2).permute(0, 2, 3, 1)
    expected = nn.functional.layer_norm(maps.permute(0, 2, 3, 1), (16,))
    torch.testing.assert_close(found, expected)


def test_a_fresh_network_hears_nothing_yet_and_learns_to():
    network = build("tiny-avsbench")
    frames, log_mel = inputs(network)
    with torch.no_grad():
        loud, silent = network(frames, log_mel), network(frames, torch.full_like(log_mel, -100))
    assert torch.equal(loud.mask_logits, silent.mask_logits)
    network(frames, log_mel).mask_logits.square().mean().backward()
    assert all(float(t.norm_z.weight.grad.abs().sum()) > 0 for t in network.fusion)
    network = stirred()
    with torch.no_grad():
        loud, silent = network(frames, log_mel), network(frames, torch.full_like(log_mel, -100))
    assert not torch.equal(loud.mask_logits, silent.mask_logits)


def test_a_neck_sums_four_dilated_convolutions():
    neck, x = Neck(3, 5), torch.randn(2, 3, 9, 9)
    assert [(c.dilation, c.padding) for c in neck.convs] == [((d, d),) * 2 for d in (3, 6, 12, 18)]
    expected = sum(
        nn.functional.conv2d(x, c.weight, c.bias, padding=c.padding, dilation=c.dilation)
        for c in neck.convs
    )
    torch.testing.assert_close(neck(x), expected)
    weights = torch.cat([c.weight.flatten() for c in Neck(64, 64).convs])
    assert 0.0095 < float(weights.detach().std()) < 0.0105


def test_a_residual_unit_has_a_rectified_shortcut():
    unit, x = ResidualUnit(4), torch.randn(1, 4, 5, 5)
    nn.init.zeros_(unit.conv2.weight)
    nn.init.zeros_(unit.conv2.bias)
    assert torch.equal(unit(x), x.clamp(min=0))


def test_a_fresh_decoder_takes_little_for_sounding():
    torch.manual_seed(0)
    maps = tuple(torch.randn(2, 16, 64 // s, 96 // s) for s in (4, 8, 16, 32))
    logits = RefineDecoder(16)(maps, torch.Size((64, 96)))
    assert logits.shape == (2, 64, 96)
    assert abs(torch.sigmoid(logits).mean() - PRIOR) < 0.1


@pytest.mark.parametrize(("preset", "dim"), [("tiny-avsbench", 16), ("avsbench-lite", 64)])
def test_a_network_gives_a_logit_for_each_pixel(preset, dim):
    network = stirred(preset, categories=("dog", "car"), vary={"clip_frames": 2})
    size = network.preset.image_px
    with torch.no_grad():
        out = network(*inputs(network, batch=2))
    assert out.mask_logits.shape == (2, size, size)
    assert out.class_logits.shape == (2, 2)
    assert out.fused.shape == (2, size // 32, size // 32, dim)
    assert torch.isfinite(out.mask_logits).all()
    assert out.mask_logits.std() > 0
    torch.testing.assert_close(out.class_logits, network.head(out.fused))


@pytest.mark.slow
def test_the_whole_avsbench_runs():
    network = build("avsbench", trained=False, pretrained=False, vary={"clip_frames": 1})
    with torch.no_grad():
        out = network(*inputs(network, batch=1, size=64))
    assert out.mask_logits.shape == (1, 64, 64)
    assert out.fused.shape == (1, 2, 2, 256)


@pytest.mark.parametrize("size", [96, 160])
def test_other_input_sizes_give_masks_of_their_size(size):
    network = stirred()
    with torch.no_grad():
        out = network(*inputs(network, batch=2, size=size))
    assert out.mask_logits.shape == (2, size, size)


@pytest.mark.parametrize("what", ["picture", "sound"])
def test_frames_of_a_clip_are_seen_together_and_clips_apart(what):
    network = stirred()
    assert network.clip_frames == 2
    frames, log_mel = inputs(network, batch=4)
    other_frames, other_log_mel = frames.clone(), log_mel.clone()
    (other_frames if what == "picture" else other_log_mel)[1].normal_()
    with torch.no_grad():
        before = network(frames, log_mel).mask_logits
        after = network(other_frames, other_log_mel).mask_logits
    moved = (after - before).abs().amax(dim=(1, 2))
    assert moved[0] > 0
    assert moved[1] > 0
    assert torch.equal(after[2:], before[2:])


def test_single_frames_are_seen_apart():
    network = stirred(vary={"clip_frames": 1}, categories=("dog", "car"))
    frames, log_mel = inputs(network, batch=3)
    with torch.no_grad():
        together = network(frames, log_mel)
        for i in range(3):
            alone = network(frames[i : i + 1], log_mel[i : i + 1])
            torch.testing.assert_close(together.mask_logits[i], alone.mask_logits[0])
            torch.testing.assert_close(together.class_logits[i], alone.class_logits[0])


@pytest.mark.parametrize("T", [1, 2])
@pytest.mark.parametrize("categories", [(), ("dog", "car")])
def test_pictures_with_several_sounds_are_each_as_with_one(T, categories):
    network = stirred(vary={"clip_frames": T}, categories=categories)
    frames, _ = inputs(network, batch=2)
    with torch.no_grad():
        audio = network.encode_audio(torch.randn(6, 1, 101, 64))
        out = network.forward_features(frames, audio)
        for k in range(3):
            part = AudioFeatures(audio.tokens[k::3], audio.embedding[k::3])
            one = network.forward_features(frames, part)
            assert torch.equal(out.mask_logits[k::3], one.mask_logits)
            assert torch.equal(out.fused[k::3], one.fused)
            if categories:
                assert torch.equal(out.class_logits[k::3], one.class_logits)
            else:
                assert out.class_logits is None


@pytest.mark.parametrize(("frames", "sounds"), [(3, 3), (4, 6), (4, 0)])
def test_what_is_no_whole_clip_is_refused(frames, sounds):
    network = build("tiny-avsbench")
    audio = AudioFeatures(torch.zeros(sounds, 3, 16), torch.zeros(sounds, 16))
    with pytest.raises(ValueError, match=rf"got {frames} frames and {sounds} sounds; clips of 2"):
        network.forward_features(torch.zeros(frames, 3, 64, 64), audio)


def test_training_moves_trainable_parts_and_nothing_else():
    network = stirred(vary={"lora_rank": 4}).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.trainable_parameters(), lr=1e-2)
    network(*inputs(network)).mask_logits.square().mean().backward()
    optimizer.step()
    moved = {n for n, tensor in network.state_dict().items() if not torch.equal(tensor, before[n])}
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    assert moved == trainable
    assert all(".lora_" in name for name in trainable if name.startswith("visual."))
    assert {n.split(".")[0] for n in trainable} == {"visual", "necks", "fusion", "decoder"}


def test_an_unfrozen_backbone_trains_but_keeps_its_statistics(tmp_path):
    network = stirred(vary={"lora_rank": 0})
    network.published = frozenset({"backbone"})
    network.unfreeze_backbone()
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.trainable_parameters(), lr=1e-2)
    network(*inputs(network)).mask_logits.square().mean().backward()
    optimizer.step()
    moved = {n for n, tensor in network.state_dict().items() if not torch.equal(tensor, before[n])}
    assert {n for n in moved if n.startswith("visual.backbone.")} == {
        f"visual.backbone.{n}" for n, _ in network.visual.backbone.named_parameters()
    }
    assert not any("running" in name for name in moved)
    checkpoints.save(network, tmp_path / "w.safetensors")
    found = load(tmp_path / "w.safetensors")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name])


@pytest.mark.parametrize("preset", ["tiny-avsbench", "avsbench-lite", "avsbench"])
def test_trainable_parts_hold_no_batch_norm(preset):
    with torch.device("meta"):
        network = PRESETS[preset].network()
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert name.startswith(("visual.backbone.", "audio."))
    assert all(not m.training for m in network.train().visual.backbone.modules())
    assert all(not m.training for m in network.audio.modules())
    assert network.decoder.training


def test_avsbench_has_the_authors_parameters_but_for_what_is_stated():
    """The authors' code without VGGish has 101.32 M. Wider sounds add four times 1,920·256; the
    residual unit that the authors never use is not there."""
    with torch.device("meta"):
        network = PRESETS["avsbench"].vary({"lora_rank": 0}).network()
    count = sum(p.numel() for n, p in network.named_parameters() if not n.startswith("audio."))
    wider_sound = 4 * (2048 - 128) * 256
    unused_unit = 2 * (9 * 256 * 256 + 256)
    authors = count - wider_sound + unused_unit
    assert count == 102_106_497
    assert round(authors / 1e6, 2) == 101.32


@pytest.mark.parametrize("form", FORMS)
def test_what_goes_out_comes_back(tmp_path, form):
    network = stirred(categories=("dog",), vary={"lora_rank": 2, "dim": 32})
    network.clip_frames = 3
    network.grow(("dog", "car", "flute"))
    network.trained = True
    manifest = checkpoints.save(network, tmp_path / form)
    assert manifest.varied == {"lora_rank": 2, "dim": 32, "clip_frames": 3}
    found = load(tmp_path / form)
    assert found.preset == network.preset
    assert (found.clip_frames, found.trained, found.version) == (3, True, manifest.version)
    frames, log_mel = inputs(network, batch=3)
    with torch.no_grad():
        one, other = network(frames, log_mel), found(frames, log_mel)
    assert torch.equal(one.mask_logits, other.mask_logits)
    assert torch.equal(one.class_logits, other.class_logits)


def test_weights_of_clips_serve_single_frames(tmp_path):
    checkpoints.save(stirred(), tmp_path / "w.safetensors")
    network = build("tiny-avsbench", weights=tmp_path / "w.safetensors", vary={"clip_frames": 1})
    assert network.clip_frames == 1
    network.for_serving()


@pytest.mark.parametrize("preset", ["tiny-avsbench", "avsbench-lite"])
def test_serving_single_frames_keeps_the_logits(preset):
    network = stirred(preset, vary={"clip_frames": 1, "lora_rank": 8}, categories=("dog", "car"))
    frames, log_mel = inputs(network, batch=2)
    served = network.for_serving()
    with torch.no_grad():
        expected, found = network(frames, log_mel), served(frames, log_mel)
    assert (found.mask_logits - expected.mask_logits).abs().max() <= 1e-4
    assert (found.class_logits - expected.class_logits).abs().max() <= 1e-4
    assert not served.trainable_parameters()


def test_clips_are_not_served():
    with pytest.raises(WeightsError, match=r"sees 2 frames .* `--vary clip_frames=1`"):
        stirred().for_serving()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"heads": 2},
            "image_px, lora_rank, lora_alpha, dim, clip_frames can",
        ),
        ({"clip_frames": 0}, "clip_frames is 0; it must be 1 to 64"),
        ({"dim": 48}, "dim is 48; it must be 32 to 256|dim is 48; it must be one of 32, 64"),
    ],
)
def test_what_cannot_be_varied_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build("tiny-avsbench", vary=changes)


def test_atlas_sees_each_frame_by_itself_however_many_come_together():
    """What comes together is for methods to know; a clip need not be whole."""
    network = stirred("tiny", categories=("dog", "car"))
    assert network.clip_frames == 1
    frames, log_mel = inputs(network, 4)
    with torch.no_grad():
        alone = network(frames, log_mel)
        network.clip_frames = 5
        together = network(frames, log_mel)
    assert torch.equal(alone.mask_logits, together.mask_logits)
    assert torch.equal(alone.class_logits, together.class_logits)

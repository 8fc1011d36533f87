"""AVSBench's own loss against float64 loops; what learns by it, in steps and in whole runs."""

from __future__ import annotations

import json

import pytest
import torch
from atlasd.model import presets
from atlasd.model.audio import AudioFeatures
from atlasd.model.avsbench import Stage
from atlasd.model.avsbenchloss import MATCH_WEIGHT, avsbench_loss, match
from atlasd.model.checkpoints import read_tensors
from atlasd.model.taskloss import task_loss
from atlasd.model.teacher import Teacher, inputs
from atlasd.model.tpavi import Tpavi
from atlasd.model.training import Settings, Trainer
from atlasd.streams.manifest import Manifest
from atlasd.streams.toyworld import write_dataset
from atlasd.tools.clipfeed import ClipFeed
from atlasd.tools.clipstore import ClipStore
from atlasd.tools.diskcache import DiskCache
from atlasd.tools.replay import make_network, replay
from atlasd.tools.runfolder import RunError
from atlasd.tools.runspec import RunSpec
from torch import nn

CATEGORIES = ("dog", "car")


def stirred(categories=CATEGORIES, **vary):
    """A random network whose every trainable part has a say, sound included."""
    network = presets.build(
        "tiny-avsbench", trained=False, pretrained=False, vary=vary, categories=categories
    )
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, Tpavi):
                module.norm_z.weight.fill_(1.0)
        for parameter in network.trainable_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return network


def batch_of(network, valid=(True, False, True, True), labels=(0, 0, 1, 1)):
    draw = torch.Generator().manual_seed(7)
    px, n = network.preset.image_px, len(valid)
    rate = network.preset.sample_rate_hz
    features = network.encode_audio(network.log_mel(0.1 * torch.randn(n, rate, generator=draw)))
    return {
        "images": torch.randint(0, 256, (n, px, px, 3), generator=draw, dtype=torch.uint8),
        "masks": (torch.rand(n, px, px, generator=draw) < 0.3).to(torch.uint8),
        "valid": torch.tensor(valid),
        "labels": torch.tensor(labels),
        "tokens": features.tokens,
        "embedding": features.embedding,
    }


def number(scalar):
    return scalar.detach().item()


# -- the formula, frame by frame, in float64 ------------------------------------------------------


def match_by_loops(logits, stages):
    """`mean over stages of Σ KL(softmax(a) ‖ softmax(v))` every mean and sum spelt out."""
    total = torch.zeros((), dtype=torch.float64)
    for maps, sounds in stages:
        for z, sound, m in zip(maps.double(), sounds.double(), logits.double(), strict=True):
            D, h, w = z.shape
            small = m.reshape(h, m.shape[0] // h, w, m.shape[1] // w).mean(dim=(1, 3))
            share = 1 / (1 + torch.exp(-small))
            v = torch.stack([(share * torch.where(z[d] > 0, z[d], 0)).sum() for d in range(D)])
            v = v / (h * w)
            seen = torch.exp(v) / torch.exp(v).sum()
            heard = torch.exp(sound) / torch.exp(sound).sum()
            for d in range(D):
                total = total + heard[d] * (torch.log(heard[d]) - torch.log(seen[d]))
    return total / len(stages)


def bce_by_loops(logits, masks, valid):
    frames = []
    for x, t, ok in zip(logits.double(), masks.double(), valid, strict=True):
        p = 1 / (1 + torch.exp(-x))
        if ok:
            frames.append(-(t * torch.log(p) + (1 - t) * torch.log(1 - p)).mean())
    return sum(frames) / len(frames)


def drawn_stages(n=3, dim=6, sizes=(16, 8, 4, 2)):
    draw = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(n, 32, 32, generator=draw)
    maps = [2 * torch.randn(n, dim, side, side, generator=draw) for side in sizes]
    sounds = [2 * torch.randn(n, dim, generator=draw) for _ in sizes]
    return logits, [Stage(m.requires_grad_(), s.requires_grad_()) for m, s in zip(maps, sounds)]  # noqa: B905


def test_the_term_is_the_formulas_and_so_are_its_gradients():
    logits, stages = drawn_stages()
    logits.requires_grad_()
    leaves = [logits, *(tensor for stage in stages for tensor in stage)]
    found, expected = match(logits, stages), match_by_loops(logits, stages)
    assert number(found) == pytest.approx(number(expected), rel=1e-5)
    ours, theirs = torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves)
    for one, other in zip(ours, theirs, strict=True):
        assert number(other.abs().max()) > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_the_term_is_a_sum_over_frames_and_nothing_where_sight_is_as_sound():
    logits, stages = drawn_stages()
    each = [
        number(
            match(logits[k : k + 1], [Stage(*(t[k : k + 1] for t in s)) for s in stages]).detach()
        )
        for k in range(3)
    ]
    assert number(match(logits, stages)) == pytest.approx(sum(each), rel=1e-5)
    shares = torch.sigmoid(logits.reshape(3, 4, 8, 4, 8).mean(dim=(2, 4)))
    maps = torch.rand(3, 6, 4, 4)
    alike = Stage(maps, (shares[:, None] * maps).mean(dim=(2, 3)))
    assert number(match(logits, [alike])) == pytest.approx(0.0, abs=1e-6)


def test_halves_are_computed_in_float32():
    logits, stages = drawn_stages()
    halves = [Stage(*(t.bfloat16() for t in s)) for s in stages]
    found = match(logits.bfloat16(), halves)
    assert found.dtype == torch.float32
    wide = [Stage(*(t.float() for t in s)) for s in halves]
    assert torch.equal(found, match(logits.bfloat16().float(), wide))


# -- a batch's loss -------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, MATCH_WEIGHT])
@pytest.mark.parametrize("class_weight", [0.0, 0.5])
def test_the_loss_is_cross_entropy_the_term_and_what_classes_add(weight, class_weight):
    network = stirred()
    batch = batch_of(network)
    terms, out = avsbench_loss(network, class_weight, weight)(batch)
    _, stages = network.forward_stages(*inputs(network, batch))
    logs = torch.log_softmax(out.class_logits.double(), dim=1)
    ce = -torch.stack([logs[k, label] for k, label in enumerate(batch["labels"])]).mean()
    expected = bce_by_loops(out.mask_logits, batch["masks"], batch["valid"]) + class_weight * ce
    if weight:
        matched = match_by_loops(out.mask_logits, stages)
        assert number(matched) > 1e-3
        expected = expected + weight * matched
        assert number(terms["match"]) == pytest.approx(number(matched), rel=1e-4)
    assert ("match" in terms) == bool(weight)
    assert number(terms["loss"]) == pytest.approx(number(expected), rel=1e-5)


def test_dice_has_no_say_and_frames_without_a_mask_none_in_the_cross_entropy():
    network = stirred(clip_frames=4)
    batch = batch_of(network, valid=(True, False, False, False))
    other = {**batch, "masks": torch.cat([batch["masks"][:1], 1 - batch["masks"][1:]])}
    loss = avsbench_loss(network, 0.0, 0.0)
    terms, out = loss(batch)
    assert torch.equal(terms["loss"], loss(other).terms["loss"])
    grad = torch.autograd.grad(terms["loss"], out.mask_logits)[0]
    assert number(grad[0].abs().max()) > 0
    assert not bool(grad[1:].any())
    share = (torch.sigmoid(out.mask_logits[0]) - batch["masks"][0]) / out.mask_logits[0].numel()
    torch.testing.assert_close(grad[0], share)


def test_the_term_counts_frames_without_a_mask():
    network = stirred(clip_frames=4)
    batch = batch_of(network, valid=(True, False, False, False))
    terms, out = avsbench_loss(network, 0.0, MATCH_WEIGHT)(batch)
    grad = torch.autograd.grad(terms["match"], out.mask_logits)[0]
    assert all(number(frame.abs().max()) > 0 for frame in grad)


def test_all_four_stages_of_tpavi_learn_by_the_term_alone():
    network = stirred()
    terms, _ = avsbench_loss(network, 0.5, MATCH_WEIGHT)(batch_of(network))
    terms["match"].backward()
    assert len(network.fusion) == 4
    for tpavi in network.fusion:
        for name, parameter in tpavi.named_parameters():
            assert parameter.grad is not None, name
            assert bool(torch.isfinite(parameter.grad).all()), name
            assert number(parameter.grad.abs().max()) > 0, name


def test_waves_are_encoded_once_for_all_who_read_the_batch():
    network = stirred()
    batch = batch_of(network)
    waves = 0.1 * torch.randn(4, network.preset.sample_rate_hz)
    told = {n: t for n, t in batch.items() if n not in ("tokens", "embedding")} | {"waves": waves}
    loss = avsbench_loss(network, 0.5, MATCH_WEIGHT)
    terms = loss(told).terms
    features = network.encode_audio(network.log_mel(waves))
    assert torch.equal(told["embedding"], features.embedding)
    known = batch | {"tokens": features.tokens, "embedding": features.embedding}
    assert torch.equal(terms["loss"], loss(known).terms["loss"])


def test_stages_come_with_the_answer_that_the_network_gives_anyhow():
    network = stirred()
    frames, audio = inputs(network, batch_of(network))
    with torch.no_grad():
        plain = network.forward_features(frames, audio)
        out, stages = network.forward_stages(frames, audio)
    assert all(torch.equal(one, other) for one, other in zip(plain, out, strict=True))
    side = network.preset.image_px
    assert [s.maps.shape for s in stages] == [(4, 16, side // k, side // k) for k in (4, 8, 16, 32)]
    assert torch.equal(stages[-1].maps.permute(0, 2, 3, 1), out.fused)
    for tpavi, stage in zip(network.fusion, stages, strict=True):
        wanted = audio.embedding @ tpavi.align.weight.T + tpavi.align.bias
        torch.testing.assert_close(stage.sounds, wanted)


@pytest.mark.parametrize(
    ("frames", "sounds", "why"), [(2, 4, "each needs one"), (3, 3, "clips of 2")]
)
def test_stages_need_whole_clips_with_one_sound_a_picture(frames, sounds, why):
    network = stirred()
    audio = AudioFeatures(torch.zeros(sounds, 3, 16), torch.zeros(sounds, 16))
    with pytest.raises(ValueError, match=rf"got {frames} frames and {sounds} sounds; {why}"):
        network.forward_stages(torch.zeros(frames, 3, 64, 64), audio)


def test_a_network_that_learns_by_it_can_teach_and_keeps_no_graph():
    """A teacher is a deep copy, which a tensor within a graph would refuse."""
    network = stirred()
    batch = batch_of(network)
    terms, out = avsbench_loss(network, 0.5, MATCH_WEIGHT)(batch)
    said = Teacher(network)(batch)
    assert torch.equal(said.mask_logits, out.mask_logits.detach())
    terms["loss"].backward()
    plain, learned = stirred(), network
    assert vars(plain).keys() == vars(learned).keys()


# -- the authors' optimizer -----------------------------------------------------------------------


def test_adamw_without_decay_is_adam_bit_for_bit():
    """So `weight_decay: 0` and `lr: 1.0e-4` are the authors' optimizer."""
    ours, theirs = stirred(), stirred()
    trainer = Trainer(
        ours, avsbench_loss(ours, 0.0, MATCH_WEIGHT), Settings(lr=1e-4, weight_decay=0.0), 100
    )
    adam = torch.optim.Adam([p for p in theirs.parameters() if p.requires_grad], lr=1e-4)
    loss = avsbench_loss(theirs, 0.0, MATCH_WEIGHT)
    for _ in range(5):
        trainer.step(batch_of(ours))
        adam.zero_grad()
        loss(batch_of(theirs)).terms["loss"].backward()
        adam.step()
    moved = 0
    fresh = stirred().state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
        moved += not torch.equal(fresh[name], tensor)
    assert moved > 50


def test_it_learns():
    network = stirred(categories=())
    batch = batch_of(network, valid=(True,) * 4)
    batch["masks"] = torch.zeros_like(batch["masks"])
    batch["masks"][:, 10:40, 20:50] = 1
    trainer = Trainer(
        network, avsbench_loss(network, 0.0, MATCH_WEIGHT), Settings(lr=3e-3, weight_decay=0), 100
    )
    scalars = [trainer.step(dict(batch)) for _ in range(40)]
    assert scalars[-1]["bce"] < 0.9 * scalars[0]["bce"]
    assert scalars[-1]["match"] < 0.5 * scalars[0]["match"]


# -- runs -----------------------------------------------------------------------------------------

OWN = {
    "network": "tiny-avsbench",
    "vary": {"clip_frames": 5},
    "method": "finetune",
    "loss": "avsbench",
    "lr": 1e-4,
    "weight_decay": 0.0,
    "random": True,
    "epochs": 2,
    "batch": 10,
    "variants": 1,
    "score_px": 64,
    "score_frames": "one",
    "tasks": 1,
}
SINGLE, SEVERAL = {"split": "6-1"}, {"protocol": "task-free", "split": "4-2"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "toy"
    counts = {"train": 2, "val": 1, "test": 1}
    return write_dataset(root, counts, ms3_counts={"train": 6, "val": 3, "test": 3}, size_px=64)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return DiskCache(tmp_path_factory.mktemp("cache"), 1 << 30)


def spec(data, **changes):
    return RunSpec(**({"data": data} | OWN | changes))


def boundary(folder):
    tensors, metadata = read_tensors(folder / "boundary.safetensors")
    held = {n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")}
    return held, json.loads(metadata["boundary"])


def by_hand(told, folder, draw_head):
    """The first task of a run again: torch's Adam and the loops' loss, in place of ours."""
    network = make_network(told, "all")
    held, state = boundary(folder)
    task = Manifest.read(folder / "manifest.json").tasks[0]
    if state["categories"]:
        network.grow(state["categories"])
        with torch.no_grad():
            for name, parameter in network.head.named_parameters():
                parameter.copy_(draw_head[f"head.{name}"])
    store = ClipStore(told.data, told.subset, network, DiskCache(folder, 0), seed=told.seed)
    rows = {name: row for row, name in enumerate(state["categories"])}
    labels = {c: rows[store.entries[c].category] for c in task.train if rows
              and store.entries[c].kind != "negative"}  # fmt: skip
    feed = ClipFeed(store, task.train, labels, batch=told.batch, seed=(told.seed, 0), clip_frames=5)
    adam = torch.optim.Adam(network.trainable_parameters(), lr=1e-4)
    seen = []
    for epoch in range(told.epochs):
        for batch in feed(epoch, 0):
            out, stages = network.forward_stages(*inputs(network, batch))
            loss = bce_by_loops(out.mask_logits, batch["masks"], batch["valid"])
            if told.subset == "ms3":
                loss = loss + 0.5 * match_by_loops(out.mask_logits, stages)
            elif bool((batch["labels"] >= 0).any()):
                ce = nn.functional.cross_entropy(out.class_logits, batch["labels"], ignore_index=-1)
                loss = loss + told.class_weight * ce
            adam.zero_grad()
            loss.backward()
            adam.step()
            seen.append(batch["valid"].tolist())
    return network, held, seen


@pytest.mark.parametrize("setting", [SINGLE, SEVERAL], ids=["single", "several"])
def test_a_run_learns_by_it_as_an_independent_loop_does(setting, data, cache, tmp_path):
    """To a thousandth of how far the weights went: float32 against float64."""
    told = spec(data, **setting)
    replay(told, tmp_path / "run", cache=cache)
    replay(spec(data, **setting, lr=1e-30), tmp_path / "fresh", cache=cache)
    start, _ = boundary(tmp_path / "fresh")
    network, held, seen = by_hand(told, tmp_path / "run", start)
    single = told.subset == "s4"
    assert len(seen) > 2
    for valid in seen:
        assert valid == [k % 5 == 0 or not single for k in range(len(valid))]
    own = dict(network.named_parameters())
    gone = torch.cat([(held[n] - start[n]).flatten() for n in held])
    wrong = torch.cat([(held[n] - own[n].detach()).flatten() for n in held])
    assert number(gone.norm()) > 1e-3
    assert number(wrong.norm()) < 1e-3 * number(gone.norm())


@pytest.mark.parametrize("setting", [SINGLE, SEVERAL], ids=["single", "several"])
def test_without_being_asked_a_run_learns_by_the_papers(setting, data, cache, tmp_path):
    for loss in ("avsbench", "atlas"):
        replay(spec(data, **setting, loss=loss), tmp_path / loss, cache=cache)
    one, other = (boundary(tmp_path / loss)[0] for loss in ("avsbench", "atlas"))
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("setting", [SINGLE, SEVERAL], ids=["single", "several"])
def test_a_run_that_is_cut_short_ends_as_one_that_is_not(setting, data, cache, tmp_path):
    class StopError(Exception):
        pass

    def interrupt(what, _share):
        steps.extend([what] if "loss" in what else [])
        if len(steps) == 3:
            raise StopError

    steps: list[str] = []
    told = spec(data, **(setting | {"tasks": 0}))
    replay(told, tmp_path / "whole", cache=cache)
    with pytest.raises(StopError):
        replay(told, tmp_path / "run", cache=cache, save_s=0, progress=interrupt)
    assert (tmp_path / "run" / "state.safetensors").exists()
    replay(told, tmp_path / "run", cache=cache)
    whole, run = ((tmp_path / name / "metrics.json").read_bytes() for name in ("whole", "run"))
    assert run == whole


@pytest.mark.parametrize("method", ["lwf", "ewc", "si", "mas", "dgr", "atlas", "panda+dgr"])
def test_methods_learn_by_it_too(method, data, cache, tmp_path):
    told = spec(data, **SINGLE, method=method, tasks=2, epochs=1)
    result = replay(told, tmp_path / "run", cache=cache)
    assert all(row[0] is not None for row in result["measures"]["AP"]["matrix"])
    held, state = boundary(tmp_path / "run")
    assert state["task"] == 1
    assert all(bool(torch.isfinite(t).all()) for t in held.values())


@pytest.mark.parametrize("network", ["tiny", "atlas-lite", "atlas-pvt"])
def test_another_network_is_refused_with_what_to_do(network, data, tmp_path):
    told = spec(data, **SINGLE, network=network, vary={})
    with pytest.raises(RunError, match=rf"{network} is another: set loss to atlas, or network to"):
        replay(told, tmp_path / "run")


def test_a_loss_that_nobody_knows_is_refused(data):
    with pytest.raises(ValueError, match="'atlas' or 'avsbench'"):
        spec(data, loss="focal")


def test_the_loss_is_part_of_what_a_run_is_where_it_is_another(data):
    plain = RunSpec(data=data)
    assert RunSpec(data=data, loss="atlas").hash == plain.hash
    assert RunSpec(data=data, loss="avsbench").hash != plain.hash


def test_the_papers_loss_is_unchanged_by_what_was_added():
    network = stirred()
    terms = task_loss(network, 0.5)(batch_of(network)).terms
    expected = terms["bce"] + terms["dice"] + 0.5 * terms["ce"]
    assert torch.equal(terms["loss"], expected)

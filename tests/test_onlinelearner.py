"""One code path: the daemon's learner and the evaluator's stream end with the same weights."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from atlasd.daemon.onlinelearner import LearnSettings, OnlineLearner
from atlasd.model.checkpoints import read_tensors
from atlasd.model.method import MethodError
from atlasd.streams.avsbench import AVSBench
from atlasd.streams.manifest import Manifest
from atlasd.streams.toyworld import make_clip, write_dataset
from atlasd.tools.replay import make_network, replay
from atlasd.tools.runspec import RunSpec
from served import tiny_network


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [("atlas", {"c": 30.0, "growth": "mean", "anchors": 3}), ("finetune", {}), ("si", {"c": 1.0})],
)
@pytest.mark.parametrize(("together", "passes", "clip_norm"), [(1, 1, 0.0), (5, 2, 1.0)])
def test_the_learner_ends_where_the_evaluators_stream_does(
    tmp_path, method, options, together, passes, clip_norm
):
    """Every clip of MS3 has five masks; five of them are four steps, the last a smaller one."""
    data = write_dataset(
        tmp_path / "toy",
        {"train": 0, "val": 0, "test": 0},
        ms3_counts={"train": 30, "val": 3, "test": 3},
        size_px=64,
    )
    spec = RunSpec(
        data=data,
        network="tiny",
        random=True,
        method=method,
        options=options,
        trainable="lora",
        protocol="task-free",
        split="10-10",
        schedule="stream",
        consolidate="plateau",
        batch=8,
        together=together,
        passes=passes,
        clip_norm=clip_norm,
        variants=1,
        score_px=32,
        score_frames="one",
        lr=3e-3,
    )
    replay(spec, tmp_path / "run")
    tensors, _ = read_tensors(tmp_path / "run" / "boundary.safetensors")
    settings = LearnSettings(
        method=method,
        options=options,
        parts="all",
        lr=3e-3,
        clip_norm=clip_norm,
        frames=8,
        passes=passes,
    )
    torch.set_num_threads(spec.threads)
    learner = OnlineLearner(make_network(spec, "lora"), settings)
    entries = {f"ms3/train/{e.name}": e for e in AVSBench(data, "ms3").clips("train")}
    order = [
        clip
        for task in Manifest.read(tmp_path / "run" / "manifest.json").tasks
        for clip in task.train
    ]
    assert len(order) == 30
    for first in range(0, len(order), together):
        clips = [entries[clip].labeled_clip(64) for clip in order[first : first + together]]
        learner.learn(clips, learner.batches(clips), seed=first)
    own = dict(learner.network.named_parameters())
    learned = {n.removeprefix("network."): t for n, t in tensors.items() if "network." in n[:8]}
    assert {n for n, p in own.items() if p.requires_grad} == set(learned)
    for name, tensor in learned.items():
        assert torch.equal(own[name], tensor), name
    if method == "atlas":
        assert int(learner.trainer.method.state["consolidations"]) > 0


def test_a_state_is_a_copy_and_brings_everything_back():
    """What goes on from it moves weights and moments, and nothing of it."""
    clips = [make_clip(0, size_px=64, kind="plain").labeled_clip()]
    learner = OnlineLearner(tiny_network(), LearnSettings())
    learner.learn(clips, learner.batches(clips), seed=0)
    state = learner.state()
    before = {name: tensor.clone() for name, tensor in state.tensors.items()}
    again = OnlineLearner(tiny_network(), LearnSettings(), state)
    again.learn(clips, again.batches(clips), seed=1)
    assert all(torch.equal(before[name], state.tensors[name]) for name in before)
    after = again.state().tensors
    assert not all(torch.equal(before[n], after[n]) for n in before if "exp_avg" in n)


def test_sounds_are_encoded_as_a_part():
    entered: list[str] = []

    @contextmanager
    def part(name):
        entered.append(name)
        yield

    clips = [make_clip(k, size_px=64, kind="plain").labeled_clip() for k in range(2)]
    learner = OnlineLearner(tiny_network(), LearnSettings(), part=part)
    entered.clear()
    learner.batches(clips)
    assert entered == ["encode", "encode"]


def test_a_method_that_mixes_sounds_is_refused_before_it_learns():
    settings = LearnSettings(method="panda+atlas", options={"panda.sound": "mix"})
    with pytest.raises(MethodError, match=r"panda\+atlas mixes sounds, .*: sound=replace"):
        OnlineLearner(tiny_network(), settings)
    OnlineLearner(tiny_network(), LearnSettings(method="panda+atlas"))


def test_an_unknown_method_is_refused():
    with pytest.raises(MethodError, match="nonsense"):
        OnlineLearner(tiny_network(), LearnSettings(method="nonsense"))

"""A run that learns as the daemon does, from a deployed base, ends with the daemon's weights."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from atlasd.daemon.config import load_config
from atlasd.daemon.journal import read_journal
from atlasd.daemon.journal import replay as replay_journal
from atlasd.daemon.labelclips import write_clip
from atlasd.daemon.labels import pack_stored
from atlasd.daemon.learnermain import learn_settings
from atlasd.daemon.learning import Learning
from atlasd.daemon.learnstore import LearnStore
from atlasd.daemon.notices import LearningRules
from atlasd.daemon.parts import base_importance, build_network
from atlasd.daemon.spool import Spool
from atlasd.model import baseimportance, checkpoints
from atlasd.model.adapting import adapted
from atlasd.model.checkpoints import read_tensors, write_tensors
from atlasd.model.presets import build
from atlasd.streams.avsbench import AVSBench
from atlasd.streams.manifest import Manifest
from atlasd.streams.toyworld import CATEGORIES, write_dataset
from atlasd.tools.clipfeed import ClipFeed
from atlasd.tools.clipstore import ClipStore
from atlasd.tools.diskcache import DiskCache
from atlasd.tools.evaluate import EvaluateError, Options, evaluate
from atlasd.tools.replay import replay
from atlasd.tools.runfolder import RunError
from atlasd.tools.runspec import RunSpec
from pydantic import ValidationError
from rich.console import Console

KNOWN = (CATEGORIES[2], "kazoo")
"""Classes of the deployed base: one that comes again, and one that never does."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "toy"
    counts, ms3 = {"train": 8, "val": 1, "test": 1}, {"train": 30, "val": 3, "test": 3}
    return write_dataset(root, counts, ms3_counts=ms3, size_px=64)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return DiskCache(tmp_path_factory.mktemp("cache"), 1 << 30)


def deployed(folder, data, cache, categories=()):
    """A checkpoint whose LoRA is not zero, with its importances beside it."""
    network = build("tiny", trained=False, categories=categories)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(std=0.05, generator=generator)
    network.trained = True
    network.version = checkpoints.save(network, folder).version
    store = ClipStore(data, "s4", network, cache, seed=0)
    clips = [clip for clip in store.entries if clip.startswith("s4/train")][:12]
    labels = {clip: k % len(categories) for k, clip in enumerate(clips) if categories}
    feed = ClipFeed(store, clips, labels, batch=4, seed=(0,))
    found = baseimportance.measure(network, feed, 12)
    baseimportance.write(folder, network, found, examples=12)
    return folder


@pytest.fixture(scope="module")
def base(data, cache, tmp_path_factory):
    return deployed(tmp_path_factory.mktemp("base"), data, cache)


@pytest.fixture(scope="module")
def base_with_classes(data, cache, tmp_path_factory):
    return deployed(tmp_path_factory.mktemp("classes"), data, cache, KNOWN)


def daemon(weights, *overrides):
    """A daemon's configuration: the defaults, but for the rate, which is to move something."""
    fixed = ["model.preset=tiny", f"model.weights={weights}", "learner.lr=0.003"]
    return load_config(overrides=[*fixed, *overrides])


def as_told(config, data, **changes):
    """The run that learns as a daemon with this configuration."""
    learner, settings = config.learner, learn_settings(config)
    told = {
        "network": config.model.preset,
        "start": str(config.model.weights),
        "parts": learner.parts,
        "base": learner.base,
        "method": settings.method,
        "options": dict(settings.options),
        "schedule": "stream",
        "consolidate": learner.consolidate,
        "together": learner.clips,
        "passes": learner.passes,
        "batch": learner.frames,
        "lr": learner.lr,
        "weight_decay": learner.weight_decay,
        "clip_norm": learner.clip_norm,
        "seed": learner.seed,
        "variants": 1,
        "score_px": 32,
        "score_frames": "one",
    }
    return RunSpec(data=data, **(told | changes))


def task_free(config, data):
    return as_told(config, data, protocol="task-free", split="10-10")


def labeled(config, data):
    """Two classes a task, in a blurred order: most classes first come within another's task."""
    blurred = {"split": "2-2", "blur": 30, "blur_disjoint": 50}
    return as_told(config, data, protocol="cil", **blurred)


def clips_in_order(told, folder):
    """What the run learned, as a labeler would send it."""
    reader = AVSBench(told.data, told.subset, labels="first" if told.subset == "s4" else "all")
    entries = {f"{told.subset}/train/{e.name}": e for e in reader.clips("train")}
    for task in Manifest.read(folder / "manifest.json").tasks:
        for clip in task.train:
            made = entries[clip].labeled_clip(64)
            yield dataclasses.replace(made, category=None) if told.subset == "ms3" else made


def learned_by_a_daemon(config, clips, folder):
    """A learner in service is given clips; what its journal says is learned by an `OnlineLearner`.

    The last batch waits for a judge in a daemon whose labels end; in the journal it is.
    """
    payloads = {clip.clip_id: pack_stored(write_clip(clip)) for clip in clips}
    network = build_network(config)
    importance = base_importance(config, network)
    settings = learn_settings(config)
    rules = LearningRules(clips=config.learner.clips, canary_drop=1.0, checkpoint_s=1e9)
    with Spool(folder / "spool") as spool:
        for clip_id, payload in payloads.items():
            spool.append(clip_id, payload)
        learning = Learning(
            network,
            settings,
            rules,
            spool,
            LearnStore(folder / "learned"),
            lambda _: None,
            importance=importance,
        )
        while spool.waiting(learning.info().batch).pending:
            learning.turn()
    batches = read_journal(folder / "spool").batches
    assert [name for batch in batches for name in batch.ids] == list(payloads)
    assert {batch.state for batch in batches} == {"journaled"}
    base = build_network(config)
    return replay_journal(
        base, settings, batches, payloads.__getitem__, base_importance(config, base)
    )


def end_of(folder):
    """What a run learned, by name, and the classes of its head."""
    tensors, metadata = read_tensors(folder / "boundary.safetensors")
    told = json.loads(metadata["boundary"])
    return {
        name.removeprefix("network."): tensor
        for name, tensor in tensors.items()
        if name.startswith("network.")
    }, tuple(told["categories"])


def assert_same_end(folder, learner):
    learned, categories = end_of(folder)
    own = dict(learner.network.named_parameters())
    assert categories == learner.categories
    assert {name for name, p in own.items() if p.requires_grad} == set(learned)
    different = [name for name, tensor in learned.items() if not torch.equal(own[name], tensor)]
    assert not different


# -- equal to the daemon --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_task_free_stream_from_a_held_base_ends_as_in_the_daemon(base, data, cache, tmp_path):
    """All settings are a daemon's by default, but for the rate and clips that are learned together.

    And it matters that the base is held, and that only adapters move.
    """
    config = daemon(base, "learner.clips=5")
    told = task_free(config, data)
    assert (told.parts, told.base, told.clip_norm) == ("adapters", "ship", 1.0)
    assert (told.passes, told.consolidate, told.batch) == (2, "plateau", 8)
    replay(told, tmp_path / "run", cache=cache)
    learner = learned_by_a_daemon(config, clips_in_order(told, tmp_path / "run"), tmp_path)
    assert_same_end(tmp_path / "run", learner)
    assert learner.consolidations > 0
    learned, categories = end_of(tmp_path / "run")
    assert not categories
    assert not any(name.startswith("decoder.") for name in learned)
    free = task_free(daemon(base, "learner.clips=5", "learner.base=zero"), data)
    replay(free, tmp_path / "free", cache=cache)
    other, _ = end_of(tmp_path / "free")
    assert not all(torch.equal(other[name], tensor) for name, tensor in learned.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("knows_classes", "overrides"),
    [
        (True, []),
        (False, ["learner.consolidate=every:6"]),
        (True, ["learner.method=si", "learner.base=zero", "learner.parts=all"]),
        (False, ["learner.method=finetune", "learner.base=zero"]),
    ],
    ids=["held head", "no head, often kept", "si all", "finetune"],
)
def test_a_stream_whose_classes_come_unannounced_ends_as_in_the_daemon(
    knows_classes, overrides, base, base_with_classes, data, cache, tmp_path
):
    """The head grows row by row, with rows that are drawn from the batch's seed."""
    weights = base_with_classes if knows_classes else base
    config = daemon(weights, "learner.clips=4", "learner.frames=2", *overrides)
    told = labeled(config, data)
    replay(told, tmp_path / "run", cache=cache)
    learner = learned_by_a_daemon(config, clips_in_order(told, tmp_path / "run"), tmp_path)
    assert_same_end(tmp_path / "run", learner)
    _, categories = end_of(tmp_path / "run")
    known = KNOWN if knows_classes else ()
    assert categories[: len(known)] == known
    assert set(categories) == {*known, *CATEGORIES}
    if told.method == "atlas":  # in 64 steps, and new classes come until the last task
        assert learner.consolidations >= (10 if "every" in told.consolidate else 1)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [2, 7, 40, 75])
def test_a_run_like_the_daemons_that_is_cut_short_anywhere_ends_as_one_that_is_not(
    stop, base_with_classes, data, cache, tmp_path
):
    """Within a batch of clips, between two, and at a boundary; with a head of another size each."""

    class StopError(Exception):
        """Stands for a kill."""

    config = daemon(base_with_classes, "learner.clips=4", "learner.frames=2")
    told = labeled(config, data)
    expected = tmp_path.parent / "uninterrupted"
    replay(told, expected, cache=cache)  # once for all stops
    calls = 0

    def interrupt(_what, _share):
        nonlocal calls
        calls += 1
        if calls == stop:
            raise StopError

    with pytest.raises(StopError):
        replay(told, tmp_path / "run", cache=cache, save_s=0, progress=interrupt)
    replay(told, tmp_path / "run", cache=cache, save_s=0)
    for name in ("metrics.json", "prequential.csv", "frames/003.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (expected / name).read_bytes()
    (one, names), (two, others) = end_of(tmp_path / "run"), end_of(expected)
    assert names == others
    assert all(torch.equal(one[name], tensor) for name, tensor in two.items())


def test_a_class_comes_into_the_head_with_its_first_clip_where_nobody_tells_boundaries(
    data, cache, tmp_path
):
    """Untrained, too; and what an earlier version began, which grew the head by tasks, is over."""
    told = RunSpec(
        data=data,
        network="tiny",
        random=True,
        method="finetune",
        split="4-2",
        tasks=1,
        schedule="stream",
        consolidate="every:20",
        variants=1,
        score_px=32,
        score_frames="one",
    )
    replay(told, tmp_path / "run", cache=cache)
    arrived = [clip.category for clip in clips_in_order(told, tmp_path / "run") if clip.category]
    first = Manifest.read(tmp_path / "run" / "manifest.json").tasks[0]
    arrived = tuple(name for name in dict.fromkeys(arrived) if name in first.classes)
    _, categories = end_of(tmp_path / "run")
    assert categories == arrived != first.classes
    boundary = tmp_path / "run" / "boundary.safetensors"
    tensors, metadata = read_tensors(boundary)
    before = json.loads(metadata["boundary"])
    del before["groups"]
    write_tensors(boundary, tensors, {"boundary": json.dumps(before)})
    (tmp_path / "run" / "metrics.json").unlink()
    with pytest.raises(RunError, match="of an earlier version, which made room for classes"):
        replay(told, tmp_path / "run", cache=cache)


@pytest.mark.parametrize("changes", [{"protocol": "cil"}, {"protocol": "dil", "split": ""}])
def test_a_deployed_base_learns_where_boundaries_are_told_too(
    changes, base_with_classes, data, cache, tmp_path
):
    """In epochs; its classes keep their rows, and the untrained scores are the base's own."""
    told = labeled(daemon(base_with_classes), data).model_dump() | {"blur": 0}
    epochs = {"schedule": "epochs", "epochs": 1, "together": 0, "passes": 1, "tasks": 1}
    told |= {"consolidate": "oracle", "split": "4-2", "protocol_tasks": 0} | epochs | changes
    told |= {"protocol_tasks": 1} if changes["protocol"] == "dil" else {}
    result = replay(RunSpec(**told), tmp_path / "run", cache=cache)
    learned, categories = end_of(tmp_path / "run")
    assert categories[:2] == KNOWN
    assert len(categories) > 2
    assert not any(name.startswith("decoder.") for name in learned)
    assert all(value is not None for value in result["measures"]["J"]["untrained"])


# -- what does not go together ------------------------------------------------------------------


def wrong(told, tmp_path):
    """What keeps runs from beginning, as `atlasd evaluate` tells it."""
    options = Options(out=tmp_path / "runs", cache=tmp_path / "cache", checked=True)
    with pytest.raises(EvaluateError) as refused:
        evaluate([told], options, Console(file=io.StringIO()))
    assert not (tmp_path / "runs").exists()
    return str(refused.value)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"start": ""}, r"parts is 'adapters' and base ship, and there is no start.*set start"),
        ({"start": "", "parts": ""}, "base ship, and there is no start"),
        ({"parts": ""}, "parts does not say what of it moves: adapters, .* or all"),
        ({"parts": "lora"}, "adapters"),
        ({"base": "yes"}, "'zero' or 'ship'"),
        ({"random": True}, "so is told random"),
        ({"vary": {"image_px": 96}, "trainable": "lora"}, "so is told trainable, vary"),
        ({"decoder": "lora_after_first", "consolidate": "oracle"}, "so is told decoder"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(changes, why, base, data):
    told = task_free(daemon(base), data).model_dump()
    with pytest.raises(ValidationError, match=why):
        RunSpec(**(told | changes))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"start": "nowhere"}, "nowhere: there is no such file; give the path of a checkpoint"),
        ({"start": "ship"}, "no trained weights of tiny ship"),
        ({"network": "tiny-avsbench"}, "holds weights of preset tiny; tiny-avsbench was asked for"),
        ({"method": "finetune", "options": {}}, "finetune holds no base: set base to zero"),
        ({"method": "l2p", "options": {}, "base": "zero"}, "l2p trains nothing of the visual"),
    ],
)
def test_a_start_that_cannot_be_had_is_refused_before_anything_begins(
    changes, why, base, data, tmp_path
):
    told = RunSpec(**(task_free(daemon(base), data).model_dump() | changes))
    assert why in wrong(told, tmp_path)


def test_a_start_that_is_damaged_or_without_what_is_asked_of_it_is_refused(base, data, tmp_path):
    told = task_free(daemon(base), data)

    def refused(name):
        return wrong(told.model_copy(update={"start": str(tmp_path / name)}), tmp_path)

    bare = tmp_path / "bare"
    shutil.copytree(base, bare)
    (bare / baseimportance.FILE).unlink()
    assert "has no importances" in refused("bare")
    network = build("tiny", trained=False, seed=1)
    checkpoints.save(network, tmp_path / "untrained")
    assert "was never trained" in refused("untrained")
    network.trained = True
    checkpoints.save(network, tmp_path / "other")
    shutil.copy(base / baseimportance.FILE, tmp_path / "other")
    assert "belongs to weights" in refused("other")
    rigid = build("tiny", trained=False, vary={"lora_rank": 0})
    rigid.trained = True
    checkpoints.save(rigid, tmp_path / "rigid")
    assert "has no LoRA (its rank is 0), and parts adapters trains it" in refused("rigid")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    assert "is not a readable safetensors file" in refused("torn.safetensors")


def test_a_run_goes_on_only_from_the_weights_that_it_began_with(base, data, cache, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    told = task_free(daemon(tmp_path / "base", "learner.base=zero"), data)
    told = told.model_copy(update={"tasks": 1})
    replay(told, tmp_path / "run", cache=cache)
    (tmp_path / "run" / "metrics.json").unlink()
    replay(told, tmp_path / "run", cache=cache)
    (tmp_path / "run" / "metrics.json").unlink()
    other = build("tiny", trained=False, seed=1)
    other.trained = True
    checkpoints.save(other, tmp_path / "base")
    with pytest.raises(RunError, match=r"began from weights .*put those back, or name another"):
        replay(told, tmp_path / "run", cache=cache)
    (tmp_path / "run" / "start.json").write_text("{")
    with pytest.raises(RunError, match=r"start\.json cannot be read"):
        replay(told, tmp_path / "run", cache=cache)


def test_runs_of_before_keep_their_names():
    """The hash stands in the `config.json` of a run that was finished before there was a start."""
    told = RunSpec(
        data=Path("/work/data/standard"),
        system="atlas-lora-only",
        network="atlas-lite",
        vary={"image_px": 96, "conditioning": 0},
        method="atlas",
        options={"c": 0.0},
        protocol="task-free",
        split="31-5",
        protocol_tasks=30,
        clips_per_class=12,
        seed=1,
        epochs=2,
        lr=0.003,
        score_frames="one",
    )
    assert told.hash == "6b322edb7b9941f3"
    others = [
        told.model_copy(update={"start": "ship", "parts": parts, "base": base})
        for parts in ("adapters", "all")
        for base in ("zero", "ship")
    ]
    assert len({told.hash, *(other.hash for other in others)}) == 5


# -- what moves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", ["adapters", "all"])
def test_what_learns_shares_what_stands_still_and_leaves_the_base_as_it_is(parts):
    base = build("tiny", trained=False, categories=("bell",))
    network = adapted(base, parts)
    own = dict(base.named_parameters())
    for name, parameter in network.named_parameters():
        moves = ".lora_" in name or name.startswith(("conditioning.", "fusion.", "head."))
        moves |= parts == "all" and not name.startswith(("visual.backbone.", "audio."))
        assert parameter.requires_grad == moves, name
        assert (parameter is own[name]) != moves, name
        assert torch.equal(parameter, own[name])
    assert not network.training

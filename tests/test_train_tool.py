"""`atlasd train`: both stages run, resume exactly, keep what validation selects, refuse misuse."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from atlasd.model import baseimportance, checkpoints
from atlasd.model.presets import load
from atlasd.streams.avslayout import DatasetError
from atlasd.streams.toyworld import write_dataset
from atlasd.tools import audiostage, maskstage
from atlasd.tools.importancestage import importance
from atlasd.tools.tagger import TeacherError, Yamnet
from atlasd.tools.train import TrainError, TrainOptions, train
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SMALL = {
    "preset": "tiny",
    "epochs": 2,
    "batch": 4,
    "variants": 1,
    "sounds": 2,
    "audio_epochs": 1,
    "audio_steps": 2,
    "audio_windows": 24,
    "audio_batch": 8,
    "importance": 3,
    "threads": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "toy"
    return write_dataset(root, {"train": 1, "val": 1}, ms3_counts={"train": 1}, size_px=64)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(TrainOptions(out, data=data, **SMALL))
    return out


def test_a_run_leaves_a_trained_network_with_its_history(run, data):
    network = load(run / "best")
    assert network.trained
    manifest = checkpoints.read(run / "best").manifest
    assert manifest.notes["data"] == json.loads((data / "dataset.json").read_text())["id"]
    assert manifest.notes["command"].startswith(f"atlasd train --out {run} --preset tiny")
    assert 0 <= manifest.metrics["J"] <= 1
    encoder = load_file(run / "audio.safetensors")
    own = network.audio.state_dict()
    assert all(torch.equal(encoder[f"audio.{name}"], value) for name, value in own.items())


def test_a_run_leaves_importances_of_the_weights_that_it_keeps(run, data):
    base = baseimportance.read(run / "best", load(run / "best"))
    assert max(float(value.max()) for value in base.plain.values()) <= 1
    assert any(bool(value.any()) for value in base.plain.values())
    _, metadata = checkpoints.read_tensors(run / "best" / baseimportance.FILE)
    manifest = json.loads(metadata["manifest"])
    assert manifest["examples"] == 3
    assert manifest["notes"]["data"] == json.loads((data / "dataset.json").read_text())["id"]


def test_importances_of_weights_that_are_there_are_the_same(run, data, tmp_path):
    """The command measures what `train` would have, over what stood there."""
    weights = shutil.copytree(run / "best", tmp_path / "weights")
    (weights / baseimportance.FILE).write_bytes(b"")
    told = {"seed": 0, "threads": 1, "device": "cpu"}
    path = importance(weights, data, examples=3, **told)
    one, other = (load_file(f / baseimportance.FILE) for f in (run / "best", path.parent))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(TrainError, match="is no folder; importances lie in a checkpoint's folder"):
        importance(path, data, examples=3, **told)


def test_a_run_may_leave_no_importances(run, data, tmp_path):
    options = SMALL | {"epochs": 1, "importance": 0, "audio": run / "audio.safetensors"}
    best = train(TrainOptions(tmp_path / "run", data=data, **options))
    assert not (best / baseimportance.FILE).exists()


def test_a_run_draws_curves_and_pictures(run):
    events = EventAccumulator(str(run / "events")).Reload()
    assert {"val/J", "val/swaps", "audio/accuracy"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("val/J")] == [2, 4]
    assert events.Tags()["images"] == ["val"]


def test_an_interrupted_run_resumes_to_the_same_bits(run, data, tmp_path, monkeypatch):
    out, calls = tmp_path / "broken", []

    def fails_once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    real = maskstage.score
    monkeypatch.setattr(maskstage, "score", fails_once)
    options = {"data": data, **SMALL}
    with pytest.raises(KeyboardInterrupt):
        train(TrainOptions(out, **options))
    train(TrainOptions(out, resume=True, **options))
    for name in ("audio-state.safetensors", "masks-state.safetensors"):
        whole, resumed = load_file(run / name), load_file(out / name)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    best = [checkpoints.read(folder / "best").manifest.content for folder in (run, out)]
    assert best[0] == best[1]


def test_an_audio_stage_that_was_interrupted_is_finished_first(run, data, tmp_path, monkeypatch):
    real, out = audiostage.tagging_accuracy, tmp_path / "broken"
    calls = []

    def fails_at_the_second(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    options = {"data": data, "stages": "audio", **SMALL, "audio_epochs": 2}
    train(TrainOptions(tmp_path / "whole", **options))
    monkeypatch.setattr(audiostage, "tagging_accuracy", fails_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        train(TrainOptions(out, **options))
    resumed = train(TrainOptions(out, resume=True, **options))
    assert len(calls) == 3
    whole, again = load_file(tmp_path / "whole" / "audio.safetensors"), load_file(resumed)
    assert all(torch.equal(whole[key], again[key]) for key in whole)


@pytest.mark.slow
def test_an_encoder_can_be_brought_and_the_toy_world_made(run, tmp_path):
    out = tmp_path / "second"
    options = SMALL | {"epochs": 1, "audio": run / "audio.safetensors"}
    best = train(TrainOptions(out, toy=10, **options))
    assert (out / "toy" / "dataset.json").exists()
    assert not (out / "audio.safetensors").exists()
    one, other = checkpoints.read(best).manifest, checkpoints.read(run / "best").manifest
    assert one.audio_hash == other.audio_hash
    assert one.content != other.content


def test_the_audio_stage_alone_gives_its_encoder(data, tmp_path):
    path = train(TrainOptions(tmp_path / "audio", data=data, stages="audio", **SMALL))
    assert path.name == "audio.safetensors"
    assert not (tmp_path / "audio" / "best").exists()


def test_a_folder_in_use_is_not_written_over(run, data):
    with pytest.raises(TrainError, match=r"holds a run; resume it \(--resume\)"):
        train(TrainOptions(run, data=data, **SMALL))
    with pytest.raises(TrainError, match=r"other options \(lr\)"):
        train(TrainOptions(run, data=data, resume=True, lr=0.5, **SMALL))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({}, "nothing to train on"),
        ({"toy": -1}, "--toy is -1"),
        ({"toy": 1, "audio_steps": 0}, "--audio-steps is 0"),
        ({"toy": 1, "resume": True}, "no run to resume"),
        ({"toy": 1, "stages": "audio", "audio": "x"}, "choose one of both"),
        ({"toy": 1, "importance": -1}, "--importance is -1; 0 or more pictures"),
        ({"toy": 1, "blend": 2.0}, "--blend is 2.0; a share from 0 to 1"),
        ({"toy": 1, "thin": 1.0}, "--thin is 1.0; a share from 0 to below 1"),
        ({"toy": 1, "keep": ("ears",)}, "--keep ears: the parts are visual, conditioning"),
        ({"toy": 1, "start": "x", "audio": "y"}, "--start brings its audio encoder"),
        ({"toy": 1, "start": "x", "random": True}, "--random takes no weights"),
        ({"toy": 1, "vary": ("depth=3",)}, "'depth' cannot be varied; image_px, "),
        ({"toy": 1, "vary": ("image_px=100",)}, "image_px is 100; it must be 64 to 1024 in steps"),
        ({"toy": 1, "vary": ("skips=2",)}, "skips is 2; it must be one of 0, 1"),
        ({"toy": 1, "vary": ("skips",)}, "--vary skips: name=value is needed"),
    ],
)
def test_options_that_make_no_sense_are_named(tmp_path, change, error):
    with pytest.raises(TrainError, match=error):
        train(TrainOptions(tmp_path / "run", **(SMALL | change)))


def test_data_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TrainError, match=f"no train clips in {tmp_path}"):
        train(TrainOptions(tmp_path / "run", data=tmp_path, **SMALL))


def test_a_broken_picture_stops_the_run_by_name(data, tmp_path):
    copy = shutil.copytree(data, tmp_path / "data")
    picture = sorted(copy.rglob("*_3.png"))[0]
    picture.write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=picture.name):
        train(TrainOptions(tmp_path / "run", data=copy, **SMALL))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_papers_preset_trains_end_to_end_with_random_parts(data, tmp_path):
    """ViT-B/16 and Cnn14 run through the same command; only the published weights are missing."""
    options = TrainOptions(
        tmp_path / "run", preset="atlas", data=data, random=True, epochs=1, batch=2, variants=1,
        sounds=1, threads=2, importance=4,
    )  # fmt: skip
    best = train(options)
    network = load(best)
    assert network.trained
    assert network.preset.name == "atlas"
    assert not network.published
    assert "--random" in checkpoints.read(best).manifest.notes["command"]


def test_random_parts_and_published_ones_are_not_asked_for_together(data, tmp_path):
    options = TrainOptions(tmp_path, data=data, random=True, backbone=tmp_path / "vit.safetensors")
    with pytest.raises(TrainError, match="--random takes no weights"):
        train(options)


def test_a_corpus_needs_a_teacher(data, tmp_path):
    with pytest.raises(TrainError, match="--teacher FILE"):
        train(TrainOptions(tmp_path, data=data, corpus=True))


def test_a_teacher_that_is_missing_or_something_else_is_named(tmp_path):
    pytest.importorskip("ai_edge_litert", reason="the teacher's package is no dependency")
    with pytest.raises(TeacherError, match="is no file"):
        Yamnet(tmp_path / "yamnet.tflite")
    (tmp_path / "yamnet.tflite").write_bytes(b"no model" * 20)
    with pytest.raises(TeacherError, match="is not a tflite model"):
        Yamnet(tmp_path / "yamnet.tflite")


def test_a_teacher_without_its_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(TeacherError, match="pip install ai-edge-litert"):
        Yamnet(tmp_path / "yamnet.tflite")


def test_a_varied_network_is_trained_as_it_was_asked_for(data, tmp_path):
    vary = ("lora_rank=0", "skips=0")
    best = train(TrainOptions(tmp_path / "run", data=data, vary=vary, **SMALL))
    network = load(best)
    assert dict(network.preset.varied) == {"lora_rank": 0, "skips": 0}
    assert not any(".lora_" in name for name, _ in network.named_parameters())
    assert "--vary lora_rank=0 --vary skips=0" in checkpoints.read(best).manifest.notes["command"]


def test_a_run_can_begin_from_weights_and_keep_parts_of_them(run, data, tmp_path):
    keep = ("conditioning", "fusion", "head")  # tiny has no head
    best = train(TrainOptions(tmp_path / "run", data=data, start=run / "best", keep=keep, **SMALL))
    before, after = load(run / "best"), load(best)
    moved = {
        name.partition(".")[0]
        for name, value in after.state_dict().items()
        if not torch.equal(value, before.state_dict()[name])
    }
    assert moved == {"visual", "decoder"}
    assert checkpoints.read(best).manifest.parent == before.version
    assert not (tmp_path / "run/audio.safetensors").exists()


def test_the_command_says_what_differs_from_the_defaults(tmp_path):
    options = TrainOptions(tmp_path / "my run", toy=9, bfloat16=True, resume=True)
    assert options.command() == f"atlasd train --out '{tmp_path}/my run' --toy 9 --bfloat16"

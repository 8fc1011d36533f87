"""A run of the evaluator: scored against a reference, resumed bit for bit, told apart, bounded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from atlasd.model.checkpoints import read_tensors
from atlasd.model.metrics import f_measure_dataset
from atlasd.model.training import TrainingError
from atlasd.streams.avsbench import AVSBench
from atlasd.streams.manifest import Manifest
from atlasd.streams.toyworld import write_dataset
from atlasd.tools.diskcache import DiskCache
from atlasd.tools.replay import make_network, replay
from atlasd.tools.runfolder import RunError, RunFolder
from atlasd.tools.runspec import RunSpec
from pydantic import ValidationError
from sklearn.metrics import average_precision_score, jaccard_score

SMALL = {
    "network": "tiny",
    "random": True,
    "split": "6-1",
    "epochs": 1,
    "batch": 8,
    "score_px": 64,
    "variants": 2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "toy"
    counts = {"train": 2, "val": 1, "test": 1}
    return write_dataset(root, counts, ms3_counts={"train": 6, "val": 3, "test": 3}, size_px=64)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return DiskCache(tmp_path_factory.mktemp("cache"), 1 << 30)


def spec(data, **changes):
    """Of ATLAS in small; RanPAC with so few projections that factorising G takes no time."""
    told = {"data": data, "method": "atlas", **SMALL} | changes
    if told["method"] == "ranpac":
        told["options"] = {"projections": 64}
    return RunSpec(**told)


@pytest.fixture(scope="module")
def whole(data, cache, tmp_path_factory):
    """A finished run of three tasks."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    replay(spec(data), folder, cache=cache)
    return folder


@pytest.fixture(scope="module")
def til(data, cache, tmp_path_factory):
    """The same run where tasks are told, learned by itself."""
    folder = tmp_path_factory.mktemp("runs") / "til"
    replay(spec(data, protocol="til"), folder, cache=cache)
    return folder


def test_a_frame_is_scored_as_scikit_learn_scores_what_the_network_says(whole, data):
    """The network is put together anew from the boundary and fed by the data set's own reader."""
    last = Manifest.read(whole / "manifest.json").tasks[-1]
    tensors, metadata = read_tensors(whole / "boundary.safetensors")
    network = make_network(spec(data), "lora")
    network.grow(json.loads(metadata["boundary"])["categories"])
    own = dict(network.named_parameters())
    with torch.no_grad():
        for name, value in tensors.items():
            if name.startswith("network."):
                own[name.removeprefix("network.")].copy_(value)
    rows, _ = RunFolder(whole).read_frames(last.index)
    entries = {f"s4/test/{e.name}": e for e in AVSBench(data, "s4").clips("test")}
    clip = next(clip for clip in last.test if entries[clip].kind != "negative")
    frames = torch.from_numpy(entries[clip].frames(64))
    waves = torch.from_numpy(entries[clip].windows(1.0, network.preset.sample_rate_hz))
    with torch.no_grad():
        out = network(network.normalise(frames), network.log_mel(waves))
    probs = torch.sigmoid(out.mask_logits).numpy()
    truth = entries[clip].masks(64)[0].astype(bool)
    found = {row.frame: row for row in rows if row.clip == clip}
    assert sorted(found) == [0, 1, 2, 3, 4]
    for k, row in found.items():
        expected = average_precision_score(truth[k].ravel(), probs[k].ravel())
        assert pytest.approx(expected, abs=1e-5) == row.AP
        iou = jaccard_score(truth[k].ravel(), probs[k].ravel() > 0.5, zero_division=0)
        assert pytest.approx(iou, abs=1e-5) == row.J


def test_cells_are_means_over_their_frames(whole):
    result = json.loads((whole / "metrics.json").read_text())
    files = RunFolder(whole)
    for after in range(3):
        rows, _ = files.read_frames(after)
        for task in range(min(after + 2, 3)):
            values = [r.AP for r in rows if r.test_task == task and not np.isnan(r.AP)]
            cell = result["measures"]["AP"]["matrix"][after][task]
            assert cell == pytest.approx(np.mean(values))
    assert result["measures"]["AP"]["matrix"][0][2] is None
    assert all(v is not None for v in result["measures"]["AP"]["untrained"])


def avsbench_f(probs, truth, clips):
    """AVSBench's F in float64: means over the frames of a batch, the best, means over batches."""
    best = []
    for start in range(0, len(probs), 5 * clips):
        curves = []
        for p, t in zip(
            probs[start : start + 5 * clips], truth[start : start + 5 * clips], strict=True
        ):
            if not t.any():
                continue
            curve = []
            for threshold in np.linspace(0, 1 - 1e-10, 255).astype(np.float32):
                marked = p >= threshold
                right = float((marked & t).sum())
                precision, recall = right / (marked.sum() + 1e-20), right / (t.sum() + 1e-20)
                below = 0.3 * precision + recall
                curve.append(1.3 * precision * recall / below if below else 0.0)
            curves.append(curve)
        best.append(max(np.mean(curves, axis=0)) if curves else 0.0)
    return np.mean(best)


def test_f_is_pooled_over_a_cells_frames_and_by_batches_of_clips(data, cache, tmp_path):
    """Against the measures of all frames at once, predicted anew by the network that was kept."""
    told = spec(data, protocol="task-free", split="2-2", score_frames="all")
    result = replay(told, tmp_path / "run", cache=cache)
    manifest = Manifest.read(tmp_path / "run" / "manifest.json")
    network = make_network(told, "lora")
    tensors, _ = read_tensors(tmp_path / "run" / "boundary.safetensors")
    own = dict(network.named_parameters())
    with torch.no_grad():
        for name, value in tensors.items():
            if name.startswith("network."):
                own[name.removeprefix("network.")].copy_(value)
    entries = {f"ms3/test/{e.name}": e for e in AVSBench(data, "ms3").clips("test")}
    probs: dict[str, np.ndarray] = {}
    for clip, entry in entries.items():
        frames = torch.from_numpy(entry.frames(64))
        waves = torch.from_numpy(entry.windows(1.0, network.preset.sample_rate_hz))
        with torch.no_grad():
            out = network(network.normalise(frames), network.log_mel(waves))
        probs[clip] = torch.sigmoid(out.mask_logits).numpy()
    groups = manifest.groups("groups")
    assert {clip for group in groups for clip in group.clips} == set(entries)
    for name, of in (
        ("F", f_measure_dataset),
        ("F_batch", partial(avsbench_f, clips=4)),
        ("F_batch2", partial(avsbench_f, clips=2)),
        ("F_batch1", partial(avsbench_f, clips=1)),
    ):
        last = result["groups"][name]["matrix"][-1]
        for group, found in zip(groups, last, strict=True):
            truth = [entries[clip].masks(64)[0].astype(bool) for clip in group.clips]
            wanted = of(np.concatenate([probs[c] for c in group.clips]), np.concatenate(truth))
            assert found == pytest.approx(wanted, abs=1e-5)


def test_networks_share_what_is_like_what_where_one_networks_features_say_it(data, cache, tmp_path):
    """As AVSBench's network and ATLAS must, to be compared in DIL or in an order by similarity."""
    told = {"protocol": "task-free", "split": "2-2", "order": "similarity", "tasks": 1}

    def stream(name, **more):
        replay(spec(data, **told, **more), tmp_path / name, cache=cache)
        return [task.train for task in Manifest.read(tmp_path / name / "manifest.json").tasks]

    small, large = stream("small"), stream("large", vary={"image_px": 96})
    assert small != large
    assert stream("shared", vary={"image_px": 96}, features_of="tiny") == small


def test_a_finished_run_is_not_made_again(whole, data):
    before = (whole / "metrics.json").stat().st_mtime_ns
    result = replay(spec(data), whole)
    assert (whole / "metrics.json").stat().st_mtime_ns == before
    assert result["run"]["hash"] == spec(data).hash


def test_til_takes_what_cil_learned_and_scored_and_ends_as_if_it_had_learned_it(
    whole, til, data, cache, tmp_path
):
    told = spec(data, protocol="til")
    taken, seen = tmp_path / "taken", list[str]()
    replay(told, taken, cache=cache, twin=whole, progress=lambda w, _: seen.append(w))
    assert not seen
    for name in ("metrics.json", "frames/002.csv", "manifest.json"):
        assert (taken / name).read_bytes() == (til / name).read_bytes()


def test_til_learns_by_itself_where_masks_depend_on_the_task_or_nothing_is_there(
    data, cache, tmp_path, monkeypatch
):
    seen: list[str] = []
    til = spec(data, protocol="til", tasks=1)
    replay(
        til,
        tmp_path / "a",
        cache=cache,
        twin=tmp_path / "none",
        progress=lambda w, _: seen.append(w),
    )
    assert seen
    seen.clear()
    replay(spec(data, tasks=1), tmp_path / "cil", cache=cache)
    monkeypatch.setattr("atlasd.model.methods.atlas.Atlas.uses_task_id", True)
    replay(
        til,
        tmp_path / "b",
        cache=cache,
        twin=tmp_path / "cil",
        progress=lambda w, _: seen.append(w),
    )
    assert seen


def test_a_twin_of_another_configuration_is_refused(whole, data, cache, tmp_path):
    with pytest.raises(RunError, match="differs in epochs"):
        replay(spec(data, protocol="til", epochs=2), tmp_path / "til", cache=cache, twin=whole)


def costs_of(folder):
    return json.loads((folder / "costs.json").read_text())


class StopError(Exception):
    """Stands for a kill."""


def replay_in_two(told, folder, whole, stop, cache):
    """A run is stopped at a call of its progress and goes on; it ends as the whole one did."""
    calls = 0

    def interrupt(_what, _share):
        nonlocal calls
        calls += 1
        if calls == stop:
            raise StopError

    with pytest.raises(StopError):
        replay(told, folder, cache=cache, save_s=0, progress=interrupt)
    resumed = replay(told, folder, cache=cache)
    for name in ("steps", "frames"):
        assert costs_of(folder)[name] == costs_of(whole)[name]
    assert (folder / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    return resumed


@pytest.mark.parametrize("stop", [1, 5, 9])
@pytest.mark.parametrize("method", ["atlas", "ewc", "lwf", "panda+ewc", "l2p"])
def test_a_run_that_is_cut_short_anywhere_ends_as_one_that_is_not(
    method, stop, data, cache, tmp_path
):
    told = spec(data, method=method, epochs=2, split="4-4")
    expected = tmp_path.parent / f"{method}-expected"
    replay(told, expected, cache=cache)  # once for all stops
    replay_in_two(told, tmp_path / "run", expected, stop, cache)


# -- decoder: lora_after_first ---------------------------------------------------------------------


def boundary(folder):
    """What a run's last boundary holds of the network, by name, and of the method."""
    tensors, _ = read_tensors(folder / "boundary.safetensors")
    parts = ({}, {})
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part == "method"][rest] = tensor
    return parts


@pytest.fixture(scope="module")
def adapted(data, cache, tmp_path_factory):
    """Three finished runs: one with an adapted decoder, one without, the first task of that."""
    runs = tmp_path_factory.mktemp("runs")
    told = {"epochs": 2, "split": "4-2"}
    replay(spec(data, decoder="lora_after_first", **told), runs / "adapted", cache=cache)
    replay(spec(data, tasks=1, **told), runs / "first", cache=cache)
    replay(spec(data, **told), runs / "full", cache=cache)
    return runs


def test_the_first_task_of_an_adapted_decoder_is_that_of_a_full_one(adapted):
    for name in ("untrained", "000"):
        one, two = (adapted / run / "frames" / f"{name}.csv" for run in ("adapted", "full"))
        assert one.read_bytes() == two.read_bytes()
    one, two = (adapted / run / "frames" / "001.csv" for run in ("adapted", "full"))
    assert one.read_bytes() != two.read_bytes()


def test_after_the_first_task_only_lora_moves_in_an_adapted_decoder(adapted):
    """All else of it, GroupNorm and biases too, is what the first task left."""
    network, method = boundary(adapted / "adapted")
    first, _ = boundary(adapted / "first")
    held = {n: t for n, t in network.items() if n.startswith("decoder.")}
    pairs = {n for n in held if ".lora_" in n}
    base = {n.replace(".base_layer.", "."): t for n, t in held.items() if n not in pairs}
    before = {n: t for n, t in first.items() if n.startswith("decoder.")}
    assert base.keys() == before.keys()
    assert all(torch.equal(base[n], before[n]) for n in base)
    assert all(bool(held[n].any()) for n in pairs), "each B left zero"
    anchored = {n.partition(".")[2] for n in method if n.partition(".")[2].startswith("decoder.")}
    assert anchored == pairs


@pytest.mark.parametrize(
    ("method", "stop"),
    [
        ("atlas", 8),
        ("atlas", 11),
        *((m, stop) for m in ("atlas", "ewc", "lwf") for stop in (9, 14)),
    ],
)
@pytest.mark.slow
def test_an_adapted_run_that_is_cut_short_ends_as_one_that_is_not(
    method, stop, data, cache, adapted, tmp_path
):
    """In the second task's first epoch and its second, at its boundary, in the third's second."""
    told = spec(data, method=method, epochs=2, split="4-2", decoder="lora_after_first")
    expected = adapted / ("adapted" if method == "atlas" else method)
    replay(told, expected, cache=cache)  # once for all stops
    replay_in_two(told, tmp_path / "run", expected, stop, cache)
    for one, two in zip(boundary(tmp_path / "run"), boundary(expected), strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"consolidate": "every:2"}, "consolidate is every:2, oracle is needed"),
        ({"consolidate": "plateau"}, "consolidate is plateau, oracle is needed"),
        ({"vary": {"lora_rank": 0}}, r"needs a rank: vary\.lora_rank is 0"),
    ],
)
def test_a_decoder_that_cannot_be_adapted_is_refused(changes, why, data):
    with pytest.raises(ValidationError, match=why):
        spec(data, decoder="lora_after_first", **changes)


@pytest.mark.parametrize(
    ("method", "how"),
    [
        ("atlas", {}),
        ("ranpac", {}),
        ("atlas", {"together": 3, "passes": 2, "clip_norm": 1.0}),
        ("panda", {"options": {"clusters": 3, "share": 1.0, "sound": "mix"}}),
    ],
)
@pytest.mark.slow
def test_a_stream_without_boundaries_resumes_with_its_optimizer(method, how, data, cache, tmp_path):
    """RanPAC freezes the network in the first task and learns from all the others' steps."""
    told = spec(
        data,
        method=method,
        protocol="task-free",
        split="2-2",
        schedule="stream",
        consolidate="every:2",
        batch=2,
        **how,
    )
    whole = replay(told, tmp_path / "whole", cache=cache)
    resumed = replay_in_two(told, tmp_path / "broken", tmp_path / "whole", 17, cache)
    assert resumed["prequential"] == whole["prequential"]
    assert whole["prequential"]["frames"] == 6 * 5, "each frame of the stream, once"
    assert "groups" in whole
    assert "class_cil" not in whole["measures"], "several sources have no label"


@pytest.mark.parametrize("method", ["fecam", "atlas"])
def test_every_frame_of_a_told_stream_is_predicted_before(method, data, cache, tmp_path):
    """FeCAM's network learns from the first task alone, and is scored on all of them."""
    how = {"protocol": "task-free", "split": "2-2", "schedule": "stream", "batch": 2}
    whole = replay(spec(data, method=method, **how), tmp_path / "whole", cache=cache)
    assert whole["prequential"]["frames"] == 6 * 5
    told = (tmp_path / "whole" / "prequential.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[0]) for line in told] == [0] * 10 + [1] * 10 + [2] * 10


@pytest.mark.parametrize("key", ["together", "passes"])
def test_what_only_a_stream_has_is_refused_elsewhere(key, data):
    with pytest.raises(ValidationError, match=f"{key} is 2, and schedule no stream"):
        spec(data, **{key: 2})


def test_a_key_that_came_later_and_says_nothing_leaves_a_runs_name(data):
    told = spec(data, schedule="stream", protocol="task-free")
    assert spec(data, schedule="stream", protocol="task-free", passes=1, clip_norm=0.0) == told
    others = [{"passes": 2}, {"together": 1}, {"clip_norm": 1.0}, {"bfloat16": True}]
    names = {spec(data, schedule="stream", protocol="task-free", **one).hash for one in others}
    assert len(names | {told.hash}) == 5


class KillError(BaseException):
    """Stands for SIGKILL: nobody catches it."""


@pytest.mark.parametrize("at", [4, 6])
@pytest.mark.parametrize("consolidate", ["oracle", "every:2"])
@pytest.mark.slow
def test_a_stream_that_is_killed_at_one_write_after_the_other_loses_no_frame(
    consolidate, at, data, cache, tmp_path, monkeypatch
):
    """Each attempt is killed before its so-manyth file is renamed into place, whichever that is."""
    told = spec(
        data,
        protocol="task-free",
        split="2-2",
        schedule="stream",
        consolidate=consolidate,
        batch=4,
        score_frames="one",
    )
    expected = tmp_path.parent / f"stream-{consolidate.replace(':', '-')}"
    whole = replay(told, expected, cache=cache)  # once for all kills
    assert whole["prequential"]["frames"] == 6 * 5
    rename = Path.replace
    left = 0

    def killed(path, target):
        nonlocal left
        left -= tmp_path in path.parents
        if left == 0 and tmp_path in path.parents:
            raise KillError
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    kills = 0
    for _ in range(100):
        left = at
        try:
            replay(told, tmp_path / "run", cache=cache, save_s=0)
        except KillError:
            kills += 1
        else:
            break
    assert kills > 5
    assert (tmp_path / "run" / "metrics.json").read_bytes() == (
        expected / "metrics.json"
    ).read_bytes()


def test_the_cache_changes_nothing(whole, data, tmp_path):
    replay(spec(data), tmp_path / "bare")
    assert (tmp_path / "bare" / "metrics.json").read_bytes() == (
        whole / "metrics.json"
    ).read_bytes()


def test_steps_in_bfloat16_learn_nearly_the_same_and_resume_to_the_byte(
    whole, data, cache, tmp_path
):
    told = spec(data, bfloat16=True)
    half = replay(told, tmp_path / "half", cache=cache)
    exact = json.loads((whole / "metrics.json").read_text())
    reached, wanted = (run["measures"]["AP"]["summary"]["AA"] for run in (half, exact))
    assert reached != wanted
    assert reached == pytest.approx(wanted, abs=0.05)
    replay_in_two(told, tmp_path / "two", tmp_path / "half", 3, cache)


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": "til"},
        {"protocol": "cil", "order": "similarity", "blur": 100, "blur_disjoint": 0},
        {"protocol": "dil", "split": "", "protocol_tasks": 1},
        {"protocol": "task-free", "split": "2-2", "order": "similarity"},
        {"trainable": "all"},
        {"decoder": "lora_after_first", "method": "ranpac"},
        {"decoder": "lora_after_first", "network": "tiny-avsbench", "vary": {"clip_frames": 1}},
        {"method": "ewc", "network": "tiny-avsbench", "vary": {"clip_frames": 5}, "batch": 10},
        {"method": "l2p", "vary": {"clip_frames": 5}, "batch": 10, "blur": 50, "epochs": 1},
        {"method": "mas", "network": "tiny-avsbench", "vary": {"clip_frames": 5}, "batch": 5},
        {"trainable": "decoder", "score_frames": "one", "score": "val"},
        {"vary": {"conditioning": 0}, "clips_per_class": 1},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
@pytest.mark.slow
def test_every_kind_of_run_comes_to_an_end(changes, data, cache, tmp_path):
    told = spec(data, **changes)
    result = replay(told, tmp_path / "run", cache=cache)
    assert 0 <= result["measures"]["AP"]["summary"]["AA"] <= 1
    costs = json.loads((tmp_path / "run" / "costs.json").read_text())
    assert costs["trained_parameters"] > 0
    assert "torch" in costs["machine"]
    files = sorted(p.name for p in (tmp_path / "run" / "examples").iterdir())
    with np.load(tmp_path / "run" / "examples" / files[-1], allow_pickle=False) as shown:
        assert shown["images"].shape == (*shown["truth"].shape, 3)
        assert shown["probs"].dtype == np.uint8


@pytest.mark.parametrize("frames", [2, 3, 10])
def test_frames_together_that_are_no_whole_clip_are_refused(frames, data):
    with pytest.raises(ValidationError, match=rf"clip_frames is {frames}; .* \(1\) or all 5 of"):
        spec(data, network="tiny-avsbench", vary={"clip_frames": frames})


def test_a_preset_that_would_mix_clips_is_refused_before_it_learns(data, cache, tmp_path):
    """`tiny-avsbench` as it is sees two frames, which five do not divide into."""
    with pytest.raises(RunError, match=r"sees 2 frames together, .* vary\.clip_frames to 1 or 5"):
        replay(spec(data, network="tiny-avsbench"), tmp_path / "run", cache=cache)
    assert not (tmp_path / "run" / "frames").exists()


def test_til_and_cil_learn_the_same_masks(whole, til):
    """A mask has no class, so telling the task changes what the head says and nothing else."""
    told, untold = (
        json.loads((run / "metrics.json").read_text())["measures"] for run in (til, whole)
    )
    assert told["AP"] == untold["AP"]
    assert told["class_til"] == untold["class_til"]


def test_protocols_start_from_a_network_that_knows_no_category(data):
    """The shipped decoder has seen all of Open-AVS; runs must not start from it (design §4)."""
    lite = make_network(spec(data, network="atlas-lite", random=False), "lora")
    assert not lite.trained
    assert lite.head is None
    assert lite.preset.categories == ()
    fresh = make_network(spec(data, network="atlas-lite", random=False), "lora")
    other = make_network(spec(data, network="atlas-lite", random=False, seed=1), "lora")
    for part in ("decoder", "fusion", "conditioning"):
        states = [net.get_submodule(part).state_dict() for net in (lite, fresh, other)]
        assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
        assert any(not torch.equal(states[0][n], states[2][n]) for n in states[0])
    assert all(not bool(p.any()) for n, p in lite.named_parameters() if n.endswith("lora_B"))


def test_another_configuration_in_the_folder_is_refused(whole, data):
    with pytest.raises(RunError, match=r"differs in lr, .*|differs in .*lr"):
        replay(spec(data, lr=0.5), whole)


def test_only_what_differs_is_named_and_keys_that_were_not_there_yet_do_not(tmp_path):
    """A configuration of before `bfloat16`, computed elsewhere, under another name."""
    config = json.loads(RunSpec(data=tmp_path, system="a", device="cuda").model_dump_json())
    del config["bfloat16"]
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    (run.path / "config.json").write_text(json.dumps({"hash": "0" * 16, **config}))
    with pytest.raises(RunError, match=r"it differs in options, epochs: name another"):
        run.claim(RunSpec(data=tmp_path, epochs=2, options={"c": 1.0}))


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"hash": 1}'])
def test_a_folder_whose_configuration_cannot_be_read_is_refused(damage, tmp_path):
    (tmp_path / "config.json").write_text(damage)
    with pytest.raises(RunError, match=r"config\.json cannot be read as a run's configuration"):
        RunFolder(tmp_path).claim(RunSpec(data=tmp_path))


def test_a_data_set_named_from_here_or_from_the_root_is_one(data, cache, tmp_path, monkeypatch):
    """The run keeps the hash that it began with, as reports and runs of before have it."""
    monkeypatch.chdir(data.parent)
    relative = spec(Path(data.name), tasks=1)
    first = replay(relative, tmp_path / "run", cache=cache)
    monkeypatch.chdir(tmp_path)
    absolute = spec(data, tasks=1)
    assert absolute.hash != relative.hash
    assert replay(absolute, tmp_path / "run", cache=cache) == first
    (tmp_path / "run" / "metrics.json").unlink()
    assert replay(absolute, tmp_path / "run", cache=cache) == first
    with pytest.raises(RunError, match="differs in data"):
        RunFolder(tmp_path / "run").claim(spec(tmp_path / "elsewhere" / data.name, tasks=1))


def test_a_folder_with_other_files_is_refused(data, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="other files"):
        replay(spec(data), tmp_path)


def test_a_kill_in_the_very_first_write_leaves_a_folder_that_the_run_can_claim(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    parts = [tmp_path / f".config.json.{process.pid}.part"]
    parts[0].write_text("{")
    RunFolder(tmp_path).claim(RunSpec(data=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    parts += [tmp_path / "frames" / f".000.csv.{process.pid}.part"]
    alive = tmp_path / f".state.safetensors.{os.getpid()}.part"
    parts[1].parent.mkdir()
    for path in (*parts, alive):
        path.touch()
    RunFolder(tmp_path).claim(RunSpec(data=tmp_path))
    assert [path for path in (*parts, alive) if path.exists()] == [alive], "it is being written"


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="other files"):
        RunFolder(tmp_path / "file").claim(RunSpec(data=tmp_path))
    with pytest.raises(RunError, match=r"config\.json cannot be written"):
        RunFolder(tmp_path / "file" / "run").claim(RunSpec(data=tmp_path))


def test_nan_stops_a_run_with_its_batch_saved(data, cache, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "poison.py").write_text(
        "from dataclasses import dataclass\n"
        "from ..method import Method\n\n"
        "@dataclass(eq=False)\nclass Poison(Method):\n"
        "    def extra_loss(self, batch, out):\n"
        "        return {'poison': out.mask_logits.sum() * float('nan')}\n"
    )
    with pytest.raises(TrainingError, match="not finite"):
        replay(spec(data, method="poison"), tmp_path / "run", methods=(own,), cache=cache)
    assert (tmp_path / "run" / "bad-batch.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_kills_at_random_moments_change_no_byte(data, tmp_path):
    """Real processes, SIGKILL; the moments come from a seed."""
    told = ["--data", str(data), "--method", "atlas", "--protocol", "cil", "--checked"]
    told += ["--save-s", "0.5"]
    for key, value in (SMALL | {"split": "4-1", "epochs": 8}).items():
        told += ["-s", f"{key}={str(value).lower()}"]

    def command(out: Path) -> list[str]:
        return [sys.executable, "-m", "atlasd.tools.cli", "evaluate", "--out", str(out), *told]

    environ = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), check=True, env=environ, capture_output=True)
    length = time.monotonic() - began
    rng = np.random.default_rng(0)
    kills, runs = 0, 1
    while kills < 10:
        out = tmp_path / f"killed-{runs}"
        process = subprocess.Popen(
            command(out), env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            assert process.wait(timeout=float(rng.uniform(0.4, 0.9)) * length) == 0
            runs += 1  # the next kills hit a new one
            assert runs <= 10
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += any(out.rglob("config.json"))  # before that it had not begun
    subprocess.run(command(out), check=True, env=environ, capture_output=True)
    whole, *killed = (
        path.read_bytes() for path in sorted(tmp_path.rglob("metrics.json"), reverse=True)
    )
    assert killed
    assert all(metrics == whole for metrics in killed)

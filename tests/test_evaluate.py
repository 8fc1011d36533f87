"""`atlasd evaluate`: grids, early refusals, workers that die, methods of one's own."""

from __future__ import annotations

import io
import json
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from atlasd.model.method import MethodError
from atlasd.model.methods import load as load_method
from atlasd.model.methods import names as method_names
from atlasd.model.pyramid import GridEncoder
from atlasd.streams.avsbench import AVSBench
from atlasd.streams.manifest import ProtocolError
from atlasd.streams.toyworld import write_dataset
from atlasd.tools import cli
from atlasd.tools.clipstore import read_entries
from atlasd.tools.diskcache import DiskCache
from atlasd.tools.evaluate import EvaluateError, Options, evaluate
from atlasd.tools.launcher import Event, InProcess, Job, Workers
from atlasd.tools.replay import replay
from atlasd.tools.runnetwork import laid_out, state_bytes
from atlasd.tools.runspec import GridError, RunSpec, expand, grid_of, shipped_grids
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

SMALL = {
    "network": "tiny",
    "random": True,
    "split": "6-1",
    "epochs": 1,
    "batch": 8,
    "score_px": 64,
    "variants": 1,
    "score_frames": "one",
}

HOLDING = """
import sys
from pathlib import Path
from atlasd.tools.runfolder import RunFolder
with RunFolder(Path(sys.argv[1])).alone():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "toy"
    return write_dataset(root, {"train": 1, "val": 1, "test": 1}, size_px=64)


def options(tmp_path, **changes):
    return Options(**({"out": tmp_path / "runs", "cache": tmp_path / "cache"} | changes))


def told():
    text = io.StringIO()
    return Console(file=text, width=200), text


# -- grids -------------------------------------------------------------------------------------


def test_an_axis_value_can_bring_further_keys_along(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        "base: {data: d}\naxes:\n  protocol: [cil, {protocol: task-free, protocol_tasks: 30}]\n"
        "  vary: [{image_px: 64}]\n"
    )
    found = [(s.protocol, s.protocol_tasks, s.vary) for s in grid_of(path)]
    assert found == [("cil", 0, {"image_px": 64}), ("task-free", 30, {"image_px": 64})]
    (chosen,) = grid_of(path, axes={"protocol": ["task-free"]})
    assert chosen.protocol_tasks == 30
    (other,) = grid_of(path, axes={"protocol": ["dil"]})
    assert other.protocol == "dil"


def test_a_grid_is_all_combinations_of_its_systems_and_axes():
    specs = expand(
        {"data": "d", "vary": {"image_px": 64}},
        {"one": {"options.c": 0}, "two": {"method": "si", "vary.lora_rank": 4}},
        {"seed": [0, 1], "protocol": ["til", "task-free"]},
    )
    assert len(specs) == 8
    assert {(s.name, s.seed, s.protocol) for s in specs} == {
        (name, seed, protocol)
        for name in ("one", "two")
        for seed in (0, 1)
        for protocol in ("til", "task-free")
    }
    two = next(s for s in specs if s.name == "two")
    assert two.vary == {"image_px": 64, "lora_rank": 4}
    assert len({s.folder for s in specs}) == 8
    assert len({s.hash for s in specs}) == 8


@pytest.mark.parametrize(
    ("axis", "rows"),
    [
        ("options.c: [0.1, 0.3]", ["ours+c=0.1", "ours+c=0.3"]),
        ("options: [{c: 1.0}, {c: 2.0, gamma: 0.9}]", ["ours+c=1.0", "ours+c=2.0+gamma=0.9"]),
        ("class_weight: [0.0, 0.5]", ["ours+class_weight=0.0", "ours+class_weight=0.5"]),
        ("lr: [1.0e-3, 1.0e-4]", ["ours+lr=0.001", "ours+lr=0.0001"]),
        ("split: [11-2, 5-3]", ["ours+split=11-2", "ours+split=5-3"]),
        ("method: [ewc, [panda, dgr]]", ["ours+method=ewc", "ours+method=panda+dgr"]),
        ("epochs: [{epochs: 2, lr: 0.1}, 4]", ["ours+epochs=2", "ours+epochs=4"]),
    ],
)
def test_an_axis_over_any_key_names_rows_and_folders(axis, rows, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        f"base: {{data: d}}\nsystems: {{ours: {{}}}}\naxes:\n  {axis}\n  seed: [0, 1]\n"
    )
    specs = grid_of(path)
    assert [spec.name for spec in specs] == [row for row in rows for _ in range(2)]
    assert len({spec.folder for spec in specs}) == len({spec.hash for spec in specs}) == 4


def test_an_axis_without_systems_adds_to_the_methods_name(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("base: {data: d}\naxes:\n  method: [si, ewc]\n  batch: [4, 8]\n")
    assert [s.name for s in grid_of(path)] == [
        "si+batch=4", "si+batch=8", "ewc+batch=4", "ewc+batch=8"
    ]  # fmt: skip


def test_a_system_can_be_told_something_in_one_protocol():
    specs = expand(
        {"data": "d"},
        {"ours": {"options.c": 1.0, "task-free": {"options.gamma": 0.9, "epochs": 2}}},
        {"protocol": ["cil", {"protocol": "task-free", "epochs": 3}]},
    )
    assert [(s.options, s.epochs) for s in specs] == [
        ({"c": 1.0}, 30),
        ({"c": 1.0, "gamma": 0.9}, 3),
    ]


def test_what_a_folder_names_by_itself_is_named_once_and_as_before(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        "base: {data: d}\naxes:\n  vary.lora_alpha: [8, 32]\n  epochs: [3]\n"
        "  protocol: [cil, {protocol: task-free, epochs: 2}]\n"
    )
    assert sorted(str(spec.folder) for spec in grid_of(path)) == [
        f"atlas-lite+lora_alpha={alpha}/atlas/{protocol}-random/seed0"
        for alpha in (32, 8)
        for protocol in ("cil", "task-free")
    ]


def test_categories_of_an_axis_lie_apart_and_are_one_system(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        "base: {data: d, protocol: dil-per-category}\naxes: {category: [dog, 'a b/c']}\n"
    )
    dog, other = grid_of(path)
    assert (dog.name, other.name) == ("atlas", "atlas")
    assert str(dog.folder) == "atlas-lite/atlas/dil-per-category-dog-random/seed0"
    assert other.folder.parts[-2] == "dil-per-category-a_b_c-random"
    alone = RunSpec(data=Path("d"), protocol="dil-per-category", category="dog")
    assert alone.folder.parts[-2] == "dil-per-category-random"
    assert alone.hash == dog.hash


def test_runs_of_earlier_versions_keep_their_hash():
    """As `docs/results.md`'s first run has it in its config.json, made before these keys were."""
    told = {
        "data": "/work/data/standard", "system": "atlas", "vary": {"image_px": 96},
        "options": {"c": 10.0}, "protocol": "task-free", "split": "31-5", "protocol_tasks": 30,
        "clips_per_class": 12, "epochs": 2, "lr": 0.003, "score_frames": "one",
    }  # fmt: skip
    assert RunSpec(**told).hash == "8bcb4933cb1caebc"
    assert RunSpec(**told, features_of="atlas").hash != "8bcb4933cb1caebc"


def test_the_command_line_goes_over_the_file(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("base: {data: a, lr: 0.1}\naxes: {seed: [0, 1, 2]}\n")
    specs = grid_of(path, data=Path("b"), axes={"seed": [5]}, overrides=["lr=0.2", "options.c=1"])
    assert [(str(s.data), s.seed, s.lr, s.options) for s in specs] == [("b", 5, 0.2, {"c": 1.0})]


@pytest.mark.parametrize("name", shipped_grids())
def test_grids_that_ship_can_be_read(name):
    specs = grid_of(Path(name), data=Path("d"))
    assert all(isinstance(spec, RunSpec) for spec in specs)


def test_some_systems_of_a_grid_can_be_chosen():
    specs = grid_of(Path("paper"), data=Path("d"), systems=["si", "ewc"], axes={"seed": [0]})
    assert {s.name for s in specs} == {"si", "ewc"}
    assert len(specs) == 2 * 4
    with pytest.raises(GridError, match="--system sy: paper has atlas, finetune"):
        grid_of(Path("paper"), data=Path("d"), systems=["sy"])


def test_paper_grid_is_the_papers_setting():
    specs = grid_of(Path("paper"), data=Path("d"))
    assert {s.epochs for s in specs} == {30}
    assert {s.seed for s in specs} == {0, 1, 2, 3, 4}
    told = {(s.lr, s.weight_decay, s.class_weight, s.loss): s.name for s in specs}
    assert told.pop((1e-4, 0.0, 0.5, "avsbench")) == "avsbench-own"
    assert list(told) == [(1e-3, 5e-4, 0.5, "atlas")]
    assert {s.network for s in specs} == {"atlas", "avsbench"}
    assert {s.variants for s in specs} == {1}
    assert {s.features_of for s in specs} == {"atlas"}
    gammas = {(s.name, s.protocol): s.options.get("gamma") for s in specs}
    assert {place: gamma for place, gamma in gammas.items() if gamma is not None} == {
        (name, "task-free"): 0.9 for name in ("atlas", "ewc", "atlas-no-conditioning")
    }, "whatever can fade does"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("base: [", "cannot be read as YAML"),
        ("basis: {}", "basis"),
        ("base: {data: d, learning_rate: 1}", "learning_rate"),
        ("base: {data: d, lr: -1}", "lr"),
        ("base: {lr: 1}", "data: Field required"),
    ],
)
def test_a_grid_that_says_something_wrong_is_refused(text, why, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(GridError, match=why):
        grid_of(path)


def test_where_it_is_computed_is_no_part_of_what_a_run_is():
    spec = RunSpec(data=Path("d"))
    assert spec.hash == spec.model_copy(update={"device": "cuda:1"}).hash
    assert spec.hash != spec.model_copy(update={"threads": 2}).hash
    assert spec.hash != spec.model_copy(update={"bfloat16": True}).hash


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"network": "vgg"}, "network 'vgg' is unknown"),
        ({"method": "magic"}, "there is no method 'magic'"),
        ({"options": {"strength": 1}}, "atlas has no option 'strength'"),
        ({"vary": {"colour": 1}}, "'colour' cannot be varied"),
        ({"loss": "avsbench"}, "loss avsbench is of AVSBench's network, and tiny is another"),
        ({"features_of": "vgg"}, "features_of 'vgg' is unknown"),
        ({"split": "9-9"}, "split 9-9 needs at least 9 classes; there are 8"),
        (
            {"split": "9-9", "order": "similarity"},
            "split 9-9 needs at least 9 classes; there are 8",
        ),
        (
            {"protocol": "dil", "split": "", "protocol_tasks": 50},
            "8 train clips cannot be 50 domains",
        ),
        (
            {"network": "tiny-avsbench", "vary": {}},
            "sees 2 frames together, .* vary.clip_frames to 1 or 5",
        ),
        ({"protocol": "task-free"}, "no AVSBench-like ms3"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused_before_anything_is_computed(changes, why, data, tmp_path):
    spec = RunSpec(**({"data": data, **SMALL} | changes))
    with pytest.raises(EvaluateError, match=why):
        evaluate([spec], options(tmp_path), told()[0])
    assert not (tmp_path / "runs").exists()


def test_all_faults_are_told_at_once(data, tmp_path):
    """A method that refuses its network among them, once for all seeds."""
    avsbench = {"network": "tiny-avsbench", "vary": {"clip_frames": 1}, "method": "l2p"}
    changes = [{"method": "x"}, {"split": "9-1"}, avsbench, avsbench | {"seed": 1}]
    specs = [RunSpec(data=data, **(SMALL | change)) for change in changes]
    with pytest.raises(EvaluateError) as caught:
        evaluate(specs, options(tmp_path), told()[0])
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert any(line.startswith("l2p: l2p needs a cross-attention") for line in lines)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("network", ["atlas-lite", "atlas", "avsbench-lite"])
@pytest.mark.parametrize("name", method_names())
def test_every_method_takes_or_refuses_a_network_without_its_numbers(name, network, data):
    """So that a grid's networks need not be made to ask; nothing but a refusal is raised."""
    method = load_method(name)
    layout = laid_out(RunSpec(data=data, network=network, method=name), method.trainable)
    if (name, network) == ("l2p", "avsbench-lite"):
        with pytest.raises(MethodError, match="avsbench-lite has none"):
            method.prepare(layout)
    else:
        method.prepare(layout)
    assert all(parameter.is_meta for parameter in layout.parameters())


def test_a_method_that_must_see_numbers_is_asked_in_its_run(data, tmp_path):
    (tmp_path / "curious.py").write_text(
        "from ..method import Method\n"
        "class Curious(Method):\n"
        "    def prepare(self, network):\n"
        "        super().prepare(network)\n"
        "        self.start = float(next(network.parameters()).sum())\n"
    )
    spec = RunSpec(data=data, method="curious", **(SMALL | {"tasks": 1}))
    assert evaluate([spec], options(tmp_path, methods=(tmp_path,)), told()[0])


# -- domains that clustering finds ----------------------------------------------------------------


DIL = SMALL | {"protocol": "dil", "split": ""}


def test_a_domain_without_a_test_clip_refuses_the_grid_before_anything_is_learned(data, tmp_path):
    """Eight training clips, each a domain, and eight test clips, two of which are near one."""
    specs = [
        RunSpec(data=data, method=method, seed=seed, **(DIL | {"protocol_tasks": 8}))
        for method in ("finetune", "ewc")
        for seed in (0, 1)
    ]
    good = RunSpec(data=data, **SMALL)
    with pytest.raises(EvaluateError) as caught:
        evaluate([good, *specs], options(tmp_path), told()[0])
    lines = str(caught.value).splitlines()
    assert len(lines) == 2, "one a plan, which two methods share"
    for seed, line in enumerate(lines):
        assert line.startswith(f"finetune, ewc dil random, seed {seed}: domains ")
        assert "have no test clip (the 8 domains have" in line
        assert "ask for fewer tasks, or take another seed" in line
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ProtocolError) as later:
        replay(specs[0], tmp_path / "run", cache=DiskCache(tmp_path / "cache", 1 << 30))
    assert lines[0].endswith(later.value.lines[0]), "as the run itself would tell"


def test_what_clips_are_like_is_computed_once_for_checks_and_runs(data, tmp_path, monkeypatch):
    seen = []
    forward = GridEncoder.forward

    def counted(self, frames):
        seen.append(len(frames))
        return forward(self, frames)

    monkeypatch.setattr(GridEncoder, "forward", counted)
    spec = RunSpec(data=data, **(DIL | {"protocol_tasks": 8}))
    with pytest.raises(EvaluateError):
        evaluate([spec], options(tmp_path), told()[0])
    clips = len(read_entries(data, "s4"))
    assert seen == [1] * clips
    with pytest.raises(ProtocolError):
        replay(spec, tmp_path / "run", cache=DiskCache(tmp_path / "cache", 1 << 30))
    assert len(seen) == clips, "out of the cache"


def test_without_a_cache_nothing_is_computed_ahead_and_the_run_tells(data, tmp_path):
    spec = RunSpec(data=data, **(DIL | {"protocol_tasks": 8}))
    console, text = told()
    assert not evaluate([spec], options(tmp_path, cache_gb=0), console)
    assert "have no test clip" in text.getvalue()


def test_features_that_were_looked_at_ahead_change_no_task(data, tmp_path):
    """The run's manifest with the check before it is that without."""
    spec = RunSpec(data=data, **(SMALL | {"order": "similarity", "tasks": 1}))
    assert evaluate([spec], options(tmp_path), told()[0])
    replay(spec, tmp_path / "alone")
    manifests = [
        (folder / "manifest.json").read_bytes()
        for folder in (tmp_path / "runs" / spec.folder, tmp_path / "alone")
    ]
    assert manifests[0] == manifests[1]
    before = torch.get_num_threads()
    assert evaluate([spec], options(tmp_path), told()[0]), "what is dealt is not dealt again"
    assert torch.get_num_threads() == before


def test_data_that_is_not_sound_is_refused_with_what_is_wrong(tmp_path):
    root = write_dataset(tmp_path / "toy", {"train": 1, "val": 1, "test": 1}, size_px=64)
    mask = next((root / "Single-source" / "s4_data" / "gt_masks" / "test").rglob("*_3.png"))
    mask.unlink()
    spec = RunSpec(data=root, **SMALL)
    with pytest.raises(EvaluateError, match=mask.name):
        evaluate([spec], options(tmp_path), told()[0])


def test_data_is_read_again_once_a_file_of_it_has_changed(tmp_path):
    """A first check found all in order and said so on disk."""
    root = write_dataset(tmp_path / "toy", {"train": 1, "val": 1, "test": 1}, size_px=64)
    told_options = options(tmp_path)
    with pytest.raises(EvaluateError) as caught:  # what is wrong is the split alone
        evaluate([RunSpec(data=root, **(SMALL | {"split": "9-9"}))], told_options, told()[0])
    assert "mask" not in str(caught.value)
    mask = next((root / "Single-source" / "s4_data" / "gt_masks" / "test").rglob("*_3.png"))
    mask.unlink()
    with pytest.raises(EvaluateError, match=mask.name):
        evaluate([RunSpec(data=root, **SMALL)], told_options, told()[0])


def test_a_mask_of_another_shape_than_its_picture_is_refused(tmp_path):
    """AVSBench has 224x224 for both; what is only scaled is not refused, what is distorted is."""
    root = write_dataset(tmp_path / "toy", {"train": 1, "val": 1, "test": 1}, size_px=64)
    masks = (root / "Single-source" / "s4_data" / "gt_masks" / "test").rglob("*_3.png")
    scaled, flat = next(masks), next(masks)
    for path, size in ((scaled, (32, 32)), (flat, (64, 16))):
        Image.fromarray(np.zeros(size[::-1], np.uint8)).save(path)
    with pytest.raises(EvaluateError) as caught:
        evaluate([RunSpec(data=root, **SMALL)], options(tmp_path), told()[0])
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{flat}: is 64x16, its picture 64x64")


def test_a_half_that_no_run_needs_is_not_read(tmp_path):
    counts = {"train": 1, "val": 1, "test": 1}
    root = write_dataset(tmp_path / "toy", counts, ms3_counts=counts, size_px=64)
    for path in (root / "Multi-sources").rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(EvaluateError) as caught:
        evaluate([RunSpec(data=root, **(SMALL | {"split": "9-9"}))], options(tmp_path), told()[0])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("device", "why"),
    [("cuda:99", "device cuda:99 is not there: torch finds"), ("gpu1", "'gpu1' is unknown")],
)
def test_a_device_that_is_not_there_is_refused(device, why, data, tmp_path):
    spec = RunSpec(data=data, **SMALL)
    with pytest.raises(EvaluateError, match=why):
        evaluate([spec], options(tmp_path, devices=(device,)), told()[0])
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_runs_of_a_gpu_are_refused_where_there_is_none_and_can_be_sent_elsewhere(data, tmp_path):
    """Also the last run that is left, which is made in this process whatever the workers are."""
    spec = RunSpec(data=data, **(SMALL | {"device": "cuda"}))
    with pytest.raises(EvaluateError, match=r"device cuda is not there.*--device cpu"):
        evaluate([spec], options(tmp_path), told()[0])
    assert evaluate([spec], options(tmp_path, workers=2, devices=("cpu",)), told()[0])


def test_room_is_asked_for_by_the_size_of_the_states(data, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1 << 40, 0, 5 << 30))
    told_options = options(tmp_path, checked=True, workers=2)
    large = {"network": "atlas", "random": True, "trainable": "all"}
    specs = [RunSpec(data=data, method="si", seed=seed, **large) for seed in (0, 1)]
    with pytest.raises(EvaluateError, match=r"5\.0 GB are free there; \d\d\.\d GB are needed"):
        evaluate([*specs, RunSpec(data=data, split="9-9")], told_options, told()[0])
    with pytest.raises(EvaluateError) as caught:
        evaluate([RunSpec(data=data, **(SMALL | {"split": "9-9"}))], told_options, told()[0])
    assert "free" not in str(caught.value)


@pytest.mark.parametrize("method", ["si", "atlas", "finetune"])
def test_a_state_is_about_as_large_as_was_thought(method, data, tmp_path):
    spec = RunSpec(data=data, method=method, **(SMALL | {"tasks": 1}))
    sizes: list[int] = []

    def look(_what, _share):
        path = tmp_path / "run" / "state.safetensors"
        sizes.extend([path.stat().st_size] if path.exists() else [])

    replay(spec, tmp_path / "run", save_s=0, progress=look)
    expected = state_bytes(laid_out(spec, load_method(method).trainable))
    overhead = 200_000  # names of tensors, the class head, torch's random numbers
    assert 0.3 * expected < max(sizes) < expected + overhead


def test_results_of_another_configuration_are_refused_at_once_for_all_runs(data, tmp_path):
    specs = [RunSpec(data=data, seed=seed, **(SMALL | {"tasks": 1})) for seed in (0, 1)]
    assert evaluate(specs[:1], options(tmp_path), told()[0])
    (metrics,) = (tmp_path / "runs").rglob("metrics.json")
    unfinished = tmp_path / "runs" / specs[1].folder
    replay(specs[1], unfinished)
    (unfinished / "metrics.json").unlink()
    before = metrics.read_bytes()
    others = [spec.model_copy(update={"epochs": 2, "lr": 0.5}) for spec in specs]
    with pytest.raises(EvaluateError) as caught:
        evaluate(others, options(tmp_path), told()[0])
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all("another configuration; it differs in epochs, lr: name" in line for line in lines)
    assert metrics.read_bytes() == before


def test_names_beyond_ascii_are_names(data, tmp_path):
    root = tmp_path / "Töne"
    shutil.copytree(data, root)
    reader = AVSBench(root, "s4")
    names = [entry.name for split in ("train", "test") for entry in reader.clips(split)]
    for name in names:
        for path in sorted(root.rglob(f"*{name}*"), key=lambda path: -len(path.parts)):
            path.rename(path.with_name(path.name.replace(name, f"{name}-naïve 音")))
    (table,) = root.rglob("s4*.csv")
    text = table.read_text()
    for name in names:
        text = text.replace(f"{name},", f"{name}-naïve 音,")
    table.write_text(text)
    spec = RunSpec(data=root, **(SMALL | {"tasks": 1}))
    assert evaluate([spec], options(tmp_path), told()[0])
    scored = (tmp_path / "runs" / spec.folder / "frames" / "000.csv").read_text()
    assert scored.count("-naïve 音,") == len(scored.splitlines()) - 1


def test_another_data_set_at_the_same_place_is_refused(data, tmp_path):
    """Rebuilt with another id, or with another table; a set that went away is not missed."""
    root = tmp_path / "toy"
    shutil.copytree(data, root)
    spec = RunSpec(data=root, **(SMALL | {"tasks": 1}))
    assert evaluate([spec], options(tmp_path), told()[0])
    (root / "dataset.json").write_text(json.dumps({"id": "toy-of-today"}))
    with pytest.raises(EvaluateError, match=r"learned from .* and .* holds toy-of-today now"):
        evaluate([spec], options(tmp_path), told()[0])
    shutil.rmtree(root)
    shutil.copytree(data, root)
    assert evaluate([spec], options(tmp_path), told()[0])
    (config,) = (tmp_path / "runs").rglob("config.json")
    noted = json.loads(config.read_text())
    config.write_text(json.dumps({k: v for k, v in noted.items() if k != "data_content"}))
    (root / "dataset.json").write_text(json.dumps({"id": "toy-of-today"}))
    assert evaluate([spec], options(tmp_path), told()[0]), "earlier versions kept no note"


def test_a_run_whose_twin_is_another_is_refused_at_once(data, tmp_path):
    spec = RunSpec(data=data, **(SMALL | {"tasks": 1}))
    assert evaluate([spec], options(tmp_path), told()[0])
    other = spec.model_copy(update={"protocol": "til", "lr": 0.5})
    with pytest.raises(EvaluateError, match="differs in lr"):
        evaluate([other], options(tmp_path), told()[0])


def test_nothing_is_left_in_a_folder_that_is_somebody_elses(data, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "failed.json").write_text("mine, too")
    events: list[Event] = []
    InProcess().run([job_of(data, tmp_path, tmp_path)], events.append)
    assert [(event.kind, "other files" in event.what) for event in events] == [("failed", True)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["failed.json", "notes.txt"]
    assert (tmp_path / "failed.json").read_text() == "mine, too"


# -- runs --------------------------------------------------------------------------------------


def test_an_eleventh_method_needs_one_file(data, tmp_path):
    own = tmp_path / "methods"
    own.mkdir()
    (own / "calm.py").write_text(
        '"""Calm: scales all gradients."""\n'
        "from dataclasses import dataclass\n"
        "from ..method import Method\n\n"
        "@dataclass(eq=False)\n"
        "class Calm(Method):\n"
        "    scale: float = 0.5\n\n"
        "    def edit_grads(self):\n"
        "        for parameter in self.network.parameters():\n"
        "            if parameter.grad is not None:\n"
        "                parameter.grad *= self.scale\n"
    )
    words = ["evaluate", "--out", str(tmp_path / "runs"), "--data", str(data)]
    words += [
        "--method",
        "calm",
        "--methods",
        str(own),
        "--cache",
        str(tmp_path / "cache"),
        "--cache-gb",
        "0",
        "-s",
        "options.scale=0.1",
    ]
    for key, value in SMALL.items():
        words += ["-s", f"{key}={str(value).lower()}"]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    (metrics,) = (tmp_path / "runs").rglob("metrics.json")
    assert json.loads(metrics.read_text())["run"]["method"] == "calm"


def test_runs_that_are_there_are_not_made_again(data, tmp_path):
    specs = [RunSpec(data=data, seed=seed, **SMALL) for seed in (0, 1)]
    console, _ = told()
    assert evaluate(specs[:1], options(tmp_path), console)
    (first,) = (tmp_path / "runs").rglob("metrics.json")
    before = first.stat().st_mtime_ns
    console, text = told()
    assert evaluate(specs, options(tmp_path), console)
    assert "2 runs, 1 of them there already" in text.getvalue()
    assert first.stat().st_mtime_ns == before


def test_a_run_that_another_process_makes_is_left_alone(data, tmp_path):
    """That one goes on with its half-written files; afterwards the run can be made."""
    spec = RunSpec(data=data, **SMALL)
    folder = tmp_path / "runs" / spec.folder
    folder.mkdir(parents=True)
    other = [sys.executable, "-c", HOLDING, str(folder)]
    with subprocess.Popen(other, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        writing = folder / f".state.safetensors.{process.pid}.part"
        writing.write_bytes(b"half")
        console, text = told()
        assert not evaluate([spec], options(tmp_path), console)
        assert "another process makes the run in" in " ".join(text.getvalue().split())
        assert list(folder.iterdir()) == [writing]
        process.kill()
    assert evaluate([spec], options(tmp_path), told()[0])
    assert not writing.exists()


@pytest.mark.slow
def test_a_worker_that_dies_fails_its_run_and_leaves_the_others_going(data, tmp_path):
    """Real processes: one method ends its process, the run after it gets a new one."""
    own = tmp_path / "methods"
    own.mkdir()
    (own / "deadly.py").write_text(
        "import os\nfrom dataclasses import dataclass\nfrom ..method import Method\n\n"
        "@dataclass(eq=False)\nclass Deadly(Method):\n"
        "    def after_step(self):\n        os._exit(7)\n"
    )
    (own / "poison.py").write_text(
        "from dataclasses import dataclass\nfrom ..method import Method\n\n"
        "@dataclass(eq=False)\nclass Poison(Method):\n"
        "    def extra_loss(self, batch, out):\n"
        "        return {'poison': out.mask_logits.sum() * float('nan')}\n"
    )
    jobs = [
        Job(
            RunSpec(data=data, method=method, **SMALL),
            tmp_path / method,
            (own,),
            tmp_path / "cache",
            1 << 30,
        )
        for method in ("deadly", "poison", "finetune")
    ]
    events: list[Event] = []
    Workers(1, tmp_path / "logs").run(jobs, events.append)
    ends = {event.job: event for event in events if event.kind != "progress"}
    assert [ends[n].kind for n in range(3)] == ["failed", "failed", "done"]
    assert "exit status 7" in ends[0].what
    assert "not finite" in ends[1].what
    assert "not finite" in json.loads((tmp_path / "poison" / "failed.json").read_text())["why"]
    assert (tmp_path / "finetune" / "metrics.json").exists()


def job_of(data, folder, tmp_path, own=(), **told_run):
    told_run = SMALL | told_run
    return Job(RunSpec(data=data, **told_run), folder, own, tmp_path / "cache", 0, save_s=0)


def test_a_full_disk_fails_runs_with_the_file_and_what_to_do_and_they_can_go_on(data, tmp_path):
    """A real limit of this process's files; not even the reason fits on the disk."""
    changes = {"tasks": 1}
    jobs = [
        job_of(data, tmp_path / method, tmp_path, method=method, **changes)
        for method in ("atlas", "finetune")
    ]
    events: list[Event] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (60_000, 10):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            InProcess().run(jobs, events.append)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        ends = [event for event in events if event.kind != "progress"]
        assert [event.kind for event in ends] == ["failed", "failed"]
        assert all("File too large" in event.what for event in ends)
        assert all("free space or mend the folder" in event.what for event in ends)
        events.clear()
    InProcess().run(jobs, events.append)
    assert [event.kind for event in events if event.kind != "progress"] == ["done", "done"]
    assert not list(tmp_path.rglob("failed.*"))


def test_whatever_a_run_raises_it_fails_alone_and_its_traceback_is_kept(data, tmp_path):
    own = tmp_path / "methods"
    own.mkdir()
    (own / "broken.py").write_text(
        "from dataclasses import dataclass\nfrom ..method import Method\n\n"
        "@dataclass(eq=False)\nclass Broken(Method):\n"
        "    def after_step(self):\n        raise RuntimeError('CUDA error: unspecified')\n"
    )
    jobs = [
        job_of(data, tmp_path / method, tmp_path, (own,), method=method, tasks=1)
        for method in ("broken", "finetune")
    ]
    events: list[Event] = []
    InProcess().run(jobs, events.append)
    ends = {event.job: event for event in events if event.kind != "progress"}
    assert [ends[n].kind for n in range(2)] == ["failed", "done"]
    log = tmp_path / "broken" / "failed.log"
    assert "RuntimeError: CUDA error: unspecified" in ends[0].what
    assert str(log) in ends[0].what
    assert "in after_step" in log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_what_a_library_or_a_child_writes_to_a_workers_output_is_no_event(data, tmp_path):
    """Below Python's own output, and by a child, which also finds no job on its input."""
    own = tmp_path / "methods"
    own.mkdir()
    (own / "noisy.py").write_text(
        "import os\nimport subprocess\nfrom dataclasses import dataclass\n"
        "from ..method import Method\n\n"
        "@dataclass(eq=False)\nclass Noisy(Method):\n"
        "    def begin(self, segment):\n"
        "        os.write(1, b'a library says hello\\n')\n"
        "        subprocess.run(['sh', '-c', 'echo child; cat'], check=True)\n"
    )
    jobs = [
        job_of(data, tmp_path / method, tmp_path, (own,), method=method, tasks=1)
        for method in ("noisy", "finetune")
    ]
    events: list[Event] = []
    Workers(1, tmp_path / "logs").run(jobs, events.append)
    assert [event.kind for event in events if event.kind != "progress"] == ["done", "done"]
    log = (tmp_path / "logs" / "worker0.log").read_text()
    assert "a library says hello" in log
    assert "child" in log


def test_a_job_survives_its_line(data, tmp_path):
    job = Job(RunSpec(data=data, **SMALL), tmp_path, (tmp_path,), tmp_path, 5)
    assert Job.from_json(job.to_json()) == job


def test_the_help_names_every_grid_and_the_cache():
    text = CliRunner().invoke(cli.app, ["evaluate", "--help"], env={"COLUMNS": "400"}).output
    assert all(name in text for name in (*shipped_grids(), "--cache ", "--save-s", "--checked"))


def test_shipped_grids_are_plain_yaml():
    folder = Path(cli.__file__).parent / "grids"
    for name in shipped_grids():
        assert set(yaml.safe_load((folder / f"{name}.yaml").read_text())) <= {
            "base", "systems", "axes",
        }  # fmt: skip

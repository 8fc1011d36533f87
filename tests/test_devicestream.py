"""Camera and microphone through the whole way: their process, the pipeline, unplugged and back."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from atlasd.daemon import devicestream
from atlasd.daemon.client import subscribe
from atlasd.daemon.config import ConfigError, SourceConfig, load_config
from atlasd.daemon.devicestream import open_device_stream
from atlasd.daemon.messages import Event, Mask
from atlasd.daemon.pipeline import Pipeline, PipelineOptions, Result
from atlasd.daemon.service import run
from atlasd.streams.captureprocess import ProcessSource
from atlasd.streams.claps import ClapMeter
from atlasd.streams.sources import Discontinuity, MediaError, Trouble
from atlasd.tools.cliconfig import source_overrides
from media import clicks
from served import tiny_checkpoint, tiny_config, tiny_engine
from webserver import BOUNDARY, WebServer, jpeg, mjpeg, part

pytestmark = pytest.mark.slow  # streams run in real time

CHILD = str(Path(__file__).with_name("devicechild.py"))


@pytest.fixture
def server():
    with WebServer(mjpeg(fps=20)) as server:
        yield server


class Children(list):
    """What was started, and what further ones are told."""

    arguments: tuple[str, ...] = ()


@pytest.fixture
def children(server, monkeypatch):
    """Processes that were started for the stream, whose camera is the server."""
    started = Children()

    def start(*args, **options):
        command = (sys.executable, CHILD, server.url(), *started.arguments)
        started.append(ProcessSource(*args, command=command, **options))
        return started[-1]

    monkeypatch.setattr(devicestream, "ProcessSource", start)
    return started


def opened(**options):
    config = SourceConfig(camera="0", stall_timeout_s=4, **options)
    return open_device_stream(config, image_size_px=(64, 64), sample_rate_hz=32000)


def until(items, is_it, deadline_s=60.0):
    end = time.monotonic() + deadline_s
    for item in items:
        if is_it(item):
            return item
        assert time.monotonic() < end, f"last came {item}"
    raise AssertionError("the stream has ended")


def is_result(state):
    return lambda item: isinstance(item, Result) and item.sample.window.state == state


def is_trouble(kind):
    return lambda item: isinstance(item, Trouble) and item.kind == kind


def test_camera_and_microphone_become_masks_with_sound(pulse, children):
    options = PipelineOptions(audio_wait_ms=400)
    with Pipeline(opened(microphone="default"), tiny_engine(), options) as pipeline:
        assert pipeline.policy == "live"
        result = until(pipeline, is_result("ok"))
    frame, window = result.sample.frame, result.sample.window
    assert frame.source_size_px == (64, 48)
    early_ms = (frame.pts_ns - window.end_ns) / 1e6
    assert -1 <= early_ms <= options.audio_slack_ms + 1
    assert 0 <= time.monotonic_ns() - frame.capture_ns < 10e9


@pytest.mark.slow
def test_a_microphone_that_dies_and_returns_costs_no_mask_and_no_epoch(pulse, children):
    options = PipelineOptions(audio_wait_ms=400)
    with Pipeline(opened(microphone="default"), tiny_engine(), options) as pipeline:
        until(pipeline, is_result("ok"))
        pulse.kill()
        until(pipeline, is_trouble("microphone_lost"))
        until(pipeline, is_result("absent"))
        pulse.start()
        until(pipeline, is_trouble("microphone_back"))
        again = until(pipeline, is_result("ok"))
    assert again.sample.frame.epoch == 0
    assert len(children) == 1


@pytest.mark.slow
def test_a_sound_server_that_hangs_is_told_while_masks_go_on_and_heard_again(pulse, children):
    options = PipelineOptions(audio_wait_ms=400)
    with Pipeline(opened(microphone="default"), tiny_engine(), options) as pipeline:
        until(pipeline, is_result("ok"))
        pulse.hang()
        until(pipeline, is_trouble("microphone_lost"), 10.0)
        for _ in range(60):
            until(pipeline, is_result("absent"))
        pulse.go_on()
        until(pipeline, is_trouble("microphone_back"))
        again = until(pipeline, is_result("ok"))
    assert again.sample.frame.epoch == 0
    assert len(children) == 1


@pytest.mark.slow
def test_a_sound_server_that_hangs_for_good_costs_one_reconnect(pulse, children):
    """The process that hangs in it is given up; the next one shows pictures, sound or not."""
    children.arguments = ("4",)
    options = PipelineOptions(audio_wait_ms=400)
    with Pipeline(opened(microphone="default"), tiny_engine(), options) as pipeline:
        until(pipeline, is_result("ok"))
        pulse.hang()
        until(pipeline, is_trouble("microphone_lost"), 10.0)
        given_up = until(pipeline, is_trouble("reconnect"), 20.0)
        assert "the sound system has not answered" in given_up.detail
        until(pipeline, is_trouble("microphone_lost"))
        for _ in range(160):
            until(pipeline, is_result("absent"))
        assert len(children) == 2
        pulse.go_on()
        again = until(pipeline, is_result("ok"))
    assert again.sample.frame.epoch == 1
    assert len(children) == 2


def test_a_microphone_that_is_not_there_is_told_with_those_that_are(children):
    source = opened(microphone="no such thing")
    with Pipeline(source, tiny_engine()) as pipeline:
        lost = until(pipeline, is_trouble("microphone_lost"))
        assert "no such thing" in lost.detail or "PortAudio" in lost.detail
        until(pipeline, is_result("absent"))


def test_a_camera_whose_process_dies_comes_back_as_another_epoch(children):
    with Pipeline(opened(), tiny_engine()) as pipeline:
        before = until(pipeline, is_result("absent"))
        os.kill(children[0].pid, signal.SIGKILL)
        trouble = until(pipeline, is_trouble("reconnect"))
        assert "camera 0" in trouble.detail
        broken = until(pipeline, lambda item: isinstance(item, Discontinuity))
        after = until(pipeline, is_result("absent"))
    assert (broken.epoch, after.sample.frame.epoch) == (1, 1)
    assert after.sample.frame.pts_ns > before.sample.frame.pts_ns
    assert after.sample.frame.index > before.sample.frame.index
    assert len(children) == 2


def test_a_camera_that_is_unplugged_is_awaited(server, children):
    with Pipeline(opened(), tiny_engine()) as pipeline:
        until(pipeline, is_result("absent"))
        server.answer, plugged = lambda _: None, server.answer
        server.cut()
        trouble = until(pipeline, is_trouble("reconnect"))
        assert "attempt 1" in trouble.detail
        server.answer = plugged
        until(pipeline, lambda item: isinstance(item, Discontinuity))
        until(pipeline, is_result("absent"))


def test_a_camera_that_is_not_there_at_the_start_is_told_and_awaited():
    """On this machine, with the real opener: there is no such camera."""
    source = opened(reconnect_max_s=0.2)
    told = until(iter(source), is_trouble("reconnect"))
    source.close()
    assert "no camera is meant by '0'" in told.detail or Path("/dev/video0").exists()


def test_a_camera_that_must_be_there_is_an_error(monkeypatch):
    with pytest.raises(MediaError, match="no camera is meant by 'nowhere'"):
        open_device_stream(
            SourceConfig(camera="nowhere", reconnect_limit=0),
            image_size_px=(64, 64),
            sample_rate_hz=32000,
        )


@pytest.mark.parametrize(("wanted_s", "camera_s"), [(0.5, 15), (10, 15), (60, 60)])
def test_a_camera_has_the_time_to_open_that_is_set_and_never_less_than_15_s(
    monkeypatch, wanted_s, camera_s
):
    """Its process has more, so that the camera itself says why there is no picture."""
    told = {}

    def start(options, **deadlines):
        told.update(options=options, deadlines=deadlines)
        raise MediaError("it is not opened here")

    monkeypatch.setattr(devicestream, "ProcessSource", start)
    with pytest.raises(MediaError, match="not opened here"):
        opened(open_timeout_s=wanted_s, reconnect_limit=0)
    assert told["options"]["open_timeout_s"] == camera_s
    assert told["deadlines"]["open_timeout_s"] > camera_s + 2


@pytest.mark.slow
def test_a_camera_that_needs_long_for_its_first_picture_opens_where_it_may(server, children):
    at_once = server.answer

    def late(visit):
        if visit.hold(17):
            at_once(visit)

    server.answer = late
    with opened(open_timeout_s=40, reconnect_limit=0) as source:
        until(iter(source), lambda event: hasattr(event, "image"))
    assert len(children) == 1


def flashing(begin_s, fps=25):
    """A camera before a light that flashes at each whole second after ``begin_s``."""

    def answer(visit):
        visit.head(f"multipart/x-mixed-replace; boundary={BOUNDARY}")
        white, grey = (part(jpeg(shade, (160, 120))) for shade in (250, 40))
        while True:
            past_s = time.monotonic() - begin_s
            visit.send(white if past_s % 1 < 1.5 / fps else grey)
            due_s = begin_s + (int(past_s * fps) + 1) / fps
            if not visit.hold(max(0.0, due_s - time.monotonic())):
                return

    return answer


@pytest.mark.slow
def test_claps_through_camera_and_microphone_agree_to_milliseconds(pulse, server, children):
    """Where the sound lies is PulseAudio's own delay; that each clap says the same is ours."""
    server.answer = flashing(time.monotonic())
    pulse.play(clicks(40))
    meter = ClapMeter(is_live=True)
    with opened(microphone="default") as source:
        end = time.monotonic() + 25
        for event in source:
            meter.push(event)
            if time.monotonic() > end:
                break
    found = meter.measured()
    assert found.problem == ""
    assert found.claps >= 12
    assert found.spread_ms < 8


def test_closing_is_prompt_and_leaves_no_process(children):
    source = opened()
    until(iter(source), lambda event: hasattr(event, "image"))
    began = time.monotonic()
    source.close()
    assert time.monotonic() - began < 3
    with pytest.raises(ProcessLookupError):
        os.kill(children[0].pid, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"microphone": "default"}, "what is segmented is a picture"),
        ({"camera": 0, "uri": "film.mp4"}, "only one can be watched"),
        ({"camera": 0, "repeat": True}, "no end to begin again"),
        ({"camera": -1}, "greater than or equal to 0"),
        ({"camera": "''"}, "at least 1"),
        ({"camera": 0, "camera_size_px": [1280]}, "camera_size_px"),
        ({"camera": 0, "camera_fps": 0}, "camera_fps"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values, message):
    overrides = [f"source.{key}={value}" for key, value in values.items()]
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=overrides)


@pytest.mark.parametrize(
    ("told", "uri", "camera", "microphone"),
    [
        ((None, "0", "default"), "sample", "0", "default"),
        ((None, "Webcam", None), "sample", "Webcam", "USB"),
        (("a.mp4", None, None), "a.mp4", None, None),
        ((None, None, None), "sample", 2, "USB"),
    ],
)
def test_the_command_line_takes_the_files_place(tmp_path, told, uri, camera, microphone):
    file = tmp_path / "config.yaml"
    file.write_text("source:\n  camera: 2\n  microphone: USB\n")
    source = load_config(file, overrides=source_overrides(*told)).source
    assert (source.uri, source.camera, source.microphone) == (uri, camera, microphone)


def test_a_label_names_devices_and_hides_passwords():
    assert SourceConfig(camera=0).label == "camera 0, no microphone"
    assert SourceConfig(camera=0, microphone="USB").label == "camera 0, microphone USB"
    assert "secret" not in SourceConfig(uri="rtsp://me:secret@host/x").label


def test_log_and_bus_say_which_camera_was_opened_at_each_opening(
    server, children, tmp_path, caplog
):
    caplog.set_level("INFO")
    endpoint = f"ipc://{tmp_path}/bus"
    overrides = ("camera=0", "stall_timeout_s=2", "reconnect_limit=2", "reconnect_max_s=0.2")
    settings = [f"source.{override}" for override in overrides]
    config = tiny_config(tiny_checkpoint(tmp_path), "sample", endpoint, *settings)
    daemon = threading.Thread(target=run, args=(config,), daemon=True)
    with subscribe(endpoint, kinds=(Mask, Event), mode="all", timeout_s=60) as bus:
        daemon.start()
        until(bus, lambda message: isinstance(message, Mask))
        server.cut()
        told = until(bus, lambda message: isinstance(message, Event) and message.kind == "opened")
    server.close()
    daemon.join(60)
    assert told.data["kind"] == "camera_open"
    assert "asked for its own size at its own rate, got 64 x 48" in told.detail
    assert told.detail in caplog.text

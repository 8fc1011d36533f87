"""The daemon: what it publishes, how it ends, what it refuses."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import zmq
from atlasd.daemon import spoolfile
from atlasd.daemon.client import subscribe
from atlasd.daemon.config import Config
from atlasd.daemon.labelclient import LabelClient, LabelRefusedError, NoAnswerError
from atlasd.daemon.labelclips import label_mask, load
from atlasd.daemon.labeldesk import LabelDesk
from atlasd.daemon.labels import PutFrame
from atlasd.daemon.latency import Latencies
from atlasd.daemon.messages import Event, Hello, Mask, Status
from atlasd.daemon.places import spool_folder
from atlasd.daemon.publisher import Publisher
from atlasd.daemon.service import FAILED, OK, REFUSED, run
from atlasd.daemon.spool import Spool
from atlasd.daemon.spoolfile import FILE_NAME
from atlasd.model import checkpoints
from atlasd.model.presets import build
from atlasd.streams.files import FileSource
from atlasd.streams.sources import MediaError
from atlasd.tools.segment import segment
from media import write_video
from served import tiny_checkpoint, tiny_config

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def endpoint(tmp_path) -> str:
    return f"ipc://{tmp_path}/bus"


class Daemon:
    """`run` in a thread of its own, where no signals reach it."""

    def __init__(self, config: Config):
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run, args=(config,))

    def _run(self, config):
        self.code = run(config)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, kind, error, traceback):
        self._thread.join(PATIENCE_S)


def everything(config: Config) -> tuple[list, int | None]:
    """All messages of a run, subscribed before it began, and its exit code."""
    kinds = (Mask, Event, Hello, Status)
    config = waiting(config)
    with (
        subscribe(
            config.publish.endpoint, kinds=kinds, mode="all", timeout_s=PATIENCE_S
        ) as subscription,
        Daemon(config) as daemon,
    ):
        messages = list(subscription)
    return messages, daemon.code


def waiting(config: Config) -> Config:
    publish = config.publish.model_copy(update={"wait_for_subscriber_s": PATIENCE_S})
    return config.model_copy(update={"publish": publish})


def test_a_file_is_announced_published_whole_and_ended(tmp_path, checkpoint, endpoint):
    video = write_video(tmp_path / "a.mp4", 1.0, size=(96, 64))
    messages, code = everything(tiny_config(checkpoint, video, endpoint))
    masks = [m for m in messages if isinstance(m, Mask)]
    hello = next(m for m in messages if isinstance(m, Hello))
    events = [m.kind for m in messages if isinstance(m, Event)]
    assert code == OK
    assert [m.seq for m in masks] == list(range(25))
    assert [m.frame.index for m in masks] == list(range(25))
    assert (hello.frame_size, hello.mask_shape, hello.has_audio) == ((96, 64), (64, 64), True)
    assert masks[0].frame.w, masks[0].frame.h == (96, 64)
    assert masks[0].model == hello.model
    assert masks[0].model.preset == "tiny"
    assert {"decode", "sync_wait", "queue", "pre", "infer", "post", "pack"} <= set(masks[0].lat_ms)
    assert "eos" in events


def test_run_publishes_what_segment_writes_bit_for_bit(tmp_path, checkpoint, endpoint):
    video = write_video(tmp_path / "a.mp4", 2.0, size=(96, 64))
    config = tiny_config(checkpoint, video, endpoint)
    messages, _ = everything(config)
    segment(video, tmp_path / "out", config)
    masks = [m for m in messages if isinstance(m, Mask)]
    with np.load(tmp_path / "out" / "masks.npz", allow_pickle=False) as archive:
        written, times = archive["masks"], archive["pts_ns"]
    published = np.stack([m.array() for m in masks])
    assert 0.01 < written.mean() < 0.99
    assert times.tolist() == [m.pts_ns for m in masks]
    np.testing.assert_array_equal(published, written)


@pytest.mark.parametrize("encoding", ["bits", "rle", "prob8"])
def test_every_encoding_carries_the_same_mask(tmp_path, checkpoint, encoding):
    video = write_video(tmp_path / "a.mp4", 0.2)
    arrays = []
    for name in (encoding, "bits+zstd"):
        address = f"ipc://{tmp_path}/{name[:4]}"
        config = tiny_config(checkpoint, video, address, f"publish.encoding={name}")
        messages, _ = everything(config)
        arrays.append(np.stack([m.array() for m in messages if isinstance(m, Mask)]))
    differing = (arrays[0] != arrays[1]).mean()
    assert differing <= (0.02 if encoding == "prob8" else 0.0)


def test_a_video_without_sound_is_served_as_absent(tmp_path, checkpoint, endpoint):
    video = write_video(tmp_path / "a.mp4", 0.4, sound=None)
    messages, code = everything(tiny_config(checkpoint, video, endpoint))
    masks = [m for m in messages if isinstance(m, Mask)]
    assert code == OK
    assert {m.audio.state for m in masks} == {"absent"}
    assert len(masks) == 10


def test_the_last_status_tells_latencies_and_the_last_mask(tmp_path, checkpoint, endpoint):
    video = write_video(tmp_path / "a.mp4", 1.0)
    config = tiny_config(
        checkpoint, video, endpoint, "source.pace=real", "publish.status_interval_s=0.1"
    )
    messages, _ = everything(config)
    statuses = [m for m in messages if isinstance(m, Status) and m.lat_ms]
    assert {"infer_p50", "infer_p99", "total_p95"} <= set(statuses[-1].lat_ms)
    assert "queue" in statuses[-1].detail
    assert "memory" in statuses[-1].detail


def test_a_status_that_cannot_be_told_stops_no_mask(
    tmp_path, checkpoint, endpoint, monkeypatch, caplog
):
    nonsense = {"total": {"p50": -1.0}}
    monkeypatch.setattr(Latencies, "percentiles", lambda _self, last=None: nonsense)
    video = write_video(tmp_path / "a.mp4", 1.0, size=(96, 64))
    messages, code = everything(tiny_config(checkpoint, video, endpoint))
    assert code == OK
    assert len([m for m in messages if isinstance(m, Mask)]) == 25
    assert "the status stays as it was" in caplog.text
    assert "total_p50 is -1" in caplog.text


def test_a_deadline_is_told_in_masks_status_and_summary(tmp_path, checkpoint, endpoint):
    video = write_video(tmp_path / "a.mp4", 1.0, size=(96, 64))
    out = tmp_path / "out"
    options = (
        "source.pace=real",
        "model.deadline_ms=0.001",
        "publish.status_interval_s=0.05",
        f"run.out={out}",
    )
    messages, code = everything(tiny_config(checkpoint, video, endpoint, *options))
    masks = [m for m in messages if isinstance(m, Mask)]
    told = [m.ladder for m in messages if isinstance(m, Status) and m.ladder is not None]
    hello = next(m for m in messages if isinstance(m, Hello))
    assert code == OK
    assert len(masks) == 25
    assert {(m.rung, m.deadline_ms) for m in masks} == {(1, 0.001)}
    assert {m.mask.shape for m in masks} == {hello.mask_shape}
    assert masks[0].mask.transform is None
    assert masks[0].to_frame().shape == (64, 96)
    assert told[-1].deadline_ms == 0.001
    assert [rung.px for rung in told[-1].rungs] == [64, 32]
    assert told[-1].rungs[0].frames == 0 < told[-1].rungs[1].frames
    assert all(rung.p95_ms > 0.001 for rung in told[-1].rungs)
    summary = json.loads((out / "summary.json").read_text())
    assert [rung["frames"] for rung in summary["ladder"]["rungs"]] == [0, 25]


def test_without_a_deadline_none_is_told(tmp_path, checkpoint, endpoint):
    video = write_video(tmp_path / "a.mp4", 0.2)
    messages, _ = everything(tiny_config(checkpoint, video, endpoint))
    assert {(m.rung, m.deadline_ms) for m in messages if isinstance(m, Mask)} == {(0, None)}
    assert {m.ladder for m in messages if isinstance(m, Status)} == {None}


def test_segment_keeps_no_deadline(tmp_path, checkpoint, endpoint):
    video = write_video(tmp_path / "a.mp4", 0.2, size=(96, 64))
    config = tiny_config(checkpoint, video, endpoint, "model.deadline_ms=0.001")
    segment(video, tmp_path / "hasty", config)
    segment(video, tmp_path / "calm", tiny_config(checkpoint, video, endpoint))
    hasty, calm = (
        np.load(tmp_path / folder / "masks.npz", allow_pickle=False)["masks"]
        for folder in ("hasty", "calm")
    )
    np.testing.assert_array_equal(hasty, calm)


def test_damage_in_the_file_is_an_event_and_masks_go_on(tmp_path, checkpoint, endpoint):
    video = write_video(tmp_path / "a.ts", 2.0)
    data = bytearray(video.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    video.write_bytes(bytes(data))
    messages, code = everything(tiny_config(checkpoint, video, endpoint))
    assert code == OK
    assert any(isinstance(m, Event) and m.kind == "trouble" for m in messages)
    assert sum(isinstance(m, Mask) for m in messages) >= 20


def test_the_configuration_and_a_summary_are_written_beside_the_run(tmp_path, checkpoint, endpoint):
    video = write_video(tmp_path / "a.mp4", 0.4)
    out = tmp_path / "out"
    assert run(tiny_config(checkpoint, video, endpoint, f"run.out={out}")) == OK
    summary = json.loads((out / "summary.json").read_text())
    assert summary["masks"] == 10
    assert summary["ending"] == "the stream has ended"
    assert summary["latency_ms"]["infer"]["p50"] > 0
    assert f"{video}" in (out / "config.yaml").read_text()
    assert sorted(p.name for p in out.iterdir()) == ["config.yaml", "summary.json"]


@pytest.mark.slow
def test_a_subscriber_that_stops_reading_is_passed_over(tmp_path, checkpoint, endpoint):
    video = write_video(tmp_path / "a.mp4", 20.0, size=(32, 32))
    out = tmp_path / "out"
    config = tiny_config(
        checkpoint,
        video,
        endpoint,
        "publish.encoding=prob8",
        "publish.send_timeout_s=0.2",
        f"run.out={out}",
    )
    with zmq.Context() as context, context.socket(zmq.SUB) as stuck:
        stuck.setsockopt(zmq.RCVHWM, 1)
        stuck.setsockopt(zmq.RCVBUF, 4096)
        stuck.setsockopt(zmq.LINGER, 0)
        stuck.setsockopt(zmq.SUBSCRIBE, b"")
        stuck.connect(endpoint)
        with Daemon(waiting(config)) as daemon:
            pass
    summary = json.loads((out / "summary.json").read_text())
    assert daemon.code == OK
    assert summary["masks"] == 500
    assert summary["drops"]["subscriber_stalled"] > 0


def refused(config: Config, caplog) -> str:
    """The one line that a refusal says."""
    caplog.clear()
    assert run(config) == REFUSED
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert record.exc_info is None
    return record.getMessage()


def test_a_medium_that_cannot_be_opened_is_refused_in_one_line(
    tmp_path, checkpoint, endpoint, caplog
):
    empty = tmp_path / "empty.mp4"
    empty.touch()
    for uri in (tmp_path / "missing.mp4", tmp_path, empty):
        assert str(uri) in refused(tiny_config(checkpoint, uri, endpoint), caplog)


def test_wrong_weights_are_refused_in_one_line(tmp_path, checkpoint, endpoint, caplog):
    video = write_video(tmp_path / "a.mp4", 0.2)
    truncated, missing = tmp_path / "cut.safetensors", tmp_path / "none.safetensors"
    truncated.write_bytes(checkpoint.read_bytes()[:-1000])
    untrained = tmp_path / "untrained.safetensors"
    checkpoints.save(build("tiny"), untrained)
    for path in (truncated, missing):
        assert path.name in refused(tiny_config(path, video, endpoint), caplog)
    assert "never trained" in refused(tiny_config(untrained, video, endpoint), caplog)
    other = tiny_config(checkpoint, video, endpoint, "model.preset=atlas-lite")
    assert "weights of preset tiny" in refused(other, caplog)
    unknown = tiny_config(checkpoint, video, endpoint, "model.preset=colossus")
    assert "colossus" in refused(unknown, caplog)


def test_a_port_in_use_is_refused_in_one_line(tmp_path, checkpoint, caplog):
    video = write_video(tmp_path / "a.mp4", 0.2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        assert "in use" in refused(tiny_config(checkpoint, video, address), caplog)


def test_an_output_folder_that_cannot_be_made_is_refused_in_one_line(
    tmp_path, checkpoint, endpoint, caplog
):
    video = write_video(tmp_path / "a.mp4", 0.2)
    config = tiny_config(checkpoint, video, endpoint, f"run.out={video}")
    assert "a.mp4" in refused(config, caplog)


@pytest.fixture
def taking(tmp_path, checkpoint, endpoint):
    """A function that makes a configuration with the intake on."""

    def made(seconds, *overrides) -> Config:
        video = write_video(tmp_path / "a.mp4", seconds, size=(96, 64))
        intake = (
            "intake.enabled=true",
            f"intake.endpoint=ipc://{tmp_path}/labels",
            f"intake.spool={tmp_path}/spool",
            "publish.status_interval_s=0.1",
        )
        return waiting(tiny_config(checkpoint, video, endpoint, *intake, *overrides))

    return made


def test_a_mask_that_is_seen_can_be_corrected_by_its_time(tmp_path, taking):
    config = taking(2.0, "source.pace=real")
    with (
        subscribe(config.publish.endpoint, mode="all", timeout_s=PATIENCE_S) as masks_seen,
        Daemon(config) as daemon,
        LabelClient(config.intake.endpoint, timeout_s=PATIENCE_S) as client,
    ):
        mask = next(masks_seen)
        for _ in masks_seen:
            break
        instance = masks_seen.hello["main"].instance
        drawn = np.zeros((64, 96), np.uint8)
        drawn[:32, :48] = 1
        label = PutFrame(
            id="seen",
            stream="main",
            epoch=mask.epoch,
            pts_ns=mask.pts_ns,
            instance=instance,
            mask=label_mask(drawn),
        )
        assert client.put(label) == "stored"
        assert len(list(masks_seen)) == 48
    assert daemon.code == OK
    with Spool(tmp_path / "spool") as spool:
        (clip,) = (load(c.payload) for c in spool.next_batch(0, 9, 0).clips)
    assert clip.clip.samples[0].frame.pts_ns == mask.pts_ns
    assert clip.clip.samples[0].frame.image.shape == (64, 64, 3)
    assert clip.masks.mean() == 0.25


def test_an_intake_that_fails_never_stops_the_masks(taking, monkeypatch):
    def broken(*args):
        raise MemoryError("none left")

    monkeypatch.setattr(LabelDesk, "answer", broken)
    config = taking(2.0, "source.pace=real")
    with (
        subscribe(
            config.publish.endpoint, kinds=(Mask, Status), mode="all", timeout_s=PATIENCE_S
        ) as messages,
        Daemon(config) as daemon,
        LabelClient(config.intake.endpoint, timeout_s=0.5, attempts=1) as client,
    ):
        seen = [next(m for m in messages if isinstance(m, Mask))]
        with pytest.raises(NoAnswerError):
            client.delete("a")
        seen += list(messages)
    assert daemon.code == OK
    assert len([m for m in seen if isinstance(m, Mask)]) == 50
    last = [m for m in seen if isinstance(m, Status)][-1]
    assert (last.intake.state, last.intake.detail) == ("failed", "MemoryError: none left")


def test_labels_are_not_taken_unless_it_is_asked_for(tmp_path, checkpoint, endpoint):
    video = write_video(tmp_path / "a.mp4", 0.4)
    messages, _ = everything(tiny_config(checkpoint, video, endpoint))
    assert {m.intake for m in messages if isinstance(m, Status)} == {None}


def test_a_spool_or_an_address_that_cannot_be_had_is_refused_in_one_line(tmp_path, taking, caplog):
    config = taking(0.2)
    (tmp_path / "spool").mkdir(mode=0o700)
    (tmp_path / "spool" / "clips.sqlite").write_bytes(b"nonsense" * 1000)
    assert "is damaged" in refused(config, caplog)
    (tmp_path / "spool" / "clips.sqlite").unlink()
    with zmq.Context() as context, context.socket(zmq.REP) as taken:
        taken.bind(config.intake.endpoint)
        assert "in use" in refused(config, caplog)
    assert "other machines" in refused(taking(0.2, "intake.endpoint=tcp://0.0.0.0:0"), caplog)
    with Publisher(config.publish.endpoint):
        pass  # what was bound is free again


@pytest.mark.slow
def test_a_spool_that_is_locked_at_the_start_costs_no_mask_and_is_taken_later(
    tmp_path, taking, monkeypatch
):
    monkeypatch.setattr(spoolfile, "_BUSY_S", 0.01)
    Spool(tmp_path / "spool").close()
    config = taking(6.0, "source.pace=real")
    seen: list = []
    with (
        closing(sqlite3.connect(tmp_path / "spool" / FILE_NAME, isolation_level=None)) as other,
        subscribe(
            config.publish.endpoint, kinds=(Mask, Status, Event), mode="all", timeout_s=PATIENCE_S
        ) as messages,
    ):
        other.execute("BEGIN EXCLUSIVE")
        with Daemon(config) as daemon:

            def until(wanted):
                for message in messages:
                    seen.append(message)
                    if wanted(message):
                        return message
                pytest.fail("the stream is over")

            until(lambda m: isinstance(m, Mask))
            failed = until(lambda m: isinstance(m, Status) and m.intake is not None).intake
            assert (failed.state, failed.endpoint) == ("failed", config.intake.endpoint)
            assert "locked" in failed.detail
            assert "tried again in" in failed.detail
            other.execute("ROLLBACK")
            until(lambda m: isinstance(m, Event) and m.kind == "intake_opened")
            with (
                LabelClient(config.intake.endpoint, timeout_s=PATIENCE_S) as client,
                pytest.raises(LabelRefusedError, match="'nothing'"),
            ):
                client.delete("nothing")
            until(lambda m: isinstance(m, Status) and m.intake.state == "running")
            seen += list(messages)
    assert daemon.code == OK
    assert len([m for m in seen if isinstance(m, Mask)]) == 150


def test_the_spool_stands_where_programs_keep_their_state(tmp_path):
    config = Config()
    assert spool_folder(config, {"XDG_STATE_HOME": "/s"}) == Path("/s/atlasd/spool/main")
    assert spool_folder(config, {}) == Path.home() / ".local/state/atlasd/spool/main"


def test_a_public_address_is_refused(tmp_path, checkpoint, caplog):
    video = write_video(tmp_path / "a.mp4", 0.2)
    config = tiny_config(checkpoint, video, "tcp://0.0.0.0:0")
    assert "other machines" in refused(config, caplog)


def test_a_stream_that_breaks_is_an_event_and_another_exit_code(
    tmp_path, checkpoint, endpoint, monkeypatch
):
    def broken(self):
        raise MediaError("the disk went away")

    video = write_video(tmp_path / "a.mp4", 0.2)
    monkeypatch.setattr(FileSource, "__iter__", broken)
    messages, code = everything(tiny_config(checkpoint, video, endpoint))
    failed = [m for m in messages if isinstance(m, Event) and m.kind == "failed"]
    assert code == FAILED
    assert failed[0].detail == "the disk went away"


def spawn(config: Config, tmp_path: Path) -> subprocess.Popen:
    """`atlasd run` as a user starts it."""
    settings = tmp_path / "config.json"  # YAML reads JSON
    settings.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "atlasd.tools.cli", "run", "--config", str(settings)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_sigterm_drains_says_goodbye_and_exits_cleanly(tmp_path, checkpoint, endpoint):
    video = write_video(tmp_path / "a.mp4", 60.0, size=(32, 32), fps=10)
    config = tiny_config(
        checkpoint, video, endpoint, "source.pace=real", f"run.out={tmp_path / 'out'}"
    )
    kinds = (Mask, Event)
    with (
        spawn(waiting(config), tmp_path) as daemon,
        subscribe(endpoint, kinds=kinds, mode="all", timeout_s=PATIENCE_S) as subscription,
    ):
        messages = []
        for message in subscription:
            messages.append(message)
            if len(messages) == 3:
                daemon.send_signal(signal.SIGTERM)
        _, log = daemon.communicate(timeout=PATIENCE_S)
    masks = [m for m in messages if isinstance(m, Mask)]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert daemon.returncode == 0
    assert messages[-1].kind == "goodbye"
    assert summary["ending"] == "stopped by SIGTERM"
    assert summary["masks"] == len(masks) < 600
    assert [m.seq for m in masks] == list(range(len(masks)))
    assert "Traceback" not in log


def test_a_second_signal_kills_at_once():
    script = (
        "import os, signal\n"
        "from atlasd.daemon.signals import Signals\n"
        "with Signals() as signals:\n"
        "    signals.call(lambda: print('draining', flush=True))\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert signals.received == 'SIGTERM'\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == -signal.SIGINT
    assert done.stdout == "draining\n"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_thousand_frames_all_arrive(tmp_path, checkpoint, endpoint):
    video = write_video(tmp_path / "a.mp4", 80.0, size=(32, 32), options={"preset": "ultrafast"})
    messages, code = everything(tiny_config(checkpoint, video, endpoint))
    masks = [m for m in messages if isinstance(m, Mask)]
    assert code == OK
    assert [m.frame.index for m in masks] == list(range(2000))
    assert sum(m.gap for m in masks) == 0

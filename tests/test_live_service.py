"""The daemon on live sources: it waits for them, comes back to them, and tells no password."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from atlasd.daemon.client import subscribe
from atlasd.daemon.config import ConfigError, dump_config, load_config
from atlasd.daemon.messages import Event, Hello, Mask, Status
from atlasd.daemon.publisher import Publisher
from atlasd.daemon.service import FAILED, OK, REFUSED, run
from media import write_video
from served import tiny_checkpoint, tiny_config
from webserver import WebServer, file_answer, jpeg, mjpeg, paced_ts, part

pytestmark = pytest.mark.slow  # streams run in real time

PATIENCE_S = 60.0
KINDS = (Mask, Event, Hello, Status)
SECRET = "s3cr3t-pass"  # noqa: S105
TOKEN = "t0k3n-value"  # noqa: S105


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def endpoint(tmp_path) -> str:
    return f"ipc://{tmp_path}/bus"


@contextmanager
def daemon(tmp_path: Path, config, **environ: str):
    """`atlasd run` as a person starts it, with its configuration in a file."""
    settings = tmp_path / "settings.yaml"
    settings.write_text(json.dumps(config.model_dump(mode="json")))
    log = tmp_path / "log.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "atlasd.tools.cli", "-v", "run", "--config", str(settings)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environ},
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


class Daemon:
    """`run` in a thread of its own; it ends when its source is given up."""

    def __init__(self, config):
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run, args=(config,))

    def _run(self, config):
        self.code = run(config)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, kind, error, traceback):
        self._thread.join(PATIENCE_S)


def brief(checkpoint, uri, endpoint, *overrides):
    """A configuration that gives a source up soon after its server has gone."""
    return tiny_config(
        checkpoint,
        uri,
        endpoint,
        "source.stall_timeout_s=2",
        "source.reconnect_max_s=0.2",
        "source.reconnect_limit=3",
        "publish.status_interval_s=0.2",
        *overrides,
    )


def collect(config, until, seconds: float = PATIENCE_S) -> list:
    """Messages until one makes ``until`` true."""
    messages: list = []
    deadline = time.monotonic() + seconds
    with subscribe(
        config.publish.endpoint, kinds=KINDS, mode="all", timeout_s=seconds
    ) as subscription:
        for message in subscription:
            messages.append(message)
            if until(messages) or time.monotonic() > deadline:
                break
    return messages


def events(messages, kind: str) -> list[Event]:
    return [m for m in messages if isinstance(m, Event) and m.kind == kind]


def masks(messages) -> list[Mask]:
    return [m for m in messages if isinstance(m, Mask)]


def details(messages) -> list[str]:
    return [m.detail for m in messages if isinstance(m, Status)]


def child_of(pid: int) -> int:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            command = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == pid and b"capturechild" in command:
            return int(path.parent.name)
    raise AssertionError("the daemon has no capture process")


def test_a_camera_is_served_fresh_lost_and_found(tmp_path, checkpoint, endpoint):
    """Masks, a cut cable, masks in a new epoch; at last the server goes, and that is told."""
    out = tmp_path / "out"
    with daemon_on(mjpeg(fps=20), checkpoint, endpoint, f"run.out={out}") as (server, config, life):
        seen = collect(config, lambda m: len(masks(m)) >= 20)
        server.cut()
        seen += collect(config, lambda m: sum(mask.epoch == 1 for mask in masks(m)) >= 20)
    assert life.code == FAILED
    hello = next(m for m in seen if isinstance(m, Hello))
    assert (hello.source, hello.frame_size, hello.has_audio) == ("live", (64, 48), False)
    assert {mask.epoch for mask in masks(seen)} == {0, 1}
    assert events(seen, "reconnect")
    assert events(seen, "epoch")
    ages = sorted((mask.publish_ns - mask.capture_ns) / 1e6 for mask in masks(seen))
    assert ages[len(ages) // 2] < 300
    summary = json.loads((out / "summary.json").read_text())
    assert "given up after 3 attempts" in summary["ending"]
    assert summary["epochs"] == 1
    assert summary["troubles"]["reconnect"] >= 4
    assert {"decode", "sync_wait", "queue", "infer"} <= set(summary["latency_ms"])


@contextmanager
def daemon_on(answer, checkpoint, endpoint, *overrides):
    """A server, the configuration of a daemon on it, and its life, which ends after the server."""
    with WebServer(answer) as server:
        config = brief(checkpoint, server.url(f"/cam?token={TOKEN}"), endpoint, *overrides)
        with Daemon(config) as life:
            try:
                yield server, config, life
            finally:
                server.close()


@pytest.mark.slow
def test_sigterm_ends_a_live_daemon_promptly(tmp_path, checkpoint, endpoint):
    with WebServer(mjpeg(fps=20)) as server:
        config = tiny_config(checkpoint, server.url(), endpoint)
        with daemon(tmp_path, config) as process:
            collect(config, lambda m: len(masks(m)) >= 5)
            child = child_of(process.pid)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == OK
            assert time.monotonic() - began < 5.0
    assert not Path(f"/proc/{child}").exists()


def test_a_camera_that_comes_later_is_waited_for(checkpoint, endpoint, caplog):
    """At boot the network is often not there yet: the log says so at once, and masks follow."""
    caplog.set_level("INFO")
    is_there = threading.Event()

    def later(visit):
        if is_there.is_set():
            mjpeg(fps=20)(visit)

    patient = "source.reconnect_limit=15"
    with daemon_on(later, checkpoint, endpoint, patient) as (_, config, _):
        seen = collect(config, lambda m: len(events(m, "reconnect")) >= 2)
        assert not masks(seen)
        assert all(h.frame_size is None for h in seen if isinstance(h, Hello))
        assert "not reached yet" in caplog.text
        assert "attempt 1 in" in caplog.text
        collect(config, lambda m: any("lost: " in d for d in details(m)))
        is_there.set()
        seen = collect(config, lambda m: masks(m) and details(m) and "lost: " not in details(m)[-1])
    assert masks(seen)[0].epoch == 1
    hellos = [m for m in seen if isinstance(m, Hello)]
    assert hellos[-1].frame_size == (64, 48)


def test_a_camera_that_grows_says_hello_again(checkpoint, endpoint):
    def grows(visit):
        visit.head("multipart/x-mixed-replace; boundary=pictures")
        index = 0
        while visit.hold(0.05):
            visit.send(part(jpeg(100, (64, 48) if index < 40 else (96, 80))))
            index += 1

    with daemon_on(grows, checkpoint, endpoint) as (_, config, _):
        seen = collect(config, lambda m: any(x.frame.w == 96 for x in masks(m)))
        seen += collect(config, lambda m: any(isinstance(x, Hello) for x in m))
    sizes = {m.frame_size for m in seen if isinstance(m, Hello)}
    assert sizes >= {(64, 48), (96, 80)}


def test_a_file_on_a_web_server_is_served_whole_and_ends(tmp_path, checkpoint, endpoint):
    video = write_video(tmp_path / "a.mp4", 1.0)
    out = tmp_path / "out"
    with WebServer(file_answer(video)) as server:
        config = tiny_config(checkpoint, server.url("/a.mp4"), endpoint, f"run.out={out}")
        assert run(config) == OK
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["masks"], summary["ending"]) == (25, "the stream has ended")


def test_without_reconnection_failures_are_final(tmp_path, checkpoint, endpoint, caplog):
    off = "source.reconnect_limit=0"
    with WebServer(lambda visit: None) as server:
        assert run(tiny_config(checkpoint, server.url(), endpoint, off)) == REFUSED
    assert "cannot start" in caplog.text
    with WebServer(mjpeg(fps=50, count=30)) as server:
        assert run(tiny_config(checkpoint, server.url(), endpoint, off)) == FAILED


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("gopher://h/x", "begins with gopher"),
        ("rtsp://", "no host"),
        ("srt://127.0.0.1:9", "no srt"),
    ],
)
def test_what_can_never_open_is_refused_at_once(checkpoint, endpoint, caplog, uri, words):
    assert run(tiny_config(checkpoint, uri, endpoint)) == REFUSED
    assert words in caplog.text


def test_a_path_is_not_live(tmp_path, checkpoint, endpoint, caplog):
    video = write_video(tmp_path / "a.mp4", 0.2)
    assert run(tiny_config(checkpoint, video, endpoint, "source.kind=live")) == REFUSED
    assert "source.policy to live" in caplog.text


@pytest.mark.parametrize(
    "overrides", [["source.kind=live"], ["source.uri=rtsp://cam/1"], ["source.uri=SRT://cam:9"]]
)
def test_what_is_live_cannot_be_repeated(overrides):
    with pytest.raises(ConfigError, match="no end to begin again"):
        load_config(overrides=[*overrides, "source.repeat=true"])
    assert load_config(overrides=["source.uri=rtsp://nvr/1", "source.kind=file"])


def test_a_web_camera_cannot_be_repeated_either(checkpoint, endpoint, caplog):
    with WebServer(mjpeg(fps=20)) as server:
        config = tiny_config(checkpoint, server.url(), endpoint, "source.repeat=true")
        assert run(config) == REFUSED
    assert "has no end to begin again at" in caplog.text


def silent(visit):
    visit.hold()


def test_a_signal_ends_an_opening_that_hangs_and_the_bus_tells_of_it(
    tmp_path, checkpoint, endpoint
):
    """Until then who asks hears what is waited for."""
    with WebServer(silent, reads=False) as server:
        uri = server.url(scheme="rtsp")
        patient = "source.open_timeout_s=60"
        config = tiny_config(checkpoint, uri, endpoint, patient, "publish.status_interval_s=0.1")
        with daemon(tmp_path, config) as process:
            seen = collect(config, lambda m: any(d == f"opening {uri}" for d in details(m)))
            assert {m.state for m in seen if isinstance(m, Status)} == {"starting"}
            wait_for(lambda: server.visits)
            child = child_of(process.pid)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == OK
            assert time.monotonic() - began < 8.0
    assert not Path(f"/proc/{child}").exists()
    assert "stopped by SIGTERM before the source was open" in (tmp_path / "log.txt").read_text()


def test_an_address_in_use_is_refused_before_anything_is_opened(checkpoint, endpoint, caplog):
    with WebServer(silent) as server, Publisher(endpoint):
        assert run(tiny_config(checkpoint, server.url(), endpoint)) == REFUSED
        assert server.visits == 0
    assert "in use" in caplog.text


def wait_for(condition, seconds: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def test_a_camera_that_answers_with_a_picture_while_it_starts_up_is_awaited(checkpoint, endpoint):
    """A proxy's placeholder has a length, like a file; the stream is no file for that."""

    def placeholder(visit):
        data = jpeg(90)
        visit.head("image/jpeg", Content_Length=len(data))
        visit.send(data)

    with daemon_on(mjpeg(fps=20), checkpoint, endpoint, "source.reconnect_limit=20") as (
        server,
        config,
        life,
    ):
        collect(config, lambda m: len(masks(m)) >= 5)
        server.answer = placeholder
        visits = server.visits
        server.cut()
        wait_for(lambda: server.visits >= visits + 2)
        server.answer = mjpeg(fps=20)
        seen = collect(config, lambda m: sum(mask.epoch >= 1 for mask in masks(m)) >= 20)
        assert life.code is None
    assert seen


def test_a_web_file_whose_server_comes_later_is_served_whole(tmp_path, checkpoint, endpoint):
    video = write_video(tmp_path / "a.mp4", 1.0)
    out = tmp_path / "out"
    with WebServer(lambda visit: None) as server:
        patient = ("source.reconnect_max_s=0.2", "publish.wait_for_subscriber_s=30")
        config = tiny_config(checkpoint, server.url("/a.mp4"), endpoint, f"run.out={out}", *patient)
        with Daemon(config) as life:
            wait_for(lambda: server.visits >= 2)
            server.answer = file_answer(video)
            seen = collect(config, lambda m: bool(events(m, "eos")))
    assert life.code == OK
    assert [mask.frame.index for mask in masks(seen)] == list(range(25))
    assert [m.source for m in seen if isinstance(m, Hello)][-1] == "file"
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["masks"], summary["ending"]) == (25, "the stream has ended")


def test_a_rate_that_changes_with_a_reconnect_is_said_in_hello(tmp_path, checkpoint, endpoint):
    fast = write_video(tmp_path / "fast.ts", 3.0, fps=25)
    slow = write_video(tmp_path / "slow.ts", 4.0, fps=10)
    with daemon_on(paced_ts(fast), checkpoint, endpoint) as (server, config, _):
        seen = collect(config, lambda m: len(masks(m)) >= 5)
        server.answer = paced_ts(slow)
        seen += collect(config, lambda m: sum(mask.epoch >= 1 for mask in masks(m)) >= 3)
        seen += collect(config, lambda m: any(isinstance(x, Hello) for x in m))
    rates = [m.fps for m in seen if isinstance(m, Hello)]
    assert (rates[0], rates[-1]) == (pytest.approx(25, abs=0.5), pytest.approx(10, abs=0.5))


@pytest.mark.slow
@pytest.mark.parametrize("answers", ["refuses", "closes", "serves"])
def test_no_output_holds_a_password(tmp_path, checkpoint, endpoint, answers):
    """Log, run folder, bus and command lines are searched, of failures and of a life."""

    def refuses(visit):
        visit.send(b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=x\r\n\r\n")

    answer = {"refuses": refuses, "closes": lambda visit: None, "serves": mjpeg(fps=20, count=30)}
    out = tmp_path / "out"
    with WebServer(answer[answers]) as server:
        uri = server.url(f"/cam?token={TOKEN}", account=f"joe:{SECRET}")
        base = tiny_config(
            checkpoint, "placeholder.mp4", endpoint, "source.reconnect_max_s=0.3", f"run.out={out}"
        )
        with daemon(tmp_path, base, ATLASD_SOURCE__URI=uri) as process:
            seen = collect(base, lambda m: len(events(m, "reconnect")) >= 2)
            commands = b""
            if answers == "serves":
                collect(base, lambda m: bool(masks(m)))
                commands = Path(f"/proc/{child_of(process.pid)}/cmdline").read_bytes()
            commands += Path(f"/proc/{process.pid}/cmdline").read_bytes()
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == OK
    told = [repr(message) for message in seen]
    told += [path.read_text() for path in out.iterdir()]
    told += [(tmp_path / "log.txt").read_text(), commands.decode()]
    assert len(list(out.iterdir())) == 2
    for text in told:
        assert SECRET not in text
        assert TOKEN not in text
        assert "joe" not in text.replace("joel", "")
    log = (tmp_path / "log.txt").read_text()
    assert f"***@127.0.0.1:{server.port}/cam?token=***" in log
    kept = (out / "config.yaml").read_text()
    assert "***@127.0.0.1" in kept
    assert "ATLASD_SOURCE__URI" in kept


def test_configuration_errors_and_dumps_hold_no_password(tmp_path):
    uri = f"rtsp://joe:{SECRET}@cam/x?token={TOKEN}"
    for overrides in (
        [f"source.uri={uri}", "model.batch=4", "source.policy=live"],
        [f"source.uri={uri}", "source.transport=pigeon"],
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(overrides=overrides)
        assert SECRET not in str(caught.value)
        assert TOKEN not in str(caught.value)
    settings = tmp_path / "c.yaml"
    settings.write_text(f"source:\n  uri: [{uri}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(settings)
    assert SECRET not in str(caught.value)
    config = load_config(environ={"ATLASD_SOURCE__URI": uri})
    assert config.source.uri == uri
    assert SECRET not in dump_config(config)
    assert TOKEN not in dump_config(config)

"""A source in a process of its own: what it gives comes over, and nothing it does can hang us."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from atlasd.streams.captureprocess import ProcessSource
from atlasd.streams.clips import VideoFrame
from atlasd.streams.networkoptions import NetworkOptions
from atlasd.streams.sources import AbandonedError, MediaError, Quiet, UnsupportedError
from media import write_video
from webserver import WebServer, file_answer, mjpeg

PATIENCE_S = 30.0


def process(address: str, **how) -> ProcessSource:
    named = {k: how.pop(k) for k in ("open_timeout_s", "stall_timeout_s") if k in how}
    options = NetworkOptions(address, image_size_px=(32, 32), **how, **named)
    return ProcessSource(options.to_map(), label="the camera", **named)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that waits to be reaped has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def until(condition, seconds: float = PATIENCE_S) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def pictures(source: ProcessSource, count: int) -> list[VideoFrame]:
    found = []
    for event in source:
        if isinstance(event, VideoFrame):
            found.append(event)
        if len(found) == count:
            break
    return found


def test_pictures_of_a_camera_come_over_with_their_moments():
    with WebServer(mjpeg(fps=25)) as server, process(server.url()) as source:
        assert source.opened().kind == "live"
        assert (source.has_audio, source.source_size_px) == (False, (64, 48))
        frames = pictures(source, 30)
    assert [frame.index for frame in frames] == list(range(30))
    assert {frame.image.shape for frame in frames} == {(32, 32, 3)}
    assert all(frame.image.flags.writeable for frame in frames)
    shades = [int(frame.image.mean()) for frame in frames]
    steps = [b - a for a, b in itertools.pairwise(shades)]
    assert all(1 <= step <= 5 for step in steps[9:])
    now_ns = time.monotonic_ns()
    assert all(0 < now_ns - frame.capture_ns < 60e9 for frame in frames)
    spacing = (frames[-1].pts_ns - frames[10].pts_ns) / 19 / 1e6
    assert spacing == pytest.approx(40, abs=8)


def test_a_file_on_a_web_server_comes_whole_and_ends(tmp_path):
    video = write_video(tmp_path / "a.mp4", 1.0)
    with WebServer(file_answer(video)) as server, process(server.url("/a.mp4")) as source:
        assert source.opened().kind == "file"
        assert source.has_audio
        frames = [event for event in source if isinstance(event, VideoFrame)]
    assert [frame.pts_ns // 1_000_000 for frame in frames] == list(range(0, 1000, 40))


@pytest.mark.slow
def test_nothing_comes_as_quiet_often_enough_to_look_at_the_clock():
    with WebServer(mjpeg(fps=1)) as server, process(server.url()) as source:
        source.opened()
        seen = [type(event) for event, _ in zip(source, range(12), strict=False)]
    assert seen.count(Quiet) >= 8


def test_a_child_that_is_killed_is_told_and_leaves_nothing():
    with WebServer(mjpeg()) as server:
        source = process(server.url())
        events = iter(source)
        next(events)
        os.kill(source.pid, signal.SIGKILL)
        with pytest.raises(MediaError, match=r"the camera was lost: .*SIGKILL"):
            for _ in events:
                pass
        source.close()
    assert is_gone(source.pid)


def test_closing_ends_a_child_that_reads_and_one_that_still_opens():
    with WebServer(mjpeg()) as server:
        reading = process(server.url())
        next(iter(reading))
        opening = process(server.url())
        for source in (reading, opening):
            began = time.monotonic()
            source.close()
            source.close()
            assert time.monotonic() - began < 3.0
            assert is_gone(source.pid)


def test_a_machine_without_a_file_left_is_told_as_an_opening_that_failed():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    spare = [os.open("/dev/null", os.O_RDONLY) for _ in range(in_use)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 1, hard))
    try:
        with pytest.raises(MediaError, match="no process can be started to read it: Too many open"):
            process("http://127.0.0.1:9/")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in spare:
            os.close(fd)


def test_an_opening_that_is_not_wanted_any_more_ends_with_its_process():
    with WebServer(lambda visit: visit.hold()) as server:
        source = process(server.url())
        asked = itertools.count()
        began = time.monotonic()
        with pytest.raises(AbandonedError, match="the camera was not awaited"):
            source.opened(lambda: next(asked) < 3)
        assert time.monotonic() - began < 3.0
    assert is_gone(source.pid)


@pytest.mark.slow
def test_a_process_that_says_nothing_more_and_cannot_be_killed_is_told(monkeypatch):
    """In a driver that does not let go a process outlives SIGKILL; here the signal goes astray."""
    mute = (sys.executable, "-c", "import os, time; os.close(1); time.sleep(60)")
    source = ProcessSource({}, label="the camera", command=mute)
    with monkeypatch.context() as undying:
        undying.setattr(subprocess.Popen, "kill", lambda self: None)
        with pytest.raises(MediaError, match="says nothing more and cannot be killed"):
            source.opened()
    os.kill(source.pid, signal.SIGKILL)
    source._child.wait(10)


def test_the_child_dies_with_its_parent():
    script = (
        "import sys\n"
        "from atlasd.streams.captureprocess import ProcessSource\n"
        "from atlasd.streams.networkoptions import NetworkOptions\n"
        "s = ProcessSource(NetworkOptions(sys.argv[1]).to_map(), label='x').opened()\n"
        "print(s.pid, flush=True)\n"
        "for _ in s: pass\n"
    )
    with WebServer(mjpeg()) as server:
        parent = subprocess.Popen(
            [sys.executable, "-c", script, server.url()], stdout=subprocess.PIPE
        )
        pid = int(parent.stdout.readline())
        assert not is_gone(pid)
        parent.kill()
        parent.wait()
        parent.stdout.close()
        assert until(lambda: is_gone(pid), 5.0)


def test_the_command_line_of_the_child_tells_nothing(monkeypatch):
    monkeypatch.setenv("ATLASD_SOURCE__URI", "http://joe:s3cret@127.0.0.1/")
    with WebServer(mjpeg()) as server, process(server.url(account="joe:s3cret")) as source:
        source.opened()
        told = Path(f"/proc/{source.pid}/cmdline").read_bytes()
        told += Path(f"/proc/{source.pid}/environ").read_bytes()
    assert b"s3cret" not in told
    assert b"127.0.0.1" not in told


def test_a_child_that_is_no_child_of_ours_is_told():
    noise = (sys.executable, "-c", "import sys; sys.stdin.buffer.read(4); print('x' * 100)")
    source = ProcessSource({}, label="the camera", command=noise)
    with pytest.raises(MediaError, match="the camera was garbled"):
        source.opened()
    silent = (sys.executable, "-c", "raise SystemExit('no module named so')")
    source = ProcessSource({}, label="the camera", command=silent)
    with pytest.raises(MediaError, match="exit code 1: no module named so"):
        source.opened()


def test_a_kind_that_nobody_reads_is_refused_for_good():
    source = ProcessSource({"kind": "telepathy"}, label="x")
    with pytest.raises(UnsupportedError, match=r"telepathy.*network"):
        source.opened()


def test_the_child_imports_nothing_heavy():
    """It starts at every attempt: no torch, no OpenCV, no configuration."""
    names = ["torch", "cv2", "pydantic", "zmq", "yaml", "PIL"]
    script = (
        "import sys, atlasd.streams.capturechild, atlasd.streams.network\n"
        f"print([name for name in {names} if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert told.stdout.decode().strip() == "[]"

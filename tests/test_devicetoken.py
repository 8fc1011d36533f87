"""The device token between real processes: one computes at a time, masks first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from atlasd.daemon import devicetoken
from atlasd.daemon.config import load_config
from atlasd.daemon.devicetoken import FrameToken, StepToken
from atlasd.daemon.engine import TorchEngine, Weights
from atlasd.daemon.onlinelearner import LearnSettings, OnlineLearner
from atlasd.daemon.parts import token_path
from atlasd.streams.clips import AudioWindow, Sample, VideoFrame
from atlasd.streams.toyworld import make_clip
from served import tiny_network

HERE = Path(__file__).parent
MS = 1_000_000

LEARNS = """
import json, sys, time
from contextlib import contextmanager
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from served import tiny_network
from atlasd.daemon.devicetoken import StepToken
from atlasd.daemon.onlinelearner import LearnSettings, OnlineLearner
from atlasd.streams.toyworld import make_clip
torch.set_num_threads(1)
folder = Path(sys.argv[1])
token = StepToken(folder / "device")
spans = []
@contextmanager
def part(name):
    with token.held(name):
        began = time.monotonic_ns()
        yield
        spans.append((began, time.monotonic_ns()))
learner = OnlineLearner(tiny_network(), LearnSettings(passes=1), part=part)
clips = [make_clip(0, size_px=64, kind="plain").labeled_clip()]
batches = learner.batches(clips)
print("ready", flush=True)
while not (folder / "stop").exists():
    learner.score(batches)
    learner.learn(clips, batches, 0)
(folder / "spans.json").write_text(json.dumps(spans))
"""
HOLDS = """
import sys, time
from pathlib import Path
from atlasd.daemon.devicetoken import StepToken
with StepToken(Path(sys.argv[1]) / "device").held("step"):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def process(script: str, folder: Path, word: str):
    """A learner's process that has said so much."""
    made = subprocess.Popen(
        [sys.executable, "-c", script, str(folder), str(HERE)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert made.stdout.readline().strip() == word
        yield made
    finally:
        made.kill()
        made.wait()
        made.stdout.close()


@pytest.mark.slow
def test_no_part_of_a_step_overlaps_a_forward_pass_and_a_frame_waits_for_one_at_most(tmp_path):
    token = FrameToken(tmp_path / "device")
    network = tiny_network()
    shown = OnlineLearner(network, LearnSettings())
    batch = shown.batches([make_clip(1, size_px=64, kind="plain").labeled_clip()])
    forwards, waits = [], []
    with process(LEARNS, tmp_path, "ready") as learner:
        due_ns = time.monotonic_ns()
        for _ in range(120):
            wanted_ns = time.monotonic_ns()
            with token.held():
                began_ns = time.monotonic_ns()
                shown.score(batch)
                forwards.append((began_ns, time.monotonic_ns()))
            waits.append((wanted_ns, began_ns))
            due_ns += 60 * MS
            time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
        (tmp_path / "stop").touch()
        learner.wait(60)
    spans = json.loads((tmp_path / "spans.json").read_text())
    assert len(spans) > 10
    for begin, end in forwards:
        assert not any(first < end and last > begin for first, last in spans)
    for begin, end in waits:
        assert sum(first < end and last > begin for first, last in spans) <= 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_learner_that_dies_or_stands_still_with_the_token_does_not_stop_masks(tmp_path, how):
    token = FrameToken(tmp_path / "device")
    with process(HOLDS, tmp_path, "held") as learner:
        os.kill(learner.pid, how)
        if how == signal.SIGKILL:
            learner.wait()
        began_ns = time.monotonic_ns()
        for _ in range(20):
            with token.held():
                pass
        took_ns = time.monotonic_ns() - began_ns
    limit_ns = devicetoken.PATIENCE_NS
    if how == signal.SIGKILL:
        assert took_ns < limit_ns
    else:
        assert limit_ns <= took_ns < 10 * limit_ns  # one frame waited, and 19 did not
    with token.held():
        pass


def test_an_engine_holds_the_token_for_each_frame_and_waiting_counts(tmp_path):
    engine = TorchEngine(tiny_network(), "cpu", 1, token=FrameToken(tmp_path / "device"))
    plain = TorchEngine(tiny_network(), "cpu", 1)
    sound = np.zeros(round(engine.window_s * engine.sample_rate_hz), np.float32)
    size = (engine.image_px, engine.image_px)
    frame = VideoFrame(np.zeros((*size, 3), np.uint8), 0, 0, "main", 0, 0, size)
    sample = Sample(frame, AudioWindow(sound, engine.sample_rate_hz, 0, 10**9, "ok"))
    with process(HOLDS, tmp_path, "held"):
        waited, *_ = engine.infer([sample])
        assert waited.pre_ms >= devicetoken.PATIENCE_NS / MS
    (alone,) = plain.infer([sample])
    (free,) = engine.infer([sample])
    assert alone.logits.tobytes() == free.logits.tobytes() == waited.logits.tobytes()
    assert (tmp_path / "device").stat().st_mode & 0o777 == 0o600
    engine.close()
    plain.close()


def test_a_swap_holds_the_token_and_is_not_taken_for_a_frame(tmp_path, monkeypatch):
    """The next frame is expected by the pace of frames, whatever comes between."""
    token = FrameToken(tmp_path / "device")
    engine = TorchEngine(tiny_network(), "cpu", 1, token=token)
    name = next(name for name in engine.layout if name.endswith("bias"))
    shape, _ = engine.layout[name]
    other = Weights("other", engine.categories, {name: np.ones(shape, np.float32)})
    with process(HOLDS, tmp_path, "held"):
        assert engine.swap(other) >= devicetoken.PATIENCE_NS / MS
    assert engine.version == "other"
    assert (engine.network.state_dict()[name] == 1).all()
    assert devicetoken._Board(tmp_path / "device").read() == (False, 0)  # no frame came yet
    engine.close()


def test_a_learner_learns_the_same_bits_with_the_token(tmp_path):
    def learned(part) -> dict[str, torch.Tensor]:
        learner = OnlineLearner(tiny_network(), LearnSettings(), **part)
        for seed in range(3):
            clips = [make_clip(seed, size_px=64, kind="plain").labeled_clip()]
            learner.learn(clips, learner.batches(clips), seed)
        learner.consolidate()
        return dict(learner.state().tensors)

    plain = learned({})
    sliced = learned({"part": StepToken(tmp_path / "device").held})
    assert plain.keys() == sliced.keys()
    assert all(torch.equal(plain[name], sliced[name]) for name in plain)


class Clock:
    """A clock that frames and parts turn on."""

    def __init__(self):
        self.ns = 10_000 * MS

    def __call__(self):
        return self.ns


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def sides(tmp_path, clock, monkeypatch):
    """Both sides in one process; waiting turns the clock on."""

    def turn_on(seconds):
        clock.ns += round(seconds * 1e9)

    monkeypatch.setattr(devicetoken.time, "sleep", turn_on)
    return FrameToken(tmp_path / "device", clock), StepToken(tmp_path / "device", clock=clock)


def frames(token, clock, count=4, period_ms=40, takes_ms=10):
    for _ in range(count):
        with token.held():
            clock.ns += takes_ms * MS
        clock.ns += (period_ms - takes_ms) * MS
    clock.ns -= (period_ms - takes_ms) * MS  # the last frame has just been shown


def part(token, clock, takes_ms):
    """When a part began, in milliseconds from now."""
    before = clock.ns
    with token.held("part"):
        began = clock.ns
        clock.ns += takes_ms * MS
    return (began - before) / MS


def test_a_part_begins_only_where_it_fits_before_the_next_frame(sides, clock):
    frame, step = sides
    frames(frame, clock)
    assert part(step, clock, 20) == 0  # nothing is known of it
    assert step.p95_ns("part") == 20 * MS
    # The next frame is due in 10 ms: too little. None comes: after a second without any it begins.
    assert part(step, clock, 20) == pytest.approx(1011, abs=2)
    frames(frame, clock)
    assert part(step, clock, 29) == 0
    frames(frame, clock)
    assert part(step, clock, 29) == 0


def test_a_part_that_never_fits_begins_behind_a_frame_once_in_a_while(sides, clock, monkeypatch):
    frame, step = sides
    frames(frame, clock)
    part(step, clock, 500)
    frames(frame, clock)
    begun = clock.ns
    shown = [0]

    def turn_on(seconds):
        clock.ns += round(seconds * 1e9)
        if clock.ns - begun >= (shown[0] + 1) * 40 * MS:
            shown[0] += 1
            with frame.held():
                clock.ns += 10 * MS

    monkeypatch.setattr(devicetoken.time, "sleep", turn_on)
    waited = part(step, clock, 500)
    assert 1000 <= waited < 1060
    assert shown[0] > 15


def test_where_no_frames_come_parts_do_not_wait(sides, clock):
    frame, step = sides
    assert part(step, clock, 100) == 0
    assert part(step, clock, 100) == 0
    frames(frame, clock)
    clock.ns += 3000 * MS
    assert part(step, clock, 100) == 0


@pytest.mark.parametrize(
    ("token", "devices", "wanted"),
    [
        ("auto", ("cpu", "cpu"), False),
        ("never", ("cpu", "cpu"), False),
        ("always", ("cpu", "cpu"), True),
    ],
)
def test_the_token_is_for_a_gpu_that_both_use_or_where_it_is_asked_for(
    tmp_path, token, devices, wanted
):
    config = load_config(
        overrides=[
            "intake.enabled=true",
            f"intake.spool={tmp_path / 'spool'}",
            "learner.enabled=true",
            f"learner.token={token}",
            f"model.device={devices[0]}",
            f"learner.device={devices[1]}",
        ]
    )
    path = token_path(config)
    assert (path is not None) is wanted
    if path is not None:
        assert path.parent.stat().st_mode & 0o777 == 0o700

"""A daemon and a learner on one spool that are really killed, at random moments."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from atlasd.daemon.spool import Spool
from spools import ids

PATIENCE_S = 60.0

DAEMON = """
import sys
from pathlib import Path
from atlasd.daemon.spoolclips import SpoolClips
root, first = Path(sys.argv[1]), int(sys.argv[2])
spool = SpoolClips(root / "spool")
acknowledged = (root / "acknowledged").open("a")
print("ready", flush=True)
for number in range(first, 10**9):
    name = f"clip-{number}"
    for _ in range(2):  # as a labeler does that missed the first answer
        spool.append(name, name.encode() * 2000)
    acknowledged.write(name + "\\n")
    acknowledged.flush()
"""

LEARNER = """
import json, sys, time
from pathlib import Path
from atlasd.daemon.spool import Spool
root = Path(sys.argv[1])
checkpoint = root / "checkpoint.json"
state = {"cursor": 0, "learned": [], "kept": [0]}
if checkpoint.exists():
    state = json.loads(checkpoint.read_text())
spool = Spool(root / "spool")
spool.finish(state["cursor"], min(state["kept"]))
print("ready", flush=True)
while True:
    batch = spool.next_batch(state["cursor"], 3, 5)
    if batch is None:
        time.sleep(0.001)
        continue
    state["learned"] += [clip.id for clip in batch.clips]
    state["cursor"] = batch.number
    if batch.number % 2 == 0:  # the checkpoint comes after several batches
        state["kept"] = [*state["kept"], batch.number][-2:]
        part = checkpoint.with_suffix(".part")
        part.write_text(json.dumps(state))
        part.replace(checkpoint)
        spool.finish(batch.number, min(state["kept"]))
"""


@contextmanager
def at_work(script: str, *words: str):
    """A process that has begun its work; it is killed at the end, whatever happens."""
    command = [sys.executable, "-c", script, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            os.kill(process.pid, signal.SIGKILL)


def pass_time(process: subprocess.Popen, seconds: float) -> None:
    """Let it work for a moment: there is nothing to wait for but time."""
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(seconds)


def test_who_writes_without_a_pause_keeps_nobody_out(tmp_path):
    """SQLite alone let the other wait for over ten seconds."""
    with at_work(DAEMON, str(tmp_path), "0") as process, Spool(tmp_path / "spool") as spool:
        began = time.monotonic()
        for number in range(20):
            spool.append(f"mine-{number}", b"x")
            assert process.poll() is None
        assert time.monotonic() - began < PATIENCE_S


def crash_and_check(root: Path, rounds: int) -> None:
    rng = random.Random(0)
    for number in range(rounds):
        commands = [(DAEMON, str(root), str(10**6 * number)), (LEARNER, str(root))]
        rng.shuffle(commands)
        with at_work(*commands[0]) as one:
            with at_work(*commands[1]) as other:
                pass_time(other, rng.uniform(0.001, 0.12))
            pass_time(one, rng.uniform(0.001, 0.12))
    state = json.loads((root / "checkpoint.json").read_text())
    with Spool(root / "spool") as spool:
        while (batch := spool.next_batch(state["cursor"], 50, 0)) is not None:
            for clip in batch.clips:
                assert clip.payload == clip.id.encode() * 2000
            state["learned"] += ids(batch)
            state["cursor"] = batch.number
    learned, told = state["learned"], (root / "acknowledged").read_text().split()
    assert len(told) > rounds
    assert set(told) <= set(learned), "an acknowledged clip was lost"
    assert len(learned) == len(set(learned)), "a clip was learned twice"
    unacknowledged = set(learned) - set(told)
    assert len(unacknowledged) <= rounds, "at most the one that was being acknowledged"


def test_killed_at_random_moments_nothing_is_lost_and_nothing_comes_twice(tmp_path):
    crash_and_check(tmp_path, 4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_many_times_nothing_is_lost_and_nothing_comes_twice(tmp_path):
    crash_and_check(tmp_path, 40)

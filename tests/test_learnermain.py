"""The learner's process by itself."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress

import pytest
import torch
from atlasd.daemon import learnermain, spoolfile
from atlasd.daemon.infos import LearnerInfo
from atlasd.daemon.labelclips import write_clip
from atlasd.daemon.labels import Refused, pack_stored
from atlasd.daemon.learnermain import REFUSED, STOPPED, learn_settings
from atlasd.daemon.learnline import DaemonEnd, LearnerEnd
from atlasd.daemon.learnstore import Learned, LearnStore
from atlasd.daemon.onlinelearner import OnlineLearner
from atlasd.daemon.orders import Carried, Order
from atlasd.daemon.parts import base_importance, build_network, note_pause
from atlasd.daemon.places import learned_folder
from atlasd.daemon.spool import Spool
from atlasd.daemon.spoolfile import (
    FILE_NAME,
    BusyError,
    CorruptError,
    DiskFullError,
    StorageError,
    passes,
)
from atlasd.model.checkpoints import tensor_hash, tensors_of
from learnbench import toy
from served import tiny_checkpoint, tiny_config


def learning_config(folder):
    return tiny_config(
        tiny_checkpoint(folder),
        folder / "none.mp4",
        f"ipc://{folder}/bus",
        "intake.enabled=true",
        f"intake.endpoint=ipc://{folder}/labels",
        f"intake.spool={folder / 'spool'}",
        "learner.enabled=true",
        "learner.threads=1",
    )


@pytest.mark.slow
def test_a_learner_whose_daemon_died_before_it_was_loaded_touches_nothing(tmp_path):
    """Else it would learn for nobody, and lock out the learner of the next daemon."""
    config = learning_config(tmp_path)
    settings = tmp_path / "config.json"
    settings.write_text(config.model_dump_json())
    learner = [sys.executable, "-m", "atlasd.daemon.learnermain", f"ipc://{tmp_path}/line"]
    daemon = ["sh", "-c", '"$@" $$ <"$0" &', str(settings), *learner]
    process = subprocess.Popen(daemon, stderr=subprocess.PIPE, text=True, process_group=0)
    try:
        _, log = process.communicate(timeout=90)  # ends when the learner has
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert log == ""
    assert not (tmp_path / "spool").exists()


def learner_of(config, endpoint: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-m", "atlasd.daemon.learnermain", endpoint, str(os.getpid())],
        stdin=subprocess.PIPE,
    )
    process.stdin.write(config.model_dump_json().encode())
    process.stdin.close()
    return process


def until(line: DaemonEnd, process: subprocess.Popen, wanted) -> LearnerInfo:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        for said in line.received(200):
            if isinstance(said, LearnerInfo) and wanted(said):
                return said
        assert process.poll() is None, "it ended"
    raise AssertionError("it did not come in time")


@pytest.mark.slow
def test_a_spool_that_is_locked_for_a_while_is_waited_for_and_said(tmp_path):
    """Another process holds it for longer than SQLite waits."""
    config = learning_config(tmp_path)
    Spool(config.intake.spool).close()
    line = DaemonEnd(f"ipc://{tmp_path}/line")
    process = learner_of(config, line.endpoint)
    try:
        with closing(sqlite3.connect(config.intake.spool / FILE_NAME, isolation_level=None)) as one:
            one.execute("BEGIN EXCLUSIVE")
            halted = until(line, process, lambda info: info.state == "halted")
            assert "locked" in halted.detail
            assert "tried again in 1 s" in halted.detail
            assert line.order(Order(order="checkpoint", request=3))
            refused = next(said for said in line.received(9000) if isinstance(said, Refused))
            assert (refused.request, refused.code) == (3, "cannot")
            assert "locked" in refused.detail
            one.execute("ROLLBACK")
        until(line, process, lambda info: info.state == "waiting")
        line.stop()
        assert process.wait(60) == STOPPED
    finally:
        process.kill()
        process.wait()
        line.close()


@pytest.mark.slow
def test_a_spool_that_is_no_spool_is_not_waited_for(tmp_path):
    config = learning_config(tmp_path)
    config.intake.spool.mkdir(mode=0o700)
    (config.intake.spool / FILE_NAME).write_bytes(b"something else" * 1000)
    line = DaemonEnd(f"ipc://{tmp_path}/line")
    process = learner_of(config, line.endpoint)
    try:
        failed = until(line, process, lambda info: info.state == "failed")
        assert "damaged" in failed.detail
        assert process.wait(60) == REFUSED
    finally:
        process.kill()
        process.wait()
        line.close()


@pytest.mark.slow
def test_a_learner_that_is_ended_leaves_between_two_steps_of_a_batch_without_end(tmp_path):
    """Its clips are there, nothing counts against them, and the folder is free again."""
    config = learning_config(tmp_path)
    learner = config.learner.model_copy(update={"passes": 100, "clips": 64, "frames": 1})
    config = config.model_copy(update={"learner": learner})
    with Spool(config.intake.spool) as spool:
        for k in range(64):
            spool.append(f"clip-{k}", pack_stored(write_clip(toy(k))))
    line = DaemonEnd(f"ipc://{tmp_path}/line")
    process = learner_of(config, line.endpoint)
    try:
        until(line, process, lambda info: info.state == "learning" and info.steps > 10)
        process.terminate()
        assert process.wait(20) == STOPPED
    finally:
        process.kill()
        process.wait()
        line.close()
    with Spool(config.intake.spool) as spool:
        assert spool.status().clips == {"journaled": 64}
        assert spool.try_batch(1) == 0


@pytest.mark.slow
def test_weights_of_before_that_say_nothing_finite_are_told_and_not_begun_with_again(tmp_path):
    config = learning_config(tmp_path)
    base = build_network(config)
    store = LearnStore(learned_folder(config), keep=1)
    learner = OnlineLearner(base, learn_settings(config), importance=base_importance(config, base))
    with torch.no_grad():
        for name, parameter in learner.network.named_parameters():
            if ".lora_" in name:
                parameter.fill_(1e25)
    learned = Learned("0-bad", "", tensor_hash(tensors_of(base)), config.learner.method, 0)
    store.write(learned, learner.network, learner.state())
    line = DaemonEnd(f"ipc://{tmp_path}/line")
    process = learner_of(config, line.endpoint)
    try:
        failed = until(line, process, lambda info: info.state == "failed")
        assert "nothing finite in the form that is served" in failed.detail
        assert process.wait(60) == REFUSED
    finally:
        process.kill()
        process.wait()
        line.close()


@pytest.mark.parametrize(("name", "before"), [("resume", True), ("pause", False)])
def test_a_pause_and_its_end_are_noted_while_learning_cannot_begin(
    tmp_path, monkeypatch, name, before
):
    """Or refused, with nothing changed, where the spool is what stands in the way."""
    config = learning_config(tmp_path)
    monkeypatch.setattr(spoolfile, "_BUSY_S", 0.01)
    note_pause(config, before)

    def asked():
        with closing(DaemonEnd(f"ipc://{tmp_path}/line")) as daemon:
            with LearnerEnd(daemon.endpoint) as learner:
                learner.say(LearnerInfo(state="starting"))
                next(daemon.received(9000))  # there is a line
                assert daemon.order(Order(order=name, request=3))
                learnermain._wait_out(config, learner, learnermain._Flag(), "it is full", 0.5)
            return next(s for s in daemon.received(0) if isinstance(s, Carried | Refused))

    path = config.intake.spool
    with closing(sqlite3.connect(path / FILE_NAME, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused = asked()
        assert (refused.request, refused.code) == (3, "cannot")
        assert "locked" in refused.detail
        other.execute("ROLLBACK")
    with Spool(path) as spool:
        assert spool.is_paused == before
    carried = asked()
    assert isinstance(carried, Carried)
    assert carried.order == name
    with Spool(path) as spool:
        assert spool.is_paused != before


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BusyError("locked"), True),
        (DiskFullError("full"), True),
        (OSError(errno.ENOSPC, "full"), True),
        (OSError(errno.EROFS, "read only"), False),
        (PermissionError(errno.EACCES, "no"), False),
        (StorageError("others may read it"), False),
        (CorruptError("damaged"), False),
    ],
)
def test_only_what_may_go_by_itself_is_waited_for(error, expected):
    assert passes(error) is expected

"""A daemon that learns, as real processes: weights arrive, deaths are survived, orders are done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from atlasd.daemon.client import Subscription, subscribe
from atlasd.daemon.config import Config
from atlasd.daemon.engine import TorchEngine
from atlasd.daemon.labelclient import LabelClient, LabelRefusedError
from atlasd.daemon.labelclips import write_clip
from atlasd.daemon.messages import Event, Hello, Mask, Status
from atlasd.daemon.orders import Order
from atlasd.daemon.parts import open_stream
from atlasd.daemon.pipeline import Pipeline, Result
from atlasd.daemon.spool import Spool
from atlasd.model.presets import load
from atlasd.streams.toyworld import make_clip
from atlasd.tools.film import write_film
from served import tiny_checkpoint, tiny_config

PATIENCE_S = 90.0
LEARNER = ("clips=2", "canary_wait_s=0", "checkpoint_s=0", "lr=0.01")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """An hour, so that no test sees its end."""
    return write_film(tmp_path_factory.mktemp("media") / "film.mkv")


class Live:
    """A daemon's process, and what its bus says."""

    def __init__(self, config: Config, process: subprocess.Popen, bus: Subscription):
        self.config, self.process, self._bus = config, process, bus
        self.seen: list = []

    def until(self, wanted: Callable[[object], bool]):
        """Read the bus until a message is as wanted."""
        deadline = time.monotonic() + PATIENCE_S
        for message in self._bus:
            self.seen.append(message)
            if wanted(message):
                return message
            assert time.monotonic() < deadline, "it did not come in time"
        raise AssertionError("the bus has ended")

    def event(self, kind: str, **data) -> Event:
        return self.until(
            lambda m: (
                isinstance(m, Event)
                and m.kind == kind
                and all(m.data.get(k) == v for k, v in data.items())
            )
        )

    def learner(self, wanted: Callable[[object], bool]):
        """The first status whose learner is as wanted."""
        return self.until(
            lambda m: isinstance(m, Status) and m.learner is not None and wanted(m.learner)
        ).learner

    def put(self, *seeds: int) -> None:
        with LabelClient(self.config.intake.endpoint, timeout_s=PATIENCE_S) as client:
            for seed in seeds:
                clip = make_clip(seed, size_px=64, kind="plain").labeled_clip()
                assert client.put(write_clip(clip)) == "stored"

    def order(self, name: str, **fields):
        with LabelClient(self.config.intake.endpoint, timeout_s=PATIENCE_S) as client:
            return client.order(Order(order=name, **fields))


@contextmanager
def live(config: Config, folder: Path) -> Iterator[Live]:
    settings = folder / "config.json"
    settings.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "atlasd.tools.cli", "run", "--config", str(settings)]
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(command, stderr=log)
        kinds = (Mask, Event, Hello, Status)
        with subscribe(
            config.publish.endpoint, kinds=kinds, mode="all", timeout_s=PATIENCE_S
        ) as bus:
            try:
                yield Live(config, process, bus)
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                process.wait(PATIENCE_S)


@pytest.fixture
def config(tmp_path, checkpoint, video) -> Config:
    return tiny_config(
        checkpoint,
        video,
        f"ipc://{tmp_path}/bus",
        "source.pace=real",
        "intake.enabled=true",
        f"intake.endpoint=ipc://{tmp_path}/labels",
        f"intake.spool={tmp_path / 'spool'}",
        "learner.enabled=true",
        "publish.status_interval_s=0.2",
        *(f"learner.{option}" for option in LEARNER),
    )


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] or [
        int(c)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for c in (task / "children").read_text().split()
    ]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_clips_are_learned_beside_the_masks_and_survive_every_death(tmp_path, config):
    """Only what was judged is served here, so each version stays until the next clips come."""
    learner = config.learner.model_copy(update={"canary_wait_s": 86_400})
    config = config.model_copy(update={"learner": learner})
    with live(config, tmp_path) as daemon:
        base = daemon.until(lambda m: isinstance(m, Mask)).model.version
        daemon.put(0, 1, 2, 3)
        swap = daemon.event("model_swap", batch=1)
        assert swap.data["from"] == base
        first = daemon.until(lambda m: isinstance(m, Mask) and m.model.version == swap.data["to"])
        assert first.seq > 0
        assert 0 <= swap.data["stall_ms"] < 1000 / 10
        info = daemon.learner(lambda info: info.clips == 4)
        assert os.sched_getscheduler(info.pid) == os.SCHED_IDLE
        assert os.getsid(info.pid) == os.getsid(daemon.process.pid)
        assert os.getpgid(info.pid) != os.getpgid(daemon.process.pid)
        assert info.score is not None

        daemon.put(4, 5)
        daemon.learner(lambda info: info.clips == 6)
        kept = daemon.order("checkpoint")
        assert kept.versions[-1].batch == 2
        assert "batch 3, learned since, waits" in kept.detail
        newest = kept.versions[-1].version
        daemon.until(lambda m: isinstance(m, Mask) and m.model.version == newest)

        os.kill(info.pid, signal.SIGKILL)
        died = daemon.event("learner_died")
        assert "SIGKILL" in died.detail
        assert not died.data["final"]
        again = daemon.learner(lambda i: i.state == "waiting" and i.restarts)
        assert (again.restarts, again.version) == (1, newest)
        daemon.put(6, 7)
        daemon.learner(lambda i: i.batch == 3)
        daemon.process.kill()
        daemon.process.wait()
        assert not Path(f"/proc/{again.pid}").exists() or again.pid not in children(os.getpid())

    with live(config, tmp_path) as daemon:
        mask = daemon.until(lambda m: isinstance(m, Mask))
        assert mask.model.version != base
        info = daemon.learner(lambda i: i.clips == 8)
        assert info.state in {"waiting", "learning"}
        daemon.order("checkpoint")
        back = daemon.order("rollback", version=newest)
        assert newest in back.detail
        daemon.until(lambda m: isinstance(m, Mask) and m.model.version == newest)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(PATIENCE_S) == 0
    log = (tmp_path / "log.txt").read_text()
    assert "Traceback" not in log, log
    with Spool(tmp_path / "spool") as spool:
        status = spool.status()
        assert status.clips == {"consumed": 4, "quarantined": 4}
        assert [a.number for a in status.set_aside] == [3, 4]


@pytest.mark.slow
def test_masks_after_a_swap_are_those_of_the_offline_network(tmp_path, config):
    with live(config, tmp_path) as daemon:
        daemon.put(0, 1, 2, 3)
        daemon.learner(lambda info: info.batch == 1)
        version = daemon.order("checkpoint").versions[-1]
        daemon.order("rollback", version=version.version)  # batch 2 may be served unjudged
        masks = {
            mask.pts_ns: mask
            for mask in (
                daemon.until(lambda m: isinstance(m, Mask) and m.model.version == version.version)
                for _ in range(5)
            )
        }
    network = load(Path(version.path))
    assert network.version == version.version
    engine = TorchEngine(network, "cpu", 1)
    source = open_stream(config, engine)
    with Pipeline(source, engine) as offline:
        for item in offline:
            if isinstance(item, Result) and item.sample.frame.pts_ns in masks:
                online = masks.pop(item.sample.frame.pts_ns)
                np.testing.assert_array_equal(online.array(), item.mask())
            if not masks:
                break
    assert not masks


@pytest.mark.slow
def test_a_learner_that_cannot_learn_says_why_and_masks_go_on(tmp_path, config):
    learner = config.learner.model_copy(update={"options": {"nonsense": 1}})
    with live(config.model_copy(update={"learner": learner}), tmp_path) as daemon:
        died = daemon.event("learner_died", final=True)
        assert "nonsense" in died.detail
        daemon.until(lambda m: isinstance(m, Mask))
        with pytest.raises(LabelRefusedError, match="nonsense"):
            daemon.order("checkpoint")
        daemon.put(0)


@pytest.mark.slow
def test_orders_without_a_learner_are_refused(tmp_path, config):
    learner = config.learner.model_copy(update={"enabled": False})
    with live(config.model_copy(update={"learner": learner}), tmp_path) as daemon:
        daemon.until(lambda m: isinstance(m, Mask))
        with pytest.raises(LabelRefusedError, match="--learn"):
            daemon.order("versions")

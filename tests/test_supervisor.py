"""The supervisor: a learner that dies, hangs or lies does not stop anything."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from hashlib import sha256

import msgpack
import numpy as np
import pytest
from atlasd.daemon.config import Config
from atlasd.daemon.fields import to_map
from atlasd.daemon.labels import Refused
from atlasd.daemon.learnline import Offer, WeightsRefusedError, looked_at
from atlasd.daemon.orders import Carried, Order
from atlasd.daemon.supervisor import Supervisor
from safetensors.numpy import save

PATIENCE_S = 30.0
LAYOUT = {
    "fusion.query.weight": ((2, 3), "float32"),
    "head.linear.weight": ((2, 3), "float32"),
    "head.linear.bias": ((2,), "float32"),
}

SPEAKER = """
import msgpack, os, sys, time, zmq
sys.stdin.read()
context = zmq.Context()
line = context.socket(zmq.PAIR)
line.setsockopt(zmq.LINGER, 1000)
line.connect(sys.argv[1])
def say(state, **more):
    line.send_multipart([b"info", msgpack.packb({"state": state, "pid": os.getpid(), **more})])
def end(code):
    line.close(); context.term(); sys.exit(code)
"""
OBEDIENT = """
say("waiting", clips=3)
while True:
    kind, data = line.recv_multipart()
    if kind == b"stop":
        say("waiting", clips=4)
        end(0)
    order = msgpack.unpackb(data)
    answer = {"ok": True, "v": "1.2", "request": order["request"], "order": order["order"]}
    line.send_multipart([b"answer", msgpack.packb(answer | {"detail": "done"})])
"""


class Watched:
    """A supervisor of a script, and what it announced."""

    def __init__(self, script: str, **learner):
        config = Config.model_validate(
            {"intake": {"enabled": True}, "learner": {"enabled": True, **learner}}
        )
        self.announced: list[tuple[str, str, dict]] = []
        command = (sys.executable, "-c", SPEAKER + script)
        self.supervisor = Supervisor(
            config, LAYOUT, lambda *told: self.announced.append(told), command=command
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.supervisor.close()

    def until(self, wanted: Callable[[], object]):
        deadline = time.monotonic() + PATIENCE_S
        while not (found := wanted()):
            assert time.monotonic() < deadline, self.supervisor.info()
            time.sleep(0.01)
        return found

    def state(self, state: str):
        return self.until(lambda: self.supervisor.info().state == state)

    def order(self, name: str):
        return self.supervisor.order(Order(order=name, request=77)).result(PATIENCE_S)


def offered(version: str = "1-a", categories=("dog", "cow"), **changes) -> tuple[Offer, bytes]:
    arrays = {
        name: np.full(shape, 0.5, np.float32) for name, (shape, _) in LAYOUT.items()
    } | changes
    blob = save(arrays)
    offer = Offer(
        version=version,
        parent="",
        batch=1,
        reason="learned",
        categories=categories,
        digest=sha256(blob).digest(),
    )
    return offer, blob


def test_orders_reach_the_learner_and_its_last_words_are_heard():
    with Watched(OBEDIENT) as watched:
        watched.state("waiting")
        assert watched.supervisor.info().clips == 3
        answer = watched.order("consolidate")
        assert isinstance(answer, Carried)
        assert (answer.request, answer.detail) == (77, "done")
        watched.supervisor.close()
        info = watched.supervisor.info()
        assert (info.state, info.clips, info.pid) == ("stopped", 4, 0)
        assert not watched.announced
        assert isinstance(watched.order("pause"), Refused)


def test_a_learner_that_dies_is_started_again_and_then_given_up():
    with Watched('say("waiting"); end(3)', max_restarts=1) as watched:
        watched.state("failed")
        kinds = [(kind, told["final"]) for kind, _, told in watched.announced]
        assert kinds == [("learner_died", False), ("learner_died", True)]
        assert "exit code 3" in watched.announced[0][1]
        info = watched.supervisor.info()
        assert info.restarts == 1
        assert "resume" in info.detail
        refused = watched.order("checkpoint")
        assert isinstance(refused, Refused)
        assert refused.code == "no_learner"
        assert "resume" in refused.detail
        assert isinstance(watched.order("resume"), Carried)
        watched.until(lambda: len(watched.announced) == 4)


def test_a_learner_that_cannot_learn_is_not_started_again():
    with Watched('say("failed", detail="no such method"); end(2)') as watched:
        watched.until(lambda: watched.announced)
        ((kind, detail, told),) = watched.announced
        assert (kind, told["final"]) == ("learner_died", True)
        assert detail.startswith("no such method")


def test_a_learner_that_computes_without_progress_is_killed():
    spinning = 'say("waiting")\nwhile True: pass'
    with Watched(spinning, hang_s=0.3, max_restarts=0) as watched:
        watched.state("failed")
        assert "made no progress in 0.3 s" in watched.announced[0][1]


def test_an_order_that_the_learner_dies_over_is_refused():
    with Watched('say("waiting"); line.recv_multipart(); end(9)', max_restarts=0) as watched:
        watched.state("waiting")
        answer = watched.order("checkpoint")
        assert isinstance(answer, Refused)
        assert "exit code 9" in answer.detail


def test_a_learner_that_talks_nonsense_is_killed():
    nonsense = 'line.send_multipart([b"info", b"nonsense"]); time.sleep(60)'
    with Watched(nonsense, max_restarts=0) as watched:
        watched.state("failed")
        assert "SIGKILL" in watched.announced[0][1]


def test_the_newest_good_weights_are_offered_and_bad_ones_told():
    good, bad = offered(), offered("2-b", **{"fusion.query.weight": np.zeros((2, 4), np.float32)})
    script = "".join(
        f'line.send_multipart([b"offer", {msgpack.packb(to_map(offer))!r}, {blob!r}])\n'
        for offer, blob in (good, bad)
    )
    with Watched(script + OBEDIENT) as watched:
        taken = watched.until(watched.supervisor.take)
        assert taken.offer == good[0]
        np.testing.assert_array_equal(taken.tensors["fusion.query.weight"], 0.5)
        assert watched.supervisor.take() is None
        watched.until(lambda: watched.announced)
        kind, detail, told = watched.announced[0]
        assert (kind, told) == ("weights_refused", {"version": "2-b"})
        assert "(2, 4)" in detail


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fusion.query.weight": np.full((2, 3), np.nan, np.float32)}, "not finite"),
        ({"fusion.query.weight": np.zeros((2, 3), np.float64)}, "float64"),
        ({"decoder.unknown": np.zeros(3, np.float32)}, "not served"),
        ({"head.linear.weight": np.zeros((3, 3), np.float32)}, "3 rows for 2 classes"),
        ({"head.linear.weight": np.zeros((2, 4), np.float32)}, r"\(2, 4\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes, why):
    with pytest.raises(WeightsRefusedError, match=why):
        looked_at(*offered(**changes), LAYOUT)


def test_damaged_weights_are_refused():
    offer, blob = offered()
    with pytest.raises(WeightsRefusedError, match="damaged"):
        looked_at(offer, blob[:-1] + b"\xff", LAYOUT)


def test_a_head_that_grew_is_taken():
    grown = {
        "head.linear.weight": np.zeros((3, 3), np.float32),
        "head.linear.bias": np.zeros(3, np.float32),
    }
    taken = looked_at(*offered(categories=("dog", "cow", "duck"), **grown), LAYOUT)
    assert taken.tensors["head.linear.bias"].shape == (3,)

"""The supervisor: a learner that dies, hangs or lies does not stop anything."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from hashlib import sha256

import msgpack
import numpy as np
import pytest
from atlasd.daemon import learnerlife, supervisor
from atlasd.daemon.config import Config
from atlasd.daemon.fields import to_map
from atlasd.daemon.labels import Refused
from atlasd.daemon.learnline import Offer, WeightsRefusedError, looked_at
from atlasd.daemon.orders import Carried, Order
from atlasd.daemon.spoolfile import DiskFullError
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

    def __init__(self, script: str, *, command: tuple[str, ...] = (), announce=None, **learner):
        config = Config.model_validate(
            {"intake": {"enabled": True}, "learner": {"enabled": True, **learner}}
        )
        self.announced: list[tuple[str, str, dict]] = []
        command = command or (sys.executable, "-c", SPEAKER + script)
        announce = announce or (lambda *told: self.announced.append(told))
        self.pauses: list[bool] = []
        self.full = False
        self.supervisor = Supervisor(config, LAYOUT, announce, self.note, command=command)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.supervisor.close()

    def note(self, wanted: bool):
        if self.full:
            raise DiskFullError("no room")
        self.pauses.append(wanted)

    def until(self, wanted: Callable[[], object]):
        deadline = time.monotonic() + PATIENCE_S
        while not (found := wanted()):
            assert time.monotonic() < deadline, self.supervisor.info()
            time.sleep(0.01)
        return found

    def state(self, state: str):
        return self.until(lambda: self.supervisor.info().state == state)

    def order(self, name: str, request: int = 77, **fields):
        order = Order(order=name, request=request, **fields)
        return self.supervisor.order(order).result(PATIENCE_S)


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


BUSY = """
import signal
def leave(*_):
    say("waiting", clips=5)
    end(0)
signal.signal(signal.SIGTERM, leave)
say("learning", clips=3)
while True:
    time.sleep(1)
"""


def test_a_learner_that_is_busy_for_long_is_told_to_leave_where_it_is(monkeypatch):
    """Its last words are heard, and it is not killed."""
    monkeypatch.setattr(learnerlife, "_LEAVE_S", 0.2)
    with Watched(BUSY) as watched:
        watched.until(lambda: watched.supervisor.info().clips == 3)
    info = watched.supervisor.info()
    assert (info.state, info.clips) == ("stopped", 5)
    assert not watched.announced


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


def test_a_process_that_cannot_be_had_is_a_death_like_any_other(tmp_path):
    program = tmp_path / "learner"
    with Watched("", command=(str(program),), max_restarts=0) as watched:
        watched.state("failed")
        ((kind, detail, told),) = watched.announced
        assert (kind, told["final"]) == ("learner_died", True)
        assert "could not be started" in detail
        assert str(program) in detail
        program.write_text(f"#!{sys.executable}\n{SPEAKER}{OBEDIENT}")
        program.chmod(0o700)
        assert isinstance(watched.order("resume"), Carried)
        watched.state("waiting")


def test_a_learner_that_was_given_up_is_told_so_to_the_end():
    with Watched("end(3)", max_restarts=0) as watched:
        watched.state("failed")
        watched.supervisor.close()
        info = watched.supervisor.info()
        assert info.state == "failed"
        assert "exit code 3" in info.detail


def test_a_supervisor_that_fails_itself_says_so_and_answers_orders():
    failures = iter([RuntimeError("no bus")])

    def announce(*told):
        for failure in failures:
            raise failure

    with Watched("end(3)", announce=announce) as watched:
        watched.state("failed")
        answer = watched.order("resume")
        assert isinstance(answer, Refused)
        assert "no bus" in answer.detail
        assert "start the daemon again" in answer.detail
        watched.supervisor.close()
        assert "no bus" in watched.supervisor.info().detail


COUNTING = """
say("waiting")
count = 0
while True:
    kind, data = line.recv_multipart()
    if kind == b"stop":
        end(0)
    count += 1
    order = msgpack.unpackb(data)
    answer = {"ok": True, "v": "1.2", "request": order["request"], "order": order["order"]}
    line.send_multipart([b"answer", msgpack.packb(answer | {"detail": str(count)})])
"""


def test_an_order_that_is_sent_again_is_carried_out_once_and_answered_each_time():
    with Watched(COUNTING) as watched:
        watched.state("waiting")
        asked = [
            watched.supervisor.order(Order(order="rollback", id="a", request=request))
            for request in (1, 2)
        ]
        answers = [each.result(PATIENCE_S) for each in asked]
        answers.append(watched.order("rollback", request=3, id="a"))
        assert [(each.request, each.detail) for each in answers] == [(1, "1"), (2, "1"), (3, "1")]
        assert watched.order("rollback", id="b").detail == "2"
        assert watched.order("rollback").detail == "3", "without an id it is another each time"
        refused = watched.order("rollback", id="a", version="7-x")
        assert (refused.code, refused.request) == ("conflict", 77)


def test_an_order_that_could_not_be_passed_on_may_be_given_again_under_its_id(tmp_path):
    marker = tmp_path / "up"
    script = f"""
if not os.path.exists({str(marker)!r}): end(3)
{OBEDIENT}"""
    with Watched(script, max_restarts=0) as watched:
        watched.state("failed")
        assert isinstance(watched.order("checkpoint", id="a"), Refused)
        marker.touch()
        watched.order("resume")
        watched.state("waiting")
        assert watched.order("checkpoint", id="a").detail == "done"


def test_an_order_that_takes_long_stands_and_its_answer_can_be_asked_for(monkeypatch):
    monkeypatch.setattr(supervisor, "_ORDER_S", 0.2)
    slow = COUNTING.replace("count += 1", "count += 1; time.sleep(1)")
    with Watched(slow) as watched:
        watched.state("waiting")
        refused = watched.order("consolidate", id="a")
        assert refused.code == "not_yet"
        assert "the order stands" in refused.detail
        answer = watched.until(
            lambda: isinstance(again := watched.order("consolidate", id="a"), Carried) and again
        )
        assert answer.detail == "1"


@pytest.mark.parametrize(
    ("script", "state", "expected"),
    [
        (OBEDIENT, "waiting", "done"),
        ("end(3)", "failed", "the learner is failed"),
        ('say("waiting"); line.recv_multipart(); end(9)', "waiting", "exit code 9"),
    ],
)
def test_a_pause_holds_whether_a_learner_is_there_or_dies_over_it(script, state, expected):
    with Watched(script, max_restarts=0) as watched:
        watched.state(state)
        answer = watched.order("pause", id="a")
        assert isinstance(answer, Carried)
        assert expected in answer.detail
        assert set(watched.pauses) == {True}


def test_a_pause_holds_that_the_learner_refuses():
    refusing = OBEDIENT.replace('"ok": True', '"ok": False, "code": "cannot"')
    with Watched(refusing) as watched:
        watched.state("waiting")
        assert isinstance(watched.order("checkpoint"), Refused)
        assert isinstance(watched.order("pause"), Carried)
        assert set(watched.pauses) == {True}


@pytest.mark.parametrize(("script", "state"), [(OBEDIENT, "waiting"), ("end(3)", "failed")])
def test_a_late_duplicate_of_a_pause_does_not_undo_the_resume_after_it(script, state):
    with Watched(script, max_restarts=0) as watched:
        watched.state(state)
        first = watched.order("pause", id="a")
        assert isinstance(watched.order("resume", id="b"), Carried)
        before = list(watched.pauses)
        assert watched.order("pause", id="a") == first
        assert watched.pauses == before
        assert watched.order("checkpoint", id="a").code == "conflict"


def test_a_resume_lifts_the_pause_before_a_learner_that_was_given_up_is_started_again():
    with Watched("end(3)", max_restarts=0) as watched:
        watched.state("failed")
        assert isinstance(watched.order("resume"), Carried)
        assert watched.pauses == [False]


def test_a_resume_that_no_learner_hears_is_refused_and_leaves_the_pause():
    with Watched("end(3)") as watched:
        watched.until(lambda: watched.supervisor.info().restarts >= 3)  # seconds until the next
        watched.state("restarting")
        assert isinstance(watched.order("pause"), Carried)
        refused = watched.order("resume")
        assert refused.code == "no_learner"
        assert watched.pauses == [True]


def test_a_pause_that_cannot_be_noted_is_refused_and_may_be_given_again():
    with Watched(COUNTING) as watched:
        watched.state("waiting")
        watched.full = True
        assert watched.order("pause", id="a").code == "disk_full"
        watched.full = False
        assert watched.order("pause", id="a").detail == "1", "the learner heard of none before"


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
        assert "not known" in answer.detail


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
        ({"head.linear.weight": np.zeros((3, 3), np.float32)}, r"\(3, 3\); float32 \(2, 3\)"),
        ({"head.linear.weight": np.zeros((2, 4), np.float32)}, r"\(2, 4\)"),
        ({"head.bogus": np.zeros((2, 3), np.float32)}, "head.bogus, which is not served"),
        ({"head.x": np.array(1, np.float32)}, "head.x, which is not served"),
        ({"head.linear.bias": np.array(1, np.float32)}, r"bias is float32 \(\)"),
        ({"categories": ()}, "head.linear.* not served with 0 classes"),
        ({"categories": ("dog", "dog")}, "more than once"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes, why):
    with pytest.raises(WeightsRefusedError, match=why):
        looked_at(*offered(**changes), LAYOUT)


def test_damaged_weights_are_refused():
    offer, blob = offered()
    with pytest.raises(WeightsRefusedError, match="damaged"):
        looked_at(offer, blob[:-1] + b"\xff", LAYOUT)


@pytest.mark.parametrize("missing", [["head.linear.bias"], ["head.linear.weight"]])
@pytest.mark.parametrize("categories", [("dog", "cow"), ("dog", "cow", "duck")])
def test_classes_without_a_whole_head_are_refused(categories, missing):
    head = {
        "head.linear.weight": np.zeros((len(categories), 3), np.float32),
        "head.linear.bias": np.zeros(len(categories), np.float32),
    }
    come = {name: array for name, array in head.items() if name not in missing}
    offer, blob = offered(categories=categories)
    blob = save({"fusion.query.weight": np.zeros((2, 3), np.float32)} | come)
    offer = dataclasses.replace(offer, digest=sha256(blob).digest())
    with pytest.raises(WeightsRefusedError, match=f"no {missing[0]}"):
        looked_at(offer, blob, LAYOUT)


def test_weights_without_classes_need_no_head():
    blob = save({"fusion.query.weight": np.zeros((2, 3), np.float32)})
    offer = dataclasses.replace(offered()[0], categories=(), digest=sha256(blob).digest())
    assert list(looked_at(offer, blob, LAYOUT).tensors) == ["fusion.query.weight"]


def test_a_head_that_grew_is_taken():
    grown = {
        "head.linear.weight": np.zeros((3, 3), np.float32),
        "head.linear.bias": np.zeros(3, np.float32),
    }
    taken = looked_at(*offered(categories=("dog", "cow", "duck"), **grown), LAYOUT)
    assert taken.tensors["head.linear.bias"].shape == (3,)

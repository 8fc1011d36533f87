"""The intake: what it grants is on disk, what it refuses is told, and nothing ends it."""

from __future__ import annotations

import dataclasses
import random
import sqlite3
import sys
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

import msgpack
import numpy as np
import pytest
import zmq
from atlasd.daemon import labelclient, labeldesk
from atlasd.daemon.endpoints import EndpointError
from atlasd.daemon.intake import CUT_OFF_BYTES, Intake
from atlasd.daemon.labelclient import LabelClient, LabelRefusedError, NoAnswerError
from atlasd.daemon.labelclips import load
from atlasd.daemon.labeldesk import LabelDesk, LabelRules
from atlasd.daemon.labels import (
    MAX_REQUEST_BYTES,
    Delete,
    Granted,
    LabelError,
    Refused,
    pack_answer,
    pack_request,
    unpack_answer,
    unpack_request,
)
from atlasd.daemon.orders import Carried, Order
from atlasd.daemon.replayring import ReplayRing
from atlasd.daemon.spool import Spool
from atlasd.daemon.wire import WireError
from labeled import PERIOD_NS, a_clip, a_mask, a_reference, a_sample, blob, pixels

PATIENCE_S = 30.0


@pytest.fixture
def spool(tmp_path):
    with Spool(tmp_path / "spool", max_clips=50) as opened:
        yield opened


@pytest.fixture
def ring():
    ring = ReplayRing(1.0, 10_000_000)
    for k in range(3):
        ring.add(a_sample(k))
    return ring


@pytest.fixture
def desk(spool, ring):
    return LabelDesk(spool, ring, LabelRules(categories=("dog",), instance="run-1"))


def asked(desk: LabelDesk, request) -> Granted | Refused:
    return desk.answer(pack_request(dataclasses.replace(request, request=7)))


def code(desk: LabelDesk, request) -> str:
    answer = asked(desk, request)
    assert isinstance(answer, Refused), answer
    assert answer.request == 7
    return answer.code


def learned(spool: Spool):
    batch = spool.next_batch(0, 50, 0)
    return [] if batch is None else [load(clip.payload) for clip in batch.clips]


# The desk.


def test_a_granted_clip_is_in_the_spool(desk, spool):
    assert asked(desk, a_clip()) == Granted(request=7, id="clip-1", state="stored")
    assert asked(desk, a_clip()).state == "same"
    (clip,) = learned(spool)
    np.testing.assert_array_equal(clip.masks[0], blob())
    assert clip.category == "dog"


def test_a_reference_becomes_the_whole_clip_that_was_shown(desk, spool):
    assert asked(desk, a_reference(pts_ns=PERIOD_NS)).state == "stored"
    (clip,) = learned(spool)
    (sample,) = clip.clip.samples
    shown = a_sample(1)
    np.testing.assert_array_equal(sample.frame.image, pixels(1))
    np.testing.assert_array_equal(sample.window.samples, shown.window.samples)
    np.testing.assert_array_equal(clip.masks[0], blob())
    assert (sample.frame.pts_ns, sample.window.state) == (PERIOD_NS, "ok")


@pytest.mark.parametrize("shift_ns", [500_000_000, 123_456_789, -200_000_000])
def test_a_reference_is_learned_with_the_sound_that_the_network_heard(desk, spool, shift_ns):
    """As `sync.anchor: center`, `sync.lag_ms` or late sound place it."""
    shown = a_sample(2)
    moved = dataclasses.replace(
        shown.window,
        start_ns=shown.window.start_ns + shift_ns,
        end_ns=shown.window.end_ns + shift_ns,
    )
    desk.ring.add(dataclasses.replace(shown, window=moved))
    assert asked(desk, a_reference(pts_ns=2 * PERIOD_NS)).state == "stored"
    ((sample,),) = (clip.clip.samples for clip in learned(spool))
    np.testing.assert_array_equal(sample.window.samples, moved.samples)
    assert (sample.window.state, sample.window.gap_ms) == ("ok", 0.0)
    assert (sample.window.start_ns, sample.window.end_ns) == (moved.start_ns, moved.end_ns)


def test_a_mask_of_the_source_pictures_size_is_brought_to_the_networks(desk, spool):
    doubled = np.kron(blob(), np.ones((2, 2), bool))
    assert asked(desk, a_reference(mask=a_mask(doubled))).state == "stored"
    np.testing.assert_array_equal(learned(spool)[0].masks[0], blob())


def test_a_reference_may_be_sent_again_when_its_picture_is_gone(desk, spool):
    asked(desk, a_reference())
    desk.ring.add(a_sample(1000))
    assert asked(desk, a_reference()).state == "same"
    assert code(desk, a_reference("another")) == "expired"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"stream": "porch"}, "unknown_stream"),
        ({"epoch": 3}, "unknown_epoch"),
        ({"pts_ns": 10**12}, "future"),
        ({"pts_ns": 1}, "no_frame"),
        ({"pts_ns": -1}, "expired"),
        ({"instance": "run-0"}, "expired"),
        ({"mask": a_mask(blob((11, 6)))}, "mask_size"),
        ({"mask": a_mask(np.ones((6, 10), bool))}, "mask_full"),
    ],
)
def test_a_reference_to_what_is_not_there_is_refused_by_name(desk, spool, fields, expected):
    assert code(desk, dataclasses.replace(a_reference(), **fields)) == expected
    assert spool.status().clips == {}
    assert desk.refused == {expected: 1}


def test_this_runs_own_name_is_right(desk):
    assert asked(desk, a_reference(instance="run-1")).state == "stored"
    assert asked(desk, a_reference()).state == "same"


def test_a_frame_of_another_run_is_another_clip_though_all_that_is_said_is_the_same(desk, spool):
    empty = a_mask(np.zeros((6, 10), bool))
    assert asked(desk, a_reference(mask=empty)).state == "stored"
    ring = ReplayRing(1.0, 10_000_000)
    ring.add(a_sample(0))
    later = LabelDesk(spool, ring, LabelRules(instance="run-2"))
    assert code(later, a_reference(mask=empty)) == "conflict"
    assert asked(later, a_reference(mask=empty, instance="run-1")).state == "same"
    assert code(later, a_reference("frame-2", mask=empty, instance="run-1")) == "expired"
    assert asked(later, a_reference("frame-2", mask=empty)).state == "stored"


def test_unknown_classes_are_refused_where_classes_are_closed(spool, ring):
    closed = LabelDesk(spool, ring, LabelRules(categories=("dog",), closed=True))
    assert code(closed, a_clip(category="cat")) == "unknown_class"
    assert asked(closed, a_clip("a")).state == "stored"
    assert asked(closed, a_clip("b", category=None)).state == "stored"
    opened = LabelDesk(spool, ring, LabelRules(categories=("dog",)))
    assert asked(opened, a_clip("c", category="cat")).state == "stored"


@pytest.mark.parametrize("category", ["", " ", "\t\u3000"])
def test_a_class_without_a_name_is_none(desk, spool, category):
    assert code(desk, a_clip(category=category)) == "bad_class"
    assert spool.status().clips == {}


def test_a_network_has_so_many_classes_and_no_more(spool, ring):
    desk = LabelDesk(spool, ring, LabelRules(categories=tuple(f"c{k}" for k in range(1022))))
    assert asked(desk, a_clip("a", category="cat")).state == "stored"
    assert asked(desk, a_clip("b", category="cat")).state == "stored"
    assert asked(desk, a_reference("c", category="dog")).state == "stored"
    assert code(desk, a_clip("d", category="cow")) == "too_many_classes"
    assert asked(desk, a_clip("d", category="c7")).state == "stored"
    assert asked(desk, a_clip("e", category=None)).state == "stored"
    later = LabelDesk(spool, ring, LabelRules(categories=desk.rules.categories))
    assert code(later, a_clip("f", category="cow")) == "too_many_classes", "though none is learned"
    assert asked(later, a_clip("f", category="dog")).state == "stored"


def test_what_the_spool_refuses_is_refused_with_its_code(desk, spool):
    asked(desk, a_clip())
    assert code(desk, a_clip(category=None)) == "conflict"
    assert asked(desk, a_clip(category=None, replace=True)).state == "replaced"
    assert asked(desk, Delete(id="clip-1")).state == "deleted"
    assert code(desk, a_clip()) == "deleted"
    assert code(desk, Delete(id="nothing")) == "unknown_clip"
    asked(desk, a_clip("b"))
    spool.next_batch(0, 1, 0)
    assert code(desk, Delete(id="b")) == "journaled"
    spool.finish(1, 1)
    assert asked(desk, a_clip("b")).state == "consumed"


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", ["pause", "resume"])
def test_an_order_that_is_refused_changes_nothing(desk, spool, name, before):
    spool.pause(before)
    refused = Future()
    refused.set_result(Refused(request=7, code="no_learner", detail="it is restarting"))
    desk.learner = lambda order: refused
    assert asked(desk, Order(order=name)) is refused
    assert spool.is_paused is before
    desk.learner = None
    assert code(desk, Order(order=name)) == "no_learner"
    assert spool.is_paused is before


def test_a_spool_that_fails_is_told_and_the_desk_goes_on(desk, spool, caplog):
    with sqlite3.connect(spool.path) as other:
        other.execute("ALTER TABLE clips RENAME TO elsewhere")
        other.commit()
        assert code(desk, a_clip()) == "storage"
        assert "no such table: clips" in desk.info("ipc:///x").detail
        other.execute("ALTER TABLE elsewhere RENAME TO clips")
    other.close()
    assert asked(desk, a_clip()).state == "stored"
    assert "could not be stored" in caplog.text


def test_a_fault_of_ours_is_an_answer_too(desk, monkeypatch, caplog):
    def broken(*args):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(labeldesk, "read_clip", broken)
    assert code(desk, a_clip()) == "internal"
    assert "ZeroDivisionError" in caplog.text


def test_status_says_what_lies_there_and_what_was_refused(spool, ring):
    desk = LabelDesk(spool, ring, LabelRules(), clock=lambda: time.time_ns() + 5_000_000_000)
    asked(desk, a_clip())
    asked(desk, a_clip(category=None))
    info = desk.info("ipc:///x")
    assert info.clips == {"pending": 1}
    assert (info.held, info.answered, info.refused) == (1, {"stored": 1}, {"conflict": 1})
    assert 5 <= info.oldest_s < 5 + PATIENCE_S
    assert info.replay_frames == 3
    assert info.bytes > 0


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes cut, changed, repeated or made up; a few changed within their map."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randbytes(rng.randrange(80))
    if kind == 1:
        return data[: rng.randrange(len(data))]
    if kind == 2:
        return data + rng.randbytes(rng.randrange(1, 9))
    if kind == 3:
        copy = bytearray(data)
        for _ in range(rng.randrange(1, 6)):
            copy[rng.randrange(len(copy))] = rng.randrange(256)
        return bytes(copy)
    entries = msgpack.unpackb(data)
    key = rng.choice(sorted(entries))
    junk = [None, -1, 2**63, 1e400, "", "x" * 9000, b"\xff" * 50, [], {}, [[]] * 600, True]
    if kind == 4:
        del entries[key]
    else:
        entries[key] = rng.choice(junk)
    return msgpack.packb(entries)


ORDERS = (
    Order(order="pause"),
    Order(order="rollback", version="3-abc"),
    Order(order="release", batch=7),
)


def test_of_ten_thousand_malformed_messages_what_decodes_is_done_and_nothing_else(tmp_path, ring):
    """The spool holds what was granted, clip by clip; the learner gets each order as it came."""
    rng = random.Random(20)
    made = (a_clip(frames=1), a_reference(), Delete(id="any"), *ORDERS)
    good = [msgpack.unpackb(pack_request(request)) for request in made]
    passed: list[Order] = []
    pending: dict[str, bool] = {}
    orders, outcomes = 0, Counter()

    def learner(order):
        passed.append(order)
        answered = Future()
        answered.set_result(Carried(request=order.request, order=order.order, detail="done"))
        return answered

    with Spool(tmp_path / "fuzzed") as spool:
        rules = LabelRules(categories=("dog",), instance="run-1")
        desk = LabelDesk(spool, ring, rules, learner=learner)
        for _ in range(10_000):
            named = rng.choice(good) | {"id": f"id-{rng.randrange(300)}"}
            data = mutated(msgpack.packb(named), rng)
            answer = desk.answer(data)
            try:
                request = unpack_request(data)
            except LabelError as error:
                assert isinstance(answer, Refused)
                assert answer.code == error.code
                outcomes[error.code] += 1
                continue
            if isinstance(request, Order):
                orders += 1
                assert passed[orders - 1 :] == [request]
                answer = answer.result(0)
                assert (answer.request, answer.order) == (request.request, request.order)
            answer = unpack_answer(pack_answer(answer))
            outcomes[answer.code if isinstance(answer, Refused) else type(answer).__name__] += 1
            if isinstance(answer, Granted) and answer.state in {"stored", "replaced", "deleted"}:
                assert answer.id == request.id
                pending[answer.id] = answer.state != "deleted"
        assert "internal" not in outcomes
        assert outcomes["malformed"] > 5_000
        assert min(outcomes["Granted"], outcomes["Carried"], orders) > 100, outcomes
        assert len(passed) == orders
        kept = Counter("pending" if is_kept else "deleted" for is_kept in pending.values())
        assert spool.status().clips == kept
        assert kept["deleted"] > 0
        batch = spool.next_batch(0, 1000, 0)
        assert {clip.id for clip in batch.clips} == {i for i, is_kept in pending.items() if is_kept}
        for clip in batch.clips:
            load(clip.payload)


# The socket.


@pytest.fixture
def served(desk, tmp_path):
    with Intake(f"ipc://{tmp_path}/labels", desk) as intake:
        yield intake


@pytest.fixture
def client(served):
    with LabelClient(served.endpoint, timeout_s=PATIENCE_S) as opened:
        yield opened


@pytest.fixture
def raw(served):
    """A function that makes a plain socket of any ZeroMQ program."""
    with zmq.Context() as context, ExitStack() as opened:

        def made(kind):
            socket = opened.enter_context(context.socket(kind))
            socket.linger = 0
            socket.rcvtimeo = int(PATIENCE_S * 1000)
            socket.connect(served.endpoint)
            return socket

        yield made


def test_labels_are_put_and_deleted_through_the_socket(client, served):
    assert client.put(a_clip()) == "stored"
    assert client.put(a_clip()) == "same"
    assert client.put(a_reference()) == "stored"
    client.delete("clip-1")
    with pytest.raises(LabelRefusedError, match="deleted: clip 'clip-1' was deleted") as caught:
        client.put(a_clip())
    assert caught.value.code == "deleted"


def test_status_follows(client, served):
    client.put(a_clip())
    deadline = time.monotonic() + PATIENCE_S
    while served.info().clips != {"pending": 1}:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (served.info().state, served.info().endpoint) == ("running", served.endpoint)


def test_a_plain_req_socket_is_answered(raw):
    socket = raw(zmq.REQ)
    socket.send(pack_request(a_clip(request=3)))
    assert unpack_answer(socket.recv()) == Granted(request=3, id="clip-1", state="stored")


def test_malformed_bytes_are_answered_and_the_next_label_is_taken(raw, client):
    socket = raw(zmq.DEALER)
    for data in (b"", b"\xc1", b"not a map", pack_request(a_clip())[:-5]):
        socket.send(data)
        answer = unpack_answer(socket.recv())
        assert (answer.code, answer.request) == ("malformed", None)
    assert client.put(a_clip()) == "stored"


def test_a_message_over_the_limit_is_refused_by_an_answer(raw):
    socket = raw(zmq.DEALER)
    socket.send(bytes(MAX_REQUEST_BYTES + 1))
    assert unpack_answer(socket.recv()).code == "too_large"


def test_a_message_far_over_the_limit_is_not_received_and_the_others_go_on(raw, client):
    socket = raw(zmq.DEALER)
    socket.send(bytes(CUT_OFF_BYTES + 1))
    assert client.put(a_clip()) == "stored"


def peak_mb() -> float:
    """Most memory that this process has used since the peak was forgotten."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is Linux's to tell")
def test_a_gigabyte_is_not_received(raw, client, served):
    socket = raw(zmq.DEALER)
    Path("/proc/self/clear_refs").write_text("5")
    before_mb = peak_mb()
    with socket.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
        socket.send(bytes(1 << 30), copy=False)  # pages that nobody writes take no memory
        assert client.put(a_clip()) == "stored"
        assert monitor.poll(PATIENCE_S * 1000), "its sender is cut off"
        socket.disable_monitor()
    assert peak_mb() - before_mb < 200
    assert not socket.poll(0)
    assert client.put(a_clip("b")) == "stored"


def test_a_request_in_many_frames_is_refused_and_the_next_one_taken(raw, client):
    socket = raw(zmq.DEALER)
    socket.send_multipart([bytes(1 << 20)] * 25 + [pack_request(a_clip())])
    answer = unpack_answer(socket.recv())
    assert (answer.code, answer.request) == ("malformed", None)
    assert "it must be one" in answer.detail
    socket.send_multipart([b"x"] * 30 + [pack_request(a_clip())])
    *_, last = socket.recv_multipart()
    assert unpack_answer(last).code == "malformed"
    assert client.put(a_clip()) == "stored"


def test_a_labeler_that_left_before_its_answer_ends_nothing(raw, client):
    for _ in range(20):
        socket = raw(zmq.DEALER)
        socket.send(pack_request(a_clip()))
        socket.close(linger=100)
    assert client.put(a_clip("b")) == "stored"


def test_a_public_address_is_refused(desk):
    with pytest.raises(EndpointError, match=r"teaches the network.*intake\.insecure"):
        Intake("tcp://0.0.0.0:0", desk)


def test_an_address_in_use_is_refused(served, desk):
    with pytest.raises(EndpointError, match="in use"):
        Intake(served.endpoint, desk)


def test_an_intake_that_fails_says_so(desk, tmp_path, monkeypatch, caplog):
    intake = Intake(f"ipc://{tmp_path}/labels", desk)

    def broken(*args):
        raise MemoryError("none left")

    monkeypatch.setattr(LabelDesk, "answer", broken)
    with (
        LabelClient(intake.endpoint, timeout_s=0.2, attempts=1) as client,
        pytest.raises(NoAnswerError),
    ):
        client.put(a_clip())
    intake.close()
    assert (intake.info().state, intake.info().detail) == ("failed", "MemoryError: none left")
    assert "masks go on" in caplog.text


# The client.


class Script:
    """A ROUTER that answers what it is told, on the test's own thread's schedule."""

    def __init__(self, context, answers):
        self.endpoint = "inproc://labels"
        self._socket = context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(self.endpoint)
        self._answers = iter(answers)
        self.requests = []

    def serve(self):
        """Answer what has come."""
        while self._socket.poll(0):
            route, data = self._socket.recv_multipart()
            request = msgpack.unpackb(data)
            self.requests.append(request)
            for make in next(self._answers):
                self._socket.send_multipart([route, make(request["request"])])

    def close(self):
        self._socket.close()


@pytest.fixture
def scripted():
    opened = []
    with zmq.Context() as context:

        def made(answers, **options):
            script = Script(context, answers)

            def clock():
                script.serve()
                return time.monotonic()

            values = {"timeout_s": 0.1, "attempts": 3, **options}
            client = LabelClient(script.endpoint, context=context, clock=clock, **values)
            opened.extend([client, script])
            return client, script

        yield made
        for each in opened:
            each.close()


def granted(state="stored", shift=0):
    return lambda number: pack_answer(Granted(request=number + shift, id="clip-1", state=state))


def test_what_is_not_answered_is_sent_again_under_the_same_id(scripted):
    client, script = scripted([[], [], [granted("same")]])
    assert client.put(a_clip()) == "same"
    assert [r["id"] for r in script.requests] == ["clip-1"] * 3


def test_silence_is_told_in_the_end(scripted):
    client, script = scripted([[], [], []])
    with pytest.raises(NoAnswerError, match=r"inproc://labels did not answer 3 times.*enabled"):
        client.put(a_clip())
    assert len(script.requests) == 3


def carried(number):
    return pack_answer(Carried(request=number, order="rollback", detail="gone back"))


def test_an_order_that_is_sent_again_keeps_its_id_and_the_next_one_has_another(scripted):
    client, script = scripted([[], [carried], [carried]])
    client.order(Order(order="rollback"))
    client.order(Order(order="rollback"))
    first, again, other = [request["id"] for request in script.requests]
    assert first == again != other


def test_an_order_without_an_answer_may_have_been_carried_out(scripted):
    client, _ = scripted([[], [], []])
    with pytest.raises(NoAnswerError, match="whether the order was carried out is not known"):
        client.order(Order(order="rollback"))


def test_an_answer_to_an_earlier_request_is_passed_over(scripted):
    client, _ = scripted([[granted("discarded", shift=-1), granted()]], timeout_s=PATIENCE_S)
    assert client.put(a_clip()) == "stored"


def test_an_answer_that_is_none_is_told(scripted):
    client, _ = scripted([[lambda number: b"what?"]], timeout_s=PATIENCE_S)
    with pytest.raises(WireError):
        client.put(a_clip())


def test_a_label_that_is_too_large_is_not_sent(scripted, monkeypatch):
    monkeypatch.setattr(labelclient, "MAX_REQUEST_BYTES", 100)
    client, script = scripted([])
    with pytest.raises(LabelRefusedError, match="100 are allowed"):
        client.put(a_clip())
    assert script.requests == []


def test_nobody_there_is_told(tmp_path):
    with (
        LabelClient(f"ipc://{tmp_path}/nobody", timeout_s=0.05, attempts=2) as client,
        pytest.raises(NoAnswerError, match="does the daemon run"),
    ):
        client.delete("a")

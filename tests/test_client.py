"""Subscribing, with real sockets."""

import subprocess
import sys
import time

import msgpack
import pytest
import zmq
from atlasd.daemon.client import CUT_OFF_BYTES, SilenceError, StaleError, subscribe
from atlasd.daemon.endpoints import EndpointError
from atlasd.daemon.messages import MAX_MESSAGE_BYTES, Event, Hello, Mask, Status, pack, topic
from atlasd.daemon.publisher import Publisher
from atlasd.daemon.wire import VersionError, WireError, clock_name
from wire import (
    PATIENCE_S,
    Reader,
    a_hello,
    a_mask,
    await_subscribers,
    full_messages,
    picture,
)

TCP = "tcp://127.0.0.1:0"
TOPICS_OF_A_CLIENT = 4


def eos(stream="main"):
    return Event(stream=stream, kind="eos")


@pytest.fixture
def context():
    with zmq.Context() as made:
        yield made


@pytest.fixture
def bus(context):
    """A publisher whose socket the test holds: it sends whatever it likes."""
    socket = context.socket(zmq.XPUB)
    socket.linger = 0
    socket.rcvtimeo = int(PATIENCE_S * 1000)
    socket.bind(TCP)
    yield socket
    socket.close()


def endpoint_of(socket):
    return socket.last_endpoint.decode()


def await_join(bus):
    for _ in range(TOPICS_OF_A_CLIENT):
        assert bus.recv()[:1] == b"\1"


def test_masks_come_typed_and_decoded_until_the_end_of_the_stream():
    with Publisher(TCP, "wait") as publisher:
        reader = Reader(publisher.endpoint, mode="all")
        publisher.wait_for_subscriber(PATIENCE_S)
        for seq in range(3):
            publisher.publish(a_mask(seq, enc="bits+zstd"))
        publisher.publish(eos())
        masks = reader.result()
    assert [type(mask) for mask in masks] == [Mask] * 3
    assert (masks[2].array() == picture()).all()
    assert [mask.gap for mask in masks] == [0, 0, 0]


def test_latest_skips_to_the_newest_however_much_has_come(context):
    """Over inproc a sent message is in the reader's pipe, so what "has come" is exact."""
    with (
        Publisher("inproc://latest", "wait", context=context) as publisher,
        subscribe(publisher.endpoint, "main", context=context, timeout_s=PATIENCE_S) as masks,
    ):
        publisher.wait_for_subscriber(PATIENCE_S)
        for batch in range(1, 11):
            for seq in range((batch - 1) * 50, batch * 50):
                publisher.publish(a_mask(seq))
            while publisher.stats().sent["m"] < batch * 50:
                time.sleep(0)
            newest = next(masks)
            assert (newest.seq, newest.gap) == (batch * 50 - 1, 0)
        assert (masks.stats.masks, masks.stats.skipped, masks.stats.lost) == (10, 490, 0)


def test_a_slow_reader_of_latest_ends_with_the_last_mask_and_accounts_for_all():
    with Publisher(TCP, "wait") as publisher:
        reader = Reader(publisher.endpoint, mode="latest")
        publisher.wait_for_subscriber(PATIENCE_S)
        for seq in range(2000):
            publisher.publish(a_mask(seq))
        publisher.publish(eos())
        masks = reader.result()
    stats = reader.subscription.stats
    assert masks[-1].seq == 1999
    assert stats.masks + stats.skipped == 2000
    assert stats.lost == 0


def test_a_gap_is_told_with_the_mask_after_it(bus):
    with subscribe(endpoint_of(bus), "main", mode="all", timeout_s=PATIENCE_S) as masks:
        await_join(bus)
        for seq in (4, 5, 9, 10):
            bus.send(pack(a_mask(seq)))
        bus.send(pack(eos()))
        assert [(mask.seq, mask.gap) for mask in masks] == [(4, 0), (5, 0), (9, 3), (10, 0)]
        assert masks.stats.lost == 3


def test_gaps_add_up_over_masks_that_latest_skips(context):
    bus = context.socket(zmq.XPUB)
    bus.bind("inproc://gaps")
    endpoint = "inproc://gaps"
    with subscribe(endpoint, "main", context=context, timeout_s=PATIENCE_S) as masks:
        await_join(bus)
        for seq in (0, 3, 4, 9):
            bus.send(pack(a_mask(seq)))
        newest = next(masks)
        assert (newest.seq, newest.gap, masks.stats.lost, masks.stats.skipped) == (9, 6, 6, 3)
    bus.close()


def test_a_gap_is_counted_for_each_stream_by_itself_and_over_epochs(bus):
    with subscribe(endpoint_of(bus), mode="all", timeout_s=PATIENCE_S) as masks:
        await_join(bus)
        for stream, seq, epoch in [("a", 0, 0), ("b", 7, 0), ("a", 1, 1), ("b", 9, 3)]:
            bus.send(pack(a_mask(seq, stream=stream, epoch=epoch)))
        bus.send(pack(eos("a")))
        bus.send(pack(eos("b")))
        assert [(m.stream, m.gap) for m in masks] == [("a", 0), ("b", 0), ("a", 0), ("b", 1)]


@pytest.mark.parametrize("instances", [("one", "two"), None])
def test_a_daemon_that_was_restarted_is_no_gap(bus, instances):
    with subscribe(endpoint_of(bus), "main", mode="all", timeout_s=PATIENCE_S) as masks:
        await_join(bus)
        for run in range(2):
            if instances:
                bus.send(pack(a_hello(instance=instances[run])))
            first = 100 * run if instances else 0
            bus.send(pack(a_mask(first)))
            bus.send(pack(a_mask(first + 1)))
        bus.send(pack(eos()))
        assert [mask.gap for mask in masks] == [0, 0, 0, 0]
        assert masks.stats.restarts == 1


def test_a_stream_does_not_hear_another_whose_name_begins_alike():
    with Publisher(TCP, "wait") as publisher:
        reader = Reader(publisher.endpoint, "cam", mode="all")
        publisher.wait_for_subscriber(PATIENCE_S)
        publisher.publish(a_mask(0, stream="cam2"))
        publisher.publish(a_mask(0, stream="cam"))
        publisher.publish(eos("cam"))
        assert [mask.stream for mask in reader.result()] == ["cam"]


def test_several_streams_end_when_every_one_has_ended():
    with Publisher(TCP, "wait") as publisher:
        reader = Reader(publisher.endpoint, None, mode="all")
        publisher.wait_for_subscriber(PATIENCE_S)
        publisher.publish(a_hello("a"))
        publisher.publish(a_hello("b"))
        publisher.publish(a_mask(0, stream="a"))
        publisher.publish(eos("a"))
        publisher.publish(a_mask(0, stream="b"))
        publisher.publish(eos("b"))
        assert [mask.stream for mask in reader.result()] == ["a", "b"]


def test_latest_keeps_the_newest_of_each_stream(context):
    bus = context.socket(zmq.XPUB)
    bus.bind("inproc://streams")
    with subscribe("inproc://streams", context=context, timeout_s=PATIENCE_S) as masks:
        await_join(bus)
        for seq in range(5):
            bus.send(pack(a_mask(seq, stream="a")))
            bus.send(pack(a_mask(seq, stream="b")))
        assert [(m.stream, m.seq) for m in (next(masks), next(masks))] == [("a", 4), ("b", 4)]
    bus.close()


def test_other_kinds_of_messages_come_when_they_are_asked_for():
    with Publisher(TCP, "wait") as publisher:
        publisher.publish(a_hello())
        reader = Reader(publisher.endpoint, kinds=(Hello, Event, Mask), mode="all")
        publisher.wait_for_subscriber(PATIENCE_S)
        publisher.publish(Event(stream="main", kind="epoch", epoch=1))
        publisher.publish(a_mask(0, epoch=1))
        publisher.publish(eos())
        got = [m for m in reader.result() if not isinstance(m, Hello)]
    assert [getattr(m, "kind", "mask") for m in got] == ["epoch", "mask", "eos"]
    assert reader.subscription.hello["main"].classes == ()


def test_the_daemons_goodbye_ends_the_iteration():
    with Publisher(TCP, "wait") as publisher:
        reader = Reader(publisher.endpoint, mode="all")
        publisher.wait_for_subscriber(PATIENCE_S)
        publisher.publish(a_mask(0))
    assert [mask.seq for mask in reader.result()] == [0]


def test_who_joins_after_the_end_gets_the_last_mask_and_the_end():
    with Publisher(TCP, "wait", status_s=3600) as publisher:
        publisher.publish(a_mask(0))
        publisher.publish(a_mask(1))
        publisher.publish(eos())
        while publisher.stats().sent.get("e") != 1:
            time.sleep(0)
        masks = Reader(publisher.endpoint).result()
    assert [mask.seq for mask in masks] == [1]


def test_following_goes_on_after_the_end_of_a_stream(bus):
    with subscribe(
        endpoint_of(bus), "main", mode="all", follow=True, timeout_s=PATIENCE_S
    ) as masks:
        await_join(bus)
        for seq in (0, 1):
            bus.send(pack(a_mask(seq)))
            bus.send(pack(eos()))
        assert [next(masks).seq, next(masks).seq] == [0, 1]


def test_the_age_of_a_mask_is_from_capture_to_now_on_one_machine(bus):
    now = [5 * 10**9]
    with subscribe(
        endpoint_of(bus),
        "main",
        mode="all",
        max_age_ms=100,
        clock=lambda: now[0],
        timeout_s=PATIENCE_S,
    ) as masks:
        await_join(bus)
        bus.send(pack(a_hello(clock=clock_name())))
        bus.send(pack(a_mask(0, capture_ns=now[0] - 40_000_000, publish_ns=now[0] - 1_000_000)))
        bus.send(pack(a_mask(1, capture_ns=now[0] - 140_000_000, publish_ns=now[0] - 120_000_000)))
        assert [(m.age_ms, m.stale) for m in (next(masks), next(masks))] == [
            (40.0, False),
            (140.0, True),
        ]
        assert masks.stats.stale == 1


def test_between_machines_the_age_is_counted_from_the_fastest_message(bus):
    now = [10**9]
    there = 7 * 10**15
    with subscribe(
        endpoint_of(bus), "main", mode="all", clock=lambda: now[0], timeout_s=PATIENCE_S
    ) as masks:
        await_join(bus)
        bus.send(pack(a_hello(clock="another machine")))
        ages = []
        for seq, (sent_ms, came_ms) in enumerate([(0, 3), (100, 101), (200, 251)]):
            now[0] = 10**9 + came_ms * 10**6
            publish_ns = there + sent_ms * 10**6
            bus.send(pack(a_mask(seq, capture_ns=publish_ns - 20_000_000, publish_ns=publish_ns)))
            ages.append(next(masks).age_ms)
        assert ages == [20.0, 20.0, 70.0]


@pytest.mark.parametrize(("when_stale", "expected"), [("drop", [1]), ("flag", [0, 1])])
def test_stale_masks_are_flagged_or_dropped(bus, when_stale, expected):
    with subscribe(
        endpoint_of(bus),
        "main",
        mode="all",
        max_age_ms=5000,
        when_stale=when_stale,
        timeout_s=PATIENCE_S,
    ) as masks:
        await_join(bus)
        bus.send(pack(a_hello(clock=clock_name())))
        now = time.monotonic_ns()
        bus.send(pack(a_mask(0, capture_ns=now - 6 * 10**9, publish_ns=now)))
        bus.send(pack(a_mask(1, capture_ns=now + 60 * 10**9, publish_ns=now)))
        bus.send(pack(eos()))
        assert [mask.seq for mask in masks] == expected
        assert masks.stats.stale == 1


def test_a_stale_mask_can_be_an_error(bus):
    with subscribe(
        endpoint_of(bus), "main", max_age_ms=5000, when_stale="raise", timeout_s=PATIENCE_S
    ) as masks:
        await_join(bus)
        bus.send(pack(a_hello(clock=clock_name())))
        bus.send(pack(a_mask(8, capture_ns=time.monotonic_ns() - 10**10)))
        with pytest.raises(StaleError, match=r"mask 8 of main is 1\d{4} ms old; 5000 ms are"):
            next(masks)


def test_malformed_bytes_are_counted_and_the_masks_go_on(bus, caplog):
    garbage = [
        topic("m", "main"),
        topic("m", "main") + b"\xc1\xff",
        topic("m", "main") + msgpack.packb({"v": "1.0", "stream": "main"}),
        topic("h", "main") + msgpack.packb([1] * 100),
        topic("s", "main") + b"\x91" * 3000,
        topic("e", "main") + b"\xdf\xff\xff\xff\xff",
        topic("m", "main") + msgpack.packb({"v": "1.0", "data": bytes(1_000_000)}),
    ]
    with subscribe(endpoint_of(bus), "main", mode="all", timeout_s=PATIENCE_S) as masks:
        await_join(bus)
        for data in garbage:
            bus.send(data)
        bus.send_multipart([pack(a_mask(6)), b"a second part"])
        bus.send(pack(a_mask(7)))
        assert [next(masks).seq, next(masks).seq] == [6, 7]
        assert masks.stats.malformed == len(garbage) + 1
    assert "malformed message 8" in caplog.text


def test_a_flood_of_malformed_messages_does_not_fill_the_log(bus, caplog):
    with subscribe(endpoint_of(bus), "main", mode="all", timeout_s=PATIENCE_S) as masks:
        await_join(bus)
        for _ in range(300):
            bus.send(topic("m", "main"))
        bus.send(pack(a_mask(7)))
        assert next(masks).seq == 7
        assert masks.stats.malformed == 300
    assert len(caplog.records) == 10


def test_an_oversized_message_is_counted_as_malformed_and_the_masks_go_on(bus):
    with subscribe(endpoint_of(bus), "main", mode="all", timeout_s=PATIENCE_S) as masks:
        await_join(bus)
        bus.send(topic("m", "main") + bytes(MAX_MESSAGE_BYTES))
        bus.send(pack(a_mask(7)))
        assert next(masks).seq == 7
        assert masks.stats.malformed == 1


def test_a_publisher_that_sends_far_too_much_is_cut_off(bus):
    with subscribe(endpoint_of(bus), "main", mode="all", timeout_s=0.5) as masks:
        await_join(bus)
        bus.send(topic("m", "main") + bytes(CUT_OFF_BYTES))
        assert [bus.recv()[0] for _ in range(TOPICS_OF_A_CLIENT)] == [0] * TOPICS_OF_A_CLIENT
        with pytest.raises(SilenceError):
            next(masks)


def test_unknown_keys_and_kinds_of_events_are_no_trouble(bus):
    with subscribe(endpoint_of(bus), "main", mode="all", timeout_s=PATIENCE_S) as masks:
        await_join(bus)
        bus.send(pack(Event(stream="main", kind="from_the_future")))
        bus.send(pack(a_mask(1)) + b"")
        assert next(masks).seq == 1


def test_another_major_version_is_refused_with_what_to_do(bus):
    with subscribe(endpoint_of(bus), "main", timeout_s=PATIENCE_S) as masks:
        await_join(bus)
        bus.send(topic("m", "main") + msgpack.packb({"v": "2.0"}))
        with pytest.raises(VersionError, match=r"version 2\.0.*install the same major"):
            next(masks)


def test_silence_is_an_error_that_asks_whether_the_daemon_runs():
    with (
        subscribe("tcp://127.0.0.1:1", timeout_s=0.05) as masks,
        pytest.raises(SilenceError, match=r"within 0\.05 s; is the daemon running\?"),
    ):
        next(masks)


def test_silence_of_a_daemon_that_is_there_tells_its_state(context):
    bus = context.socket(zmq.XPUB)
    bus.bind("inproc://quiet")
    with subscribe("inproc://quiet", context=context, timeout_s=0.05) as masks:
        await_join(bus)
        bus.send(pack(Status(stream="main", state="starting")))
        with pytest.raises(SilenceError, match=r"the daemon is there \(main is starting\)"):
            next(masks)
    bus.close()


def test_a_client_may_come_before_the_daemon(tmp_path):
    endpoint = f"ipc://{tmp_path}/bus"
    reader = Reader(endpoint, mode="all")
    with Publisher(endpoint, "wait") as publisher:
        assert publisher.wait_for_subscriber(PATIENCE_S)
        publisher.publish(a_mask(0))
        publisher.publish(eos())
        assert [mask.seq for mask in reader.result()] == [0]


def test_leaving_frees_the_subscription_at_the_publisher():
    with Publisher(TCP, "wait") as publisher:
        with subscribe(publisher.endpoint, "main") as masks:
            await_subscribers(publisher, 1)
        masks.close()
        assert list(masks) == []
        await_subscribers(publisher, 0)


def test_an_address_or_name_that_cannot_be_is_refused_at_once():
    with pytest.raises(EndpointError, match="127"):
        subscribe("127.0.0.1:5556")
    with pytest.raises(WireError, match="stream is named"):
        subscribe("tcp://127.0.0.1:5556", "a/b")


def test_every_golden_message_is_received(bus):
    kinds = {name: type(message) for name, message in full_messages().items()}
    with subscribe(
        endpoint_of(bus), "porch", kinds=tuple(kinds.values()), mode="all", timeout_s=PATIENCE_S
    ) as messages:
        await_join(bus)
        bus.recv()
        order = ["hello", "event", "preview", "mask", "status"]
        for name in order:
            bus.send(pack(full_messages()[name]))
        assert [type(message) for message in messages] == [kinds[name] for name in order]


def test_the_client_imports_neither_torch_nor_media_libraries():
    code = (
        "import sys, atlasd.daemon.client; "
        "print(*{'torch', 'av', 'cv2', 'timm', 'PIL', 'pydantic'} & set(sys.modules))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == ""

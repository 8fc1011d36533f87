"""The bus, with real subscribers on real sockets."""

import threading
import time

import pytest
import zmq
from atlasd.daemon import outlet
from atlasd.daemon.endpoints import EndpointError
from atlasd.daemon.messages import Event, Hello, Mask, Preview, Status, topic, unpack
from atlasd.daemon.publisher import Publisher, PublisherError
from wire import (
    PATIENCE_S,
    Reader,
    a_hello,
    a_mask,
    await_masks,
    await_subscribers,
    picture,
    raw_subscriber,
)

TCP = "tcp://127.0.0.1:0"
LARGE = picture(200, 200)
EOS = Event(stream="main", kind="eos", detail="end of file")


@pytest.fixture
def context():
    with zmq.Context() as made:
        yield made


@pytest.fixture
def stuck(context):
    """Opens a subscriber that never reads, with next to no room of its own."""
    sockets = []

    def opened(endpoint):
        sockets.append(raw_subscriber(context, endpoint, rcvhwm=2, rcvbuf=4096))
        return sockets[-1]

    yield opened
    for socket in sockets:
        socket.close()


def large_mask(seq):
    return a_mask(seq, mask=LARGE, enc="prob8")


def receive(socket, kind):
    """The next message of a kind."""
    while True:
        message = unpack(socket.recv())
        if isinstance(message, kind):
            return message


@pytest.mark.parametrize(("endpoint", "count"), [(TCP, 5000), ("ipc://{tmp}/bus", 500)])
def test_all_unpaced_masks_arrive_in_order_under_wait(endpoint, count, tmp_path):
    with Publisher(endpoint.format(tmp=tmp_path), "wait") as publisher:
        reader = Reader(publisher.endpoint, mode="all")
        assert publisher.wait_for_subscriber(PATIENCE_S)
        for seq in range(count):
            publisher.publish(a_mask(seq))
        publisher.publish(EOS)
        assert [mask.seq for mask in reader.result()] == list(range(count))
    assert publisher.stats().drops == {}
    assert reader.subscription.stats.lost == 0


def test_a_bus_that_began_live_loses_nothing_once_it_is_to_wait():
    """A web server's file is taken for a camera until it is open."""
    with Publisher(TCP, "live") as publisher:
        reader = Reader(publisher.endpoint, mode="all")
        assert publisher.wait_for_subscriber(PATIENCE_S)
        publisher.go_by("wait")
        for seq in range(2000):
            publisher.publish(a_mask(seq))
        publisher.publish(EOS)
        assert [mask.seq for mask in reader.result()] == list(range(2000))
    assert publisher.stats().drops == {}


def test_wait_passes_over_a_subscriber_that_stops_reading_and_loses_nothing_else(stuck):
    with Publisher(TCP, "wait", stall_timeout_s=0.4, linger_s=0.1) as publisher:
        stuck(publisher.endpoint)
        reader = Reader(publisher.endpoint, mode="all", kinds=(Mask, Event))
        await_subscribers(publisher, 2)
        longest_s = 0.0
        for seq in range(400):
            began = time.monotonic()
            publisher.publish(large_mask(seq))
            longest_s = max(longest_s, time.monotonic() - began)
        publisher.publish(EOS)
        got = reader.result()
    assert [m.seq for m in got if isinstance(m, Mask)] == list(range(400))
    stalls = [m for m in got if isinstance(m, Event) and m.kind == "subscriber_stalled"]
    assert len(stalls) == 1
    assert stalls[0].data["waited_ms"] >= 400
    assert publisher.stats().drops == {"subscriber_stalled": 1}
    assert longest_s < 5


def test_a_subscriber_that_reads_on_after_a_stall_gets_masks_again(stuck):
    with Publisher(TCP, "wait", stall_timeout_s=0.2, linger_s=0.1) as publisher:
        late = stuck(publisher.endpoint)
        await_subscribers(publisher, 1)
        seq = 0
        while not publisher.stats().drops:
            publisher.publish(large_mask(seq))
            seq += 1
        read = [receive(late, Mask).seq]
        while read[-1] == len(read) - 1:
            publisher.publish(large_mask(seq))
            seq += 1
            read.append(receive(late, Mask).seq)
        assert read[-1] > len(read) - 1


def test_live_never_waits_and_a_reader_that_keeps_up_misses_nothing(stuck, context):
    with Publisher(TCP, "live", linger_s=0.1) as publisher:
        stuck(publisher.endpoint)
        keen = raw_subscriber(context, publisher.endpoint, topic("m", "main"))
        await_subscribers(publisher, 2)
        for seq in range(300):
            publisher.publish(large_mask(seq))
            assert unpack(keen.recv()).seq == seq
        assert publisher.stats().drops["subscriber_stalled"] >= 1
        keen.close()


def test_a_full_queue_drops_the_oldest_masks_under_live_and_keeps_events(context):
    gate = threading.Event()

    def clock():
        if threading.current_thread().name == "atlasd-bus":
            gate.wait(PATIENCE_S)
        return time.monotonic_ns()

    with Publisher(TCP, "live", queue_capacity=4, clock=clock) as publisher:
        subscriber = raw_subscriber(context, publisher.endpoint, b"m/", b"e/")
        publisher.publish(Event(stream="main", kind="epoch"))
        for seq in range(20):
            publisher.publish(a_mask(seq))
        assert publisher.stats().drops == {"bus_queue_full": 17}
        gate.set()
        subscriber.close()
    assert publisher.stats().sent["e"] == 2
    assert publisher.stats().sent["m"] == 3


def test_a_late_joiner_gets_the_hello_and_status_at_once(context):
    with Publisher(TCP, hello_s=3600, status_s=3600) as publisher:
        publisher.publish(a_hello(classes=("dog",)))
        publisher.publish(a_mask(0))
        publisher.publish(a_mask(1))
        await_masks(publisher, 2)
        for _ in range(2):
            joiner = raw_subscriber(context, publisher.endpoint, topic("h", "main"))
            assert receive(joiner, Hello).classes == ("dog",)
            joiner.subscribe(topic("s", "main"))
            status = receive(joiner, Status)
            assert (status.state, status.masks, status.mask.seq) == ("running", 2, 1)
            joiner.close()


def test_hello_and_status_are_repeated_by_the_clock(context):
    now = [10**9]
    with Publisher(TCP, clock=lambda: now[0]) as publisher:
        publisher.publish(a_hello())
        subscriber = raw_subscriber(context, publisher.endpoint, topic("s", "main"))
        assert receive(subscriber, Status).publish_ns == 10**9
        subscriber.subscribe(topic("h", "main"))
        assert receive(subscriber, Hello).publish_ns == 10**9
        now[0] = 2 * 10**9
        assert receive(subscriber, Status).publish_ns == 2 * 10**9
        now[0] = 3 * 10**9
        assert receive(subscriber, Hello).publish_ns == 3 * 10**9
        subscriber.close()


def test_status_repeats_the_end_of_the_stream_and_its_latest_mask(context):
    with Publisher(TCP, "wait") as publisher:
        publisher.publish(a_mask(0))
        publisher.publish(a_mask(1, drops={"stale": 4}))
        publisher.publish(EOS)
        publisher.report("main", lat_ms={"infer_p50": 3.0})
        joiner = raw_subscriber(context, publisher.endpoint, topic("s", "main"))
        status = receive(joiner, Status)
        while status.state != "ended":  # the joiner may be faster than the queue
            status = receive(joiner, Status)
        assert (status.detail, status.masks) == ("end of file", 2)
        assert (status.mask.seq, status.drops, status.lat_ms) == (1, {"stale": 4}, {"infer_p50": 3})
        assert status.instance == publisher.instance
        joiner.close()


def test_what_status_may_not_say_is_refused_where_it_is_reported():
    with Publisher(TCP) as publisher:
        with pytest.raises(ValueError, match=r"lat_ms\.infer is nan"):
            publisher.report("main", lat_ms={"infer": float("nan")})
        publisher.publish(a_mask())


def test_previews_are_wanted_only_while_somebody_subscribes(context):
    with Publisher(TCP, "wait") as publisher:
        assert not publisher.wants("f")
        viewer = raw_subscriber(context, publisher.endpoint, topic("f", "main"))
        masks = raw_subscriber(context, publisher.endpoint, topic("m", "main"))
        assert publisher.wait_for_subscriber(PATIENCE_S)
        while not publisher.wants("f", "main"):
            publisher.wait_for_subscriber(0.01)
        assert publisher.wants("f")
        assert not publisher.wants("f", "mainly")
        frame = a_mask().frame
        preview = Preview(
            stream="main", epoch=0, pts_ns=0, capture_ns=0, frame=frame, jpeg=b"\xff\xd8"
        )
        publisher.publish(preview)
        assert receive(viewer, Preview).jpeg == b"\xff\xd8"
        viewer.close()
        while publisher.wants("f"):
            publisher.wait_for_subscriber(0.01)
        masks.close()


def test_waiting_for_a_subscriber_ends_at_the_timeout_without_one(context):
    with Publisher(TCP) as publisher:
        assert not publisher.wait_for_subscriber(0.01)
        only_events = raw_subscriber(context, publisher.endpoint, b"e/")
        assert not publisher.wait_for_subscriber(0.05)
        everything = raw_subscriber(context, publisher.endpoint, b"")
        assert publisher.wait_for_subscriber(PATIENCE_S)
        only_events.close()
        everything.close()


def test_closing_delivers_what_is_queued_and_says_goodbye():
    with Publisher(TCP, "wait") as publisher:
        reader = Reader(publisher.endpoint, mode="all", kinds=(Mask, Event))
        assert publisher.wait_for_subscriber(PATIENCE_S)
        for seq in range(16):
            publisher.publish(a_mask(seq))
    *masks, goodbye = reader.result()
    assert [mask.seq for mask in masks] == list(range(16))
    assert goodbye.kind == "goodbye"


@pytest.mark.parametrize("policy", ["wait", "live"])
def test_closing_is_bounded_though_a_subscriber_does_not_read(policy, stuck):
    publisher = Publisher(TCP, policy, stall_timeout_s=0.2, linger_s=0.1)
    stuck(publisher.endpoint)
    await_subscribers(publisher, 1)
    for seq in range(120):
        publisher.publish(large_mask(seq))
    began = time.monotonic()
    publisher.close()
    publisher.close()
    assert time.monotonic() - began < 5


def test_closing_without_draining_frees_a_waiting_caller(stuck):
    publisher = Publisher(TCP, "wait", stall_timeout_s=3600)
    stuck(publisher.endpoint)
    await_subscribers(publisher, 1)
    ended = threading.Event()

    def publish_until_closed():
        with pytest.raises(PublisherError, match="closed"):
            for seq in range(10_000):
                publisher.publish(large_mask(seq))
        ended.set()

    caller = threading.Thread(target=publish_until_closed)
    caller.start()
    sent = -1
    while sent != (sent := publisher.stats().sent.get("m", 0)):
        ended.wait(0.2)
    publisher.close(drain=False)
    assert ended.wait(PATIENCE_S)
    caller.join()


def test_a_closed_bus_refuses_messages():
    publisher = Publisher(TCP)
    publisher.close()
    with pytest.raises(PublisherError, match="closed"):
        publisher.publish(a_mask())


def test_an_error_in_the_bus_is_raised_in_its_callers():
    def broken_clock():
        raise OSError("no time")

    publisher = Publisher(TCP, clock=broken_clock)
    with pytest.raises(PublisherError, match="no time"):
        for seq in range(10_000):
            publisher.publish(a_mask(seq))
            time.sleep(0)
    with pytest.raises(PublisherError, match="no time"):
        publisher.close()


def test_a_port_in_use_is_an_error_and_the_bus_that_has_it_goes_on(context):
    with Publisher(TCP, "wait") as publisher:
        with pytest.raises(EndpointError, match=f"{publisher.endpoint} is in use"):
            Publisher(publisher.endpoint)
        subscriber = raw_subscriber(context, publisher.endpoint)
        assert publisher.wait_for_subscriber(PATIENCE_S)
        publisher.publish(a_mask(5))
        assert receive(subscriber, Mask).seq == 5
        subscriber.close()


def test_a_public_address_needs_to_be_called_insecure():
    with pytest.raises(EndpointError, match="set insecure"):
        Publisher("tcp://*:0")
    Publisher("tcp://*:0", insecure=True).close()


def test_a_plain_socket_with_conflate_gets_whole_messages_and_the_last_of_them(context):
    with Publisher(TCP, "wait") as publisher:
        subscriber = raw_subscriber(context, publisher.endpoint, topic("m", "main"), conflate=1)
        assert publisher.wait_for_subscriber(PATIENCE_S)
        for seq in range(50):
            publisher.publish(a_mask(seq))
        seqs = [-1]
        while seqs[-1] < 49:
            seqs.append(unpack(subscriber.recv()).seq)
        assert seqs == sorted(set(seqs))
        subscriber.close()


def test_garbage_from_a_subscriber_is_ignored(context):
    with Publisher(TCP, "wait") as publisher:
        odd = context.socket(zmq.XSUB)
        odd.linger = 0
        odd.connect(publisher.endpoint)
        for request in (b"", b"\x07what", b"\x00never subscribed", b"\x01\xff\xfe"):
            odd.send(request)
        subscriber = raw_subscriber(context, publisher.endpoint)
        assert publisher.wait_for_subscriber(PATIENCE_S)
        publisher.publish(a_mask(3))
        assert receive(subscriber, Mask).seq == 3
        odd.close()
        subscriber.close()


def test_a_context_that_does_not_end_is_left_behind(monkeypatch, caplog):
    """libzmq once hung in zmq_ctx_term; a socket left open makes it wait as long as one likes."""
    monkeypatch.setattr(outlet, "_TERM_GRACE_S", 0.05)
    open_end = outlet.Outlet("tcp://127.0.0.1:*", None)
    left = open_end._context.socket(zmq.PUSH)
    try:
        open_end.close(linger_ms=0)
        assert "does not end its context" in caplog.text
    finally:
        left.close(linger=0)

"""The proxy, with real daemons' buses behind it and real subscribers before it."""

import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest
import zmq
from atlasd.daemon import proxy as module
from atlasd.daemon.client import subscribe
from atlasd.daemon.endpoints import EndpointError
from atlasd.daemon.messages import Event, Hello, Mask, Status, topic, unpack
from atlasd.daemon.proxy import Proxy, ProxyError
from atlasd.daemon.publisher import Publisher
from feeder import Feeder
from wire import (
    PATIENCE_S,
    Reader,
    a_hello,
    a_mask,
    await_subscribers,
    picture,
    proxied,
    raw_subscriber,
)

TCP = "tcp://127.0.0.1:0"


@pytest.fixture
def context():
    with zmq.Context() as made:
        yield made


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def receive(socket, kind):
    while True:
        message = unpack(socket.recv())
        if isinstance(message, kind):
            return message


def test_every_message_passes_unchanged_and_in_order():
    with Publisher(TCP, "wait") as publisher, proxied(publisher.endpoint) as proxy:
        reader = Reader(proxy.endpoint, mode="all", kinds=(Mask, Event))
        assert publisher.wait_for_subscriber(PATIENCE_S)
        for seq in range(50):
            publisher.publish(a_mask(seq, enc="bits+zstd"))
            until(lambda seq=seq: publisher.stats().sent.get("m", 0) > seq)
        publisher.publish(Event(stream="main", kind="eos"))
        *masks, end = reader.result()
        assert [mask.seq for mask in masks] == list(range(50))
        assert (masks[-1].array() == picture()).all()
        assert end.kind == "eos"
        assert reader.subscription.stats.lost == 0


def test_two_daemons_are_one_bus_and_the_death_of_one_leaves_the_other_alone():
    with (
        Feeder(TCP, 50, stream="porch") as porch,
        Feeder(TCP, 50, stream="yard") as yard,
        proxied(porch.endpoint, yard.endpoint) as proxy,
        subscribe(proxy.endpoint, mode="all", timeout_s=PATIENCE_S) as masks,
    ):
        seen = set()
        while seen != {"porch", "yard"}:
            seen.add(next(masks).stream)
        porch.kill()
        in_a_row = 0
        while in_a_row < 80:
            mask = next(masks)
            assert mask.gap == 0
            in_a_row = in_a_row + 1 if mask.stream == "yard" else 0
        assert set(masks.hello) == {"porch", "yard"}


def test_a_daemon_that_comes_back_is_passed_on_again(tmp_path):
    endpoint = f"ipc://{tmp_path}/bus"
    with (
        proxied(endpoint) as proxy,
        subscribe(proxy.endpoint, mode="all", timeout_s=PATIENCE_S, follow=True) as masks,
    ):
        with Feeder(endpoint, 50) as feeder:
            assert next(masks).stream == "main"
            feeder.kill()
        with Feeder(endpoint, 50):
            while masks.stats.restarts == 0:
                next(masks)


def test_late_joiners_get_hello_and_status_at_once_though_the_daemon_repeats_neither(context):
    with (
        Publisher(TCP, "live", hello_s=3600, status_s=3600) as publisher,
        proxied(publisher.endpoint) as proxy,
    ):
        publisher.publish(a_hello(classes=("dog",)))
        publisher.publish(a_mask(7))
        for _ in range(3):
            joiner = raw_subscriber(context, proxy.endpoint, topic("h", "main"))
            assert receive(joiner, Hello).classes == ("dog",)
            joiner.subscribe(topic("s", "main"))
            assert receive(joiner, Status).stream == "main"
            joiner.close()


def test_a_dead_daemons_status_is_not_repeated(context):
    with Feeder(TCP, 50) as feeder, proxied(feeder.endpoint) as proxy:
        until(lambda: proxy.stats().streams == 1)
        feeder.kill()
        until(lambda: proxy.stats().streams == 0)
        joiner = raw_subscriber(context, proxy.endpoint, b"")
        assert not joiner.poll(300)
        joiner.close()


def test_daemons_send_masks_and_previews_only_while_somebody_wants_them(context):
    with Publisher(TCP, "live") as publisher, proxied(publisher.endpoint) as proxy:
        publisher.publish(a_hello())
        until(lambda: proxy.stats().streams == 1)
        assert not publisher.wants("m")
        viewers = [raw_subscriber(context, proxy.endpoint, topic("f", "main")) for _ in range(3)]
        until(lambda: publisher.wants("f", "main"))
        assert not publisher.wants("m")
        for viewer in viewers[1:]:
            viewer.close()
        masks = raw_subscriber(context, proxy.endpoint, b"m/")
        await_subscribers(publisher, 1)
        assert publisher.wants("f", "main")
        viewers[0].close()
        masks.close()
        until(lambda: not publisher.wants("f") and not publisher.wants("m"))


def test_what_is_wanted_reaches_a_daemon_that_comes_later(context, tmp_path):
    """More changes than ZeroMQ would keep for a daemon that is not there."""
    endpoint = f"ipc://{tmp_path}/bus"
    with proxied(endpoint) as proxy:
        masks = raw_subscriber(context, proxy.endpoint, b"m/")
        for _ in range(1500):
            masks.subscribe(b"f/")
            masks.unsubscribe(b"f/")
            masks.poll(1)
        with Publisher(endpoint, "live") as publisher:
            publisher.publish(a_hello())
            await_subscribers(publisher, 1)
            until(lambda: not publisher.wants("f"))
            publisher.publish(a_mask(3))
            assert receive(masks, Mask).seq == 3
        masks.close()


def test_a_name_that_another_daemon_has_is_refused_aloud_and_free_after_its_silence(
    context, caplog
):
    now = [10**9]
    with (
        Publisher(TCP, "live", hello_s=0.05, status_s=3600) as second,
        proxied_pair(second, lambda: now[0]) as (first, proxy),
    ):
        reader = raw_subscriber(context, proxy.endpoint, b"h/")
        first.publish(a_hello(classes=("first",)))
        assert receive(reader, Hello).classes == ("first",)
        second.publish(a_hello(classes=("second",)))
        until(lambda: proxy.stats().contested > 2)
        assert f"{first.endpoint} has that name; give each daemon another" in caplog.text
        now[0] += 10 * module.SILENCE_S * 10**9
        now[0] = int(now[0])
        while receive(reader, Hello).classes != ("second",):
            pass
        assert "is silent" in caplog.text
        reader.close()


@contextmanager
def proxied_pair(second, clock):
    with (
        Publisher(TCP, "live", hello_s=3600, status_s=3600) as first,
        proxied(first.endpoint, second.endpoint, clock=clock) as proxy,
    ):
        yield first, proxy


def test_what_is_no_message_is_not_passed_on(context):
    source = context.socket(zmq.XPUB)
    source.linger = 0
    source.bind(TCP)
    with proxied(source.last_endpoint.decode()) as proxy:
        assert {source.recv(), source.recv()} == {b"\1h/", b"\1s/"}
        everything = raw_subscriber(context, proxy.endpoint)
        source.send(b"h/main\0first, so that it is heard")
        assert everything.recv().startswith(b"h/main")
        assert source.recv() == b"\1"
        for garbage in (b"", b"x/main\0", b"m/\0", b"m/main", b"m/" + b"a" * 65 + b"\0", b"\xff"):
            source.send(garbage)
        source.send_multipart([b"m/main\0", b"second part"])
        source.send(b"m/main\0passed")
        got = [everything.recv()]
        while got[-1] != b"m/main\0passed":
            got.append(everything.recv())
        assert set(got) <= {b"m/main\0passed", b"m/main", b"h/main\0first, so that it is heard"}
        assert proxy.stats().malformed >= 5
        everything.close()
    source.close()


def test_dead_and_slow_subscribers_cost_the_others_and_the_daemon_nothing(context):
    with Publisher(TCP, "live") as publisher, proxied(publisher.endpoint) as proxy:
        publisher.publish(a_hello())
        stuck = [raw_subscriber(context, proxy.endpoint, b"m/", rcvhwm=2, rcvbuf=4096)]
        await_subscribers(publisher, 1)
        with subscribe(proxy.endpoint, mode="all", timeout_s=PATIENCE_S) as masks:
            first = first_mask(publisher, masks)
            for seq in range(first + 1, first + 300):
                publisher.publish(a_mask(seq, mask=picture(200, 200), enc="prob8"))
                assert next(masks).seq == seq
            assert masks.stats.lost == 0
        assert proxy.stats().overtaken > 0
        assert publisher.stats().drops == {}
        stuck[0].close()


def first_mask(publisher, masks):
    """Publish until the first mask arrives, as the subscription needs a moment to travel."""
    seq = 0
    came = []
    waiting = threading.Thread(target=lambda: came.append(next(masks)))
    waiting.start()
    while not came:
        publisher.publish(a_mask(seq))
        waiting.join(0.05)
        seq += 1
    while came[-1].seq < seq - 1:
        came.append(next(masks))
    return seq - 1


def crowd(proxy, context, count, masks_each):
    """Ages in ms, and losses, of `count` subscribers at once that each read so many masks."""
    sockets = [raw_subscriber(context, proxy, b"m/") for _ in range(count)]
    poller = zmq.Poller()
    for socket in sockets:
        poller.register(socket, zmq.POLLIN)
    seqs = {socket: [] for socket in sockets}
    ages = []
    while any(len(read) < masks_each for read in seqs.values()):
        ready = poller.poll(PATIENCE_S * 1000)
        assert ready, "nothing came"
        for socket, _ in ready:
            mask = unpack(socket.recv())
            ages.append((time.monotonic_ns() - mask.capture_ns) / 1e6)
            seqs[socket].append(mask.seq)
    for socket in sockets:
        socket.close()
    lost = sum(read[-1] - read[0] + 1 - len(read) for read in seqs.values())
    return sorted(ages), lost


def test_thirty_subscribers_at_once_lose_nothing(context):
    with Feeder(TCP, 10) as feeder, proxied(feeder.endpoint) as proxy:
        ages, lost = crowd(proxy.endpoint, context, 30, 5)
    assert lost == 0
    assert ages[len(ages) // 2] < 100


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_hundred_subscribers_at_once_at_one_mask_a_second_are_fresh(context):
    with Feeder(TCP, 1) as feeder, serving(feeder.endpoint) as (endpoint, _):
        ages, lost = crowd(endpoint, context, 200, 30)
    p99 = ages[len(ages) * 99 // 100]
    sys.stdout.write(f"200 subscribers: {len(ages)} masks, p50 {ages[len(ages) // 2]:.1f} ms, ")
    sys.stdout.write(f"p99 {p99:.1f} ms, {lost} lost\n")
    assert lost == 0
    assert p99 < 500


@contextmanager
def serving(*sources):
    """`atlasd proxy` as a process: its endpoint, and the process."""
    words = [word for source in sources for word in ("--from", source)]
    command = [sys.executable, "-m", "atlasd.tools.cli", "proxy", *words, "--to", TCP]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        assert "subscribers connect to" in line, line + process.stderr.read()
        yield line.split("connect to ")[1].split(";")[0], process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_the_command_serves_until_sigterm_and_says_what_it_did():
    with (
        Feeder(TCP, 50) as feeder,
        serving(feeder.endpoint) as (endpoint, process),
        subscribe(endpoint, timeout_s=PATIENCE_S) as masks,
    ):
        next(masks)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        log = process.stderr.read()
    assert "stream main comes from" in log
    assert "stopped by SIGTERM" in log
    assert "Traceback" not in log


def test_the_command_serves_more_subscribers_than_files_may_be_open_at_first(context):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Feeder(TCP, 20) as feeder, ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
        try:
            endpoint, _ = stack.enter_context(serving(feeder.endpoint))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        _, lost = crowd(endpoint, context, 100, 1)
    assert lost == 0


def test_addresses_that_cannot_be_joined_are_refused():
    with pytest.raises(ProxyError, match="at least one daemon's bus"):
        Proxy([], TCP)
    with pytest.raises(ProxyError, match="named twice"):
        Proxy(["ipc:///a", "ipc:///a"], TCP)
    with pytest.raises(ProxyError, match="both source and destination"):
        Proxy(["ipc:///a"], "ipc:///a")
    with pytest.raises(EndpointError, match="must be tcp://HOST:PORT"):
        Proxy(["127.0.0.1:5557"], TCP)
    with pytest.raises(EndpointError, match="--insecure of a proxy"):
        Proxy(["ipc:///a"], "tcp://*:0")
    Proxy(["ipc:///a"], "tcp://*:0", insecure=True).close()


def test_a_port_in_use_is_one_clear_error():
    with Publisher(TCP) as publisher, pytest.raises(EndpointError, match="is in use"):
        Proxy(["ipc:///a"], publisher.endpoint)

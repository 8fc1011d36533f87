"""Masks stay fresh whatever subscribers do: real publishers and readers, apart by process."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import zmq
from atlasd.daemon.client import subscribe
from atlasd.daemon.messages import Mask, topic, unpack
from atlasd.daemon.outlet import HEARTBEAT_TIMEOUT_MS
from atlasd.daemon.publisher import Publisher
from feeder import Feeder
from wire import PATIENCE_S, a_mask, await_subscribers, picture, raw_subscriber

TCP = "tcp://127.0.0.1:0"
BAR_MS = 50
FAST_HZ, SLOW_HZ = 150, 20
NEVER_READS = """
import sys, time, zmq
socket = zmq.Context().socket(zmq.SUB)
socket.rcvhwm = 2
socket.connect(sys.argv[1])
socket.subscribe(b"m/")
while True:  # ZeroMQ subscribes anew after a reconnect only where its caller looks in
    socket.poll(50)
    time.sleep(0.05)
"""


@pytest.fixture
def context():
    with zmq.Context() as made:
        yield made


@pytest.fixture
def stranger():
    """Starts a subscriber in a process of its own, that never reads."""
    processes = []

    def started(endpoint):
        command = [sys.executable, "-c", NEVER_READS, endpoint]
        processes.append(subprocess.Popen(command))
        return processes[-1]

    yield started
    for process in processes:
        process.kill()
        process.wait()


def ages_ms(endpoint, seconds, rate_hz=SLOW_HZ):
    """How old each mask is at its reading, by a reader that acts on it for 1/rate_hz seconds."""
    ages = []
    until = time.monotonic() + seconds
    with subscribe(endpoint, timeout_s=PATIENCE_S) as masks:
        while time.monotonic() < until:
            time.sleep(1 / rate_hz)
            mask = next(masks)
            ages.append((time.monotonic_ns() - mask.capture_ns) / 1e6)
        assert masks.stats.skipped > 2 * masks.stats.masks
    return ages


def publish(publisher, count):
    for seq in range(count):
        publisher.publish(a_mask(seq, mask=picture(60, 60), enc="prob8"))


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("endpoint", [TCP, "ipc://{tmp}/bus"])
def test_a_slow_reader_of_a_fast_stream_stays_fresh(endpoint, tmp_path):
    with Feeder(endpoint.format(tmp=tmp_path), FAST_HZ) as feeder:
        ages = ages_ms(feeder.endpoint, 2.0)
    assert sorted(ages)[len(ages) // 2] < BAR_MS
    assert min(ages[-5:]) < BAR_MS


@pytest.mark.slow
def test_a_slow_reader_is_fresh_after_a_minute():
    with Feeder(TCP, FAST_HZ) as feeder:
        ages = ages_ms(feeder.endpoint, 60.0)
    assert sorted(ages)[len(ages) * 95 // 100] < BAR_MS
    assert min(ages[-5:]) < BAR_MS


@pytest.mark.slow
def test_a_reader_that_paused_over_a_full_queue_is_fresh_at_once():
    """Its queue of 1,000 is full of the past, and more lies in TCP behind it."""
    with (
        Feeder(TCP, 1500, side=32) as feeder,
        subscribe(feeder.endpoint, timeout_s=PATIENCE_S) as masks,
    ):
        next(masks)
        time.sleep(2.5)
        next(masks)
        mask = next(masks)
        assert (time.monotonic_ns() - mask.capture_ns) / 1e6 < 5 * BAR_MS
        assert masks.stats.skipped > 1000


@pytest.mark.slow
def test_a_stopped_subscriber_is_cut_off_and_comes_back_when_it_goes_on(stranger):
    """Its process is there and its connection open; only its answers to heartbeats are missing."""
    with Publisher(TCP, "live", linger_s=0.1) as publisher:
        process = stranger(publisher.endpoint)
        await_subscribers(publisher, 1)
        os.kill(process.pid, signal.SIGSTOP)
        began = time.monotonic()
        await_subscribers(publisher, 0)
        assert time.monotonic() - began > HEARTBEAT_TIMEOUT_MS / 2000
        os.kill(process.pid, signal.SIGCONT)
        await_subscribers(publisher, 1)


@pytest.mark.parametrize("policy", ["live", "wait"])
def test_a_killed_subscriber_is_gone_at_once(stranger, policy):
    with Publisher(TCP, policy, linger_s=0.1) as publisher:
        process = stranger(publisher.endpoint)
        await_subscribers(publisher, 1)
        process.kill()
        await_subscribers(publisher, 0)


@pytest.mark.slow
def test_under_wait_a_slow_reader_is_not_cut_off_and_misses_nothing(context):
    """Its queues are full up to the wire, where an answer to a heartbeat would be stuck."""
    count = 400
    with Publisher(TCP, "wait", stall_timeout_s=PATIENCE_S) as publisher:
        slow = raw_subscriber(context, publisher.endpoint, b"m/", rcvhwm=2)
        await_subscribers(publisher, 1)
        feed = threading.Thread(target=publish, args=(publisher, count))
        feed.start()
        slow_until = time.monotonic() + 2.5 * HEARTBEAT_TIMEOUT_MS / 1000
        for seq in range(count):
            if time.monotonic() < slow_until:
                time.sleep(0.5)
            assert unpack(slow.recv()).seq == seq
        feed.join()
        assert publisher.stats().drops == {}
        slow.close()


def test_dead_and_slow_subscribers_cost_the_others_nothing(stranger):
    with Publisher(TCP, "live", linger_s=0.1) as publisher:
        strangers = [stranger(publisher.endpoint) for _ in range(3)]
        await_subscribers(publisher, 3)
        os.kill(strangers[0].pid, signal.SIGSTOP)
        strangers[1].kill()
        await_subscribers(publisher, 2)
        with subscribe(publisher.endpoint, mode="all", timeout_s=PATIENCE_S) as masks:
            await_subscribers(publisher, 3)
            for seq in range(300):
                publisher.publish(a_mask(seq, mask=picture(200, 200), enc="prob8"))
                assert next(masks).seq == seq
            assert masks.stats.lost == 0


def test_a_thousand_subscribers_come_and_go_and_leave_nothing_behind(context):
    """At most 20 at once; what the bus counts and the process holds is as before."""
    with (
        Publisher(TCP, "live", linger_s=0.1) as publisher,
        subscribe(publisher.endpoint, mode="all", timeout_s=PATIENCE_S) as masks,
    ):
        await_subscribers(publisher, 1)
        before = open_files()
        others = []
        for seq in range(1000):
            others.append(raw_subscriber(context, publisher.endpoint, b"h/", topic("m", "main")))
            if len(others) == 20:
                others.pop(0).close()
            publisher.publish(a_mask(seq))
            assert next(masks).seq == seq
        for other in others:
            other.close()
        await_subscribers(publisher, 1)
        assert masks.stats.lost == 0
        deadline = time.monotonic() + PATIENCE_S
        while open_files() > before + 5:
            assert time.monotonic() < deadline, "connections stay open"
            time.sleep(0.01)


def test_two_hundred_subscribers_at_once_all_get_every_mask(context):
    with Publisher(TCP, "wait") as publisher:
        readers = [raw_subscriber(context, publisher.endpoint, b"m/") for _ in range(200)]
        await_subscribers(publisher, 200)
        for seq in range(3):
            publisher.publish(a_mask(seq))
        for reader in readers:
            assert [Mask, Mask, Mask] == [type(unpack(reader.recv())) for _ in range(3)]
            reader.close()

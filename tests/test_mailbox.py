"""The mailbox between threads: bounds, policies, counted drops, errors that arrive."""

from __future__ import annotations

import threading
import time

import pytest
from atlasd.streams.mailbox import MAX_EVENTS, Mailbox, MailboxClosedError

MS = 1_000_000


def in_thread(work) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_wait_loses_nothing_and_keeps_order():
    """A fast producer is held to the consumer's pace by two places."""
    mailbox = Mailbox(2, "wait")

    def produce():
        for i in range(1000):
            mailbox.put(i, captured_ns=0)
        mailbox.close()

    thread = in_thread(produce)
    assert list(mailbox) == list(range(1000))
    thread.join(5)
    assert mailbox.drops == {"queue_full": 0, "stale": 0}


def test_wait_blocks_while_full():
    """The third put into two places returns only after a get."""
    mailbox = Mailbox(2, "wait")
    third_is_in = threading.Event()

    def produce():
        for i in range(3):
            mailbox.put(i)
        third_is_in.set()

    thread = in_thread(produce)
    assert not third_is_in.wait(0.05)
    assert len(mailbox) == 2
    assert mailbox.get() == 0
    assert third_is_in.wait(5)
    thread.join(5)


def test_live_drops_the_oldest_and_counts():
    """A slow consumer gets the newest; put never blocks."""
    mailbox = Mailbox(2, "live", clock=lambda: 0)
    for i in range(5):
        mailbox.put(i, captured_ns=0)
    mailbox.close()
    assert list(mailbox) == [3, 4]
    assert mailbox.drops == {"queue_full": 3, "stale": 0}


def test_live_drops_by_measured_age_and_counts():
    """What is older than max_age_ms when it would be taken is passed over."""
    now = 0
    mailbox = Mailbox(4, "live", max_age_ms=100, clock=lambda: now)
    mailbox.put("old", captured_ns=0)
    mailbox.put("new", captured_ns=60 * MS)
    now = 101 * MS
    assert mailbox.get(0) == "new"
    assert mailbox.drops == {"queue_full": 0, "stale": 1}


def test_wait_never_drops_by_age():
    """Every frame of a file arrives, however slow the consumer is."""
    mailbox = Mailbox(4, "wait", max_age_ms=1, clock=lambda: 10**12)
    mailbox.put("old", captured_ns=0)
    assert mailbox.get(0) == "old"


def test_events_outlive_pictures():
    """Items without a capture time have a place of their own, and no age."""
    mailbox = Mailbox(1, "live", max_age_ms=1, clock=lambda: 10**12)
    mailbox.put("event")
    mailbox.put("first", captured_ns=10**12)
    mailbox.put("another event")
    mailbox.put("second", captured_ns=10**12)
    mailbox.close()
    assert list(mailbox) == ["event", "another event", "second"]
    assert mailbox.drops == {"queue_full": 1, "stale": 0}


def test_events_that_nobody_takes_are_bounded_too():
    mailbox = Mailbox(1, "live", clock=lambda: 10**12)
    for number in range(MAX_EVENTS + 3):
        mailbox.put(number)
    mailbox.close()
    assert list(mailbox) == list(range(3, MAX_EVENTS + 3))
    assert mailbox.drops == {"queue_full": 3, "stale": 0}


def test_get_times_out_with_none():
    """An empty, open mailbox answers None after the timeout."""
    assert Mailbox(1).get(0.01) is None


def test_close_wakes_a_waiting_consumer():
    """The iteration ends."""
    mailbox = Mailbox(1)
    got = []
    thread = in_thread(lambda: got.extend(mailbox))
    mailbox.put("last")
    mailbox.close()
    mailbox.close()
    thread.join(5)
    assert not thread.is_alive()
    assert got == ["last"]
    assert mailbox.closed


def test_close_wakes_a_blocked_producer():
    """A producer whose consumer has gone learns of it."""
    mailbox = Mailbox(1)
    mailbox.put(0)
    raised = []

    def produce():
        try:
            mailbox.put(1)
        except MailboxClosedError as error:
            raised.append(error)

    thread = in_thread(produce)
    mailbox.close()
    thread.join(5)
    assert len(raised) == 1


def test_an_error_arrives_after_what_was_put_before():
    """The consumer first gets every item, then the producer's error."""
    mailbox = Mailbox(4)
    mailbox.put(1)
    mailbox.fail(OSError("camera unplugged"))
    assert mailbox.get() == 1
    with pytest.raises(OSError, match="camera unplugged"):
        mailbox.get()
    with pytest.raises(MailboxClosedError):
        mailbox.put(2)


@pytest.mark.parametrize("how", [{"capacity": 0}, {"capacity": 1, "max_age_ms": -1.0}])
def test_an_impossible_size_or_age_is_refused(how):
    """The error says what is allowed."""
    with pytest.raises(ValueError, match="at least one item"):
        Mailbox(**how)


def test_what_queues_up_gives_way_to_what_is_newer_but_what_arrives_together_stays():
    """A consumer of 45 ms behind frames of 40 ms is never more than a period behind."""
    now = [0]
    mailbox = Mailbox(8, "live", max_wait_ms=40, clock=lambda: now[0] * 1_000_000)
    for name in ("a", "b", "c"):
        mailbox.put(name, captured_ns=0)
    now[0] = 30
    assert mailbox.get(0) == "a"
    now[0] = 60
    mailbox.put("event")
    assert mailbox.get(0) == "c"  # b waited 60 ms and c is newer; nothing is newer than c
    mailbox.put("d", captured_ns=0)
    now[0] = 90
    mailbox.put("e", captured_ns=0)
    now[0] = 101
    mailbox.close()
    assert list(mailbox) == ["event", "e"]
    assert mailbox.drops == {"queue_full": 0, "stale": 2}


def one_waits(
    waited_s: float, policy="live", gap_s=40, **how
) -> tuple[Mailbox[str], list[str | None], threading.Thread]:
    """A mailbox of periods of 40 s, since when a picture waits in it, and who comes for it."""
    now, got = [0.0], []
    told = {"capacity": 8, "max_wait_ms": 20_000, "period_ms": 40_000} | how
    mailbox = Mailbox(policy=policy, clock=lambda: round(now[0] * 1000 * MS), **told)
    mailbox.put("before", captured_ns=0)
    assert mailbox.get() == "before"
    now[0] += gap_s
    mailbox.put("old", captured_ns=round(now[0] * 1000 * MS))
    now[0] += waited_s
    return mailbox, got, in_thread(lambda: got.append(mailbox.get()))


@pytest.mark.parametrize(
    ("waited_s", "capacity", "reason"), [(31, 8, "stale"), (39, 1, "queue_full")]
)
def test_one_whose_successor_is_all_but_there_is_passed_over_for_it(waited_s, capacity, reason):
    """The consumer that comes then waits for the newer one: up to ten real seconds here."""
    mailbox, got, thread = one_waits(waited_s, capacity=capacity)
    thread.join(0.05)
    assert not got
    mailbox.put("event")
    mailbox.put("new", captured_ns=0)
    thread.join(5)
    mailbox.close()
    assert sorted([*got, *mailbox]) == ["event", "new"]
    assert mailbox.drops == {"queue_full": 0, "stale": 0} | {reason: 1}


@pytest.mark.parametrize(
    ("waited_s", "how"),
    [
        (29, {}),  # its successor is far off
        (41, {}),  # overdue: who knows when it comes
        (35, {"max_wait_ms": 36_000}),  # may wait for longer
        (35, {"policy": "wait"}),
        (35, {"gap_s": 0}),  # sound let two go together: the next pair is far off
        (35, {"gap_s": 64}),
        (35, {"period_ms": None}),
    ],
)
def test_one_whose_successor_is_not_due_is_taken_at_once(waited_s, how):
    mailbox, got, thread = one_waits(waited_s, **how)
    thread.join(5)
    assert got == ["old"]
    assert mailbox.drops == {"queue_full": 0, "stale": 0}


def test_one_whose_successor_does_not_come_is_taken_in_time():
    """Neither the consumer's patience is passed nor the age that is allowed."""
    now = [0]
    for patience_s, max_age_ms, real_s in (
        (None, None, 0.1),
        (0.02, None, 0.02),
        (None, 320, 0.02),
    ):
        mailbox = Mailbox(
            8, "live", max_age_ms, max_wait_ms=200, period_ms=400, clock=lambda: now[0] * MS
        )
        now[0] = 0
        mailbox.put("before", captured_ns=0)
        assert mailbox.get() == "before"
        now[0] = 400
        mailbox.put("old", captured_ns=400 * MS)
        now[0] = 701
        began = time.monotonic()
        assert mailbox.get(patience_s) == "old"
        assert real_s * 0.9 <= time.monotonic() - began < real_s + 1
        assert mailbox.drops == {"queue_full": 0, "stale": 0}


def test_who_waits_for_a_successor_is_woken_by_the_end():
    mailbox, got, thread = one_waits(39)
    mailbox.close()
    thread.join(5)
    assert got == ["old"]

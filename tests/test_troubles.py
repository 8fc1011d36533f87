"""Troubles: counted over reconnects, named while they last, logged once a minute."""

from __future__ import annotations

import pytest
from atlasd.daemon.troubles import LOG_AGAIN_NS, Troubles
from atlasd.streams.sources import Trouble

SECOND_NS = 1_000_000_000


class Clock:
    now_ns = 5 * SECOND_NS

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def troubles(clock, caplog):
    caplog.set_level("WARNING", "atlasd.daemon.troubles")
    return Troubles(clock)


def test_a_microphone_that_is_lost_is_named_until_it_is_back(troubles):
    troubles.note(Trouble("microphone_lost", "it was unplugged", 1))
    assert troubles.present == "no sound: it was unplugged"
    troubles.note(Trouble("microphone_back", "it is heard", 1))
    assert troubles.present == ""


def test_a_source_that_is_lost_is_named_until_it_is_found_again(troubles):
    troubles.note(Trouble("microphone_lost", "the server hangs", 1))
    troubles.note(Trouble("reconnect", "the process hangs; attempt 1 in 0.9 s", 1))
    assert troubles.present.startswith("no sound: the server hangs; lost: the process hangs")
    troubles.found_again()
    assert troubles.present == ""


def test_what_passes_is_named_for_a_moment(troubles, clock):
    troubles.note(Trouble("corrupt_packet", "one was damaged", 1))
    clock.now_ns += 9 * SECOND_NS
    assert troubles.present == "corrupt_packet: one was damaged"
    clock.now_ns += 2 * SECOND_NS
    assert troubles.present == ""


def test_the_second_loss_of_a_week_is_logged_like_the_first(troubles, clock, caplog):
    for day in (1, 2):
        troubles.note(Trouble("microphone_lost", f"on day {day}", day))
        troubles.note(Trouble("microphone_back", f"on day {day}", day))
        clock.now_ns += 86_400 * SECOND_NS
    assert [record.getMessage() for record in caplog.records] == [
        "microphone_lost: on day 1",
        "microphone_back: on day 1",
        "microphone_lost: on day 2",
        "microphone_back: on day 2",
    ]


def test_a_flood_is_a_line_a_minute_with_its_number_and_its_last(troubles, clock, caplog):
    for count in range(1, 601):
        troubles.note(Trouble("corrupt_packet", f"number {count}", count))
        troubles.catch_up()
        clock.now_ns += SECOND_NS // 10
    assert len(caplog.records) == 1
    clock.now_ns += LOG_AGAIN_NS
    troubles.catch_up()
    troubles.catch_up()
    assert [record.getMessage() for record in caplog.records] == [
        "corrupt_packet: number 1",
        "corrupt_packet: number 600 (599 since the last line)",
    ]


def test_each_attempt_to_reach_a_source_is_logged(troubles, caplog):
    for count in (1, 2, 3):
        troubles.note(Trouble("reconnect", f"attempt {count}", count))
    assert [record.getMessage() for record in caplog.records] == [
        "attempt 1",
        "attempt 2",
        "attempt 3",
    ]


def test_a_source_that_was_opened_again_counts_on(troubles):
    """Its process counts from one, the stream does not."""
    counts = [troubles.note(Trouble("microphone_lost", "x", count)) for count in (1, 2, 1, 2, 1)]
    assert counts == [1, 2, 3, 4, 5]
    assert troubles.counts == {"microphone_lost": 5}


def test_a_status_holds_troubles_of_any_length(troubles):
    for kind in ("reconnect", "microphone_lost", "corrupt_packet"):
        troubles.note(Trouble(kind, "x" * 10_000, 1))
    assert len(troubles.present) < 2000

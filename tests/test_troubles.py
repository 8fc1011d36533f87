"""Troubles: counted over reconnects, named while they last, logged once a minute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from atlasd.daemon.troubles import LOG_AGAIN_NS, Troubles
from atlasd.streams.sources import Trouble, TroubleKind

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


ROOT = Path(__file__).resolve().parent.parent


def kinds_in(page, begin, end):
    """Names in the first column of the tables between two lines of a page."""
    text = (ROOT / "docs" / page).read_text().partition(begin)[2].partition(end)[0]
    rows = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}


def test_each_kind_of_trouble_is_documented_and_none_that_is_not():
    """A type checker lets none pass that `TroubleKind` lacks."""
    media = kinds_in("protocol.md", "Troubles of media:", "\n## ")
    devices = kinds_in("devices.md", "## What goes wrong, and what is told", "\n## ")
    openings = {"camera_open", "microphone_open"}  # devices.md has them in the row of their event
    assert media | (devices - {"opened", "epoch"}) | openings == {*get_args(TroubleKind)}
    assert media & devices == set()


@pytest.mark.parametrize("kind", get_args(TroubleKind))
def test_each_kind_of_trouble_is_told_somewhere(kind):
    modules = [path for path in (ROOT / "streams").glob("*.py") if path.name != "sources.py"]
    assert any(f'"{kind}"' in path.read_text() for path in modules)

"""The labeler that never gives up, before an intake that comes and goes."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest
from atlasd.daemon.intake import Intake
from atlasd.daemon.labeldesk import LabelDesk, LabelRules
from atlasd.daemon.replayring import ReplayRing
from atlasd.daemon.spool import Spool
from atlasd.tools.labeler import Labeler
from labeled import a_clip

PATIENCE_S = 30.0


class Desk(LabelDesk):
    """Says when it has given so many answers of a kind."""

    def watch(self, counted: str, times: int) -> threading.Event:
        self.counted, self.times, self.reached = counted, times, threading.Event()
        return self.reached

    def answer(self, data):
        answer = super().answer(data)
        if (self.granted + self.refused)[self.counted] == self.times:
            self.reached.set()
        return answer


@contextmanager
def intake(folder, counted: str, times: int, max_clips: int = 1000):
    """An intake; gives what is set once it has given these answers."""
    spool = Spool(folder / "spool", max_clips=max_clips)
    desk = Desk(spool, ReplayRing(1.0, 0), LabelRules())
    reached = desk.watch(counted, times)
    with Intake(f"ipc://{folder}/labels", desk):
        yield reached


def test_each_clip_is_put_until_it_is_granted_and_stored_once(tmp_path):
    clips = (a_clip(), a_clip(category=None))
    with Labeler(f"ipc://{tmp_path}/labels", clips, lambda: False) as labeler:
        for _ in range(2):
            with intake(tmp_path, "stored", 4) as reached:
                assert reached.wait(PATIENCE_S)
        with intake(tmp_path, "stored", 1) as reached:
            assert reached.wait(PATIENCE_S)
            labeler.finish()
    granted = labeler.granted
    assert len(granted) >= 9
    assert list(granted.values()) == [k % 2 for k in range(len(granted))]
    with Spool(tmp_path / "spool") as spool:
        assert spool.status().clips == {"pending": len(granted)}


def test_a_clip_that_is_refused_is_not_granted_and_a_labeler_can_be_sent_away(tmp_path):
    with (
        Labeler(f"ipc://{tmp_path}/labels", (a_clip(),), lambda: False) as labeler,
        intake(tmp_path, "quota", 1, max_clips=1) as reached,
    ):
        assert reached.wait(PATIENCE_S)
    assert len(labeler.granted) == 1
    assert set(labeler.refused) <= {"quota"}


@pytest.mark.parametrize("seed", range(8))
def test_a_labeler_that_is_sent_away_before_its_first_grant_puts_nothing_once_more(tmp_path, seed):
    asked = threading.Event()

    def is_full() -> bool:
        asked.set()
        return False

    with Labeler(f"ipc://{tmp_path}/labels", (a_clip(),), is_full, seed) as labeler:
        assert asked.wait(PATIENCE_S)
    labeler.finish()
    assert not labeler.granted


def test_a_labeler_waits_where_the_learner_has_enough(tmp_path):
    asked = threading.Event()

    def is_full() -> bool:
        asked.set()
        return True

    with Labeler(f"ipc://{tmp_path}/labels", (a_clip(),), is_full) as labeler:
        assert asked.wait(PATIENCE_S)
        labeler.finish()
    assert not labeler.granted

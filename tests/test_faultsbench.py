"""The bench of deaths: it sees what is lost or learned twice, and a daemon that loses nothing."""

from __future__ import annotations

import io
import json
from itertools import pairwise

import av
import pytest
from atlasd.daemon.journal import Entry, Journal
from atlasd.daemon.learnstore import Learned, Tally
from atlasd.tools.bareforward import BenchError
from atlasd.tools.faultsbench import bench_faults, fate_of
from atlasd.tools.film import write_film
from rich.console import Console

CLIPS = {"a": "consumed", "b": "consumed", "c": "quarantined", "d": "consumed"}
BATCHES = (
    Entry(1, 0, "journaled", ("a", "b")),
    Entry(2, 0, "quarantined", ("c",)),
    Entry(3, 0, "released", ("d",)),
    Entry(4, 0, "journaled", ("d",)),
)


def learned(clips: int = 3) -> Learned:
    return Learned("4-x", "", "", "atlas", 4, Tally(clips))


def test_a_clip_is_exact_where_it_is_learned_once_or_set_aside():
    fate = fate_of("abcd", Journal(CLIPS, BATCHES), learned(), leavings=0)
    assert fate.is_exact
    assert (fate.granted, fate.consumed, fate.aside) == (4, 3, 1)
    assert (fate.counted, fate.learned, fate.batches, fate.refused) == (3, 3, 4, 2)


@pytest.mark.parametrize(
    ("changed", "batches", "counted", "lost", "twice"),
    [
        ({"a": "pending"}, BATCHES, 3, 1, 0),
        ({"a": "journaled"}, BATCHES, 3, 1, 0),
        ({}, BATCHES[1:], 1, 2, 0),
        ({}, (*BATCHES, Entry(5, 0, "journaled", ("a",))), 3, 0, 1),
        ({}, (*BATCHES, Entry(5, 0, "quarantined", ("a",))), 3, 0, 1),
        ({}, BATCHES, 5, 0, 0),
    ],
    ids=["pending", "journaled", "in no batch", "in two", "learned and aside", "counted twice"],
)
def test_what_is_lost_or_learned_twice_is_seen(changed, batches, counted, lost, twice):
    journal = Journal({**CLIPS, **changed}, batches)
    fate = fate_of("abcd", journal, learned(counted), leavings=0)
    assert not fate.is_exact
    assert (fate.lost, fate.twice) == (lost, twice)


def test_the_last_batch_is_not_lost_where_no_clips_came_to_judge_it():
    journal = Journal(
        {**CLIPS, "e": "journaled"},
        (*BATCHES, Entry(5, 0, "journaled", ("e",)), Entry(6, 0, "journaled", ())),
    )
    fate = fate_of("abcde", journal, learned(), leavings=0)
    assert fate.is_exact
    assert (fate.unjudged, fate.refused, fate.counted, fate.learned) == (1, 2, 3, 3)


def test_a_clip_that_the_spool_does_not_know_is_lost():
    fate = fate_of("abcde", Journal(CLIPS, BATCHES), learned(), leavings=0)
    assert (fate.lost, fate.is_exact) == (1, False)


def test_what_a_learner_leaves_about_is_a_fault():
    assert not fate_of("abcd", Journal(CLIPS, BATCHES), learned(), leavings=1).is_exact


def test_a_film_can_be_decoded_past_its_first_scene(tmp_path):
    with av.open(str(write_film(tmp_path / "a.mkv", 25))) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert len(times) == 250
    assert all(later - sooner == pytest.approx(0.1) for sooner, later in pairwise(times))
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == 25 * 8000


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(BenchError, match="not empty"):
        bench_faults("tiny", folder=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_lost_where_daemon_and_learner_are_killed(tmp_path):
    text = io.StringIO()
    report = bench_faults(
        "tiny",
        kills=1,
        folder=tmp_path / "run",
        json_path=tmp_path / "report.json",
        console=Console(file=text, width=120),
    )
    log = (tmp_path / "run" / "log.txt").read_text()
    assert report.passed, (report, log)
    assert "Traceback" not in log
    assert report.kills == {"learner": 1, "daemon": 1}
    assert report.fate.granted > 0
    assert report.first_mask.count == 1
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["fate"]["granted"] == report.fate.granted
    assert "start of the daemon to first mask" in text.getvalue()

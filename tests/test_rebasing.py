"""Learning goes on where checkpoints or spool were moved away, or come from a backup."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from atlasd.daemon import learnstore
from atlasd.daemon.journal import read_journal
from atlasd.daemon.learning import LearningError
from atlasd.daemon.spool import Spool
from atlasd.model.checkpoints import read_tensors, write_tensors
from atlasd.model.presets import build
from learnbench import SETTINGS, Bench, KilledError, taught
from learnbench import short_toy as toy

pytestmark = pytest.mark.slow


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.spool.close()


def away(bench: Bench, name: str = "old") -> Path:
    """Move the checkpoints away, as the daemon advises."""
    return bench.store.folder.rename(bench.folder / name)


def new_spool(bench: Bench) -> None:
    """Move the spool away, as it advises, and begin another one."""
    bench.spool.close()
    for path in bench.spool.path.parent.glob("clips*"):
        path.rename(bench.folder / path.name)
    bench.spool = Spool(bench.folder / "spool", clock=lambda: bench.time_ns)


# Checkpoints that were moved away.


def test_who_moves_checkpoints_away_begins_anew_with_all_that_is_still_on_disk(bench):
    """Consumed clips whose payloads are there, pending and quarantined ones: none is lost."""
    taught(bench, 10)
    bench.put(toy(10), toy(11))
    bench.turns()
    bench.put(toy(12))
    bench.spool.quarantine(6, "for a person")
    retired = bench.spool.status().retired_up_to
    gone = 2 * retired
    assert gone
    away(bench)
    bench.network = build("tiny", seed=5)
    bench.network.trained = True
    bench.begin()
    assert bench.states() == {"consumed": gone, "pending": 11 - gone, "quarantined": 2}
    told = bench.notice("learner_rebased")
    assert told.data == {"batch": 0, "waiting": 10 - gone, "gone": gone}
    bench.turns()
    bench.wait(5)
    bench.turns()
    bench.learning.checkpoint()
    assert bench.learning.info().clips == 11 - gone
    assert bench.states() == {"consumed": 10, "journaled": 1, "quarantined": 2}
    bench.learning.release(6)
    bench.turns()
    bench.learning.checkpoint()
    assert bench.states() == {"consumed": 11, "journaled": 2}
    assert bench.learning.info().clips == 13 - gone


def test_beginning_anew_happens_once_and_a_restart_goes_on(bench):
    taught(bench, 8)
    away(bench)
    bench.begin()
    bench.turns()
    bench.learning.checkpoint()
    info = bench.learning.info()
    bench.begin()
    assert bench.learning.info().version == info.version
    assert bench.turns() == 1, "the candidate is learned again"
    again = bench.learning.info()
    assert (again.candidate, again.clips) == (info.candidate, info.clips)
    assert bench.kinds.count("learner_rebased") == 1


def test_a_learner_that_is_killed_as_it_begins_anew_begins_anew_again(bench, monkeypatch):
    taught(bench, 8)
    waiting = 8 - 2 * bench.spool.status().retired_up_to
    away(bench)
    for name in ("rebase", "finish"):
        with monkeypatch.context() as patch:

            def killed(*_):
                raise KilledError

            patch.setattr(bench.spool, name, killed)
            with pytest.raises(KilledError):
                bench.begin()
    bench.begin()
    bench.turns()
    bench.learning.checkpoint()
    assert bench.learning.info().clips == waiting


def test_checkpoints_that_come_back_after_a_new_beginning_are_gone_on_from(bench):
    """What the learner between them learned, and is on disk, they learn too."""
    taught(bench, 4)
    version = bench.learning.info().version
    old = away(bench)
    bench.begin()
    bench.put(*(toy(k) for k in range(4, 8)))
    bench.turns()
    bench.learning.checkpoint()
    away(bench, "newer")
    old.rename(bench.store.folder)
    bench.begin()
    assert bench.learning.info().version == version
    told = bench.notice("learner_rebased")
    assert told.data["waiting"] + told.data["gone"] > 0
    assert bench.turns() > 0
    bench.learning.checkpoint()
    assert bench.learning.info().clips == 2 + told.data["waiting"]
    assert bench.states() == {"consumed": 6, "journaled": 2}


def test_checkpoints_of_a_backup_are_gone_on_from_and_nothing_of_them_is_learned_again(bench):
    taught(bench, 4)
    backup = bench.folder / "backup"
    shutil.copytree(bench.store.folder, backup)
    bench.put(*(toy(k) for k in range(4, 14)))
    bench.turns()
    bench.learning.checkpoint()
    retired = bench.spool.status().retired_up_to
    assert retired > 2
    away(bench)
    backup.rename(bench.store.folder)
    bench.begin()
    assert bench.notice("learner_rebased").data == {
        "batch": 1,
        "waiting": 0,
        "gone": 2 * (retired - 1),
    }
    bench.turns()
    bench.learning.checkpoint()
    assert bench.learning.info().clips == 2 + 2 * (7 - retired)
    assert bench.states() == {"consumed": 12, "journaled": 2}
    bench.begin()
    assert bench.turns() == 1, "the candidate is learned again"
    assert bench.learning.info().clips == 2 + 2 * (7 - retired)


def test_an_order_that_waited_for_a_judgement_ends_with_the_weights_that_it_was_given_for(bench):
    taught(bench, 8)
    assert not bench.learning.consolidate()
    away(bench)
    bench.begin()
    states = [batch.state for batch in read_journal(bench.folder / "spool").batches]
    assert states == ["past", "released", "released", "released", "past"]
    bench.turns()
    info = bench.learning.info()
    assert (info.clips, info.consolidations) == (6, 0)


# A spool that was moved away.


def test_a_new_spool_is_numbered_from_the_checkpoints_cursor_on(bench):
    taught(bench, 6)
    version = bench.learning.info().version
    new_spool(bench)
    bench.begin()
    assert bench.learning.info().version == version
    assert bench.notice("learner_rebased").data == {"batch": 2, "waiting": 0, "gone": 0}
    bench.put(*(toy(k) for k in range(6, 10)))
    bench.turns()
    bench.learning.checkpoint()
    info = bench.learning.info()
    assert (info.batch, info.candidate, info.clips) == (3, 4, 8)
    assert bench.states() == {"consumed": 2, "journaled": 2}
    assert bench.learning.rollback() == version
    assert [a.number for a in bench.spool.status().set_aside] == [3, 4]
    bench.begin()
    assert bench.learning.info().version == version
    assert bench.kinds.count("learner_rebased") == 1


def test_versions_from_before_a_new_spool_can_be_gone_back_to(bench):
    taught(bench, 6)
    new_spool(bench)
    bench.begin()
    before = bench.learning.versions()[-2]
    assert bench.learning.rollback() == before.version
    bench.put(*(toy(k) for k in range(6, 10)))
    bench.turns()
    bench.learning.checkpoint()
    assert bench.learning.info().batch == before.batch + 1


def test_clips_that_waited_in_another_spool_are_learned(bench):
    taught(bench, 6)
    new_spool(bench)
    bench.put(toy(6), toy(7))
    bench.begin()
    bench.turns()
    assert bench.learning.info().candidate == 3


def test_a_spool_of_a_backup_gives_nothing_again_that_the_checkpoints_hold(bench):
    bench.put(*(toy(k) for k in range(4)))
    bench.turns()
    bench.learning.checkpoint()
    bench.spool.close()
    saved = bench.spool.path.read_bytes()
    bench.spool = Spool(bench.folder / "spool", clock=lambda: bench.time_ns)
    bench.begin()
    bench.put(toy(4), toy(5))
    bench.turns()
    bench.learning.checkpoint()
    bench.spool.close()
    bench.spool.path.write_bytes(saved)
    bench.spool = Spool(bench.folder / "spool", clock=lambda: bench.time_ns)
    bench.begin()
    assert bench.turns() == 0
    bench.put(*(toy(k) for k in range(6, 10)))
    bench.turns()
    bench.learning.checkpoint()
    assert (bench.learning.info().batch, bench.learning.info().clips) == (3, 8)
    assert bench.states() == {"consumed": 6, "journaled": 2}


def test_the_journal_says_what_was_learned_by_others(bench):
    taught(bench, 8)
    retired = bench.spool.status().retired_up_to
    assert retired
    away(bench)
    bench.begin()
    states = [batch.state for batch in read_journal(bench.folder / "spool").batches]
    assert states == ["past"] * retired + ["released"] * (4 - retired)


def test_another_method_without_moving_checkpoints_away_is_refused_as_before(bench):
    taught(bench, 4)
    bench.settings = dataclasses.replace(SETTINGS, method="finetune")
    with pytest.raises(LearningError, match="move"):
        bench.begin()
    assert bench.states() == {"consumed": 2, "journaled": 2}


# What was there before spools knew whose they are.

FORMAT_1 = """
CREATE TABLE clips (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    digest BLOB NOT NULL,
    bytes INTEGER NOT NULL,
    state TEXT NOT NULL,
    stored_ns INTEGER NOT NULL
);
CREATE INDEX clips_by_state ON clips (state, sequence);
CREATE TABLE payloads (
    sequence INTEGER PRIMARY KEY REFERENCES clips,
    bytes INTEGER NOT NULL,
    crc32 INTEGER NOT NULL,
    payload BLOB NOT NULL
);
CREATE TABLE batches (
    number INTEGER PRIMARY KEY,
    seed INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT ''
);
CREATE TABLE members (
    batch INTEGER NOT NULL REFERENCES batches,
    place INTEGER NOT NULL,
    sequence INTEGER NOT NULL REFERENCES clips,
    PRIMARY KEY (batch, place)
) WITHOUT ROWID;
CREATE TABLE cursor (finished INTEGER NOT NULL, retired INTEGER NOT NULL);
INSERT INTO cursor VALUES (0, 0);
PRAGMA user_version=1;
"""
INTO_FORMAT_1 = """
DELETE FROM cursor;
INSERT INTO clips SELECT * FROM now.clips;
INSERT INTO payloads SELECT * FROM now.payloads;
INSERT INTO batches SELECT number, seed, state, reason FROM now.batches;
INSERT INTO members SELECT * FROM now.members;
INSERT INTO cursor SELECT finished, retired FROM now.cursor;
"""


def test_a_spool_and_checkpoints_of_the_first_format_are_gone_on_from(bench):
    taught(bench, 4)
    bench.spool.close()
    bench.spool.path.rename(bench.folder / "now.sqlite")
    with closing(sqlite3.connect(bench.spool.path)) as old:
        old.executescript(FORMAT_1)
        old.execute("ATTACH ? AS now", (str(bench.folder / "now.sqlite"),))
        old.executescript(INTO_FORMAT_1)
    for kept in bench.store.all():
        tensors, metadata = read_tensors(kept.folder / learnstore.STATE)
        told = json.loads(metadata["manifest"])
        del told["learned"]["lineage"]
        write_tensors(kept.folder / learnstore.STATE, tensors, {"manifest": json.dumps(told)})
    bench.spool = Spool(bench.folder / "spool", clock=lambda: bench.time_ns)
    bench.begin()
    assert "learner_rebased" not in bench.kinds
    assert bench.turns() == 1, "the candidate, which was journaled"
    bench.put(toy(4), toy(5))
    bench.turns()
    bench.learning.checkpoint()
    assert (bench.learning.info().batch, bench.learning.info().clips) == (2, 6)


def test_a_spool_of_the_second_format_is_gone_on_from(bench):
    taught(bench, 4)
    bench.spool.close()
    with closing(sqlite3.connect(bench.spool.path)) as old:
        old.executescript("ALTER TABLE batches DROP COLUMN looks; PRAGMA user_version=2;")
    bench.spool = Spool(bench.folder / "spool", clock=lambda: bench.time_ns)
    bench.begin()
    assert "learner_rebased" not in bench.kinds
    assert bench.turns() == 1, "the candidate, which was journaled"
    bench.wait(7)
    bench.turns()
    assert bench.publications[-1].reason == "unjudged"

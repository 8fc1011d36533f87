"""The spool loses no acknowledged clip and gives none twice, whatever is killed and when."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

import pytest
from atlasd.daemon import spoolfile
from atlasd.daemon.spool import Spool
from atlasd.daemon.spoolfile import (
    ConflictError,
    CorruptError,
    DeletedError,
    DiskFullError,
    JournaledError,
    JournalError,
    QuotaError,
    SpoolError,
    StorageError,
    UnknownClipError,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

PATIENCE_S = 60.0


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(folder):
    with Spool(folder) as opened:
        yield opened


def ids(batch) -> list[str]:
    return [clip.id for clip in batch.clips]


def filled(spool: Spool, n: int) -> Spool:
    for index in range(n):
        assert spool.append(f"c{index}", b"payload %d" % index) == "stored"
    return spool


# What the daemon asks of it.


def test_a_clip_is_there_for_another_process_once_append_has_returned(spool, folder):
    spool.append("a", b"first")
    with Spool(folder) as other:
        assert other.next_batch(0, 8, 7).clips[0].payload == b"first"


def test_the_same_clip_twice_is_stored_once(spool):
    assert spool.append("a", b"first") == "stored"
    assert spool.append("a", b"first") == "same"
    assert spool.status().clips == {"pending": 1}


def test_a_file_from_before_totals_were_kept_gets_them(spool, folder):
    filled(spool, 3).delete("c1")
    kept = ("pause", "totals", "classes")
    with closing(sqlite3.connect(folder / "clips.sqlite")) as before:
        named = before.execute("SELECT type, name FROM sqlite_master WHERE sql IS NOT NULL")
        for kind, name in named.fetchall():
            if kind == "trigger" or name in {*kept, "pending_by_age", "batches_aside"}:
                before.execute(f"DROP {kind} {name}")
        before.commit()
    with Spool(folder) as opened:
        assert opened.status().clips == {"pending": 2, "deleted": 1}
        assert (opened.status().held, opened.status().bytes) == (2, 18)
        assert not opened.is_paused


def test_the_digest_says_what_the_same_clip_is(spool):
    spool.append("a", b"first", digest=b"d")
    assert spool.append("a", b"made anew", digest=b"d") == "same"
    assert spool.recognise("a", b"d") == "same"
    assert spool.recognise("b", b"d") is None


def test_the_same_id_with_other_content_is_refused(spool):
    spool.append("a", b"first")
    with pytest.raises(ConflictError, match="'a' names a clip with other content"):
        spool.append("a", b"second")
    assert spool.next_batch(0, 1, 0).clips[0].payload == b"first"


def test_a_pending_clip_is_replaced_at_its_place(spool):
    filled(spool, 2)
    assert spool.append("c0", b"better", replace=True) == "replaced"
    batch = spool.next_batch(0, 8, 0)
    assert [clip.payload for clip in batch.clips] == [b"better", b"payload 1"]


def test_one_wrong_clip_of_a_batch_that_was_set_aside_does_not_cost_its_neighbours(spool):
    filled(spool, 4).next_batch(0, 4, 7)
    spool.quarantine(1, "poison")
    with pytest.raises(ConflictError, match="set aside"):
        spool.append("c1", b"mended")
    assert spool.append("c1", b"mended", replace=True) == "replaced"
    spool.delete("c2")
    (aside,) = spool.status().set_aside
    assert (aside.number, aside.ids) == (1, ("c0", "c1", "c3"))
    assert spool.next_batch(1, 4, 0) is None, "it waits for a person all the same"
    spool.release(1)
    batch = spool.next_batch(1, 4, 0)
    payloads = [b"payload 0", b"mended", b"payload 3"]
    assert (ids(batch), [c.payload for c in batch.clips]) == (["c0", "c1", "c3"], payloads)


def test_a_clip_put_anew_is_not_thrown_away_with_the_batch_that_it_was_taken_out_of(spool):
    filled(spool, 2).next_batch(0, 2, 7)
    spool.quarantine(1, "poison")
    spool.delete("c1")
    assert spool.append("c1", b"mended", replace=True) == "replaced"
    spool.discard(1)
    assert spool.status().clips == {"discarded": 1, "pending": 1}
    assert [c.payload for c in spool.next_batch(1, 4, 0).clips] == [b"mended"]
    with pytest.raises(JournaledError, match="is discarded; only one that is pending or set aside"):
        spool.delete("c0")


def test_a_journaled_clip_is_neither_replaced_nor_deleted(spool):
    filled(spool, 1).next_batch(0, 1, 0)
    with pytest.raises(JournaledError, match="journaled"):
        spool.append("c0", b"better", replace=True)
    with pytest.raises(JournaledError, match="only one that is pending"):
        spool.delete("c0")


def test_a_deleted_clip_does_not_come_back_by_a_late_duplicate(spool):
    filled(spool, 1).delete("c0")
    spool.delete("c0")
    with pytest.raises(DeletedError, match="with replace"):
        spool.append("c0", b"payload 0")
    assert spool.next_batch(0, 1, 0) is None
    assert spool.append("c0", b"payload 0", replace=True) == "replaced"
    assert ids(spool.next_batch(0, 1, 0)) == ["c0"]


def test_deleting_what_is_not_there_is_refused(spool):
    with pytest.raises(UnknownClipError, match="'nothing'"):
        spool.delete("nothing")


def test_over_quota_is_refused_and_what_is_there_stays(folder):
    with Spool(folder, max_clips=2) as spool:
        filled(spool, 2)
        with pytest.raises(QuotaError, match=r"2 clips .*; 2 are allowed.*max_clips"):
            spool.append("c2", b"x")
        assert spool.append("c1", b"payload 1") == "same"
    with Spool(folder, max_bytes=20) as spool:
        with pytest.raises(QuotaError, match=r"18 bytes .* and the clip has 3.*max_mb"):
            spool.append("c2", b"xyz")
        assert spool.append("c1", b"12345678901", replace=True) == "replaced"
        assert spool.status().bytes == 20


def test_what_a_checkpoint_holds_makes_room(folder):
    with Spool(folder, max_clips=1) as spool:
        filled(spool, 1).next_batch(0, 1, 0)
        spool.finish(1, 1)
        assert spool.append("c1", b"x") == "stored"


def test_what_is_being_learned_keeps_nothing_out_and_is_told_where_it_is_too_much(folder):
    with Spool(folder, max_clips=1) as spool:
        for number in (1, 2, 3):
            assert spool.append(f"c{number}", b"payload") == "stored"
            spool.next_batch(number - 1, 1, 0)
        assert [spool.is_crowded(number) for number in range(4)] == [False, False, True, True]
        spool.finish(3, 2)
        assert not spool.is_crowded(3)
        assert spool.status().held == 1


def test_clips_that_are_set_aside_count_and_a_refusal_says_so(folder):
    with Spool(folder, max_clips=1) as spool:
        filled(spool, 1).next_batch(0, 1, 0)
        spool.quarantine(1, "poison")
        with pytest.raises(QuotaError, match="discard the 1 that are set aside"):
            spool.append("c1", b"x")
        spool.discard(1)
        assert spool.append("c1", b"x") == "stored"


def test_an_order_to_consolidate_has_its_place_among_the_batches_and_comes_again(folder):
    with Spool(folder) as spool:
        filled(spool, 2)
        assert ids(spool.next_batch(0, 1, 7)) == ["c0"]
        assert spool.note_consolidation() == 2
        assert spool.waiting(1).journaled
        for _ in range(2):
            assert (spool.next_batch(1, 1, 7).number, ids(spool.next_batch(1, 1, 7))) == (2, [])
        assert ids(spool.next_batch(2, 1, 7)) == ["c1"]
        spool.finish(3, 1)
        spool.rewind(1, "gone back")
        assert [a.number for a in spool.status().set_aside] == [3]
        with pytest.raises(JournalError, match="discarded"):
            spool.release(2)


@pytest.mark.parametrize("clip_id", ["", "x" * 257])
def test_an_id_out_of_bounds_is_refused(spool, clip_id):
    with pytest.raises(SpoolError, match="1 to 256"):
        spool.append(clip_id, b"x")


def test_status_counts_and_tells_the_oldest(folder):
    ticks = count(1000)
    with Spool(folder, clock=lambda: next(ticks)) as spool:
        assert spool.status().oldest_ns is None
        filled(spool, 5)
        spool.next_batch(0, 2, 0)
        spool.delete("c4")
        status = spool.status()
    assert status.clips == {"pending": 2, "journaled": 2, "deleted": 1}
    assert (status.held, status.bytes, status.oldest_ns) == (4, 36, 1002)
    assert (status.journaled_up_to, status.finished_up_to, status.retired_up_to) == (1, 0, 0)


# What the learner asks of it.


def test_an_unfinished_batch_comes_again_with_its_members_and_seed(spool, folder):
    first = filled(spool, 3).next_batch(0, 2, 11)
    with Spool(folder) as after_a_crash:
        assert after_a_crash.next_batch(0, 9, 99) == first
    assert (ids(first), first.number, first.seed) == (["c0", "c1"], 1, 11)


def test_batches_after_the_checkpoints_cursor_come_again_in_order(spool):
    batches = [filled(spool, 5).next_batch(0, 2, 1), spool.next_batch(1, 2, 2)]
    assert [spool.next_batch(0, 1, 0), spool.next_batch(1, 1, 0)] == batches
    assert ids(spool.next_batch(2, 9, 3)) == ["c4"]
    assert spool.next_batch(3, 9, 4) is None


def test_payloads_go_with_the_oldest_kept_checkpoint_and_ids_stay(spool):
    filled(spool, 3)
    for number in range(3):
        spool.next_batch(number, 1, 0)
    spool.finish(2, 1)
    assert spool.status().held == 2
    assert ids(spool.next_batch(1, 1, 0)) == ["c1"]
    assert spool.append("c0", b"payload 0") == "consumed"
    assert spool.append("c1", b"payload 1") == "consumed"
    assert spool.append("c2", b"payload 2") == "same"
    with pytest.raises(ConflictError, match="consumed"):
        spool.append("c0", b"other")


def test_a_learner_that_fell_back_to_an_older_checkpoint_learns_on_from_there(spool):
    filled(spool, 2)
    batches = [spool.next_batch(0, 1, 5), spool.next_batch(1, 1, 6)]
    spool.finish(2, 0)
    spool.finish(0, 0)  # the newest checkpoint could not be read
    assert [spool.next_batch(0, 1, 0), spool.next_batch(1, 1, 0)] == batches
    assert spool.append("c0", b"payload 0") == "same"


@pytest.mark.parametrize(("up_to", "oldest"), [(3, 1), (1, 2), (2, 0)])
def test_cursors_that_contradict_the_journal_are_refused(spool, up_to, oldest):
    filled(spool, 2)
    spool.next_batch(0, 1, 0)
    spool.next_batch(1, 1, 0)
    spool.finish(2, 1)
    with pytest.raises(JournalError, match="oldest kept"):
        spool.finish(up_to, oldest)


def test_a_checkpoint_that_is_too_old_or_of_another_spool_is_refused(spool):
    filled(spool, 2).next_batch(0, 1, 0)
    spool.finish(1, 1)
    for cursor in (0, 2):
        with pytest.raises(JournalError, match=f"cursor is {cursor}.*batches 1 to 1"):
            spool.next_batch(cursor, 1, 0)


@pytest.mark.parametrize(("size", "seed"), [(0, 0), (1, -1), (1, 2**63)])
def test_a_batch_out_of_bounds_is_refused(spool, size, seed):
    with pytest.raises(JournalError, match="size"):
        spool.next_batch(0, size, seed)


def test_a_batch_in_quarantine_is_passed_over_and_shown(spool):
    filled(spool, 3)
    spool.next_batch(0, 2, 0)
    spool.quarantine(1, "the mean J fell by 0.2")
    (aside,) = spool.status().set_aside
    assert (aside.number, aside.reason, aside.ids) == (1, "the mean J fell by 0.2", ("c0", "c1"))
    assert ids(spool.next_batch(0, 9, 0)) == ["c2"]
    spool.finish(2, 2)
    assert spool.status().held == 2, "what is set aside is kept"


def test_a_released_batch_waits_again_under_another_number(spool):
    filled(spool, 3)
    spool.next_batch(0, 2, 0)
    spool.quarantine(1, "")
    spool.release(1)
    again = spool.next_batch(0, 2, 5)
    assert (again.number, again.seed, ids(again)) == (2, 5, ["c0", "c1"])
    assert spool.next_batch(0, 2, 0) == again


def test_a_discarded_batch_is_gone_but_for_its_ids(spool):
    filled(spool, 1).next_batch(0, 1, 0)
    spool.quarantine(1, "")
    spool.discard(1)
    assert spool.status().held == 0
    assert spool.append("c0", b"payload 0") == "discarded"
    assert spool.next_batch(0, 1, 0) is None


def test_what_is_not_so_cannot_be_set_aside_released_or_discarded(spool):
    filled(spool, 1).next_batch(0, 1, 0)
    for action in (spool.release, spool.discard):
        with pytest.raises(JournalError, match="must be quarantined"):
            action(1)
    with pytest.raises(JournalError, match="not in the journal"):
        spool.quarantine(2, "")
    spool.finish(1, 0)
    with pytest.raises(JournalError, match="checkpoint holds"):
        spool.quarantine(1, "")


# The file.


def test_others_can_read_neither_the_folder_nor_its_files(spool, folder):
    spool.append("a", b"x")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o600}
    assert len(list(folder.iterdir())) == 4, "the database, its log and index, the turnstile"


def test_a_folder_that_others_may_read_is_refused(folder):
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(StorageError, match=r"mode 755.*chmod 700"):
        Spool(folder)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be made"):
        Spool(tmp_path / "file" / "spool")


def test_a_file_that_is_no_spool_is_refused(folder):
    folder.mkdir(mode=0o700)
    (folder / "clips.sqlite").write_bytes(b"not a database, but long enough to be read" * 100)
    with pytest.raises(CorruptError, match=r"is damaged.*move it away"):
        Spool(folder)


def test_a_database_of_something_else_is_refused(folder):
    folder.mkdir(mode=0o700)
    with sqlite3.connect(folder / "clips.sqlite") as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    with pytest.raises(CorruptError, match="another folder"):
        Spool(folder)


def test_a_damaged_payload_is_told_and_not_learned(spool, folder):
    spool.append("a", b"x" * 200_000)
    spool.close()
    path = folder / "clips.sqlite"
    data = path.read_bytes()
    place = data.rindex(b"xxxx") - 1000
    path.write_bytes(data[:place] + b"y" + data[place + 1 :])
    with Spool(folder) as spool, pytest.raises(CorruptError, match=r"clip 'a'.*damaged"):
        spool.next_batch(0, 1, 0)


def test_a_full_disk_is_told_and_what_is_there_stays(folder, monkeypatch):
    with Spool(folder) as spool:
        filled(spool, 1)
    connect = sqlite3.connect

    def on_a_small_disk(*args, **kwargs):
        connection = connect(*args, **kwargs)
        connection.execute("PRAGMA max_page_count=20")
        return connection

    monkeypatch.setattr(spoolfile.sqlite3, "connect", on_a_small_disk)
    with Spool(folder) as spool:
        with pytest.raises(DiskFullError, match="make room"):
            spool.append("big", bytes(1_000_000))
        assert spool.append("small", b"x") == "stored"
        assert ids(spool.next_batch(0, 9, 0)) == ["c0", "small"]


def test_another_process_that_holds_the_file_for_long_is_told(folder, monkeypatch):
    monkeypatch.setattr(spoolfile, "_BUSY_S", 0.01)
    with Spool(folder) as spool, closing(sqlite3.connect(spool.path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked"):
            spool.append("a", b"x")


# Everything at once, against a model.


class SpoolMachine(RuleBasedStateMachine):
    """Daemon and learner on one spool; both may be killed between any two operations."""

    max_clips = 6
    names = st.sampled_from([f"c{i}" for i in range(9)])
    contents = st.sampled_from([b"one", b"three"])

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.spool = Spool(self.root / "spool", max_clips=self.max_clips)
        self.content: dict[str, bytes] = {}
        self.state: dict[str, str] = {}
        self.order: list[str] = []
        self.journal: list[dict] = []
        self.finished = self.retired = 0
        self.cursor = 0
        self.checkpoints = {0: []}
        self.learned: list[str] = []

    def teardown(self):
        self.spool.close()
        shutil.rmtree(self.root)

    def held(self):
        gone = {
            c
            for n, batch in enumerate(self.journal, 1)
            if batch["state"] == "journaled" and n <= self.retired
            for c in batch["ids"]
        }
        there = {c for c, s in self.state.items() if s not in {"deleted", "discarded"}}
        return there - gone

    @rule(name=names, content=contents, replace=st.booleans())
    def append(self, name, content, replace):
        state, same = self.state.get(name), self.content.get(name) == content
        expected = None
        if state == "deleted":
            expected = None if replace else DeletedError
        elif state is not None and same:
            expected = state if state in {"consumed", "discarded"} else "same"
        elif state is not None:
            expected = None if replace else ConflictError
            if replace and state not in {"pending", "quarantined"}:
                expected = JournaledError
        unlearned = {c for c, s in self.state.items() if s in {"pending", "quarantined"}}
        if expected is None and len(unlearned - {name}) >= self.max_clips:
            expected = QuotaError
        if expected is None:
            done = self.spool.append(name, content, replace=replace)
            assert done == ("stored" if state is None else "replaced")
            self.content[name] = content
            self.state[name] = state if state == "quarantined" else "pending"
            self.order += [] if name in self.order else [name]
        elif isinstance(expected, str):
            assert self.spool.append(name, content, replace=replace) == expected
        else:
            with pytest.raises(expected):
                self.spool.append(name, content, replace=replace)

    @rule(name=names)
    def delete(self, name):
        state = self.state.get(name)
        if state in {"pending", "quarantined", "deleted"}:
            self.spool.delete(name)
            self.state[name] = "deleted"
            for batch in self.journal:
                if batch["state"] == "quarantined":
                    batch["ids"] = [each for each in batch["ids"] if each != name]
        else:
            with pytest.raises(JournaledError if state else UnknownClipError):
                self.spool.delete(name)

    @rule(size=st.integers(1, 3), seed=st.integers(0, 9))
    def learn(self, size, seed):
        batch = self.spool.next_batch(self.cursor, size, seed)
        again = [
            n
            for n, b in enumerate(self.journal, 1)
            if n > self.cursor and b["state"] == "journaled"
        ]
        if not again:
            members = [c for c in self.order if self.state[c] == "pending"][:size]
            if not members:
                assert batch is None
                return
            self.journal.append({"ids": members, "seed": seed, "state": "journaled"})
            self.state |= dict.fromkeys(members, "journaled")
            again = [len(self.journal)]
        entry = self.journal[again[0] - 1]
        assert (batch.number, batch.seed) == (again[0], entry["seed"])
        assert ids(batch) == entry["ids"]
        assert [c.payload for c in batch.clips] == [self.content[c] for c in entry["ids"]]
        self.cursor = batch.number
        self.learned = [*self.learned, *ids(batch)]

    @rule()
    def write_checkpoint(self):
        self.checkpoints[self.cursor] = self.learned

    @rule(keep=st.integers(1, 3))
    def finish(self, keep):
        kept = dict(sorted(self.checkpoints.items())[-keep:])
        newest, oldest = max(kept), min(kept)
        self.checkpoints = kept
        self.spool.finish(newest, oldest)
        self.finished, self.retired = newest, oldest
        for number, batch in enumerate(self.journal, 1):
            if batch["state"] == "journaled":
                state = "consumed" if number <= newest else "journaled"
                self.state |= dict.fromkeys(batch["ids"], state)

    @rule()
    def the_learner_is_killed(self):
        self.cursor = max(self.checkpoints)
        self.learned = self.checkpoints[self.cursor]

    @rule()
    def the_newest_checkpoint_cannot_be_read(self):
        if len(self.checkpoints) > 1:
            del self.checkpoints[max(self.checkpoints)]
        self.the_learner_is_killed()
        self.finish(len(self.checkpoints))

    @precondition(lambda self: len(self.journal) > max(*self.checkpoints, self.finished))
    @rule()
    def the_canary_refuses(self):
        number = len(self.journal)
        if self.journal[-1]["state"] != "journaled":
            return
        self.spool.quarantine(number, "worse")
        self.journal[-1]["state"] = "quarantined"
        self.state |= dict.fromkeys(self.journal[-1]["ids"], "quarantined")
        self.the_learner_is_killed()

    @rule(release=st.booleans())
    def a_person_decides(self, release):
        aside = [n for n, b in enumerate(self.journal, 1) if b["state"] == "quarantined"]
        for number in aside[:1]:
            (self.spool.release if release else self.spool.discard)(number)
            batch = self.journal[number - 1]
            batch["state"] = "released" if release else "discarded"
            state = "pending" if release else "discarded"
            self.state |= dict.fromkeys(batch["ids"], state)

    @rule()
    def the_daemon_is_killed(self):
        self.spool.close()
        self.spool = Spool(self.root / "spool", max_clips=self.max_clips)

    @invariant()
    def nothing_is_learned_twice(self):
        assert len(self.learned) == len(set(self.learned))

    @invariant()
    def status_agrees(self):
        status = self.spool.status()
        counts = {s: list(self.state.values()).count(s) for s in set(self.state.values())}
        assert status.clips == counts
        assert status.held == len(self.held())
        assert status.bytes == sum(len(self.content[c]) for c in self.held())
        assert status.journaled_up_to == len(self.journal)
        assert (status.finished_up_to, status.retired_up_to) == (self.finished, self.retired)


TestSpoolMachine = SpoolMachine.TestCase
TestSpoolMachine.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


# A daemon and a learner that are really killed.

DAEMON = """
import sys
from pathlib import Path
from atlasd.daemon.spool import Spool
root, first = Path(sys.argv[1]), int(sys.argv[2])
spool = Spool(root / "spool")
acknowledged = (root / "acknowledged").open("a")
print("ready", flush=True)
for number in range(first, 10**9):
    name = f"clip-{number}"
    for _ in range(2):  # as a labeler does that missed the first answer
        spool.append(name, name.encode() * 2000)
    acknowledged.write(name + "\\n")
    acknowledged.flush()
"""

LEARNER = """
import json, sys, time
from pathlib import Path
from atlasd.daemon.spool import Spool
root = Path(sys.argv[1])
checkpoint = root / "checkpoint.json"
state = {"cursor": 0, "learned": [], "kept": [0]}
if checkpoint.exists():
    state = json.loads(checkpoint.read_text())
spool = Spool(root / "spool")
spool.finish(state["cursor"], min(state["kept"]))
print("ready", flush=True)
while True:
    batch = spool.next_batch(state["cursor"], 3, 5)
    if batch is None:
        time.sleep(0.001)
        continue
    state["learned"] += [clip.id for clip in batch.clips]
    state["cursor"] = batch.number
    if batch.number % 2 == 0:  # the checkpoint comes after several batches
        state["kept"] = [*state["kept"], batch.number][-2:]
        part = checkpoint.with_suffix(".part")
        part.write_text(json.dumps(state))
        part.replace(checkpoint)
        spool.finish(batch.number, min(state["kept"]))
"""


@contextmanager
def at_work(script: str, *words: str):
    """A process that has begun its work; it is killed at the end, whatever happens."""
    command = [sys.executable, "-c", script, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            os.kill(process.pid, signal.SIGKILL)


def pass_time(process: subprocess.Popen, seconds: float) -> None:
    """Let it work for a moment: there is nothing to wait for but time."""
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(seconds)


def test_who_writes_without_a_pause_keeps_nobody_out(tmp_path):
    """SQLite alone let the other wait for over ten seconds."""
    with at_work(DAEMON, str(tmp_path), "0") as process, Spool(tmp_path / "spool") as spool:
        began = time.monotonic()
        for number in range(20):
            spool.append(f"mine-{number}", b"x")
            assert process.poll() is None
        assert time.monotonic() - began < PATIENCE_S


def crash_and_check(root: Path, rounds: int) -> None:
    rng = random.Random(0)
    for number in range(rounds):
        commands = [(DAEMON, str(root), str(10**6 * number)), (LEARNER, str(root))]
        rng.shuffle(commands)
        with at_work(*commands[0]) as one:
            with at_work(*commands[1]) as other:
                pass_time(other, rng.uniform(0.001, 0.12))
            pass_time(one, rng.uniform(0.001, 0.12))
    state = json.loads((root / "checkpoint.json").read_text())
    with Spool(root / "spool") as spool:
        while (batch := spool.next_batch(state["cursor"], 50, 0)) is not None:
            for clip in batch.clips:
                assert clip.payload == clip.id.encode() * 2000
            state["learned"] += ids(batch)
            state["cursor"] = batch.number
    learned, told = state["learned"], (root / "acknowledged").read_text().split()
    assert len(told) > rounds
    assert set(told) <= set(learned), "an acknowledged clip was lost"
    assert len(learned) == len(set(learned)), "a clip was learned twice"
    unacknowledged = set(learned) - set(told)
    assert len(unacknowledged) <= rounds, "at most the one that was being acknowledged"


def test_killed_at_random_moments_nothing_is_lost_and_nothing_comes_twice(tmp_path):
    crash_and_check(tmp_path, 4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_many_times_nothing_is_lost_and_nothing_comes_twice(tmp_path):
    crash_and_check(tmp_path, 40)

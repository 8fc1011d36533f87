"""The spool loses no acknowledged clip and gives none twice, whatever is killed and when."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from atlasd.daemon.spool import Spool
from atlasd.daemon.spoolfile import (
    ConflictError,
    DeletedError,
    JournaledError,
    JournalError,
    QuotaError,
    UnknownClipError,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from spools import filled, ids


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(folder):
    with Spool(folder) as opened:
        yield opened


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

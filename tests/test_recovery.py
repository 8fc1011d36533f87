"""Learning goes on: batches that kill, rollbacks that are cut, checkpoints that are damaged."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from atlasd.daemon import learnstore, spoolfile
from atlasd.daemon.foundation import LeavingError
from atlasd.daemon.labelclips import write_clip
from atlasd.daemon.labels import Refused, pack_stored
from atlasd.daemon.learnermain import carry_out
from atlasd.daemon.learnstore import LearnStore
from atlasd.daemon.orders import Carried, Order
from atlasd.daemon.parts import build_engine, build_network
from atlasd.daemon.spool import Spool
from atlasd.daemon.spoolfile import BusyError
from learnbench import RULES, SETTINGS, Bench, KilledError, Part, same, taught
from learnbench import short_toy as toy
from served import tiny_checkpoint, tiny_config, tiny_network

pytestmark = pytest.mark.slow


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.spool.close()


# Batches that kill.


def test_a_batch_that_kills_its_learner_is_set_aside_at_the_fourth_start(tmp_path):
    part = Part()
    bench = Bench(tmp_path, rules=dataclasses.replace(RULES, checkpoint_s=1e9), part=part)
    with bench.spool:
        bench.put(*(toy(k) for k in range(4)))
        bench.learning.turn()
        part.fails = KilledError()
        for _ in range(3):
            with pytest.raises(KilledError):
                bench.turns()
            part.fails = None
            bench.begin()
            bench.learning.turn()  # the first batch, which is learned to its end
            part.fails = KilledError()
        part.fails = None
        bench.put(toy(4), toy(5))
        bench.turns()
        (aside,) = bench.spool.status().set_aside
        assert aside.number == 2
        assert "3 times" in aside.reason
        assert "batch_refused" in bench.kinds
        bench.learning.checkpoint()
        assert bench.states() == {"consumed": 2, "journaled": 2, "quarantined": 2}
        bench.learning.release(2)
        bench.turns()
        bench.learning.checkpoint()
        assert bench.states() == {"consumed": 4, "journaled": 2}
        assert bench.learning.info().clips == 6


def test_a_batch_that_is_learned_again_after_each_restart_is_not_set_aside(bench):
    """As a candidate is that nobody judged: it was never the reason."""
    bench.put(toy(0), toy(1))
    for _ in range(6):
        bench.turns()
        assert bench.learning.info().candidate == 1
        bench.begin()
    assert not bench.spool.status().set_aside


@pytest.mark.parametrize("checkpoint_s", [0, 1e9])
def test_an_order_that_waits_is_carried_out_once_though_what_judges_first_kills(
    tmp_path, checkpoint_s
):
    """It is kept with what was judged, or waits again after each death; never is it lost."""
    part = Part()
    bench = Bench(tmp_path, rules=dataclasses.replace(RULES, checkpoint_s=checkpoint_s), part=part)
    with bench.spool:
        taught(bench, 2)
        assert not bench.learning.consolidate()
        bench.put(toy(2), toy(3))
        for _ in range(3):
            part.fails = KilledError()
            with pytest.raises(KilledError):
                bench.learning.turn()
            part.fails = None
            bench.begin()
            if checkpoint_s:
                bench.learning.turn()  # the batch again, as a candidate
                bench.learning.turn()  # the order, which waits behind it
                assert bench.learning.info().consolidations == 0
        bench.put(toy(4), toy(5))
        bench.turns()
        assert [a.number for a in bench.spool.status().set_aside] == [3]
        bench.learning.checkpoint()
        info = bench.learning.info()
        assert (info.batch, info.candidate, info.clips, info.consolidations) == (2, 4, 4, 1)
        bench.begin()
        assert bench.turns() == 1, "the candidate, and not the order"
        assert bench.learning.info().consolidations == 1
        assert bench.states() == {"consumed": 2, "journaled": 2, "quarantined": 2}


def test_the_last_batch_is_not_lost_where_labels_stop_and_the_daemon_ends(tmp_path):
    """It is learned again at each start, and counts once when clips come to judge it."""
    ends = []
    for starts in (0, 4):
        bench = Bench(tmp_path / str(starts))
        with bench.spool:
            taught(bench, 4)
            for _ in range(starts):
                bench.learning.close()
                assert bench.states() == {"consumed": 2, "journaled": 2}
                bench.begin()
                assert bench.turns() == 1
                assert bench.learning.info().clips == 4
            bench.put(toy(4), toy(5))
            bench.turns()
            assert bench.states() == {"consumed": 4, "journaled": 2}
            ends.append(bench.store.newest())
    (one, state), (two, again) = ends
    assert (one.learned.version, one.learned.tally) == (two.learned.version, two.learned.tally)
    assert same(state.tensors, again.tensors)


def test_an_error_within_a_batch_sets_it_aside_and_leaves_no_trace(tmp_path):
    part = Part()
    bench, plain = Bench(tmp_path / "failing", part=part), Bench(tmp_path / "plain")
    with bench.spool, plain.spool:
        for each in (bench, plain):
            each.put(toy(0), toy(1))
            each.turns()
        part.fails = RuntimeError("shapes do not match")
        bench.put(toy(2), toy(3))
        bench.turns()
        part.fails = None
        (aside,) = bench.spool.status().set_aside
        assert aside.reason == "RuntimeError: shapes do not match"
        for each in (bench, plain):
            each.put(*(toy(k) for k in range(4, 8)))
            each.turns()
            each.learning.checkpoint()
        assert bench.learning.info().clips == plain.learning.info().clips == 6
        assert plain.store.newest()[0].learned.tally.clips == 4
        assert same(bench.store.newest()[1].tensors, plain.store.newest()[1].tensors)


def test_a_lack_of_memory_is_waited_out_before_the_batch_is_set_aside(tmp_path):
    part = Part()
    bench = Bench(tmp_path, part=part)
    with bench.spool:
        bench.put(toy(0), toy(1))
        part.fails = torch.OutOfMemoryError("8 GiB wanted")
        for _ in range(3):
            assert bench.turns() == 1
            assert bench.learning.info().state == "halted"
            assert "no memory: 8 GiB wanted" in bench.learning.info().detail
            assert bench.states() == {"journaled": 2}
            bench.wait(61)
        bench.turns()
        assert bench.learning.info().state == "waiting"
        assert bench.states() == {"quarantined": 2}


def test_a_candidate_that_finds_no_memory_to_be_looked_at_waits_for_the_next_clips(tmp_path):
    """Its learner goes on, and does not look again and again."""
    part = Part("score")
    bench = Bench(tmp_path, part=part)
    with bench.spool:
        taught(bench, 2)
        bench.wait(7)
        part.fails = torch.OutOfMemoryError("8 GiB wanted")
        assert bench.turns() == 1
        told = bench.notice("candidate_waits")
        assert "no memory: 8 GiB wanted" in told.detail
        assert told.data == {"batch": 1}
        bench.wait(7)
        part.fails = None
        assert bench.turns() == 0
        assert not bench.publications
        bench.put(toy(2), toy(3))
        bench.turns()
        (published,) = bench.publications
        assert (published.batch, published.reason) == (1, "learned")


def test_a_candidate_at_whose_sight_the_learner_dies_waits_for_the_next_clips(tmp_path):
    """Three times; then it is learned again, as ever, and looked at no more."""
    part = Part("score")
    bench = Bench(tmp_path, part=part)
    with bench.spool:
        taught(bench, 2)
        for _ in range(3):
            bench.wait(7)
            part.fails = KilledError()
            with pytest.raises(KilledError):
                bench.turns()
            part.fails = None
            bench.begin()
            bench.turns()
            assert bench.learning.info().candidate == 1
        bench.wait(7)
        part.fails = KilledError()
        assert bench.turns() == 1
        assert "died 3 times" in bench.notice("candidate_waits").detail
        part.fails = None
        bench.put(toy(2), toy(3))
        bench.turns()
        reasons = [each.reason for each in bench.publications]
        assert reasons == ["resumed", "resumed", "resumed", "learned"]
        assert not bench.spool.status().set_aside


def test_a_candidate_that_is_looked_at_again_after_each_restart_is_served_each_time(bench):
    taught(bench, 2)
    for _ in range(5):
        bench.wait(7)
        bench.turns()
        assert bench.publications[-1].reason == "unjudged"
        bench.begin()
        bench.turns()


def test_a_full_disk_does_not_count_as_the_batchs_fault(bench, monkeypatch):
    bench.put(*(toy(k) for k in range(6)))

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(learnstore.checkpoints, "save", full)
        for _ in range(5):
            bench.turns()
            assert bench.learning.info().state == "halted"
            bench.wait(61)
    bench.turns()
    assert not bench.spool.status().set_aside
    assert bench.learning.info().clips == 6


@pytest.mark.parametrize("work", ["learn", "look"])
def test_leaving_in_the_middle_does_not_count_as_the_batchs_fault(tmp_path, work):
    """Five times; what was at work is begun anew, and comes to the weights of who never left."""
    leaves = False

    def beat():
        if leaves:
            raise LeavingError

    bench, other = Bench(tmp_path / "one", beat=beat), Bench(tmp_path / "other")
    for each in (bench, other):
        each.put(*(toy(k) for k in range(4)))
    with bench.spool, other.spool:
        if work == "look":
            bench.turns()
        for _ in range(5):
            bench.wait(7)
            leaves = True
            with pytest.raises(LeavingError):
                bench.turns()
            leaves = False
            bench.learning.close()
            bench.begin()
            if work == "look":
                bench.turns()
        for each in (bench, other):
            each.turns()
            each.wait(7)
            each.turns()
        assert not bench.spool.status().set_aside
        assert bench.learning.info().clips == 4
        one, two = bench.publications[-1], other.publications[-1]
        assert one.reason == two.reason == "unjudged"
        assert same(one.tensors, two.tensors)


def test_a_busy_spool_does_not_count_as_the_candidates_fault(bench, monkeypatch):
    taught(bench, 2)
    bench.wait(7)

    def busy(*_args, **_kwargs):
        raise BusyError("locked")

    with monkeypatch.context() as patch:
        patch.setattr(bench.spool, "latest_learned", busy)
        for _ in range(5):
            bench.turns()
            assert bench.learning.info().state == "halted"
            bench.wait(61)
    bench.turns()
    assert "candidate_waits" not in bench.kinds
    assert bench.publications[-1].reason == "unjudged"


def test_a_class_more_than_masks_can_tell_is_set_aside(tmp_path):
    network = tiny_network()
    network.grow([f"class {k}" for k in range(1024)])
    bench = Bench(tmp_path, network=network)
    with bench.spool:
        bench.put(toy(0, "class 7"), toy(1, "one more"), toy(2, "class 8"), toy(3, "class 9"))
        bench.turns()
        bench.learning.checkpoint()
        (aside,) = bench.spool.status().set_aside
        assert "1025 classes; masks can tell 1024" in aside.reason
        assert bench.learning.info().clips == 2


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from learnbench import Bench
torch.set_num_threads(1)
@contextmanager
def part(name):
    if name == "forward" and bench.learning.info().batch == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    yield
bench = Bench(Path(sys.argv[1]), part=part)
print(bench.turns())
bench.learning.checkpoint()
"""


@pytest.mark.slow
def test_real_kills_within_a_batch_are_counted_across_processes(tmp_path):
    """In the second batch: it is killed three times, then the batch is set aside."""
    with Spool(tmp_path / "spool", clock=lambda: 0) as spool:
        for k in range(4):
            spool.append(f"clip-{k}", pack_stored(write_clip(toy(k))))
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
        codes = []
        while not codes or codes[-1] == -signal.SIGKILL:
            assert len(codes) < 6
            codes.append(subprocess.run(command, check=False, timeout=120).returncode)
        assert codes == [-signal.SIGKILL] * 3 + [0]
        (aside,) = spool.status().set_aside
        assert aside.number == 2
        assert spool.status().clips == {"consumed": 2, "quarantined": 2}


# Signs of life.


def test_a_sign_of_life_comes_after_each_clip_each_score_each_step_and_each_checkpoint(
    tmp_path, monkeypatch
):
    part = Part()
    save = learnstore.checkpoints.save

    def saved(*args, **kwargs):
        part.log.append("save")
        return save(*args, **kwargs)

    monkeypatch.setattr(learnstore.checkpoints, "save", saved)
    bench = Bench(
        tmp_path,
        dataclasses.replace(SETTINGS, frames=1),
        part=part,
        beat=lambda: part.log.append("beat"),
    )
    with bench.spool:
        part.log.clear()
        bench.put(toy(0), toy(1))
        bench.turns()
        assert part.log[: part.log.index("score")].count("beat") >= 4, "clips read, sounds heard"
        bench.put(toy(2), toy(3))
        bench.turns()
        for name in ("score", "save", "forward"):
            places = [k for k, each in enumerate(part.log) if each == name]
            assert places
            for one, next_one in zip(places, [*places[1:], len(part.log)], strict=True):
                assert "beat" in part.log[one:next_one], name


# Rollbacks and damaged checkpoints.


def damage(kept) -> None:
    state = kept.folder / learnstore.STATE
    content = bytearray(state.read_bytes())
    content[-9] ^= 1
    state.write_bytes(content)


def test_a_damaged_checkpoint_is_put_away_and_made_again(bench):
    bench.put(*(toy(k) for k in range(6)))
    bench.turns()
    newest = bench.store.all()[-1]
    damage(newest)
    bench.begin()
    told = bench.notice("checkpoint_damaged")
    assert Path(told.data["path"]).is_dir()
    bench.turns()
    bench.learning.checkpoint()
    found = LearnStore(bench.store.folder).find(newest.learned.version)
    assert found is not None
    assert found[0].learned.cursor == newest.learned.cursor


def test_a_checkpoint_that_is_damaged_while_it_is_there_is_written_again(bench):
    taught(bench, 4)
    damage(bench.store.all()[-1])
    assert bench.learning.checkpoint().learned.cursor == 1
    assert bench.store.newest()[0].learned.cursor == 1


def test_where_all_checkpoints_are_damaged_learning_begins_anew(bench):
    taught(bench, 6)
    for kept in bench.store.all():
        damage(kept)
    bench.begin()
    assert bench.kinds.count("checkpoint_damaged") == 3
    waiting = bench.notice("learner_rebased").data["waiting"]
    bench.turns()
    bench.learning.checkpoint()
    assert bench.learning.info().clips == waiting == 6
    bench.begin()
    assert bench.learning.info().clips == waiting - 2
    assert bench.turns() == 1, "the candidate is learned again"
    assert bench.learning.info().clips == waiting


def test_going_back_to_a_damaged_version_is_refused(bench):
    taught(bench, 6)
    older = bench.store.all()[-2]
    damage(older)
    order = Order(order="rollback", version=older.learned.version)
    answer = carry_out(bench.learning, order)
    assert isinstance(answer, Refused)
    assert "damaged" in answer.detail
    assert bench.states() == {"consumed": 4, "journaled": 2}


def test_going_back_while_the_spool_is_locked_changes_nothing(bench, monkeypatch):
    taught(bench, 6)
    info, versions = bench.learning.info(), bench.learning.versions()
    monkeypatch.setattr(spoolfile, "_BUSY_S", 0.01)
    bench.spool.close()
    bench.spool = Spool(bench.folder / "spool", clock=lambda: bench.time_ns)
    bench.begin()
    with closing(sqlite3.connect(bench.folder / "spool" / spoolfile.FILE_NAME)) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = carry_out(bench.learning, Order(order="rollback"))
        assert isinstance(answer, Refused)
        assert "locked" in answer.detail
    assert bench.learning.versions() == versions
    bench.begin()
    assert bench.learning.info().version == info.version
    assert isinstance(carry_out(bench.learning, Order(order="rollback")), Carried)


def test_going_back_to_what_cannot_be_gone_on_from_changes_nothing(bench):
    taught(bench, 6)
    older = bench.store.all()[-2]
    _, state = bench.store.find(older.learned.version)
    tensors = {name: tensor[None] for name, tensor in state.tensors.items()}
    shutil.rmtree(older.folder)
    bench.store.write(older.learned, bench.network, dataclasses.replace(state, tensors=tensors))
    info, versions = bench.learning.info(), bench.learning.versions()
    answer = carry_out(bench.learning, Order(order="rollback", version=older.learned.version))
    assert isinstance(answer, Refused)
    assert "cannot be gone on from" in answer.detail
    assert bench.spool.rewound is None
    assert bench.states() == {"consumed": 4, "journaled": 2}
    assert (bench.learning.info(), bench.learning.versions()) == (info, versions)


@pytest.mark.parametrize("to", [0, -2])
def test_a_daemon_serves_what_was_gone_back_to_though_the_learner_was_killed_over_it(
    tmp_path, monkeypatch, to
):
    config = tiny_config(
        tiny_checkpoint(tmp_path),
        tmp_path / "none.mp4",
        f"ipc://{tmp_path}/bus",
        "intake.enabled=true",
        f"intake.spool={tmp_path / 'spool'}",
        f"learner.state={tmp_path / 'learned'}",
        "learner.enabled=true",
    )
    bench = Bench(tmp_path, network=build_network(config))
    with bench.spool:
        taught(bench, 6)
        versions = bench.learning.versions()
        assert build_engine(config).version == versions[-1].version

        def killed(*_):
            raise KilledError

        monkeypatch.setattr(bench.store, "forget_after", killed)
        with pytest.raises(KilledError):
            bench.learning.rollback(versions[to].version)
        assert build_engine(config).version == versions[to].version


@pytest.mark.parametrize("where", ["forget_after", "settle"])
def test_going_back_is_finished_by_the_next_learner_where_it_was_cut(bench, monkeypatch, where):
    taught(bench, 6)
    to = bench.learning.versions()[-2]
    assert not bench.learning.consolidate(), "it waits behind batch 3, and goes with it"

    def killed(*_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(bench.store if where == "forget_after" else bench.spool, where, killed)
        with pytest.raises(KilledError):
            bench.learning.rollback()
    bench.begin()
    assert bench.learning.info().version == to.version
    assert bench.learning.versions()[-1].version == to.version
    assert bench.turns() == 0
    assert [a.number for a in bench.spool.status().set_aside] == [to.batch + 1, to.batch + 2]
    bench.put(*(toy(k) for k in range(8, 12)))
    bench.turns()
    bench.learning.checkpoint()
    bench.begin()
    assert bench.learning.info().batch > to.batch + 1, "what comes later stays"
    assert bench.learning.info().consolidations == 0


def test_going_back_is_finished_later_where_a_checkpoint_cannot_be_deleted(bench, monkeypatch):
    taught(bench, 6)
    to = bench.learning.versions()[-2].version

    def denied(*_):
        raise PermissionError(13, "not yours")

    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "forget_after", denied)
        assert bench.learning.rollback() == to
        assert bench.learning.info().state == "halted"
    bench.wait(61)
    bench.turns()
    assert bench.learning.info().state == "waiting"
    assert bench.learning.versions()[-1].version == to


def test_a_batch_that_is_not_there_cannot_be_begun(bench):
    with pytest.raises(spoolfile.JournalError, match="not in the journal"):
        bench.spool.try_batch(7)

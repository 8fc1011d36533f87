"""Keeping what was learned: checkpoints in time, whole, and gone back to."""

from __future__ import annotations

import dataclasses
from contextlib import suppress

import pytest
from atlasd.daemon import learnstore
from atlasd.daemon.learning import LearningError
from atlasd.daemon.spoolfile import QuotaError
from atlasd.model.presets import build
from learnbench import RULES, Bench, same, toy


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.spool.close()


def test_what_a_checkpoint_holds_is_not_learned_again(bench):
    bench.put(*(toy(k) for k in range(6)))
    bench.turns()
    bench.learning.checkpoint()
    assert bench.learning.info().batch == 2
    assert bench.states() == {"consumed": 4, "journaled": 2}
    bench.begin()
    assert bench.learning.info().clips == 4
    assert bench.turns() == 1, "the candidate is learned again"
    assert bench.learning.info().clips == 6
    assert bench.publications[-1].reason == "resumed"
    assert bench.publications[-1].version == bench.learning.info().version


@pytest.mark.slow
@pytest.mark.parametrize("max_clips", [1, 2, 3, 5])
@pytest.mark.parametrize("checkpoint_s", [0, 86_400])
def test_an_intake_that_is_small_never_refuses_for_ever(tmp_path, max_clips, checkpoint_s):
    """What was learned, and is kept to go back to, does not keep out what is to be learned."""
    bench = Bench(
        tmp_path, rules=dataclasses.replace(RULES, checkpoint_s=checkpoint_s), max_clips=max_clips
    )
    batch = min(max_clips, RULES.clips)
    with bench.spool:
        for k in range(10):
            for _ in range(4):
                with suppress(QuotaError):
                    bench.put(toy(k))
                    break
                bench.wait(8)
                bench.turns()
            else:
                pytest.fail(f"clip {k} is refused for ever: {bench.states()}")
            if k == 6:
                bench.begin()  # killed: what was not kept is learned again
        bench.wait(8)
        bench.turns()
        bench.learning.checkpoint()
        states = bench.states()
        assert states["consumed"] + states["journaled"] == 10
        assert states["journaled"] <= batch, "only the candidate is not accepted"
        assert bench.learning.info().clips == 10
        status = bench.spool.status()
        assert status.held <= 2 * max_clips + 2 * batch
        kept = bench.store.all()
        assert kept[0].learned.cursor == status.retired_up_to
        if status.held:
            went = bench.learning.rollback(kept[0].learned.version)
            assert went == kept[0].learned.version


def test_what_was_accepted_is_kept_in_time_though_no_clips_come(tmp_path):
    bench = Bench(tmp_path, rules=dataclasses.replace(RULES, checkpoint_s=30))
    with bench.spool:
        bench.put(*(toy(k) for k in range(4)))
        bench.turns()
        assert (bench.learning.info().batch, bench.learning.info().checkpoint) == (1, 0)
        bench.wait(30)
        bench.turns()
        assert bench.learning.info().checkpoint == 1


def test_going_back_restores_the_weights_and_sets_aside_what_came_after(bench):
    bench.put(*(toy(k) for k in range(6)))
    bench.turns()
    versions = bench.learning.versions()
    assert [v.batch for v in versions] == [0, 1, 2]
    assert [v.served for v in versions] == [False, False, True]
    first = next(p for p in bench.publications if p.batch == 1)
    assert bench.learning.rollback() == versions[1].version
    back = bench.publications[-1]
    assert (back.reason, back.version) == ("rollback", first.version)
    assert same(back.tensors, first.tensors)
    assert [a.number for a in bench.spool.status().set_aside] == [2, 3]
    assert bench.turns() == 0
    bench.learning.release(2)
    bench.turns()
    assert bench.learning.info().candidate == 4
    with pytest.raises(LearningError, match="kept are"):
        bench.learning.rollback("nonsense")


def test_going_back_survives_a_restart(bench):
    bench.put(*(toy(k) for k in range(6)))
    bench.turns()
    to = bench.learning.rollback(bench.learning.versions()[0].version)
    bench.begin()
    assert bench.learning.info().version == to
    assert bench.turns() == 0


def test_a_broken_checkpoint_is_passed_over(bench):
    bench.put(*(toy(k) for k in range(6)))
    bench.turns()
    newest = bench.store.all()[-1]
    state = newest.folder / learnstore.STATE
    content = bytearray(state.read_bytes())
    content[-9] ^= 1
    state.write_bytes(content)
    bench.begin()
    assert bench.learning.info().batch == newest.learned.cursor - 1
    bench.turns()
    assert bench.learning.info().clips == 6


def test_what_a_killed_learner_left_of_a_checkpoint_is_cleared_by_the_next_one(bench):
    left = bench.store.folder / ".000000000001.part"
    left.mkdir()
    (left / learnstore.STATE).write_bytes(b"half of i")
    bench.put(*(toy(k) for k in range(6)))
    bench.turns()
    assert bench.learning.info().checkpoint == 2
    assert not list(bench.store.folder.glob(".*"))


def test_another_base_or_method_is_refused(bench):
    bench.network = build("tiny", seed=5)
    with pytest.raises(LearningError, match="move"):
        bench.begin()

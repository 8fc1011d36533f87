"""The journal read back: what it says, and that a replay of it gives the weights that were kept."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from atlasd.daemon.journal import Entry, read_journal, replay
from atlasd.daemon.labelclips import write_clip
from atlasd.daemon.labels import pack_stored
from atlasd.daemon.learning import Learning
from atlasd.daemon.learnstore import LearnStore
from atlasd.daemon.notices import LearningRules
from atlasd.daemon.onlinelearner import LearnSettings
from atlasd.daemon.spool import Spool
from atlasd.streams.toyworld import make_clip
from served import tiny_network

SETTINGS = LearnSettings(lr=1e-2, passes=6, parts="all", options={"growth": "mean", "anchors": 3})
CATEGORIES = ("bell", "drum", "bell", "horn")


def payloads(count: int) -> dict[str, bytes]:
    """Clips of the toy world, of which the third and fourth have inverted masks."""
    made = {}
    for k in range(count):
        clip = make_clip(k, size_px=64, kind="plain").labeled_clip()
        masks = 1 - clip.masks if k in {2, 3} else clip.masks
        category = CATEGORIES[k % len(CATEGORIES)]
        clip = dataclasses.replace(clip, clip_id=f"c{k}", category=category, masks=masks)
        made[f"c{k}"] = pack_stored(write_clip(clip))
    return made


def learning(
    spool: Spool, store: LearnStore, drop: float = 0.1, checkpoint_s: float = 0
) -> Learning:
    rules = LearningRules(clips=2, canary_drop=drop, checkpoint_s=checkpoint_s)
    return Learning(tiny_network(), SETTINGS, rules, spool, store, lambda _: None)


@pytest.mark.slow
def test_a_replay_of_the_journal_gives_the_weights_that_were_kept(tmp_path):
    """Killed in between, and with batches that the canary refused."""
    clips = payloads(8)
    store = LearnStore(tmp_path / "learned")
    with Spool(tmp_path / "spool") as spool:
        for clip_id, payload in clips.items():
            spool.append(clip_id, payload)
        for turns in (2, 1, 4):
            learner = learning(spool, store, drop=0.02)
            for _ in range(turns):
                learner.turn()
        learner.checkpoint()
    kept, state = store.newest()
    journal = read_journal(tmp_path / "spool")
    learned = journal.learned(kept.learned.cursor)
    assert 0 < len(learned) < len(journal.batches)
    assert kept.learned.tally.clips == sum(len(batch.ids) for batch in learned)
    again = replay(tiny_network(), SETTINGS, learned, clips.__getitem__).state()
    assert again.manifest == state.manifest
    assert again.tensors.keys() == state.tensors.keys()
    assert all(torch.equal(again.tensors[name], state.tensors[name]) for name in state.tensors)


@pytest.mark.slow
def test_a_replay_consolidates_where_a_person_ordered_it_and_as_often(tmp_path):
    """Killed between the order and the next checkpoint, too, and with a candidate before it."""
    clips = payloads(12)
    names = iter(clips)
    store = LearnStore(tmp_path / "learned")
    with Spool(tmp_path / "spool") as spool:

        def turns(learner, count, more=0):
            for clip_id in itertools.islice(names, more):
                spool.append(clip_id, clips[clip_id])
            for _ in range(count):
                learner.turn()

        rules = {"drop": 1.0, "checkpoint_s": 1e9}
        learner = learning(spool, store, **rules)
        turns(learner, 2, 4)
        assert not learner.consolidate()  # batch 3 waits: batch 2 is a candidate
        learner = learning(spool, store, **rules)  # killed: nothing of it is in a checkpoint
        assert not learner.consolidate()  # batch 4; 1 to 3 are still to be learned again
        turns(learner, 4)
        assert learner.info().consolidations == 0
        turns(learner, 1, 4)  # batch 5 judges batch 2
        assert (learner.info().batch, learner.info().consolidations) == (4, 2)
        turns(learner, 1)
        learner.checkpoint()
        assert not learner.consolidate()  # batch 7, after the newest checkpoint's last
        learner = learning(spool, store, **rules)
        turns(learner, 3, 4)
        assert learner.info().consolidations == 3
        turns(learner, 1)
        learner.checkpoint()
        learner = learning(spool, store, **rules)
        turns(learner, 3)
        assert learner.info().consolidations == 3
    kept, state = store.newest()
    learned = read_journal(tmp_path / "spool").learned(kept.learned.cursor)
    assert [batch.number for batch in learned if not batch.ids] == [3, 4, 7]
    assert kept.learned.cursor == 8
    assert kept.learned.tally.clips == 10
    again = replay(tiny_network(), SETTINGS, learned, clips.__getitem__).state()
    assert again.manifest == state.manifest
    assert all(torch.equal(again.tensors[name], state.tensors[name]) for name in state.tensors)
    without = [batch for batch in learned if batch.ids]
    other = replay(tiny_network(), SETTINGS, without, clips.__getitem__).state()
    assert not all(torch.equal(other.tensors[name], state.tensors[name]) for name in other.tensors)


def test_a_journal_says_what_became_of_clips_and_batches(tmp_path):
    with Spool(tmp_path) as spool:
        for name in "abcde":
            spool.append(name, name.encode())
        for after in (0, 1):
            spool.next_batch(after, 2, seed=7 + after)
        spool.quarantine(1, "poison")
        spool.delete("e")
        journal = read_journal(tmp_path)
    assert dict(journal.clips) == {
        "a": "quarantined",
        "b": "quarantined",
        "c": "journaled",
        "d": "journaled",
        "e": "deleted",
    }
    assert journal.batches == (
        Entry(1, 7, "quarantined", ("a", "b")),
        Entry(2, 8, "journaled", ("c", "d")),
    )
    assert journal.learned(1) == ()
    assert [batch.number for batch in journal.learned(2)] == [2]

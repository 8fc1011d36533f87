"""The journal read back: what it says, and that a replay of it gives the weights that were kept."""

from __future__ import annotations

import dataclasses

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


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def learning(spool: Spool, store: LearnStore, drop: float = 0.1) -> Learning:
    rules = LearningRules(clips=2, canary_drop=drop, checkpoint_s=0)
    return Learning(tiny_network(), SETTINGS, rules, spool, store, lambda _: None)


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

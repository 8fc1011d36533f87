"""Learning in service: what is learned, judged and told."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from atlasd.daemon import learnstore
from atlasd.daemon.labelclips import load, write_clip
from atlasd.daemon.labels import pack_stored
from atlasd.daemon.learning import LearningError
from atlasd.daemon.onlinelearner import LearnSettings, OnlineLearner
from atlasd.model import baseimportance
from atlasd.model.presets import load as load_network
from learnbench import RULES, SETTINGS, Bench, base, inverted, same, toy


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.spool.close()


def test_a_pause_outlives_the_learner_until_it_is_taken_back(bench):
    bench.learning.pause()
    bench.put(*(toy(k) for k in range(4)))
    bench.begin()
    assert bench.learning.info().state == "paused"
    assert bench.turns() == 0
    bench.learning.resume()
    bench.begin()
    assert bench.turns() == 2


def test_a_batch_is_learned_and_published_once_the_next_one_judged_it(bench):
    bench.put(*(toy(k) for k in range(4)))
    assert bench.turns() == 2
    info = bench.learning.info()
    assert (info.batch, info.candidate, info.clips, info.steps) == (1, 2, 4, 4)
    (published,) = bench.publications
    assert (published.batch, published.reason) == (1, "learned")
    assert published.version == info.version
    assert info.checkpoint == 1
    assert 0 <= info.score <= 1
    assert info.a_auc is not None


def test_clips_wait_for_a_batch_to_fill_and_not_for_ever(bench):
    bench.put(toy(0))
    assert bench.turns() == 0
    bench.wait(5)
    assert bench.turns() == 1
    assert bench.learning.info().candidate == 1


def test_a_candidate_without_successor_is_published_unjudged_and_kept_when_judged(bench):
    bench.put(toy(0), toy(1))
    bench.turns()
    assert not bench.publications
    bench.wait(7)
    bench.turns()
    (published,) = bench.publications
    assert published.reason == "unjudged"
    assert bench.learning.info().checkpoint == 0
    bench.put(toy(2), toy(3))
    bench.turns()
    assert bench.learning.info().version == published.version
    assert len(bench.publications) == 1


def test_published_tensors_are_the_serving_form_of_the_weights_that_are_kept(bench):
    bench.put(*(toy(k) for k in range(4)))
    bench.turns()
    (published,) = bench.publications
    kept = load_network(bench.store.all()[-1].weights)
    served = kept.for_serving().state_dict()
    assert set(published.tensors) <= set(served)
    for name, tensor in published.tensors.items():
        torch.testing.assert_close(tensor, served[name].contiguous(), rtol=0, atol=0)
    untouched = bench.network.for_serving().state_dict()
    moved = {n for n in served if n not in untouched or not torch.equal(served[n], untouched[n])}
    assert moved
    assert moved <= set(published.tensors)


@pytest.mark.slow
def test_contradicting_labels_are_refused_and_set_aside(tmp_path):
    """Poison among good clips: the learner goes back, and a person decides."""
    settings = dataclasses.replace(SETTINGS, passes=20, lr=1e-2, parts="all")
    bench = Bench(tmp_path, settings, dataclasses.replace(RULES, canary_drop=0.05))
    with bench.spool:
        bench.put(*(toy(k) for k in range(4)))
        bench.turns()
        good = bench.publications[-1].version
        bench.put(*(inverted(toy(k)) for k in (4, 5)), *(toy(k) for k in (6, 7)))
        bench.turns()
        info = bench.learning.info()
        assert info.refused == 1
        assert "batch_refused" in bench.kinds
        (aside,) = bench.spool.status().set_aside
        assert aside.ids == ("clip-4-inverted", "clip-5-inverted")
        assert "canary" in aside.reason
        alone = Bench(tmp_path / "alone", settings, bench.rules)
        with alone.spool:
            alone.put(*(toy(k) for k in (0, 1, 2, 3)))
            alone.turns()
            assert good == alone.publications[-1].version
        bench.learning.discard(aside.number)
        assert bench.states()["discarded"] == 2


@pytest.mark.parametrize("checkpoint_s", [0, 1e9])
@pytest.mark.slow
def test_a_learner_that_was_killed_anywhere_ends_with_the_same_weights(tmp_path, checkpoint_s):
    rules = dataclasses.replace(RULES, checkpoint_s=checkpoint_s)
    clips = [toy(k, category) for k, category in enumerate(("bell", "drum", "bell") * 3)]
    through, cut = (Bench(tmp_path / name, rules=rules) for name in ("through", "cut"))
    with through.spool, cut.spool:
        for bench in (through, cut):
            bench.put(*clips[:8])
        through.turns()
        for turns in (1, 2, 1, 3):
            for _ in range(turns):
                cut.learning.turn()
            cut.begin()  # what was not kept is learned again
        cut.turns()
        for bench in (through, cut):
            bench.learning.checkpoint()
        ends = [bench.store.newest() for bench in (through, cut)]
        assert ends[0][0].learned.version == ends[1][0].learned.version
        assert ends[0][0].learned.tally == ends[1][0].learned.tally
        assert ends[0][0].learned.cursor == 3
        assert same(ends[0][1].tensors, ends[1][1].tensors)
        assert [bench.learning.info().candidate for bench in (through, cut)] == [4, 4]


@pytest.mark.slow
def test_what_a_batch_judged_before_it_was_refused_is_not_judged_again(tmp_path):
    """By another batch, as the refused one does not come again: it might be refused now."""
    settings = dataclasses.replace(SETTINGS, passes=20, lr=1e-2, parts="all")
    rules = dataclasses.replace(RULES, canary_drop=0.05, checkpoint_s=1e9)
    bench = Bench(tmp_path, settings, rules)
    with bench.spool:
        bench.put(*(toy(k) for k in range(4)), *(inverted(toy(k)) for k in (4, 5)), toy(6), toy(7))
        bench.turns()
        info = bench.learning.info()
        assert (info.refused, info.batch, info.candidate) == (1, 2, 4)
        bench.begin()
        assert bench.learning.info().version == info.version
        bench.turns()
        assert bench.learning.info().candidate == 4


def test_new_classes_get_rows_and_old_rows_stay(bench):
    bench.put(toy(0, "bell"), toy(1, "drum"), toy(2, "horn"), toy(3, "bell"), toy(4), toy(5))
    bench.turns()
    bench.learning.checkpoint()
    assert bench.publications[0].categories == ("bell", "drum")
    bench.wait(7)
    network = load_network(bench.store.all()[-1].weights)
    assert network.preset.categories == ("bell", "drum", "horn")
    bench.begin()
    assert bench.publications[-1].categories == ("bell", "drum", "horn")
    assert bench.publications[-1].tensors["head.linear.weight"].shape[0] == 3


def test_an_order_to_consolidate_makes_a_version_of_its_own_and_can_be_gone_back_from(bench):
    bench.put(*(toy(k) for k in range(4)))
    bench.turns()
    assert not bench.learning.consolidate(), "batch 2 is not judged"
    assert bench.turns() == 0
    assert bench.learning.info().consolidations == 0
    bench.put(toy(4), toy(5))
    bench.turns()
    learned, held = bench.publications[-2:]
    assert (learned.batch, learned.reason) == (2, "learned")
    assert (held.batch, held.reason, held.parent) == (3, "consolidated", learned.version)
    assert same(held.tensors, learned.tensors)
    info = bench.learning.info()
    assert (info.consolidations, info.batch, info.candidate) == (1, 3, 4)
    assert [v.batch for v in bench.learning.versions()] == [1, 2, 3]
    bench.learning.rollback()
    assert bench.learning.info().consolidations == 0
    assert [a.number for a in bench.spool.status().set_aside] == [4]
    assert bench.turns() == 0
    assert bench.spool.waiting(2).journaled is False


def test_an_order_to_consolidate_is_carried_out_at_once_where_nothing_waits_to_be_judged(bench):
    assert bench.learning.consolidate()
    assert bench.publications[-1].reason == "consolidated"
    assert bench.learning.info().consolidations == 1


@pytest.mark.slow
def test_orders_that_wait_for_a_judgement_survive_a_restart_in_their_place(tmp_path):
    """And are carried out once, whether the candidate before them was judged before the death."""
    through, cut = (
        Bench(tmp_path / n, rules=dataclasses.replace(RULES, checkpoint_s=1e9))
        for n in ("through", "cut")
    )
    with through.spool, cut.spool:
        for bench in (through, cut):
            bench.put(*(toy(k) for k in range(4)))
            bench.turns()
            assert not bench.learning.consolidate()
            assert not bench.learning.consolidate()
            if bench is cut:
                bench.begin()
            bench.put(*(toy(k) for k in range(4, 8)))
            bench.turns()
            if bench is cut:
                bench.begin()
                bench.turns()
            bench.learning.checkpoint()
            info = bench.learning.info()
            assert (info.consolidations, info.batch, info.candidate) == (2, 5, 6)
        one, two = (bench.store.newest()[1] for bench in (through, cut))
        assert same(one.tensors, two.tensors)


def test_a_candidate_that_is_refused_is_not_held_on_to_by_an_order_that_waited(tmp_path):
    bench = Bench(tmp_path, rules=dataclasses.replace(RULES, canary_drop=-1))  # nothing passes
    with bench.spool:
        before = bench.learning.info().version
        bench.put(toy(0), toy(1))
        bench.turns()
        assert bench.learning.info().candidate == 1
        bench.learning.consolidate()
        bench.put(toy(2), toy(3))
        bench.turns()
        assert bench.kinds.count("batch_refused") == 1
        (published,) = bench.publications
        assert (published.batch, published.reason, published.parent) == (2, "consolidated", before)
        assert bench.states() == {"quarantined": 2, "journaled": 2}


def test_a_paused_learner_learns_nothing_and_goes_on_when_resumed(bench):
    bench.learning.pause()
    bench.put(toy(0), toy(1))
    assert bench.turns() == 0
    assert bench.learning.info().state == "paused"
    bench.learning.resume()
    assert bench.turns() == 1


def test_a_batch_that_gives_no_finite_loss_is_set_aside(tmp_path):
    bench = Bench(tmp_path, dataclasses.replace(SETTINGS, lr=1e30, clip_norm=0, parts="all"))
    with bench.spool:
        before = {k: v.clone() for k, v in bench.store.newest()[1].tensors.items()}
        bench.put(*(toy(k) for k in range(2)))
        bench.turns()
        bench.learning.checkpoint()
        assert "batch_refused" in bench.kinds
        assert bench.states() == {"quarantined": 2}
        assert same(before, bench.store.newest()[1].tensors)


def test_a_damaged_payload_is_set_aside_and_the_rest_is_learned(bench):
    bench.put(*(toy(k) for k in range(4)))
    bench.spool._db.execute("UPDATE payloads SET payload = x'00' WHERE sequence = 1")
    bench.turns()
    assert bench.learning.info().clips == 2
    assert bench.states()["quarantined"] == 2


def test_a_full_disk_halts_learning_says_so_and_is_tried_again(bench, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(learnstore.checkpoints, "save", full)
        bench.put(*(toy(k) for k in range(6)))
        bench.turns()
        info = bench.learning.info()
        assert info.state == "halted"
        assert "No space left" in info.detail
        assert bench.kinds.count("learner_halted") == 1
        assert bench.publications[-1].batch == 1
        bench.wait(60)
        bench.turns()
        assert bench.kinds.count("learner_halted") == 1
    bench.wait(60)
    bench.turns()
    assert bench.learning.info().state == "waiting"
    assert bench.learning.info().clips == 6


def test_learning_goes_on_at_another_rate(bench):
    bench.put(*(toy(k) for k in range(6)))
    bench.turns()
    bench.learning.checkpoint()
    bench.settings = dataclasses.replace(SETTINGS, lr=1e-4, passes=2)
    bench.begin()
    bench.put(toy(6), toy(7))
    bench.turns()
    assert bench.learning.info().clips == 8


def test_the_base_stays_as_it_is_and_only_adapters_move(bench):
    before = {n: p.detach().clone() for n, p in bench.network.named_parameters()}
    bench.put(*(toy(k) for k in range(4)))
    bench.turns()
    after = dict(bench.network.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    learner = OnlineLearner(base(), SETTINGS)
    moving = {n for n, p in learner.network.named_parameters() if p.requires_grad}
    assert all(".lora_" in n or n.startswith(("conditioning.", "fusion.", "head.")) for n in moving)


def test_the_prequential_score_is_of_predictions_before_learning(bench):
    clips = [toy(k) for k in range(2)]
    bench.put(*clips)
    fresh = OnlineLearner(base(), SETTINGS)
    stored = [load(pack_stored(write_clip(clip))) for clip in clips]
    expected = fresh.score(fresh.batches(stored))
    bench.turns()
    assert bench.learning.info().score == pytest.approx(float(np.mean(expected)))


@pytest.mark.parametrize(
    ("method", "options", "told"),
    [
        ("atlas", {}, 2),
        ("atlas+si", {"si.c": 1.0}, 2),
        ("mas", {}, 2),
        ("mas+atlas", {}, 2),
        ("finetune", {}, 0),
    ],
)
def test_consolidations_are_counted_for_every_method_and_across_restarts(
    tmp_path, method, options, told
):
    settings = LearnSettings(
        method=method, options=options, lr=1e-4, passes=1, frames=8, consolidate="every:2"
    )
    bench = Bench(tmp_path, settings, dataclasses.replace(RULES, canary_drop=1))
    with bench.spool:
        bench.put(*(toy(k) for k in range(6)))
        bench.turns()
        assert bench.learning.info().consolidations == told + (told > 0)
        bench.learning.checkpoint()
        bench.begin()
        info = bench.learning.info()
        assert info.steps == 4
        assert info.consolidations == told


@pytest.mark.slow
def test_a_base_that_ships_its_importance_is_held_across_restarts(tmp_path):
    """And a state that was learned with it is refused without."""
    network = base()
    shown = OnlineLearner(network, SETTINGS)
    batches = shown.batches([toy(k) for k in range(20, 23)])
    baseimportance.write(
        tmp_path, network, baseimportance.measure(network, batches, 15), examples=15
    )
    importance = baseimportance.read(tmp_path, network)
    settings = dataclasses.replace(SETTINGS, options={"base_c": 1e6}, weight_decay=0.0)
    held = Bench(tmp_path / "held", settings, importance=importance)
    free = Bench(tmp_path / "free", settings)
    with held.spool, free.spool:
        for bench in (held, free):
            bench.put(*(toy(k) for k in range(6)))
            bench.turns()
            bench.learning.checkpoint()
        held.begin()
        assert held.learning.info().clips == 4

        def moved(bench):
            after = bench.store.newest()[1].tensors
            return sum(
                float((after[f"parameter.{n}"] - p.detach()).square().sum())
                for n, p in bench.network.named_parameters()
                if n.startswith("fusion.")
            )

        assert moved(held) < 0.8 * moved(free)
        held.importance = None
        with pytest.raises(LearningError, match="base"):
            held.begin()

"""The canary: weights that may be harmful are not kept, not served for long, and seen to erode."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from atlasd.daemon.canary import Verdict
from atlasd.daemon.learnermain import carry_out
from atlasd.daemon.onlinelearner import LearnSettings, OnlineLearner
from atlasd.daemon.orders import Order
from atlasd.daemon.spoolfile import BusyError
from atlasd.model import checkpoints
from atlasd.model.presets import load as load_network
from learnbench import RULES, Bench, inverted, toy
from served import tiny_network

FIRM = LearnSettings(method="finetune", parts="all", lr=1e-2, passes=20, frames=20)
"""Learns what it is told within a batch, poison too."""
ERODING = LearnSettings(
    method="finetune", parts="all", lr=1e-4, weight_decay=1000.0, passes=1, frames=20
)
"""Learns nothing, and loses a few points of J with each batch."""
PATIENT = dataclasses.replace(RULES, checkpoint_s=1e9)


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """Weights that segment the toy world: mean J over 0.7 on clips that they never saw."""
    learner = OnlineLearner(tiny_network(), FIRM)
    for first in range(100, 124, 4):
        clips = [toy(first + k) for k in range(4)]
        learner.learn(clips, learner.batches(clips), seed=first - 100)
    path = tmp_path_factory.mktemp("taught") / "weights.safetensors"
    checkpoints.save(learner.network, path, version="taught", parent="", notes={})
    return path


def bench_on(taught: Path, folder: Path, settings=FIRM, rules=RULES) -> Bench:
    return Bench(folder, settings, rules, network=load_network(taught))


def good(bench: Bench, *seeds: int) -> None:
    bench.put(*(toy(k) for k in seeds))
    bench.turns()


def poison(bench: Bench, *seeds: int) -> None:
    bench.put(*(inverted(toy(k)) for k in seeds))
    bench.turns()


def test_a_candidate_that_is_served_is_called_back_when_the_learner_dies(taught, tmp_path):
    """Also where nothing was accepted yet, and the base is to be served again."""
    bench = bench_on(taught, tmp_path)
    with bench.spool:
        poison(bench, 0, 1)
        bench.wait(7)
        bench.turns()
        assert bench.publications[-1].reason == "unjudged"
        bench.begin()
        told = bench.publications[-1]
        assert (told.version, told.reason) == ("taught", "resumed")
        bench.turns()
        good(bench, 2, 3)
        assert bench.learning.info().refused == 1
        assert bench.publications[-1].version == bench.learning.info().version == "taught"


def test_a_refused_version_is_called_back_though_the_spool_is_busy(taught, tmp_path, monkeypatch):
    bench = bench_on(taught, tmp_path)
    with bench.spool:
        poison(bench, 0, 1)
        bench.wait(7)
        bench.turns()
        assert bench.publications[-1].reason == "unjudged"
        poisoned = bench.publications[-1].version

        def busy(*_):
            raise BusyError("the spool is locked")

        with monkeypatch.context() as patch:
            patch.setattr(bench.spool, "quarantine", busy)
            good(bench, 2, 3)
        assert bench.learning.info().state == "halted"
        told = bench.publications[-1]
        assert (told.version, told.reason, told.parent) == ("taught", "refused", poisoned)
        bench.wait(60)
        bench.turns()
        assert bench.learning.info().refused == 1
        assert bench.publications[-1] is told
        assert bench.states() == {"quarantined": 2, "journaled": 2}


def test_an_ordered_checkpoint_keeps_nothing_that_is_not_judged(taught, tmp_path):
    bench = bench_on(taught, tmp_path)
    with bench.spool:
        poison(bench, 0, 1)
        carried = carry_out(bench.learning, Order(order="checkpoint"))
        assert "batch 1, learned since, waits for clips that judge it" in carried.detail
        assert [v.batch for v in carried.versions] == [0]
        carried = carry_out(bench.learning, Order(order="consolidate"))
        assert "judged by the next clips" in carried.detail
        assert bench.learning.info().consolidations == 0
        good(bench, 2, 3)
        assert bench.learning.info().refused == 1
        assert "score" in bench.spool.status().set_aside[0].reason


def test_poison_is_not_served_where_earlier_clips_are_at_hand(taught, tmp_path):
    """Nor is it refused: only further clips tell it from a world that has changed."""
    bench = bench_on(taught, tmp_path)
    with bench.spool:
        good(bench, 0, 1, 2, 3)
        poison(bench, 4, 5)
        served = bench.publications[-1]
        assert served.batch == 2
        bench.wait(7)
        bench.turns()
        bench.turns()
        assert bench.kinds.count("candidate_waits") == 1
        assert bench.publications[-1] is served
        assert bench.learning.info().candidate == 3
        good(bench, 6, 7)
        assert [a.number for a in bench.spool.status().set_aside] == [3]


def overflowing(learner: OnlineLearner) -> None:
    """Masks stay as good as they are; each weight is finite, and scores of classes are not."""
    head = learner.network.head
    with torch.no_grad():
        head.linear.weight.fill_(3e38)


@pytest.mark.parametrize("judged_by", ["next clips", "own clips"])
def test_what_says_nothing_finite_in_the_form_that_is_served_is_refused(
    taught, tmp_path, monkeypatch, judged_by
):
    """Though it passes by its masks; its own batch is set aside, and the judging one learned."""
    bench = bench_on(taught, tmp_path)
    learn = OnlineLearner.learn

    def learn_and_break(self, clips, batches, seed):
        loss = learn(self, clips, batches, seed)
        if clips[0].clip_id == "clip-0":
            overflowing(self)
        return loss

    monkeypatch.setattr(OnlineLearner, "learn", learn_and_break)
    with bench.spool:
        good(bench, 0, 1)
        if judged_by == "own clips":
            bench.wait(7)
            bench.turns()
            assert bench.learning.info().refused == 1
        good(bench, 4, 5)
        (aside,) = bench.spool.status().set_aside
        assert aside.number == 1
        assert "nothing finite in the form that is served" in aside.reason
        info = bench.learning.info()
        assert (info.refused, info.candidate) == (1, 2)
        assert not bench.publications


@pytest.mark.slow
def test_slow_erosion_is_refused_though_each_step_is_small(taught, tmp_path):
    """Across a death too: the checkpoint holds the best weights, of a version not kept any more."""
    known = [dataclasses.replace(toy(100 + k), clip_id=f"again-{k}") for k in range(4, 24)]
    bench = bench_on(taught, tmp_path, ERODING)
    with bench.spool:
        for first in range(0, len(known), 2):
            bench.put(*known[first : first + 2])
            bench.turns()
            if first == 8:
                assert bench.learning.info().refused == 0
                assert all(v.version != "taught" for v in bench.learning.versions())
                bench.begin()
        aside = bench.spool.status().set_aside
        assert aside
        assert all("with version" in each.reason for each in aside)
        base = OnlineLearner(load_network(taught), ERODING)
        clips = base.batches(known)
        kept = load_network(bench.store.all()[-1].weights)
        assert base.score(clips).mean() - base.score(clips, kept).mean() < 1.5 * RULES.canary_drop


def test_a_verdict_compares_with_the_better_of_the_accepted_and_the_best():
    def scores(mean):
        return np.array([mean - 0.1, mean + 0.1])

    def passes(fresh, held, best, drop=0.1):
        best = None if best is None else scores(best)
        return Verdict(scores(fresh), scores(held), best, drop).passes

    assert passes(0.45, 0.5, None)
    assert not passes(0.35, 0.5, None)
    assert not passes(0.45, 0.5, 0.6)
    assert passes(0.55, 0.5, 0.6)
    assert not passes(0.35, 0.5, 0.2)


@pytest.mark.parametrize("checkpoint_s", [0, 1e9])
def test_going_back_goes_to_what_was_before_the_candidate_that_is_served(tmp_path, checkpoint_s):
    bench = Bench(tmp_path, rules=dataclasses.replace(RULES, checkpoint_s=checkpoint_s))
    with bench.spool:
        bench.put(*(toy(k) for k in range(6)))
        bench.turns()
        bench.wait(7)
        bench.turns()
        unjudged = bench.publications[-1]
        assert (unjudged.batch, unjudged.reason) == (3, "unjudged")
        accepted = bench.learning.info().version
        assert not any(v.served for v in bench.learning.versions())
        assert bench.learning.rollback() == accepted
        assert (bench.publications[-1].version, bench.publications[-1].parent) == (
            accepted,
            unjudged.version,
        )
        assert [a.number for a in bench.spool.status().set_aside] == [3]
        assert bench.learning.versions()[-1].served


def test_the_area_under_the_curve_counts_the_frames_of_refused_batches(taught, tmp_path):
    """`score` is of the latest 256 frames, so of all of them here."""
    bench = bench_on(taught, tmp_path)
    with bench.spool:
        good(bench, 0, 1)
        poison(bench, 2, 3)
        good(bench, 4, 5, 6, 7)
        info = bench.learning.info()
        assert info.refused == 1
        assert info.a_auc == pytest.approx(info.score)
        assert info.clips == 6

"""The training loop: it learns, resumes bit for bit, selects by validation, stops on NaN."""

from __future__ import annotations

import itertools
import json
from itertools import pairwise

import pytest
import torch
from atlasd.model.epochs import fit
from atlasd.model.training import Outcome, Settings, Trainer, TrainingError
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

STEPS = 5


class Network(nn.Module):
    """A frozen map, dropout (so that random numbers matter), BatchNorm and a trained map."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(4, 8).requires_grad_(requires_grad=False)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(8, 1)

    def forward(self, x):
        return self.out(self.drop(self.norm(self.frozen(x))))[:, 0]


def feed(epoch, first_step):
    for step in range(first_step, STEPS):
        draw = torch.Generator().manual_seed(1000 * epoch + step)
        x = torch.randn(16, 4, generator=draw)
        yield {"x": x, "y": x[:, 0] - 2 * x[:, 1]}


def trainer(folder=None, **settings):
    torch.manual_seed(7)
    network = Network()
    options = Settings(**({"epochs": 4, "lr": 1e-2, "average": 0.9, "clip_norm": 5.0} | settings))
    loss = lambda batch: Outcome({"loss": F.mse_loss(network(batch["x"]), batch["y"])})  # noqa: E731
    return Trainer(network, loss, options, STEPS, folder)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_it_learns_and_leaves_frozen_parameters_alone():
    run = trainer(epochs=30)
    before, losses = weights(run), []
    fit(run, feed, on_step=lambda _, scalars: losses.append(scalars["loss"]))
    after = weights(run)
    assert len(losses) == 30 * STEPS
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert torch.equal(before["frozen.weight"], after["frozen.weight"])
    assert not torch.equal(before["out.weight"], after["out.weight"])


def test_two_runs_with_one_seed_are_bit_identical():
    one, two = trainer(), trainer()
    torch.manual_seed(3)
    fit(one, feed)
    torch.manual_seed(3)
    fit(two, feed)
    assert equal(weights(one), weights(two))


@pytest.mark.parametrize("stop", [1, STEPS, 2 * STEPS + 3])
def test_a_run_interrupted_anywhere_ends_as_one_that_was_not(tmp_path, stop):
    class StopError(Exception):
        pass

    def interrupt(step, _):
        if step == stop + 1:
            raise StopError

    path = tmp_path / "state.safetensors"
    scores = iter(range(100))
    whole = trainer()
    torch.manual_seed(3)
    fit(whole, feed, validate=lambda: float(next(scores)))

    first = trainer()
    torch.manual_seed(3)
    with pytest.raises(StopError):
        fit(
            first,
            feed,
            save=lambda: first.save(path),
            save_every_s=0,
            on_step=interrupt,
            validate=lambda: 0.0,
        )
    second = trainer()
    torch.manual_seed(99)
    second.restore(path)
    assert second.step_count == stop
    scores = iter(range(100))
    fit(second, feed, validate=lambda: float(next(scores)))
    assert equal(weights(whole), weights(second))
    with whole.averaged(), second.averaged():
        assert equal(weights(whole), weights(second))


def test_a_state_is_left_behind_when_time_has_passed_however_short_the_epochs_are():
    """Seven seconds a step, five steps an epoch: a state each minute, not each epoch or step."""
    seconds, steps, saves = iter(range(0, 10_000, 7)), [], []
    run = trainer(epochs=30)
    fit(
        run,
        feed,
        save=lambda: saves.append(run.step_count),
        save_every_s=60,
        clock=lambda: next(seconds),
        on_step=lambda step, _: steps.append(step),
    )
    assert len(steps) == 30 * STEPS
    asked = 7 * (30 * STEPS + 30)
    assert asked / 80 < len(saves) <= asked / 60
    assert all(8 <= later - earlier <= 10 for earlier, later in pairwise(saves))


def test_a_state_in_memory_can_be_gone_back_to_more_than_once():
    """As the live learner does where one batch after the other is refused."""
    run = trainer()
    for batch in itertools.islice(feed(0, 0), 2):
        run.step(batch)
    tensors, manifest = run.state()
    tensors = {name: value.clone() for name, value in tensors.items()}
    ends = []
    for _ in range(2):
        again = trainer()
        again.load_state(tensors, manifest, "memory")
        for batch in itertools.islice(feed(0, 2), 2):
            again.step(batch)
        ends.append(weights(again))
    assert equal(*ends)


def test_a_finished_run_that_is_restored_does_nothing_more(tmp_path):
    path = tmp_path / "state.safetensors"
    run = trainer(epochs=1)
    fit(run, feed, validate=lambda: 0.25)
    run.save(path)
    again = trainer(epochs=1)
    again.restore(path)
    assert again.finished
    assert again.best == 0.25
    fit(
        again,
        lambda *_: pytest.fail("no batch is needed"),
        validate=lambda: pytest.fail("nor this"),
    )
    assert equal(weights(run), weights(again))


def test_validation_selects_the_best_and_sees_averaged_weights_in_eval():
    run = trainer()
    scores, kept, modes = iter([0.3, 0.5, float("nan"), 0.4]), [], []

    def validate():
        modes.append(run.network.training)
        return next(scores)

    fit(run, feed, validate=validate, keep=lambda score: kept.append((score, weights(run))))
    assert [score for score, _ in kept] == [0.3, 0.5]
    assert modes == [False] * 4
    assert run.best == 0.5
    assert not torch.equal(kept[-1][1]["out.weight"], weights(run)["out.weight"])


def test_the_average_is_that_of_a_loop():
    run = trainer(epochs=2)
    mean = run.network.out.weight.detach().clone().double()
    for epoch in range(2):
        run.network.train()
        for step, batch in enumerate(feed(epoch, 0), start=1 + epoch * STEPS):
            run.step(batch)
            decay = min(0.9, step / (step + 9))
            mean = decay * mean + (1 - decay) * run.network.out.weight.detach().double()
    raw = run.network.out.weight.detach().clone()
    with run.averaged():
        torch.testing.assert_close(
            run.network.out.weight.detach().double(), mean, rtol=1e-5, atol=0
        )
    assert torch.equal(run.network.out.weight, raw)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.025), (3, 0.1), (4, 0.1), (12, 0.055), (20, 0.01), (99, 0.01)]
)
def test_the_rate_warms_up_and_falls_along_a_cosine(step, rate):
    settings = Settings(lr=0.1, warmup_steps=4, final_lr=0.1)
    assert settings.rate(step, total_steps=20) == pytest.approx(rate)


def test_nan_stops_with_the_batch_saved_and_the_weights_untouched(tmp_path):
    run = trainer(folder=tmp_path)
    good, bad = list(feed(0, 0))[:2]
    run.step(good)
    before = dict(run.network.named_parameters())
    before = {name: p.detach().clone() for name, p in before.items()}
    bad["x"][3, 1] = float("nan")
    with pytest.raises(TrainingError, match=r"not finite at epoch 0, step 1.*bad-batch"):
        run.step(bad)
    assert equal(before, {n: p.detach() for n, p in run.network.named_parameters()})
    saved = tmp_path / "bad-batch.safetensors"
    assert torch.isnan(load_file(saved)["x"][3, 1])
    with safe_open(saved, framework="pt") as file:
        assert file.metadata()["where"] == "epoch 0, step 1"


def test_an_infinite_gradient_of_a_finite_loss_stops_too():
    run = trainer()
    run._loss = lambda batch: Outcome({"loss": run.network.out.weight.abs().sum().mul(0).sqrt()})
    with pytest.raises(TrainingError, match="a gradient is not finite"):
        run.step(next(iter(feed(0, 0))))


def test_a_state_of_other_settings_or_another_network_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    trainer().save(path)
    with pytest.raises(TrainingError, match=r"lr 0\.01 there, 0\.5 here"):
        trainer(lr=0.5).restore(path)
    other = trainer()
    other.network.out.bias.requires_grad_(requires_grad=False)
    fewer = Trainer(other.network, other._loss, other.settings, STEPS)
    with pytest.raises(TrainingError, match=r"another network.*out\.bias"):
        fewer.restore(path)


@pytest.mark.parametrize("content", [b"", b"not a state", b"\x08" + b"\0" * 7 + b'{"a": 1}'])
def test_a_file_that_is_no_state_is_refused_and_changes_nothing(tmp_path, content):
    path = tmp_path / "state.safetensors"
    path.write_bytes(content)
    run = trainer()
    before = weights(run)
    with pytest.raises(TrainingError, match="is not the state of a training run"):
        run.restore(path)
    with pytest.raises(TrainingError, match="is not the state of a training run"):
        run.restore(tmp_path / "missing.safetensors")
    assert equal(before, weights(run))


def test_saving_over_an_old_state_leaves_no_partial_file(tmp_path):
    path = tmp_path / "state.safetensors"
    run = trainer()
    run.save(path)
    run.step(next(iter(feed(0, 0))))
    run.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["manifest"])["step_in_epoch"] == 1


def test_a_feed_that_ends_early_is_an_error():
    with pytest.raises(TrainingError, match="ended after 3 batches; 5 were promised"):
        fit(trainer(), lambda epoch, first: list(feed(epoch, first))[:3])


@pytest.mark.parametrize(
    "bad", [{"epochs": 0}, {"lr": 0.0}, {"average": 1.0}, {"final_lr": 1.5}, {"clip_norm": -1.0}]
)
def test_settings_out_of_bounds_are_named(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is {next(iter(bad.values()))}"):
        Settings(**bad)


def test_a_network_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="no trainable parameter"):
        Trainer(
            nn.Linear(2, 2).requires_grad_(requires_grad=False),
            lambda _: Outcome({}),
            Settings(),
            1,
        )

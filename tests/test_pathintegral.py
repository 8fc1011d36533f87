"""The path integral of SI and LRA: against a closed form, and against a float64 loop."""

import weakref

import numpy as np
import pytest
import torch
from atlasd.model.methods import load
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Bowl(nn.Module):
    """A network of one parameter, whose loss is `½·Σ h·(θ − m)²`."""

    def __init__(self, start, stiffness, minimum):
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.theta = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.stiffness = torch.tensor(stiffness, dtype=torch.float64)
        self.minimum = torch.tensor(minimum, dtype=torch.float64)

    @property
    def theta(self):
        return self.decoder.theta

    def loss(self):
        return 0.5 * (self.stiffness * (self.theta - self.minimum).square()).sum()


START, STIFFNESS, MINIMUM = [1.0, -2.0, 0.5], [1.0, 4.0, 0.1], [0.0, 1.0, 0.5]


def descend(bowl, method, optimizer, steps):
    """Steps as `Trainer.step` makes them."""
    for _ in range(steps):
        optimizer.zero_grad()
        bowl.loss().backward()
        method.edit_grads()
        optimizer.step()
        method.after_step()


def prepared(name, bowl, **options):
    method = load(name, options)
    method.prepare(bowl)
    method.begin(None)
    return method


@pytest.mark.parametrize("name", ["atlas", "si"])
def test_the_integral_is_what_each_parameter_lowered_the_loss_by(name):
    """On small steps of plain descent `ω = ½·h·((θ₀ − m)² − (θ − m)²)` (SI, Eq. 3)."""
    bowl = Bowl(START, STIFFNESS, MINIMUM)
    method = prepared(name, bowl)
    before = bowl.loss().item()
    descend(bowl, method, torch.optim.SGD(bowl.parameters(), lr=1e-3), 800)
    path = method.state["path.decoder.theta"]
    away = torch.tensor(START) - bowl.minimum
    closed = 0.5 * bowl.stiffness * (away.square() - (bowl.theta - bowl.minimum).square())
    torch.testing.assert_close(path, closed.detach(), rtol=5e-3, atol=1e-9)
    assert float(path.sum()) == pytest.approx(before - bowl.loss().item(), rel=5e-3)


@pytest.mark.parametrize("name", ["atlas", "si"])
def test_importance_is_a_float64_loops(name):
    """Two segments with AdamW, weight decay and the penalty, written out by hand in NumPy."""
    strength, xi, lr, decay = 0.7, 1e-3, 0.02, 0.05
    bowl = Bowl(START, STIFFNESS, MINIMUM)
    method = prepared(name, bowl, c=strength, xi=xi)
    targets = ([0.0, 1.0, 0.5], [2.0, -1.0, 3.0])
    for target in targets:
        bowl.minimum = torch.tensor(target, dtype=torch.float64)
        method.begin(None)
        optimizer = torch.optim.AdamW(bowl.parameters(), lr=lr, weight_decay=decay)
        descend(bowl, method, optimizer, 40)
        method.consolidate([])

    k = 2 * strength if name == "si" else strength
    theta, stiffness = np.array(START), np.array(STIFFNESS)
    anchor, omega_big = theta.copy(), np.zeros(3)
    for target in targets:
        m, v, path = np.zeros(3), np.zeros(3), np.zeros(3)
        for t in range(1, 41):
            g = stiffness * (theta - np.array(target))
            total = g + k * omega_big * (theta - anchor)
            old = theta.copy()
            theta = theta * (1 - lr * decay)
            m, v = 0.9 * m + 0.1 * total, 0.999 * v + 0.001 * total**2
            theta = theta - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            path += -g * (theta - old)
        omega_big = omega_big + np.maximum(path, 0) / ((theta - anchor) ** 2 + xi)
        anchor = theta.copy()

    np.testing.assert_allclose(bowl.theta.detach().numpy(), theta, rtol=1e-9)
    found = method.state["importance.decoder.theta"].numpy()
    np.testing.assert_allclose(found, omega_big, rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"unit": "steps"}, lambda path, away: np.maximum(path, 0) / away * 100 / 40),
        ({"sign": "absolute"}, lambda path, away: np.abs(path) / away),
        (
            {"unit": "largest"},
            lambda path, away: (np.maximum(path, 0) / away) / (np.maximum(path, 0) / away).max(),
        ),
    ],
)
def test_what_the_paper_leaves_open_may_be_otherwise(options, wanted):
    """By a float64 loop; weight decay moves the third parameter uphill, so its ω is negative."""
    bowl = Bowl(START, STIFFNESS, MINIMUM)
    method = prepared("atlas", bowl, c=0.0, xi=1e-2, **options)
    descend(bowl, method, torch.optim.SGD(bowl.parameters(), lr=0.02, weight_decay=1.0), 40)
    method.consolidate([])
    theta, path = np.array(START), np.zeros(3)
    for _ in range(40):
        g = np.array(STIFFNESS) * (theta - np.array(MINIMUM))
        step = -0.02 * (g + theta)
        theta, path = theta + step, path - g * step
    assert path[2] < 0 < path[0]
    expected = wanted(path, (theta - np.array(START)) ** 2 + 1e-2)
    found = method.state["importance.decoder.theta"].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_lra_is_capped_and_fades():
    bowl = Bowl(START, [1e4, 1e4, 1e4], MINIMUM)
    method = prepared("atlas", bowl, c=0.0, cap=5.0, gamma=0.5)
    descend(bowl, method, torch.optim.SGD(bowl.parameters(), lr=1e-5), 50)
    method.consolidate([])
    first = method.state["importance.decoder.theta"].clone()
    assert float(first.max()) == 5.0
    bowl.stiffness = torch.zeros(3, dtype=torch.float64)
    descend(bowl, method, torch.optim.SGD(bowl.parameters(), lr=1e-5), 2)
    method.consolidate([])
    torch.testing.assert_close(method.state["importance.decoder.theta"], 0.5 * first)


class Borrowed(TorchDispatchMode):
    """Counts results of a size until they are gone: how many there are at most at one time."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.now = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        given = {t.data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for each in tree_leaves(made):
            is_new = isinstance(each, torch.Tensor) and each.data_ptr() not in given
            if is_new and each.numel() == self.size:
                self.now += 1
                weakref.finalize(each, self._gone)
        self.most = max(self.most, self.now)
        return made

    def _gone(self):
        self.now -= 1


@pytest.mark.parametrize("anchors", [1, 3])
def test_at_no_moment_of_a_step_are_more_than_two_tensors_borrowed(anchors):
    """Of what is made while gradients are changed and not gone yet, the new gradient included."""
    bowl = Bowl(START, STIFFNESS, MINIMUM)
    method = prepared("atlas", bowl, anchors=anchors)
    optimizer = torch.optim.SGD(bowl.parameters(), lr=1e-3)
    for _ in range(anchors):
        descend(bowl, method, optimizer, 3)
        method.consolidate([])
    bowl.loss().backward()
    with Borrowed(bowl.theta.numel()) as borrowed:
        method.edit_grads()
        optimizer.step()
        method.after_step()
    assert borrowed.most == 2


def test_a_step_keeps_three_tensors_and_borrows_two():
    bowl = Bowl(START, STIFFNESS, MINIMUM)
    method = prepared("atlas", bowl)
    optimizer = torch.optim.SGD(bowl.parameters(), lr=1e-3)
    descend(bowl, method, optimizer, 3)
    method.consolidate([])
    size = bowl.theta.numel()
    assert sum(t.numel() for t in method.state_dict().values() if t.ndim) == 3 * size
    bowl.loss().backward()
    kept = {id(t) for t in method.state.values()} | {id(bowl.theta), id(bowl.theta.grad)}
    method.edit_grads()
    borrowed = [
        t
        for value in vars(method).values()
        if isinstance(value, list)
        for t in value
        if isinstance(t, torch.Tensor)
    ]
    new = {id(t): t for t in (*borrowed, bowl.theta.grad) if id(t) not in kept}
    assert sum(t.numel() for t in new.values()) <= 2 * size
    optimizer.step()
    method.after_step()
    lists = [value for value in vars(method).values() if isinstance(value, list)]
    assert not any(isinstance(t, torch.Tensor) for value in lists for t in value)

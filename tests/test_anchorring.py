"""Several anchors: against a float64 loop, what falls out, and what every method promises."""

import numpy as np
import pytest
import torch
from atlasd.model.method import Method, MethodError
from atlasd.model.methods import load
from atlasd.model.pathintegral import PathIntegral
from test_methods import PARTS, STEPS, Run, assert_equal, network_for, same
from test_pathintegral import MINIMUM, START, STIFFNESS, Bowl, descend, prepared

TARGETS = ([0.0, 1.0, 0.5], [2.0, -1.0, 3.0], [1.0, 1.0, -1.0], [-2.0, 0.5, 0.0])


def packed(values):
    """Rounded as earlier anchors are kept."""
    return torch.from_numpy(values).bfloat16().double().numpy()


def through(bowl, method, steps=40, lr=0.02):
    for target in TARGETS:
        bowl.minimum = torch.tensor(target, dtype=torch.float64)
        method.begin(None)
        descend(bowl, method, torch.optim.SGD(bowl.parameters(), lr=lr), steps)
        method.consolidate([])


@pytest.mark.parametrize("gamma", [1.0, 0.8])
@pytest.mark.parametrize("anchors", [1, 2, 3, 9])
def test_the_ring_is_a_float64_loops(anchors, gamma):
    """Four segments of plain descent, every anchor's pull summed by itself."""
    strength, xi, lr = 0.3, 1e-2, 0.02
    bowl = Bowl(START, STIFFNESS, MINIMUM)
    method = prepared("atlas", bowl, c=strength, xi=xi, gamma=gamma, anchors=anchors)
    through(bowl, method, lr=lr)

    theta, stiffness = np.array(START), np.array(STIFFNESS)
    ring = []  # (point, importance), the latest first
    last = theta.copy()
    for target in TARGETS:
        path = np.zeros(3)
        for _ in range(40):
            g = stiffness * (theta - np.array(target))
            pull = sum((omega * (theta - point) for point, omega in ring), np.zeros(3))
            old = theta.copy()
            theta = theta - lr * (g + strength * pull)
            path += -g * (theta - old)
        gained = np.maximum(path, 0) / ((theta - last) ** 2 + xi)
        last = theta.copy()
        ring = [(theta.copy(), gained), *((point, gamma * omega) for point, omega in ring)]
        if len(ring) > anchors:
            (kept, successor), (_, oldest) = ring[-2:]
            ring = [*ring[:-2], (kept, successor + oldest)]
        points, omegas = map(list, zip(*ring, strict=True))
        for age in range(1, len(ring)):  # an earlier one is kept by the way back to it
            points[age] = points[age - 1] + packed(ring[age][0] - ring[age - 1][0])
            omegas[age] = packed(omegas[age])
        ring = list(zip(points, omegas, strict=True))

    np.testing.assert_allclose(bowl.theta.detach().numpy(), theta, rtol=1e-9)
    for age, (_, omega) in enumerate(ring):
        key = f"importance{age or ''}.decoder.theta"
        np.testing.assert_allclose(method.state[key].double().numpy(), omega, rtol=1e-9)
    assert f"importance{len(ring)}.decoder.theta" not in method.state


def stiffnesses(method):
    """Each anchor's Ω, the latest first."""
    keys = sorted(k for k in method.state if k.startswith("importance"))
    return [method.state[key] for key in keys]


@pytest.mark.parametrize("growth", ["sum", "mean"])
def test_the_anchors_share_the_importance_that_one_would_have(growth):
    totals = []
    for anchors in (1, 2, 3, 9):
        bowl = Bowl(START, STIFFNESS, MINIMUM)
        method = prepared("atlas", bowl, c=0.0, gamma=0.8, growth=growth, anchors=anchors)
        through(bowl, method)
        assert len(stiffnesses(method)) == min(anchors, 4)
        totals.append(sum(t.double() for t in stiffnesses(method)))
    for total in totals[1:]:
        torch.testing.assert_close(total, totals[0], rtol=4e-3, atol=0)


@pytest.mark.parametrize("options", [{}, {"gamma": 0.5}])
def test_a_moving_average_goes_on_after_the_first_consolidation(options):
    """`Ω ← γΩ + (1 − γ)·100/n·gained`, the first alone whole; γ is 0.8 where it is not told."""
    bowl = Bowl(START, STIFFNESS, MINIMUM)
    method = prepared("atlas", bowl, c=0.0, growth="mean", **options)
    single = prepared("atlas", Bowl(START, STIFFNESS, MINIMUM), c=0.0, gamma=0.0)
    gamma, expected = options.get("gamma", 0.8), None
    for target in TARGETS:
        for one in (method, single):
            one.network.minimum = torch.tensor(target, dtype=torch.float64)
            descend(one.network, one, torch.optim.SGD(one.network.parameters(), lr=0.02), 40)
            one.consolidate([])
        gained = 100 / 40 * single.state["importance.decoder.theta"]
        expected = gained if expected is None else gamma * expected + (1 - gamma) * gained
        torch.testing.assert_close(method.state["importance.decoder.theta"], expected)


def test_a_moving_average_that_would_stand_still_is_refused():
    with pytest.raises(MethodError, match="growth is mean and gamma 1"):
        load("atlas", {"growth": "mean", "gamma": 1.0})


def test_over_the_cap_the_oldest_anchor_yields():
    free, capped = (
        prepared("atlas", Bowl(START, STIFFNESS, MINIMUM), c=0.0, anchors=3, cap=cap)
        for cap in (1e9, 1.5)
    )
    for method in (free, capped):
        through(method.network, method)
    room = torch.full((3,), 1.5, dtype=torch.float64)
    for wanted, found in zip(stiffnesses(free), stiffnesses(capped), strict=True):
        assert (found <= room + 0.01).all()
        assert (found <= 1.01 * wanted).all()
        room -= found.double()
    assert (sum(t.double() for t in stiffnesses(capped)) > 0).all()
    latest = torch.minimum(stiffnesses(free)[0], torch.tensor(1.5, dtype=torch.float64))
    assert torch.equal(stiffnesses(capped)[0], latest), "the latest takes what it gained first"


class OneAnchor(PathIntegral):
    """LRA with its one anchor, written out: `Ω ← min(γΩ + Ω_new, cap)`."""

    stiffness, gamma, cap = 0.3, 0.9, 0.5
    scope = "lora+decoder"
    trainable = "lora"

    def remember(self, name, here, gained):
        held = self.state.get(f"importance.{name}", torch.zeros_like(here))
        self.state[f"importance.{name}"] = (self.gamma * held + gained).clamp(max=self.cap)
        self.state[f"anchor.{name}"] = here


def go(run, parts=(*PARTS, PARTS[1], PARTS[1])):
    for part in parts:
        run.begin(part)
        run.learn(part)
        run.consolidate(part)
    return run


def test_a_ring_of_one_is_one_anchor_bit_for_bit():
    one = go(Run(load("atlas", {"anchors": 1, "gamma": 0.9, "cap": 0.5})))
    assert_equal(one, go(Run(OneAnchor())))
    assert not any("offset" in key for key in one.method.state)


def test_with_strength_zero_a_ring_is_finetune_bit_for_bit():
    ring, plain = load("atlas", {"c": 0.0, "anchors": 3}), Method()
    vars(plain).update(trainable=ring.trainable)
    assert same(go(Run(ring)).network.state_dict(), go(Run(plain)).network.state_dict())


def test_a_ring_is_not_one_anchor():
    ring, one = (go(Run(load("atlas", {"c": 30.0, "anchors": k}))) for k in (3, 1))
    assert not same(ring.network.state_dict(), one.network.state_dict())


@pytest.mark.parametrize("anchors", [2, 3])
def test_the_rings_gradient_is_autograds_in_float64(anchors):
    """In the whole network, its class head anchored too, which grew after the first anchor."""
    run = go(Run(load("atlas", {"anchors": anchors, "everything": True})))
    method = run.method
    draw = torch.Generator().manual_seed(1)
    run.network.double()
    method.state = {n: t.double() if t.is_floating_point() else t for n, t in method.state.items()}
    method.begin(PARTS[1])
    with torch.no_grad():
        for parameter in method.named.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    expected = torch.autograd.grad(method.penalty(), list(method.named.values()))
    own = [torch.randn(p.shape, generator=draw).double() for p in method.named.values()]
    for parameter, grad in zip(method.named.values(), own, strict=True):
        parameter.grad = grad.clone()
    method.edit_grads()
    for parameter, o, e in zip(method.named.values(), own, expected, strict=True):
        torch.testing.assert_close(parameter.grad, o + e, rtol=1e-9, atol=1e-12)
    assert "head.linear.weight" in method.named


def test_new_rows_of_the_class_head_are_free_of_every_anchor():
    run = go(Run(load("atlas", {"anchors": 3, "everything": True})), (PARTS[0], PARTS[0]))
    run.begin(PARTS[1])
    for kind in ("importance", "importance1", "offset1"):
        held = run.method.state[f"{kind}.head.linear.weight"]
        assert held.shape == (4, held.shape[1])
        assert held[:2].any()
        assert not held[2:].any()
    run.learn(PARTS[1])
    run.consolidate(PARTS[1])


def test_a_class_head_may_come_after_two_anchors():
    method = load("atlas", {"anchors": 3, "everything": True})
    run = go(Run(method, network_for(method, ())), (PARTS[0], PARTS[0]))
    run.begin(PARTS[1])
    for kind in ("importance", "importance1", "offset1"):
        assert not method.state[f"{kind}.head.linear.weight"].any()
    run.learn(PARTS[1])
    run.consolidate(PARTS[1])


@pytest.mark.parametrize("stop", [1, 3, 7])
def test_a_stream_that_is_cut_short_ends_as_one_that_is_not(stop, tmp_path):
    """Consolidations after each second step; the last save lies after three."""
    runs = [Run(load("atlas", {"anchors": 3, "growth": "mean", "gamma": 0.8})) for _ in range(2)]
    for run in runs:
        run.begin(PARTS[0], told=False, rule="every", every=2)
    whole, resumed = runs

    def learn(run, first, last):
        for step in range(first, last):
            run.learn(PARTS[0], step % STEPS, step % STEPS + 1)

    learn(whole, 0, stop)
    whole.trainer.save(tmp_path / "state.safetensors")
    learn(whole, stop, 2 * STEPS)
    resumed.trainer.restore(tmp_path / "state.safetensors")
    learn(resumed, stop, 2 * STEPS)
    assert_equal(whole, resumed)
    assert int(whole.method.state["consolidations"]) == 4


@pytest.mark.parametrize("anchors", [1, 2, 3, 4])
def test_each_further_anchor_costs_one_tensor(anchors):
    run = go(Run(load("atlas", {"anchors": anchors})))
    sizes = {n: t.numel() * t.element_size() for n, t in run.method.state_dict().items() if t.ndim}
    own = sum(p.numel() * p.element_size() for p in run.method.named.values())
    assert sum(sizes.values()) == (2 + anchors) * own


def test_a_ring_without_room_is_refused():
    with pytest.raises(MethodError, match="anchors is 0; it must be at least 1"):
        load("atlas", {"anchors": 0})

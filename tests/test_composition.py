"""Several methods as one: gradients by hand, order, options, what does not go together."""

import copy
from pathlib import Path

import pytest
import torch
from atlasd.model.composition import Composed
from atlasd.model.method import MethodError
from atlasd.model.methods import load
from atlasd.model.taskloss import task_loss
from atlasd.tools.runspec import RunSpec, grid_of
from test_methods import OWN_SOURCE, PARTS, Run, batches, same, two_segments


def into_the_second_segment(name, **options):
    """A run whose penalties and teachers are at work, and a batch that it has not learned."""
    run = Run(load(name, options))
    run.begin(PARTS[0])
    run.learn(PARTS[0])
    run.consolidate(PARTS[0])
    run.begin(PARTS[1])
    run.learn(PARTS[1], 0, 2)
    return run, batches(run.method, run.network, PARTS[1])[2]


def named_grads(network, scalar):
    """By name, zeros where the scalar does not depend on a parameter."""
    named = {n: p for n, p in network.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(
        scalar, list(named.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(named, grads, strict=True))


def near(found, expected, what):
    torch.testing.assert_close(
        found, expected, rtol=1e-4, atol=1e-7, msg=lambda text: f"{what}: {text}"
    )


@pytest.mark.parametrize(
    "name", ["lwf+si", "si+lwf", "ewc+si+lwf", "lwf+atlas", "atlas+si", "mas+atlas", "lwf+ewc"]
)
def test_gradients_add_up_and_paths_are_of_the_tasks_alone(name):
    run, batch = into_the_second_segment(name)
    parts = run.method.parts
    before = {n: p.detach().clone() for n, p in run.network.named_parameters()}
    paths = {k: v.clone() for k, v in run.method.state_dict().items() if ".path." in k}
    outcome = task_loss(run.network, 0.5)(batch)
    task = named_grads(run.network, outcome.terms["loss"])
    whole = {n: grad.double() for n, grad in task.items()}
    for part in parts.values():
        extra = part.extra_loss(batch, outcome.out).values()
        scalars = [*extra, *([part.penalty()] if hasattr(part, "penalty") else [])]
        assert any(float(scalar.detach()) > 0 for scalar in scalars)
        for scalar in scalars:
            for n, grad in named_grads(run.network, scalar).items():
                whole[n] += grad.double()
    terms = run.method.extra_loss(batch, outcome.out)
    assert set(terms) == ({"lwf.kd", "lwf.kd_class"} if "lwf" in parts else set())
    run.trainer.step(batch)
    for n, parameter in run.network.named_parameters():
        if parameter.requires_grad:
            near(parameter.grad.double(), whole[n], n)
    now = dict(run.network.named_parameters())
    for key, path in paths.items():
        n = key.partition(".path.")[2]
        step = before[n].double() - now[n].detach().double()
        near(run.method.state_dict()[key].double(), path.double() + task[n].double() * step, key)
    assert bool(paths) == any(part in ("si", "atlas") for part in parts)


@pytest.mark.parametrize("name", ["ewc+dgr", "dgr+ewc", "si+dgr", "dgr+si"])
def test_dgr_reweights_what_no_penalty_has_touched(name):
    run, batch = into_the_second_segment(name, **{"ewc.lam": 1e3} if "ewc" in name else {"si.c": 1})
    anchored = next(part for key, part in run.method.parts.items() if key != "dgr")
    pulls = dict(zip(anchored.named, anchored.pull(anchored.named), strict=True))
    alone = copy.deepcopy(run.method.parts["dgr"])
    outcome = task_loss(alone.network, 0.5)(dict(batch))
    extra = alone.extra_loss(batch, outcome.out)
    alone.network.zero_grad()
    sum(extra.values(), outcome.terms["loss"]).backward()
    alone.edit_grads()
    expected = {n: p.grad for n, p in alone.network.named_parameters() if p.requires_grad}
    assert (
        pulls["head.linear.weight"].abs().max() > 1e-3 * expected["head.linear.weight"].abs().max()
    )
    run.trainer.step(batch)
    for n, parameter in run.network.named_parameters():
        if parameter.requires_grad:
            near(parameter.grad, expected[n] + pulls[n], n)


def test_a_part_at_strength_zero_is_as_if_it_were_not_there():
    plain = load("dgr")
    one, two = two_segments(Run(load("panda+dgr", {"share": 0}))), two_segments(Run(plain))
    assert same(one.network.state_dict(), two.network.state_dict())
    state = {f"dgr.{n}": value for n, value in two.method.state_dict().items()}
    assert same(one.method.state_dict(), state)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("panda+dgr", ("all", False)),
        ("panda+atlas", ("lora", False)),
        ("ewc+atlas", ("lora", False)),
        ("lwf+l2p", ("decoder", False)),
        ("panda+fecam", ("decoder", False)),
    ],
)
def test_what_one_narrows_is_narrowed_and_what_one_needs_is_needed(name, facts):
    method = load(name)
    assert isinstance(method, Composed)
    assert (method.trainable, method.mixes_clips) == facts
    assert method.exemplar_free
    assert not (method.needs_boundaries or method.needs_classes or method.uses_task_id)


def test_one_part_that_mixes_sounds_is_enough_for_all_to_get_waves():
    assert load("panda+dgr", {"panda.sound": "mix"}).mixes_clips


def test_facts_of_ones_own(tmp_path):
    facts = 'strength: ClassVar[str] = "pull"\n    exemplar_free = False\n    uses_task_id = True'
    source = OWN_SOURCE.replace('strength: ClassVar[str] = "pull"', facts)
    (tmp_path / "my_own.py").write_text(source)
    method = load("ewc+my-own", {"my-own.pull": 0.5}, [tmp_path])
    assert not method.exemplar_free
    assert method.uses_task_id
    assert method.parts["my_own"].pull == 0.5


def test_options_go_to_the_part_that_has_them():
    method = load(
        "lwf+ewc+panda", {"lwf.lam": 2, "ewc.lam": 3.0, "examples": 7, "panda.beta": 0.25}
    )
    lwf, ewc, panda = method.parts.values()
    assert (lwf.lam, ewc.lam, ewc.examples, panda.beta) == (2.0, 3.0, 7, 0.25)
    assert load("ewc", {"ewc.lam": 4.0}).lam == 4.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lwf+ewc", {"lam": 1.0}, r"several options 'lam'; name one of lwf\.lam, ewc\.lam"),
        ("panda+si", {"lam": 1.0}, r"no option 'lam'; it has panda\.beta, .*, si\.c, si\.xi"),
        ("panda+si", {"panda.c": 1.0}, r"no option 'panda\.c'"),
        ("panda+si", {"dgr.lam": 1.0}, r"no option 'dgr\.lam'"),
        ("panda+si", {"c": 1.0, "si.c": 1.0}, r"si\.c is given twice"),
        ("panda+si", {"c": "1"}, r"si\.c is '1'; .*\(float\)"),
        ("panda+ewc", {"lam": -1.0}, "lam -1.0"),
        ("ewc+ewc", {}, "names a method more than once"),
        ("ewc+", {}, "there is no method ''"),
        ("ewc+magic", {}, "there is no method 'magic'"),
        ("atlas+l2p", {}, r"atlas 'lora', l2p 'decoder'; parts must agree"),
        ("ewc+fecam", {}, r"fecam lets nothing train .* so ewc would keep"),
        ("ranpac+lwf", {}, "ranpac lets nothing train"),
        ("ranpac+fecam", {}, "what trains|lets nothing train"),
    ],
)
def test_what_does_not_go_together_is_said(name, options, message):
    with pytest.raises(MethodError, match=message):
        load(name, options)


def test_a_run_may_be_told_a_list(tmp_path):
    told = RunSpec.model_validate({"data": tmp_path, "method": ["panda", "dgr"]})
    assert told.method == told.name == "panda+dgr"
    assert told.hash == RunSpec(data=tmp_path, method="panda+dgr").hash
    assert told.folder.parts[1] == "panda+dgr"
    grid = grid_of(None, data=tmp_path, overrides=["method=[lwf, ewc]", "options.ewc.lam=5.0"])
    assert (grid[0].method, grid[0].options) == ("lwf+ewc", {"ewc.lam": 5.0})
    axis = grid_of(None, data=tmp_path, axes={"method": [["lwf", "ewc"], "atlas"]})
    assert [spec.method for spec in axis] == ["lwf+ewc", "atlas"]


@pytest.mark.parametrize("grid", ["open-avs", "paper"])
def test_the_grids_run_panda_upon_dgr(grid, tmp_path):
    first = grid_of(Path(grid), data=tmp_path, systems=["panda"])[0]
    assert (first.name, first.method) == ("panda", "panda+dgr")

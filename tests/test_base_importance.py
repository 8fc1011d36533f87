"""Base importance: what is measured, how it is kept, what it pulls, and that it holds."""

import copy

import pytest
import torch
from atlasd.model import baseimportance, checkpoints
from atlasd.model.baseimportance import BaseImportance, Shares, decoded, encoded, factored
from atlasd.model.basepull import BasePull
from atlasd.model.lora import inject, lora_maps, merge
from atlasd.model.losses import total_loss
from atlasd.model.method import MethodError
from atlasd.model.methods import load
from atlasd.model.presets import SHIPPED, build
from atlasd.model.pretrained import WeightsError
from atlasd.model.teacher import answer
from atlasd.model.training import Outcome, Settings, Trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from test_methods import ALL, PARTS, Run, assert_equal, batches, network_for, same
from torch import nn

MAPS = ("visual.backbone.blocks.3.0.conv_pw", "visual.backbone.blocks.6.0.conv_pwl")


def examples(network, part=PARTS[0]):
    return batches(load("atlas"), network, part)


def deployed(folder, network=None):
    """A network with its checkpoint and importances in a folder."""
    network = network or network_for(load("atlas"))
    network.trained = True
    network.version = checkpoints.save(network, folder).version
    found = baseimportance.measure(network, examples(network), 100)
    baseimportance.write(folder, network, found, examples=100, notes={"seed": "0"})
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    deployed(path)
    return path


def held(folder, **options):
    """A run of ATLAS that holds the base in a folder."""
    method = load("atlas", options)
    network = network_for(method)
    method.hold_base(baseimportance.read(folder, network))
    return Run(method, network)


# -- what is measured -----------------------------------------------------------------------------


def test_it_is_the_mean_squared_gradient_of_each_effective_weight():
    """The reference merges LoRA away and differentiates by what stands there then."""
    network = network_for(load("atlas"))
    found = baseimportance.measure(network, examples(network), 100)
    plain = copy.deepcopy(network)
    merge(plain)
    weights = {path: plain.get_submodule(path).weight for path in lora_maps(network)}
    named = weights | dict(plain.named_parameters())
    wanted = {path: weights[path] for path in weights}
    wanted |= {n: p for n, p in named.items() if n in found}
    sums = dict.fromkeys(wanted, 0.0)
    count = 0
    for batch in examples(network):
        for row in range(len(batch["images"])):
            one = {name: value[row : row + 1] for name, value in batch.items()}
            if not one["valid"].item():
                continue
            for weight in wanted.values():
                weight.requires_grad_(True)
            loss = total_loss(answer(plain, one), one["masks"], one["valid"], one["labels"])["loss"]
            grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
            for name, grad in zip(wanted, grads, strict=True):
                sums[name] = sums[name] + (0 if grad is None else grad.square())
            count += 1
    largest = max(float(value.max()) for value in sums.values())
    assert max(float(value.max()) for value in found.values()) == pytest.approx(1)
    for name, value in sums.items():
        key = f"{name}.pairs.0" if name in weights else name
        reference = (value / largest).reshape(found[key].shape)
        torch.testing.assert_close(found[key], reference, rtol=2e-3, atol=1e-7)
    assert count == 11, "the example without a mask is left out"


def test_measuring_leaves_the_network_as_it_was():
    network = network_for(load("atlas"))
    before = {n: (p.clone(), p.requires_grad) for n, p in network.named_parameters()}
    network.train()
    baseimportance.measure(network, examples(network), 3)
    assert network.training
    for name, parameter in network.named_parameters():
        value, asked = before[name]
        assert torch.equal(parameter, value)
        assert parameter.requires_grad == asked
        assert parameter.grad is None


def test_the_decoder_has_none_and_all_else_that_trains_has():
    network = network_for(load("atlas"))
    found = baseimportance.measure(network, examples(network), 2)
    trains = {n for n, p in network.named_parameters() if p.requires_grad}
    covered = {n for n in trains if any(n == k or n.startswith(f"{k}.") for k in found)}
    assert {n.partition(".")[0] for n in trains - covered} == {"decoder"}
    assert {f"{path}.pairs.0" for path in MAPS} <= found.keys()


# -- how it is kept -------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=40),
    st.floats(-30, 30),
)
@settings(deadline=None)
def test_a_byte_tells_a_value_to_3_4_percent(values, exponent):
    x = torch.tensor(values) * 2.0**exponent
    codes, peak = encoded(x)
    y = decoded(codes, peak)
    assert codes.dtype == torch.uint8
    assert float(peak) == float(x.max())
    assert (y >= 0).all()
    assert (y[x == 0] == 0).all()
    error = (y.double() - x.double()).abs()
    assert (error <= torch.maximum(0.034 * x.double(), peak.double() * 2.0**-24)).all()


def test_values_that_a_byte_tells_come_back_the_same():
    """So a file that is read and written again is the same file."""
    codes = torch.arange(256, dtype=torch.uint8)
    again, peak = encoded(decoded(codes, torch.tensor(3.0)))
    assert torch.equal(again, codes)
    assert float(peak) == 3.0


def test_shares_keep_the_sums_and_are_exact_for_a_product():
    draw = torch.Generator().manual_seed(0)
    values = torch.rand(5, 7, generator=draw).square()
    rows, columns = factored(values)
    product = rows[:, None] * columns
    torch.testing.assert_close(product.sum(0), values.sum(0))
    torch.testing.assert_close(product.sum(1), values.sum(1))
    rows, columns = factored(product)
    torch.testing.assert_close(rows[:, None] * columns, product)
    assert not torch.cat(factored(torch.zeros(2, 3))).any()


def test_what_is_written_is_read(folder, tmp_path):
    network = network_for(load("atlas"))
    found = baseimportance.measure(network, examples(network), 100)
    base = baseimportance.read(folder, network)
    for name, value in base.plain.items():
        torch.testing.assert_close(value, found[name], rtol=0.034, atol=2.0**-24)
    for name, (rows, columns) in base.pairs.items():
        torch.testing.assert_close(rows.sum() * columns, found[name].sum(0))
    own = dict(network.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in base.point.items())
    assert len(base.point) == len(base.plain) + 2 * len(base.pairs)
    deployed(tmp_path)
    assert (tmp_path / baseimportance.FILE).read_bytes() == (
        folder / baseimportance.FILE
    ).read_bytes()
    assert baseimportance.read(tmp_path, network).content == base.content


def test_a_checkpoint_with_importances_is_read_as_before_and_replaced_with_them(tmp_path):
    network = deployed(tmp_path)
    assert checkpoints.read(tmp_path).manifest.version == network.version
    with torch.no_grad():
        network.head.linear.bias.add_(1)
    checkpoints.save(network, tmp_path)
    with pytest.raises(WeightsError, match=r"has no importances .*atlasd importance"):
        baseimportance.read(tmp_path, network)


def rewritten(folder, change):
    path = folder / baseimportance.FILE
    tensors, metadata = checkpoints.read_tensors(path)
    change(tensors, metadata)
    checkpoints.write_tensors(path, tensors, metadata)


def test_importances_of_other_weights_are_refused(tmp_path):
    network = deployed(tmp_path)
    with torch.no_grad():
        next(p for n, p in network.named_parameters() if n.endswith("lora_B")).add_(1e-3)
    with pytest.raises(WeightsError, match=r"belongs to weights .*measure these with `atlasd imp"):
        baseimportance.read(tmp_path, network)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: m.clear(), "no readable manifest"),
        (lambda t, m: m.update(manifest=m["manifest"].replace('t":1', 't":2')), "has format 2"),
        (lambda t, m: t.popitem(), "missing .*"),
        (lambda t, m: t.update({"rows.x": torch.zeros(1)}), "unknown rows.x"),
        (lambda t, m: t.update({"peak.head.linear.bias": torch.tensor(torch.nan)}), "not finite"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path, change, message):
    network = deployed(tmp_path)
    rewritten(tmp_path, change)
    with pytest.raises(WeightsError, match=rf"{baseimportance.FILE}.*{message}"):
        baseimportance.read(tmp_path, network)


def test_what_ships_belongs_to_what_ships_and_fits():
    network = build("atlas-lite")
    base = baseimportance.read(SHIPPED / "atlas-lite", network)
    assert len(base.pairs) == 22
    assert {name.partition(".")[0] for name in base.plain} == {
        "visual", "conditioning", "fusion", "head",
    }  # fmt: skip
    size = sum(file.stat().st_size for file in (SHIPPED / "atlas-lite").iterdir())
    assert size <= 12_000_000


# -- what it pulls --------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Maps of all kinds that carry LoRA, and a parameter without."""

    class preset:  # noqa: N801  as a network has one
        name = "mixed"

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(6, 12)
        self.wide = nn.Conv2d(3, 5, 3)
        self.point = nn.Conv2d(4, 7, 1)
        inject(self, "qkv|wide|point", 2, 5.0)
        self.plain = nn.Linear(3, 2)


def drawn(shape, draw):
    return torch.rand(shape, generator=draw, dtype=torch.float64)


def test_the_pull_is_autograds_gradient_of_the_dense_penalty_in_float64():
    """`(k/2)·Σ Ω∘(s·(B·A − B0·A0))²`, with Ω and both products written out."""
    draw = torch.Generator().manual_seed(3)
    network = Mixed().double()

    def move():
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.add_(drawn(parameter.shape, draw) - 0.5)

    move()
    point = {n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad}
    dense, pairs = {}, {}
    for path, lora in lora_maps(network).items():
        A, B = lora.joined()
        dense[path] = (torch.zeros(len(B), A.shape[1]).double(), (lora.scale * B @ A).detach())
        for i, (start, stop, _) in enumerate(lora.named_slices()):
            rows, columns = drawn((stop - start,), draw), drawn((A.shape[1],), draw)
            pairs[f"{path}.pairs.{i}"] = Shares(rows, columns)
            dense[path][0][start:stop] = rows[:, None] * columns
    plain = {n: drawn(p.shape, draw) for n, p in network.plain.named_parameters(prefix="plain")}
    pull = BasePull(BaseImportance(pairs, plain, point, "00"), network)

    trains = {n: p for n, p in network.named_parameters() if p.requires_grad}
    for parameter in trains.values():
        parameter.grad = torch.zeros_like(parameter)
    pull.add(0.7)
    assert all(not p.grad.any() for p in trains.values()), "exactly nothing at the base"
    assert pull.penalty(0.7) == 0

    move()
    penalty = 0.0
    for path, lora in lora_maps(network).items():
        A, B = lora.joined()
        omega, before = dense[path]
        penalty = penalty + (omega * (lora.scale * B @ A - before).square()).sum()
    for name, omega in plain.items():
        penalty = penalty + (omega * (trains[name] - point[name]).square()).sum()
    penalty = 0.35 * penalty
    wanted = torch.autograd.grad(penalty, list(trains.values()))
    own = [drawn(p.shape, draw) for p in trains.values()]
    for parameter, grad in zip(trains.values(), own, strict=True):
        parameter.grad = grad.clone()
    pull.add(0.7)
    for parameter, before, more in zip(trains.values(), own, wanted, strict=True):
        assert more.any()
        torch.testing.assert_close(parameter.grad, before + more, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(pull.penalty(0.7), penalty, rtol=1e-10, atol=0)


def test_the_methods_gradient_is_autograds_of_its_whole_penalty(folder):
    """The base's and two anchors', in a network whose class head grew."""
    run = held(folder, everything=True, anchors=2, c=0.5, base_c=3.0)
    for part in (*PARTS, PARTS[1]):
        run.begin(part)
        run.learn(part)
        run.consolidate(part)
    run.begin(PARTS[1])
    trains = {n: p for n, p in run.network.named_parameters() if p.requires_grad}
    wanted = torch.autograd.grad(run.method.penalty(), list(trains.values()))
    for parameter in trains.values():
        parameter.grad = torch.zeros_like(parameter)
    run.method.edit_grads()
    for (name, parameter), grad in zip(trains.items(), wanted, strict=True):
        torch.testing.assert_close(
            parameter.grad, grad, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n} {m}"
        )


def test_in_a_composition_it_pulls_too(folder):
    method = load("lwf+atlas", {"base_c": 3.0})
    network = network_for(method)
    atlas = method.parts["atlas"]
    atlas.hold_base(baseimportance.read(folder, network))
    Run(method, network).begin(PARTS[0])
    trains = {n: p for n, p in network.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trains.values():
            parameter.add_(0.1)
    held = {n: p for n, p in trains.items() if not n.startswith("decoder.")}
    wanted = torch.autograd.grad(atlas.penalty(), list(held.values()))
    for parameter in trains.values():
        parameter.grad = torch.zeros_like(parameter)
    method.edit_grads()
    for parameter, grad in zip(held.values(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-7)


def two_segments(run):
    for part in PARTS:
        run.begin(part)
        run.learn(part)
        run.consolidate(part)
    return run


@pytest.mark.parametrize("options", [{"base_c": 0.0}, {"c": 0.0}])
def test_strength_zero_is_no_base_bit_for_bit(folder, options):
    one = two_segments(held(folder, **options))
    other = two_segments(Run(load("atlas", options)))
    assert same(one.network.state_dict(), other.network.state_dict())


def test_it_pulls_from_the_first_step_on_with_cs_strength_unless_told(folder):
    runs = [held(folder, c=50.0), held(folder, c=50.0, base_c=50.0), held(folder, c=50.0, base_c=9)]
    runs += [Run(load("atlas", {"c": 50.0}))]
    for run in runs:
        run.begin(PARTS[0])
        run.learn(PARTS[0], 0, 2)  # at the first the network is the base
    by_c, told, other, none = (run.network.state_dict() for run in runs)
    assert same(by_c, told)
    assert not same(by_c, other)
    assert not same(by_c, none)


def test_omega_is_measured_on_the_tasks_gradient_alone(folder):
    """After one step from the base the pull is zero and paths agree; its gradient never enters."""
    one, other = held(folder, base_c=1e4), Run(load("atlas"))
    for run in (one, other):
        run.begin(PARTS[0])
        with torch.no_grad():
            for parameter in run.method.named.values():
                parameter.add_(0.01)
            run.network.zero_grad()
        for parameter in run.method.named.values():
            parameter.grad = torch.ones_like(parameter)
        run.method.edit_grads()
        with torch.no_grad():
            for parameter in run.method.named.values():
                parameter.sub_(0.5)
        run.method.after_step()
    paths = [k for k in one.method.state if k.startswith("path.")]
    assert paths
    assert all(torch.equal(one.method.state[k], other.method.state[k]) for k in paths)


def test_no_consolidation_moves_or_fades_it(folder):
    run = held(folder, c=0.0, base_c=2.0, gamma=0.5)
    run.begin(PARTS[0])
    run.learn(PARTS[0])
    before, name = run.method.penalty(), run.method.state["base"].clone()
    assert before > 0
    run.consolidate(PARTS[0])
    run.consolidate(PARTS[0])
    run.method.begin(None)
    assert torch.equal(run.method.penalty(), before)
    assert torch.equal(run.method.state["base"], name)


def test_new_rows_of_the_class_head_are_free(folder):
    run = held(folder, c=0.0, base_c=2.0)
    run.begin(PARTS[1])
    weight = run.network.head.linear.weight
    with torch.no_grad():
        weight.add_(1.0)
    for parameter in run.network.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    run.method.edit_grads()
    assert weight.grad[:2].any()
    assert not weight.grad[2:].any()


# -- that it survives a restart -------------------------------------------------------------------


def test_a_run_that_was_cut_short_ends_as_one_that_was_not(folder, tmp_path):
    """The resumed one reads its base from the weights that shipped, not from what was learned."""
    whole, resumed = held(folder, base_c=30.0), held(folder, base_c=30.0)
    for run in (whole, resumed):
        run.begin(PARTS[0])
    whole.learn(PARTS[0], 0, 3)
    whole.trainer.save(tmp_path / "state.safetensors")
    whole.learn(PARTS[0], 3)
    resumed.trainer.restore(tmp_path / "state.safetensors")
    resumed.learn(PARTS[0], 3)
    assert_equal(whole, resumed)


def test_a_state_with_another_base_is_refused(folder, tmp_path):
    other = network_for(load("atlas"))
    with torch.no_grad():
        other.head.linear.bias.add_(1)
    deployed(tmp_path, other)
    method = load("atlas")
    method.hold_base(baseimportance.read(tmp_path, other))
    method.prepare(other)
    one, none = held(folder).method, Run(load("atlas")).method
    for there, here in ((one, method), (one, none), (none, one)):
        with pytest.raises(MethodError, match=r"learned with base importances .* are held; give"):
            here.load_state_dict(there.state_dict())


def test_a_network_without_its_parts_is_refused(folder):
    base = baseimportance.read(folder, network_for(load("atlas")))
    method = load("atlas")
    method.hold_base(base)
    with pytest.raises(MethodError, match=r"of parts that this tiny lacks \(visual"):
        method.prepare(build("tiny", trained=False, vary={"lora_rank": 0}, categories=("a", "b")))


# -- that it holds --------------------------------------------------------------------------------


def objective(network):
    """The task's loss, class labels included."""

    def loss(batch):
        out = answer(network, batch)
        return Outcome(total_loss(out, batch["masks"], batch["valid"], batch["labels"]), out)

    return loss


def learned(network, method, part, rounds):
    """The network after some rounds over a part's batches."""
    method.prepare(network)
    method.begin(None)
    trainer = Trainer(network, objective(network), Settings(epochs=1, lr=1e-2), 1000, method=method)
    network.train()
    for _ in range(rounds):
        for batch in batches(method, network, part):
            trainer.step(batch)
    return network.eval()


@torch.no_grad()
def loss_of(network, part):
    outcomes = [objective(network)(b) for b in batches(load("atlas"), network, part)]
    return float(sum(outcome.terms["loss"] for outcome in outcomes) / len(outcomes))


def test_a_new_task_costs_less_of_the_old_with_it(tmp_path):
    """`tiny` learns one part; deployed, it learns another, held by its base or not."""
    base = learned(network_for(load("atlas"), ALL), load("finetune"), PARTS[0], 10)
    deployed(tmp_path, base)
    before = loss_of(base, PARTS[0]), loss_of(base, PARTS[1])
    after = {}
    for base_c in (0.0, 300.0):
        network = copy.deepcopy(base)
        network.get_submodule("decoder").requires_grad_(False)
        method = load("atlas", {"c": 0.0, "base_c": base_c})
        method.hold_base(baseimportance.read(tmp_path, network))
        learned(network, method, PARTS[1], 5)
        after[base_c] = loss_of(network, PARTS[0]), loss_of(network, PARTS[1])
    lost = {c: old - before[0] for c, (old, _) in after.items()}
    won = {c: before[1] - new for c, (_, new) in after.items()}
    assert lost[0.0] > 0.1
    assert lost[300.0] < 0.5 * lost[0.0]
    assert won[300.0] > 0.5 * won[0.0]

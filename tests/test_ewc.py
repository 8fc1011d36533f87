"""EWC's Fisher and MAS's importance: example by example, as loops over examples have them."""

import pytest
import torch
from atlasd.model.losses import total_loss
from atlasd.model.methods import load
from atlasd.model.presets import build
from atlasd.model.teacher import answer


def batches(network, sizes=(3, 2)):
    draw = torch.Generator().manual_seed(2)
    px = network.preset.image_px
    for n in sizes:
        images = torch.randint(0, 256, (n, px, px, 3), generator=draw, dtype=torch.uint8)
        features = network.encode_audio(
            network.log_mel(0.1 * torch.randn(n, 32_000, generator=draw))
        )
        valid = torch.ones(n, dtype=torch.bool)
        valid[-1] = n == 2  # the third example of all has no mask
        yield {
            "images": images,
            "masks": (torch.rand(n, px, px, generator=draw) > 0.7).to(torch.uint8),
            "valid": valid,
            "labels": torch.arange(n) % 2,
            "tokens": features.tokens,
            "embedding": features.embedding,
        }


def scalar(name, network, one, class_weight=0.5):
    out = answer(network, one)
    if name == "ewc":
        weight = {"class_weight": class_weight}
        return total_loss(out, one["masks"], one["valid"], one["labels"], **weight)["loss"]
    return out.mask_logits.square().mean() + out.class_logits.square().mean()


@pytest.mark.parametrize(("name", "measure"), [("ewc", torch.square), ("mas", torch.abs)])
@pytest.mark.parametrize("most", [500, 3])
def test_importance_is_a_loops_mean_over_examples(name, measure, most):
    network = build("tiny", trained=False, categories=("dog", "cow"))
    method = load(name, {"examples": most})
    method.prepare(network)
    method.begin(None)
    data = list(batches(network))
    method.consolidate(data)

    sums = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in method.named.items()}
    examples = [
        {k: v[i : i + 1] for k, v in b.items()} for b in data for i in range(len(b["valid"]))
    ]
    examples = [one for one in examples if one["valid"].item()][:most]
    assert len(examples) == min(most, 4)
    for one in examples:
        network.zero_grad()
        scalar(name, network, one).backward()
        for n, p in method.named.items():
            if p.grad is not None:
                sums[n] += measure(p.grad.double())
    largest = max(float(total.max()) for total in sums.values())
    for n, total in sums.items():
        found = method.state[f"importance.{n}"].double()
        torch.testing.assert_close(found, total / largest, rtol=1e-4, atol=1e-7)


def one_picture(network, times):
    (batch,) = batches(network, sizes=(2,))
    return {name: value[:1].expand(times, *value.shape[1:]) for name, value in batch.items()}


@pytest.mark.slow
def test_the_sampled_fisher_is_bernoullis_and_categoricals():
    """Of a bias of all N pixels `mean(σ(1 − σ))/N`, of class biases `λ²·p(1 − p)`."""
    network = build("tiny", trained=False, categories=("dog", "cow", "car"))
    with torch.no_grad():
        network.head.linear.bias.copy_(torch.tensor([1.5, 0.0, -1.0]))
        network.decoder.mask.bias.zero_()
    batch = one_picture(network, 400)
    method = load("ewc", {"examples": 400, "truth": "sampled"})
    method.prepare(network)
    method.begin(None)
    method.consolidate([batch])
    out = answer(network.eval(), {name: value[:1] for name, value in batch.items()})
    p = out.class_logits[0].detach().double().softmax(dim=0)
    wanted = 0.25 * p * (1 - p)
    found = method.state["importance.head.linear.bias"].double()
    unit = found.sum() / wanted.sum()
    torch.testing.assert_close(found / unit, wanted, rtol=0.2, atol=0)
    sounding = torch.sigmoid(out.mask_logits.detach().double())
    pixels = (sounding * (1 - sounding)).mean() / sounding.numel()
    mask = method.state["importance.decoder.mask.bias"].double()[0] / unit
    torch.testing.assert_close(mask, pixels, rtol=0.2, atol=0)


def test_the_sampled_fisher_needs_no_truth():
    network = build("tiny", trained=False, categories=("dog", "cow"))
    data = list(batches(network))
    blank = [b | {"masks": 0 * b["masks"], "labels": 0 * b["labels"] - 1} for b in data]
    found = []
    for told in (data, blank):
        method = load("ewc", {"truth": "sampled"})
        method.prepare(network)
        method.begin(None)
        method.consolidate(told)
        found.append(method.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.parametrize("composed", [False, True])
def test_the_fisher_is_of_the_loss_that_is_learned(composed):
    """With λ_cls = 0 the class head matters to nothing."""
    network = build("tiny", trained=False, categories=("dog", "cow"))
    method = load("finetune+ewc" if composed else "ewc")
    method.weigh_classes(0.0)
    method.prepare(network)
    method.begin(None)
    method.consolidate(list(batches(network)))
    held = {n: v for n, v in method.state_dict().items() if "importance." in n}
    assert not any(bool(v.any()) for n, v in held.items() if "head." in n)
    assert any(bool(v.any()) for v in held.values())


@pytest.mark.parametrize("name", ["ewc", "mas"])
def test_where_a_network_sees_clips_an_example_is_a_clip(name):
    """Of three clips one has no mask at all, and the first has one in its second frame alone."""
    network = build("tiny-avsbench", trained=False, categories=("dog", "cow"))
    method = load(name)
    method.prepare(network)
    method.begin(None)
    (batch,) = batches(network, (6,))
    batch["valid"] = torch.tensor([False, True, False, False, True, True])
    method.consolidate([batch])

    sums = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in method.named.items()}
    for first in (0, 4):
        network.zero_grad()
        one = {key: value[first : first + 2] for key, value in batch.items()}
        scalar(name, network, one).backward()
        for n, p in method.named.items():
            if p.grad is not None:
                sums[n] += p.grad.double().square() if name == "ewc" else p.grad.double().abs()
    largest = max(float(total.max()) for total in sums.values())
    for n, total in sums.items():
        found = method.state[f"importance.{n}"].double()
        torch.testing.assert_close(found, total / largest, rtol=1e-4, atol=1e-7)


def test_a_batchs_mean_gradient_squared_is_another_and_smaller_thing():
    """The trap that public code falls into."""
    network = build("tiny", trained=False, categories=("dog", "cow"))
    batch = next(batches(network, (2,)))
    named = [p for p in network.parameters() if p.requires_grad]

    def squared(one):
        grads = torch.autograd.grad(scalar("ewc", network, one), named)
        return sum(float(g.double().square().sum()) for g in grads)

    ones = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(2)]
    assert squared(batch) < sum(map(squared, ones)) / 2

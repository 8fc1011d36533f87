"""L2P: chosen prompts by hand, and what copies see."""

import numpy as np
import pytest
import torch
from atlasd.model.method import MethodError
from atlasd.model.methods import load
from atlasd.model.presets import build
from atlasd.model.teacher import Teacher, answer


def prepared(**options):
    network = build("tiny", trained=False, vary={"lora_rank": 0}, categories=("dog", "cow"))
    method = load("l2p", options)
    method.prepare(network)
    return network, method


def batch_of(network, n=3):
    draw = torch.Generator().manual_seed(1)
    px = network.preset.image_px
    images = torch.randint(0, 256, (n, px, px, 3), generator=draw, dtype=torch.uint8)
    return {"images": images, "waves": 0.1 * torch.randn(n, 32_000, generator=draw)}


def test_each_picture_chooses_the_keys_nearest_to_it_by_cosine():
    network, method = prepared(prompts=7, chosen=3, pull=0.25)
    batch = batch_of(network)
    with torch.no_grad():
        out = answer(network, batch)
        maps = network.visual.maps(network.normalise(batch["images"]))
    queries = maps[-1].mean(dim=(2, 3)).double().numpy()
    keys = network.prompt_pool.keys.detach().double().numpy()
    cosines = np.array(
        [[q @ k / np.linalg.norm(q) / np.linalg.norm(k) for k in keys] for q in queries]
    )
    expected = np.argsort(-cosines, axis=1)[:, :3]
    indices, near = network.prompt_pool.nearest()
    assert indices.tolist() == expected.tolist()
    chosen = np.take_along_axis(cosines, expected, axis=1)
    np.testing.assert_allclose(near.detach().numpy(), chosen, atol=1e-6)
    pull = method.extra_loss(batch, out)["pull"]
    assert float(pull.detach()) == pytest.approx(-0.25 * chosen.mean(), abs=1e-6)


def test_only_chosen_keys_and_prompts_get_gradients():
    network, method = prepared(prompts=8, chosen=2)
    batch = batch_of(network)
    out = answer(network, batch)
    (out.mask_logits.square().mean() + method.extra_loss(batch, out)["pull"]).backward()
    pool = network.prompt_pool
    used = set(pool.nearest()[0].flatten().tolist())
    for parameter in (pool.prompts, pool.keys):
        moved = set(parameter.grad.flatten(1).any(dim=1).nonzero()[:, 0].tolist())
        assert moved == used


def test_what_a_picture_chooses_does_not_depend_on_its_company():
    network, _ = prepared()
    batch = batch_of(network)
    with torch.no_grad():
        together = answer(network, batch).mask_logits
        alone = [
            answer(network, {n: v[i : i + 1] for n, v in batch.items()}).mask_logits
            for i in range(3)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_several_sounds_of_a_picture_meet_its_own_prompts():
    network, _ = prepared()
    batch = batch_of(network, 2)
    frames = network.normalise(batch["images"])
    audio = network.encode_audio(network.log_mel(batch["waves"]))
    four = type(audio)(*(part.repeat_interleave(2, dim=0) for part in audio))
    with torch.no_grad():
        once = network.forward_features(frames, audio).mask_logits
        twice = network.forward_features(frames, four).mask_logits
    torch.testing.assert_close(twice, once.repeat_interleave(2, dim=0), rtol=1e-4, atol=1e-5)


def test_copies_of_the_network_keep_the_prompts_of_their_moment():
    """A hook that is not bound to the pool would show a teacher the prompts that go on learning."""
    network, method = prepared()
    batch = batch_of(network)
    out = answer(network, batch)
    method.extra_loss(batch, out)["pull"].backward()
    teacher, served = Teacher(network), network.for_serving()
    assert not any(p.requires_grad for p in teacher.network.parameters())
    with torch.no_grad():
        before = teacher(batch).mask_logits, answer(served, batch).mask_logits
        network.prompt_pool.prompts.add_(1.0)
        assert torch.equal(teacher(batch).mask_logits, before[0])
        assert torch.equal(answer(served, batch).mask_logits, before[1])
        assert not torch.equal(answer(network, batch).mask_logits, before[0])


def test_a_network_without_cross_attention_is_refused():
    with pytest.raises(MethodError, match="tiny-avsbench has none"):
        load("l2p").prepare(build("tiny-avsbench"))


@pytest.mark.parametrize("options", [{"chosen": 11}, {"chosen": 0}, {"length": 0}, {"pull": -1.0}])
def test_options_out_of_bounds_are_named(options):
    with pytest.raises(MethodError, match=next(iter(options))):
        load("l2p", options)

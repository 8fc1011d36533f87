"""Weights swapped in service: the right ones, for ever, without a trace of those before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from atlasd.daemon.engine import TorchEngine, Weights
from atlasd.daemon.memory import resident_mb
from atlasd.daemon.onlinelearner import LearnSettings, OnlineLearner
from atlasd.daemon.pipeline import Result
from atlasd.daemon.results import mask_message
from atlasd.model.fusion import ClassHead
from atlasd.model.training import TrainingError
from atlasd.streams.clips import AudioWindow, Sample, VideoFrame
from served import tiny_engine, tiny_network


def perturbed(learner: OnlineLearner, seed: int) -> None:
    """Every parameter that trains somewhere else, as far away as long learning brings it."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learner.network.trainable_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=source))


def heard(engine: TorchEngine, grey: int = 0) -> Sample:
    """A grey picture with a ramp of sound."""
    n = round(engine.window_s * engine.sample_rate_hz)
    image = np.full((engine.image_px, engine.image_px, 3), grey, np.uint8)
    ramp = np.linspace(-0.4, 0.4, n, dtype=np.float32)
    window = AudioWindow(ramp, engine.sample_rate_hz, -1_000_000_000, 0, "ok")
    return Sample(VideoFrame(image, 0, 0, "main", 0, 0, image.shape[1::-1]), window)


def weights(learner: OnlineLearner, version: str = "v") -> Weights:
    arrays = {name: tensor.numpy() for name, tensor in learner.serving().items()}
    return Weights(version, learner.categories, arrays)


def same_state(engine: TorchEngine, other: TorchEngine) -> bool:
    one, two = engine.network.state_dict(), other.network.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_five_hundred_swaps_leave_the_bits_of_a_fresh_merge():
    engine = tiny_engine()
    learner = OnlineLearner(tiny_network(), LearnSettings(parts="all"))
    versions = []
    for seed in range(10):
        perturbed(learner, seed)
        versions.append(weights(learner))
    for _ in range(50):
        for version in versions:
            engine.swap(version)
    assert same_state(engine, TorchEngine(learner.network, "cpu", 1))


def test_masks_after_a_swap_are_those_of_the_network_that_was_trained():
    """Unmerged and unfolded, in the form in which it learns."""
    engine = tiny_engine()
    sample = heard(engine, 90)
    learner = OnlineLearner(tiny_network(), LearnSettings())
    before = engine.infer([sample])[0]
    perturbed(learner, 1)
    stall_ms = engine.swap(weights(learner, "other"))
    after = engine.infer([sample])[0]
    network = learner.network
    with torch.no_grad():
        frames = network.normalise(torch.from_numpy(sample.frame.image[None]))
        expected = network(frames, network.log_mel(torch.from_numpy(sample.window.samples[None])))
    assert (before.version, after.version) == (tiny_network().version, "other")
    assert stall_ms > 0
    assert np.abs(after.logits - before.logits).max() > 1e-3
    np.testing.assert_allclose(after.logits, expected.mask_logits[0].numpy(), atol=1e-4)


def test_weights_that_say_nothing_finite_when_merged_are_not_given_to_be_served():
    """Each is finite by itself; random numbers are as they were."""
    learner = OnlineLearner(tiny_network(), LearnSettings())
    state = torch.get_rng_state()
    learner.serving()
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        for name, parameter in learner.network.named_parameters():
            if ".lora_" in name:
                parameter.fill_(1e25)
    assert all(bool(p.isfinite().all()) for p in learner.network.parameters())
    with pytest.raises(TrainingError, match="nothing finite in the form that is served"):
        learner.serving()


def test_a_head_grows_shrinks_and_goes_with_the_weights():
    engine = tiny_engine()
    network = tiny_network()
    learner = OnlineLearner(network, LearnSettings())
    bare = weights(learner)
    learner.network.grow(["dog", "cow", "duck"])
    engine.swap(weights(learner))
    sample = heard(engine)
    assert engine.categories == ("dog", "cow", "duck")
    assert engine.infer([sample])[0].class_scores.shape == (3,)
    engine.swap(bare)
    assert engine.categories == ()
    assert engine.infer([sample])[0].class_scores is None


def test_a_head_that_grew_is_warm_before_the_next_frame():
    """It ran once on tokens of the shape that frames have, in the swap; no frame was needed."""
    engine = tiny_engine()
    learner = OnlineLearner(tiny_network(), LearnSettings())
    learner.network.grow(["dog", "cow"])
    engine.infer([heard(engine)])
    grown = weights(learner)
    seen: list[tuple[int, ...]] = []

    def note(module: torch.nn.Module, args: tuple[torch.Tensor], out: torch.Tensor) -> None:
        if isinstance(module, ClassHead):
            seen.append((*args[0].shape, *out.shape))

    with torch.nn.modules.module.register_module_forward_hook(note):
        engine.swap(grown)
        (in_the_swap,) = seen
        engine.swap(grown)
        assert len(seen) == 1  # of the same size: what was warm is warm
        engine.infer([heard(engine)])
    assert seen[1] == in_the_swap


@pytest.mark.parametrize("names", [(), ("dog",)])
def test_the_layout_tells_of_the_head_that_a_swap_makes(names):
    network = tiny_network()
    network.grow(names)
    engine = TorchEngine(network, "cpu", 1)
    layout = engine.layout
    learner = OnlineLearner(network, LearnSettings())
    learner.network.grow([*names, "cow", "duck"])
    grown = weights(learner)
    engine.swap(grown)
    head = {name: array.shape for name, array in grown.tensors.items() if name.startswith("head.")}
    assert head == {
        name: (len(names) + 2, *shape[1:])
        for name, (shape, _) in layout.items()
        if name.startswith("head.")
    }
    assert len(head) == 2
    assert layout.keys() == engine.network.state_dict().keys()


def test_a_mask_that_waits_over_a_swap_keeps_its_own_classes():
    """Of a batch, the second mask is published after the swap."""
    engine = tiny_engine()
    learner = OnlineLearner(tiny_network(), LearnSettings())
    bare = weights(learner)
    learner.network.grow(["dog", "cow", "duck"])
    engine.swap(weights(learner, "named"))
    sample = heard(engine)
    waiting = Result(sample, engine.infer([sample])[0], {}, 1, {})
    engine.swap(bare)
    message = mask_message(waiting, "bits", 0.5)
    assert set(message.classes) == {"dog", "cow", "duck"}
    assert message.model.version == "named"
    assert sum(message.scores) == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_is_flat_over_a_hundred_swaps():
    engine = tiny_engine()
    learner = OnlineLearner(tiny_network(), LearnSettings(parts="all"))
    sample = heard(engine)
    resident: list[float] = []
    for number in range(2_000):
        if number % 20 == 0:
            perturbed(learner, number)
            engine.swap(weights(learner))
            resident.append(resident_mb() or 0.0)
        engine.infer([sample])
    settled = np.array(resident[20:])
    slope = np.polyfit(np.arange(len(settled)), settled, 1)[0]
    assert slope * len(settled) < 20.0, settled  # what other tests left may go meanwhile

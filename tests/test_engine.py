"""The torch engine: what it predicts, what it refuses, what it leaves alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from atlasd.daemon.engine import EngineError, TorchEngine, automatic_threads
from atlasd.model.atlas import Atlas
from atlasd.model.presets import build
from atlasd.model.pretrained import WeightsError
from atlasd.streams.clips import AudioWindow, Sample, VideoFrame
from served import tiny_engine, tiny_network

RATE_HZ = 32000


def make_sample(seed: int, size: int = 64, seconds: float = 1.0, rate_hz: int = RATE_HZ) -> Sample:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    sound = rng.normal(0, 0.1, round(seconds * rate_hz)).astype(np.float32)
    frame = VideoFrame(image, seed, 0, "main", 0, seed, (size, size))
    window = AudioWindow(sound, rate_hz, 0, round(seconds * 1e9), "ok")
    return Sample(frame, window)


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_logits_are_those_of_the_network_itself():
    network, sample = tiny_network(), make_sample(1)
    with torch.inference_mode():
        frames = network.normalise(torch.from_numpy(sample.frame.image)[None])
        log_mel = network.log_mel(torch.from_numpy(sample.window.samples)[None])
        expected = network(frames, log_mel).mask_logits[0].numpy()
    (prediction,) = tiny_engine().infer([sample])
    assert prediction.logits.dtype == np.float32
    assert prediction.logits.std() > 1e-3
    np.testing.assert_allclose(prediction.logits, expected, atol=1e-4)


def test_a_batch_says_the_same_as_its_samples_one_by_one():
    samples = [make_sample(seed) for seed in range(3)]
    engine = tiny_engine(batch=4)
    together = engine.infer(samples)
    for sample, predicted in zip(samples, together, strict=True):
        (alone,) = engine.infer([sample])
        np.testing.assert_allclose(predicted.logits, alone.logits, atol=1e-4)


def test_the_same_sample_gives_the_same_bits():
    engine = tiny_engine()
    (first,) = engine.infer([make_sample(1)])
    engine.infer([make_sample(2)])
    (again,) = engine.infer([make_sample(1)])
    assert first.logits.tobytes() == again.logits.tobytes()


def test_a_prediction_survives_the_next_one():
    engine = tiny_engine()
    (first,) = engine.infer([make_sample(1)])
    kept = first.logits.copy()
    engine.infer([make_sample(2)])
    np.testing.assert_array_equal(first.logits, kept)


def test_stages_are_timed():
    (prediction,) = tiny_engine().infer([make_sample(1)])
    assert prediction.pre_ms > 0
    assert prediction.infer_ms > 0
    assert prediction.post_ms >= 0


def test_class_scores_are_a_distribution_over_the_categories():
    preset = replace(build("tiny").preset, categories=("dog", "car", "flute"))
    engine = TorchEngine(Atlas(preset), "cpu", 1, allow_untrained=True)
    assert engine.categories == ("dog", "car", "flute")
    (prediction,) = engine.infer([make_sample(1)])
    assert prediction.class_scores is not None
    assert prediction.class_scores.shape == (3,)
    assert prediction.class_scores.sum() == pytest.approx(1.0, abs=1e-5)


def test_an_untrained_network_is_refused_with_the_command_that_trains():
    with pytest.raises(WeightsError, match="atlasd train --preset tiny"):
        TorchEngine(build("tiny"), "cpu", 1)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([], "got 0 samples"),
        ([make_sample(1), make_sample(2)], "got 2 samples; this engine takes 1 to 1"),
        ([make_sample(1, size=32)], r"image_size_px=\(64, 64\)"),
        ([make_sample(1, seconds=0.5)], "16000 samples at 32000 Hz"),
        ([make_sample(1, rate_hz=16000)], "at 16000 Hz"),
    ],
)
def test_what_the_network_cannot_take_is_refused(samples, said):
    with pytest.raises(EngineError, match=said):
        tiny_engine().infer(samples)


def test_a_closed_engine_refuses_and_closing_twice_is_harmless():
    engine = tiny_engine()
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.infer([make_sample(1)])


@pytest.mark.parametrize(
    ("device", "precision", "said"),
    [
        ("quantum", "auto", "not known"),
        ("meta", "auto", "not supported"),
        ("cuda:99", "auto", "not here"),
        ("cpu", "fp16", "needs a CUDA device"),
    ],
)
def test_a_device_or_precision_that_is_not_here_is_refused(device, precision, said):
    with pytest.raises(EngineError, match=said):
        TorchEngine(tiny_network(), device, 1, precision)


def test_bf16_on_a_cpu_stays_near_fp32():
    sample = make_sample(1)
    (exact,) = tiny_engine().infer([sample])
    (rough,) = TorchEngine(tiny_network(), "cpu", 1, "bf16").infer([sample])
    assert rough.logits.dtype == np.float32
    scale = float(np.abs(exact.logits).max())
    np.testing.assert_allclose(rough.logits, exact.logits, atol=0.1 * scale)


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (8, 7)])
def test_one_core_is_left_for_decoding(monkeypatch, cores, threads):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert automatic_threads() == threads


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_agrees_with_the_cpu():
    sample = make_sample(1)
    (here,) = tiny_engine().infer([sample])
    (there,) = TorchEngine(tiny_network(), "cuda", 1, "fp32").infer([sample])
    np.testing.assert_allclose(there.logits, here.logits, atol=1e-2)

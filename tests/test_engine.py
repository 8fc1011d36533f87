"""The torch engine: what it predicts, what it refuses, what it leaves alone."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from atlasd.daemon.cores import automatic_threads, wait_asleep
from atlasd.daemon.engine import EngineError, TorchEngine, Weights
from atlasd.daemon.ladder import FIRST_WAIT, WINDOW
from atlasd.model.atlas import Atlas
from atlasd.model.presets import QUERY_AND_VALUE, build
from atlasd.model.pretrained import WeightsError
from atlasd.model.visual import VitEncoder
from atlasd.streams.clips import AudioWindow, Sample, VideoFrame
from PIL import Image
from served import tiny_engine, tiny_network

RATE_HZ = 32000


def make_sample(seed: int, size: int = 64, seconds: float = 1.0, rate_hz: int = RATE_HZ) -> Sample:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    sound = rng.normal(0, 0.1, round(seconds * rate_hz)).astype(np.float32)
    frame = VideoFrame(image, seed, 0, "main", 0, seed, (size, size))
    window = AudioWindow(sound, rate_hz, 0, round(seconds * 1e9), "ok")
    return Sample(frame, window)


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


@pytest.mark.parametrize(("cores", "threads", "paced"), [(1, 1, 1), (2, 1, 2), (8, 7, 7)])
def test_one_core_is_left_for_decoding(monkeypatch, cores, threads, paced):
    """Of two, none where pictures come at their own pace."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert automatic_threads() == threads
    assert automatic_threads(is_paced=True) == paced


def test_threads_wait_asleep_where_nobody_says_otherwise(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    wait_asleep()
    assert 0 < int(os.environ["GOMP_SPINCOUNT"]) < 100_000
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    wait_asleep()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    wait_asleep()
    assert "GOMP_SPINCOUNT" not in os.environ


# With a deadline.


class Costs:
    """A clock that moves only while a network computes: so many ms by the side of its picture."""

    def __init__(self, **cost_ms: float):
        self.now_s = 0.0
        self.cost_ms = {int(side.removeprefix("px")): ms for side, ms in cost_ms.items()}
        self.load = 1.0

    def __call__(self) -> float:
        return self.now_s

    def watch(self, engine: TorchEngine) -> TorchEngine:
        engine.network.register_forward_pre_hook(self._spend)
        return engine

    def _spend(self, _, inputs):
        self.now_s += 1e-3 * self.load * self.cost_ms[inputs[0].shape[-1]]


def with_deadline(deadline_ms: float, ladder=(), network=None, **options) -> TorchEngine:
    network = network or tiny_network()
    return TorchEngine(network, "cpu", 1, deadline_ms=deadline_ms, ladder=ladder, **options)


def test_masks_of_the_largest_rung_are_those_without_a_deadline_bit_for_bit():
    sample = make_sample(1)
    (plain,) = tiny_engine().infer([sample])
    engine = with_deadline(1e6)
    engine.warm()
    (timed,) = engine.infer([sample])
    assert (timed.rung, timed.deadline_ms) == (0, 1e6)
    assert (plain.rung, plain.deadline_ms) == (0, None)
    assert timed.logits.tobytes() == plain.logits.tobytes()


def smooth_sample(size: int) -> Sample:
    """A disc on a ground that rises from left to right."""
    y, x = np.mgrid[:size, :size] / size
    disc = np.hypot(x - 0.4, y - 0.6) < 0.25
    image = np.stack([255 * x, 255 * disc, 120 + 100 * disc * y], axis=-1).astype(np.uint8)
    noise = make_sample(3, size=size)
    return replace(noise, frame=replace(noise.frame, image=image))


def test_a_smaller_rung_sees_a_smaller_picture_and_says_nearly_the_same_at_the_same_size():
    network = Atlas(replace(tiny_network().preset, image_px=256))
    network.load_state_dict(tiny_network().state_dict())
    network.trained = True
    sample = smooth_sample(256)
    (exact,) = TorchEngine(network, "cpu", 1).infer([sample])
    engine = with_deadline(1e-3, (256, 192), network)
    seen = []
    engine.network.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    engine.warm()
    (rough,) = engine.infer([sample])
    assert seen[-1] == (1, 3, 192, 192)
    assert rough.rung == 1
    assert rough.logits.shape == exact.logits.shape == (256, 256)
    assert rough.logits.dtype == np.float32
    assert np.corrcoef(rough.logits.ravel(), exact.logits.ravel())[0, 1] > 0.8

    picture = Image.fromarray(sample.frame.image).resize((192, 192), Image.Resampling.BILINEAR)
    with torch.inference_mode():
        frames = network.normalise(torch.from_numpy(np.array(picture))[None])
        log_mel = network.log_mel(torch.from_numpy(sample.window.samples)[None])
        logits = Image.fromarray(network(frames, log_mel).mask_logits[0].numpy())
    expected = np.array(logits.resize((256, 256), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(rough.logits, expected, atol=0.05 * float(expected.std()))


@pytest.mark.parametrize("preset", ["tiny-avsbench", "vit"])
def test_every_kind_of_network_takes_smaller_pictures(preset):
    if preset == "vit":
        lora = QUERY_AND_VALUE
        spec = replace(
            tiny_network().preset, visual=lambda _: VitEncoder("vit_tiny_patch16_224", lora)
        )
        network = Atlas(spec)
    else:
        network = build("tiny-avsbench", vary={"clip_frames": 1})
    engine = with_deadline(1e-3, network=network, allow_untrained=True)
    engine.warm()
    (prediction,) = engine.infer([make_sample(1)])
    assert prediction.rung == 1
    assert prediction.logits.shape == (64, 64)
    assert np.isfinite(prediction.logits).all()


def test_load_drives_it_down_the_ladder_and_up_again_when_it_has_gone():
    clock = Costs(px64=20.0, px32=8.0)
    engine = clock.watch(with_deadline(25.0, clock=clock))
    engine.warm()
    sample, rungs = make_sample(1), []

    def serve(frames):
        rungs.extend(engine.infer([sample])[0].rung for _ in range(frames))

    serve(30)
    assert set(rungs) == {0}
    clock.load = 2.0
    serve(10)
    assert rungs[-1] == 1
    assert rungs.index(1) == 30 + 2
    clock.load = 1.0
    serve(WINDOW + FIRST_WAIT)
    assert rungs[-1] == 0
    assert np.count_nonzero(np.diff(rungs)) == 2
    assert engine.ladder is not None
    told = engine.ladder.info().rungs
    assert [rung.frames for rung in told] == [rungs.count(0), rungs.count(1)]
    assert [rung.p95_ms for rung in told] == pytest.approx([20.0, 8.0])


def test_the_time_that_a_deadline_is_about_begins_with_staging():
    clock = Costs(px64=20.0, px32=8.0)
    engine = clock.watch(with_deadline(25.0, clock=clock))
    engine.warm()
    (prediction,) = engine.infer([make_sample(1)])
    assert prediction.infer_ms == pytest.approx(20.0)
    assert prediction.pre_ms + prediction.infer_ms + prediction.post_ms == pytest.approx(20.0)


def test_swapped_weights_serve_on_every_rung():
    engine = with_deadline(1e-3)
    engine.warm()
    sample = make_sample(1)
    (before,) = engine.infer([sample])
    name = "decoder.mask.bias"
    bias = engine.network.state_dict()[name].numpy() + np.float32(5.0)
    engine.swap(Weights("w2", engine.categories, {name: bias}))
    (after,) = engine.infer([sample])
    assert (before.rung, after.rung, after.version) == (1, 1, "w2")
    np.testing.assert_allclose(after.logits, before.logits + 5.0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ladder": (96, 64)}, r"begins with 96 px, and tiny takes pictures of 64 px"),
        ({"ladder": (32, 64)}, "must fall"),
        ({"ladder": (64, 48)}, "multiples of 32"),
        ({"batch": 2}, "kept frame by frame; set model.batch to 1"),
    ],
)
def test_a_ladder_that_does_not_fit_is_refused(options, said):
    with pytest.raises(EngineError, match=said):
        with_deadline(10.0, **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_agrees_with_the_cpu_on_every_rung():
    for ladder in ((64,), (32,)):
        (here,) = with_deadline(1e-3, ladder, precision="fp32").infer([make_sample(1)])
        engine = TorchEngine(tiny_network(), "cuda", 1, "fp32", deadline_ms=1e-3, ladder=ladder)
        engine.warm()
        (there,) = engine.infer([make_sample(1)])
        np.testing.assert_allclose(there.logits, here.logits, atol=1e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_agrees_with_the_cpu():
    sample = make_sample(1)
    (here,) = tiny_engine().infer([sample])
    (there,) = TorchEngine(tiny_network(), "cuda", 1, "fp32").infer([sample])
    np.testing.assert_allclose(there.logits, here.logits, atol=1e-2)

"""The log-mel front end and the audio encoders, against closed forms and the public Cnn14."""

import copy

import numpy as np
import pytest
import torch
from atlasd.model.audio import (
    PANN_16K,
    PANN_32K,
    AudioCnn,
    AudioTagger,
    Cnn14,
    LogMel,
    mel_weights,
)
from atlasd.model.folding import fold_batch_norm
from atlasd.model.pretrained import WeightsError, read_weights

FRONT_ENDS = {32000: PANN_32K, 16000: PANN_16K}

# Printed by the public implementation, qiuqiangkong/audioset_tagging_cnn@d2f4b8c with torchlibrosa
# 0.1.0 and librosa 0.11.0: `Cnn14(32000, 1024, 320, 64, 50, 14000, 527).eval()` and
# `Cnn14_16k(16000, 512, 160, 64, 50, 8000, 527).eval()`, their parameters and statistics replaced
# by `fill` below, called on `sound` below. Per (rate, seconds): log-mel [::32, 7] (its first four)
# and mean, embedding [100:106] and 2-norm, class scores [:5] and sum.
PUBLIC = {
    (32000, 0.96): (
        [16.6459, 16.6065, 16.5767, 12.7131, -14.27481],
        [2.18025, 26.2675, 15.48928, 0.0, 15.73561, 0.0, 610.4752],
        [0.4698711, 0.496868, 0.4440242, 0.5564854, 0.4384728, 259.845],
    ),
    (32000, 1.0): (
        [16.6459, 16.6065, 16.5767, 16.5803, -14.27553],
        [2.305527, 26.04419, 15.23823, 0.0, 16.08987, 0.0, 613.7214],
        [0.469392, 0.4973945, 0.4439054, 0.5571267, 0.4381559, 259.8121],
    ),
    (32000, 2.5): (
        [16.6459, 16.6065, 16.5767, 16.5803, -14.337],
        [0.0, 31.59606, 2.211623, 0.0, 22.48895, 0.0, 769.2017],
        [0.4678832, 0.5001011, 0.4302186, 0.5655748, 0.4448221, 258.6701],
    ),
    (16000, 0.96): (
        [11.1834, 13.3332, 13.4786, 14.4336, -17.26978],
        [1.969889, 30.23582, 19.01153, 0.0, 18.4558, 0.0, 725.4894],
        [0.4647044, 0.4978294, 0.4352884, 0.566721, 0.4275014, 259.1647],
    ),
    (16000, 1.0): (
        [11.1834, 13.3332, 13.4786, 13.4048, -17.26323],
        [2.29495, 30.09401, 18.70503, 0.0, 18.90802, 0.0, 729.7197],
        [0.4641533, 0.4985821, 0.4353743, 0.5674055, 0.4271457, 259.1431],
    ),
    (16000, 2.5): (
        [11.1834, 13.3332, 13.4786, 13.4048, -17.36294],
        [0.0, 38.43032, 3.640638, 0.0, 26.36721, 0.0, 918.6755],
        [0.459796, 0.5006093, 0.4189443, 0.5773444, 0.4346249, 257.7124],
    ),
}


def fill(state):
    """Values for a state dict from a frozen generator, in the order of names."""
    draws = np.random.RandomState(14)
    filled = {}
    for name in sorted(state):
        shape = tuple(state[name].shape)
        if name.endswith("num_batches_tracked"):
            filled[name] = state[name]
            continue
        values = np.resize(draws.random_sample(65537).astype(np.float32), shape)
        if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            values = 0.5 + values
        elif len(shape) == 1:
            values = 0.2 * (values - 0.5)
        else:
            values = (values - 0.5) * np.float32(np.sqrt(24.0 / np.prod(shape[1:])))
        if name.startswith("fc_audioset"):
            values = 0.01 * values  # keeps the scores off 0 and 1
        filled[name] = torch.from_numpy(np.ascontiguousarray(values))
    return filled


def sound(seconds, rate):
    n = round(seconds * rate)
    t = np.arange(n) / rate
    noise = np.random.RandomState(7).standard_normal(n)
    return (0.3 * np.sin(2 * np.pi * 440.0 * t) + 0.05 * noise).astype(np.float32)


def mel_by_formula(front_end):
    """Slaney's filters, one band at a time, in float64."""

    def to_mel(hz):
        return hz * 3 / 200 if hz < 1000 else 15 + 27 * np.log(hz / 1000) / np.log(6.4)

    def to_hz(mel):
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    low, high = to_mel(front_end.fmin_hz), to_mel(front_end.fmax_hz)
    edges = [to_hz(low + (high - low) * i / 65) for i in range(66)]
    filters = np.zeros((front_end.window // 2 + 1, 64))
    for band in range(64):
        a, b, c = edges[band : band + 3]
        for k in range(len(filters)):
            hz = k * front_end.sample_rate_hz / front_end.window
            height = (hz - a) / (b - a) if hz < b else (c - hz) / (c - b)
            filters[k, band] = max(0.0, height) * 2 / (c - a)
    return filters


def fourier(front_end):
    """The windowed DFT as cosine and sine matrices (F, N) in float64."""
    n = np.arange(front_end.window)
    hann = 0.5 * (1 - np.cos(2 * np.pi * n / front_end.window))
    angles = 2 * np.pi * np.outer(np.arange(front_end.window // 2 + 1), n) / front_end.window
    return np.cos(angles) * hann, -np.sin(angles) * hann


def log_mel_by_formula(wave, front_end):
    """(T, 64) in float64."""
    pad = front_end.window // 2
    padded = np.pad(wave.astype(np.float64), pad, mode="reflect")
    starts = range(0, len(padded) - front_end.window + 1, front_end.hop)
    frames = np.stack([padded[i : i + front_end.window] for i in starts])
    real, imaginary = fourier(front_end)
    power = (frames @ real.T) ** 2 + (frames @ imaginary.T) ** 2
    return 10 * np.log10(np.maximum(power @ mel_by_formula(front_end), 1e-10))


@pytest.fixture(scope="module")
def cnn14():
    network = Cnn14().eval()
    network.load_state_dict(fill(network.state_dict()))
    return network


def published(front_end, body):
    """A state dict as PANN's authors publish it, its front end by formula."""
    real, imaginary = fourier(front_end)
    front = {
        "spectrogram_extractor.stft.conv_real.weight": real[:, None],
        "spectrogram_extractor.stft.conv_imag.weight": imaginary[:, None],
        "logmel_extractor.melW": mel_by_formula(front_end),
    }
    return {n: torch.from_numpy(a.astype(np.float32)) for n, a in front.items()} | body


@pytest.mark.parametrize("rate", FRONT_ENDS)
def test_mel_filters_equal_slaneys_formula(rate):
    expected = mel_by_formula(FRONT_ENDS[rate])
    np.testing.assert_allclose(mel_weights(FRONT_ENDS[rate]), expected, atol=1e-8)


@pytest.mark.parametrize("seconds", [0.96, 1.0, 2.5])
@pytest.mark.parametrize("rate", FRONT_ENDS)
def test_log_mel_equals_the_float64_closed_form(rate, seconds):
    wave = sound(seconds, rate)
    found = LogMel(FRONT_ENDS[rate])(torch.from_numpy(wave)[None])
    expected = log_mel_by_formula(wave, FRONT_ENDS[rate])
    assert found.shape == (1, 1, 1 + len(wave) // FRONT_ENDS[rate].hop, 64)
    assert np.abs(found[0, 0].numpy() - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("rate", "seconds"), PUBLIC)
def test_log_mel_embedding_and_scores_equal_the_public_implementation(cnn14, rate, seconds):
    """The command that printed the expected numbers stands at `PUBLIC`."""
    wave = torch.from_numpy(sound(seconds, rate))[None]
    with torch.no_grad():
        log_mel = LogMel(FRONT_ENDS[rate])(wave)
        embedding = cnn14(log_mel).embedding
        scores = cnn14.class_scores(embedding)
    m, e, s = log_mel[0, 0], embedding[0], scores[0]
    for found, expected in zip(
        (
            [*m[::32, 7][:4], m.double().mean()],
            [*e[100:106], e.double().norm()],
            [*s[:5], s.double().sum()],
        ),
        PUBLIC[rate, seconds],
        strict=True,
    ):
        np.testing.assert_allclose(np.array(found), expected, rtol=1e-4, atol=1e-4)


def test_silence_is_the_floor():
    log_mel = LogMel()(torch.zeros(1, 32000))
    assert torch.equal(log_mel, torch.full((1, 1, 101, 64), -100.0))


def test_front_end_stays_float32_under_autocast_and_half():
    wave = torch.from_numpy(sound(1.0, 32000))[None]
    expected = LogMel()(wave)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(LogMel()(wave), expected)
    halved = LogMel().half()
    assert torch.equal(halved(wave), expected)
    assert halved(wave).dtype == torch.float32


@pytest.mark.parametrize("shape", [(32000,), (1, 512), (1, 2, 32000)])
def test_front_end_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="n > 512 is needed"):
        LogMel()(torch.zeros(shape))


def test_cnn14_tokens_are_one_for_each_32_frames(cnn14):
    with torch.no_grad():
        features = cnn14(torch.zeros(2, 1, 101, 64))
    assert features.tokens.shape == (2, 3, 2048)
    assert features.embedding.shape == (2, 2048)


def test_cnn14_reads_its_shortest_input_and_refuses_a_shorter_one(cnn14):
    """9,920 samples at 32 kHz are the public implementation's shortest input."""
    with torch.no_grad():
        assert cnn14(LogMel()(torch.zeros(1, 9920))).tokens.shape == (1, 1, 2048)
    with pytest.raises(ValueError, match="T >= 32"):
        cnn14(LogMel()(torch.zeros(1, 9919)))


@pytest.mark.parametrize("rate", FRONT_ENDS)
def test_cnn14_takes_the_84_tensors_of_either_public_checkpoint(cnn14, rate):
    body = {name: tensor.clone() for name, tensor in cnn14.state_dict().items()}
    changed = body | {"fc1.bias": body["fc1.bias"] + 1, "bn0.weight": body["bn0.weight"] * 2}
    state = published(FRONT_ENDS[rate], changed)
    assert len(state) == 84
    cnn14.load_published(state, FRONT_ENDS[rate], "public.pth")
    assert all(torch.equal(tensor, state[name]) for name, tensor in cnn14.state_dict().items())
    cnn14.load_state_dict(body)


def test_cnn14_refuses_a_checkpoint_of_the_other_rate(cnn14):
    state = published(PANN_16K, cnn14.state_dict())
    with pytest.raises(WeightsError, match="not that of a front end at 32000 Hz"):
        cnn14.load_published(state, PANN_32K, "public.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["logmel_extractor.melW"].mul_(1.01), "not that of a front end"),
        (lambda s: s.pop("logmel_extractor.melW"), "lacks logmel_extractor.melW"),
        (lambda s: s.pop("fc1.bias"), "missing fc1.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "unknown extra"),
        (lambda s: s.update({"fc1.bias": torch.zeros(3)}), r"\(3,\); \(2048,\) is needed"),
        (lambda s: s.update({"fc1.bias": torch.full((2048,), torch.nan)}), "2048 values"),
    ],
)
def test_cnn14_refuses_weights_that_are_not_right(cnn14, change, message):
    state = published(PANN_32K, cnn14.state_dict())
    change(state)
    with pytest.raises(WeightsError, match=message):
        cnn14.load_published(state, PANN_32K, "public.pth")


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_a_torch_file_with_arrays_beside_the_weights_is_read_safely(tmp_path, module):
    """PANN's 16 kHz checkpoint holds its sampler's state as int64 arrays, by an older numpy."""
    content = {"model": {"fc1.bias": torch.arange(3.0)}, "sampler": {"indexes": np.arange(5)}}
    torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    written = (tmp_path / "c.pth").read_bytes()
    (tmp_path / "c.pth").write_bytes(written.replace(b"numpy._core.multiarray", module))
    assert torch.equal(read_weights(tmp_path / "c.pth")["fc1.bias"], torch.arange(3.0))


class Payload:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"model": Payload()}, tmp_path / "c.pth")
    with pytest.raises(WeightsError, match="holds more than tensors"):
        read_weights(tmp_path / "c.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"{}"])
@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
def test_a_broken_weights_file_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{name} \({len(content)} bytes\)"):
        read_weights(tmp_path / name)


def test_a_file_of_something_else_than_tensors_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "c.pth")
    with pytest.raises(WeightsError, match="holds list; a state dict is needed"):
        read_weights(tmp_path / "c.pth")


def test_the_small_encoder_gives_six_to_twelve_tokens_a_second():
    torch.manual_seed(0)
    encoder = AudioCnn().eval()
    with torch.no_grad():
        features = encoder(torch.randn(2, 1, 101, 64))
    assert 6 <= features.tokens.shape[1] <= 12
    assert features.tokens.shape[2] == encoder.token_dim == 256
    assert features.embedding.shape == (2, encoder.embedding_dim)
    assert 1.0e6 <= sum(p.numel() for p in encoder.parameters()) <= 2.0e6
    with pytest.raises(ValueError, match="T >= 8"):
        encoder(torch.zeros(1, 1, 7, 64))


@pytest.mark.parametrize("name", ["small", "cnn14"])
def test_folding_keeps_an_encoders_output(cnn14, name):
    small = AudioCnn().eval()
    small.load_state_dict(fill(small.state_dict()))
    encoder = {"small": small, "cnn14": cnn14}[name]
    log_mel = LogMel()(torch.from_numpy(sound(1.0, 32000))[None])
    with torch.no_grad():
        before = encoder(log_mel)
        served = copy.deepcopy(encoder)
        folded = fold_batch_norm(served)
        after = served(log_mel)
    assert folded == sum(isinstance(m, torch.nn.Conv2d) for m in encoder.modules())
    for found, expected in zip(after, before, strict=True):
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_tagger_learns_its_encoder():
    torch.manual_seed(2)
    tagger = AudioTagger(AudioCnn((8, 8, 8, 8), 8), n_tags=5)
    logits = tagger(torch.randn(3, 1, 101, 64))
    assert logits.shape == (3, 5)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in tagger.parameters())

"""Fingerprints: copies of a sound are found among several, whatever was done to them."""

import numpy as np
import pytest
import soxr
from atlasd.streams.fingerprints import Fingerprints

RATE = 16_000


def sound(seed, seconds):
    """Bursts of coloured noise and chirps, as in a recording."""
    rng = np.random.default_rng(seed)
    n = round(seconds * RATE)
    colour = rng.standard_normal(40) * np.exp(-np.arange(40) / 6)
    bursts = np.interp(np.arange(n), np.linspace(0, n, 10), rng.uniform(0, 1, 10)) ** 2
    sweep = np.cumsum(rng.uniform(300, 1500) + np.linspace(0, 800, n)) / RATE
    wave = np.convolve(rng.standard_normal(n), colour, "same") + np.sin(2 * np.pi * sweep)
    return (0.2 * bursts * wave).astype(np.float32)


KNOWN = {f"known {seed}": sound(seed, seconds) for seed, seconds in enumerate((2.0, 0.6, 5.0, 1.3))}
PRINTS = Fingerprints({name: (samples, RATE) for name, samples in KNOWN.items()})


def silence(seconds):
    return np.zeros(round(seconds * RATE), np.float32)


def tilted(samples):
    """The low frequencies lifted, as another microphone would."""
    spectrum = np.fft.rfft(samples)
    hz = np.fft.rfftfreq(len(samples), 1 / RATE)
    return np.fft.irfft(spectrum / np.sqrt(1 + (hz / 2000) ** 2), len(samples)).astype(np.float32)


CHANGES = {
    "nothing": lambda x: x,
    "fainter": lambda x: 0.01 * x,
    "inverted": lambda x: -x,
    "late": lambda x: np.concatenate([silence(3.337), x]),
    "trimmed": lambda x: x[len(x) // 6 : -len(x) // 5],
    "eight bits": lambda x: np.round(x * 127 / np.abs(x).max()).astype(np.float32) / 127,
    "tilted": tilted,
    "faded": lambda x: x * np.linspace(1, 0.1, len(x), dtype=np.float32),
    "among others": lambda x: np.concatenate([sound(21, 2.2), x, sound(22, 1.7)]),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_found_and_told_from_the_others(name, change):
    found, cosine = PRINTS.nearest(CHANGES[change](KNOWN[name]), RATE)
    assert found == name
    assert cosine > 0.7


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("rate_hz", [11_025, 44_100])
def test_the_rate_does_not_matter(name, rate_hz):
    found, cosine = PRINTS.nearest(soxr.resample(KNOWN[name], RATE, rate_hz), rate_hz)
    assert found == name
    assert cosine > 0.9


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("speed", [0.9918, 0.9958, 1.0045])
def test_a_copy_at_a_slightly_other_speed_is_found(name, speed):
    found, cosine = PRINTS.nearest(soxr.resample(KNOWN[name], RATE, RATE / speed), RATE)
    assert found == name
    assert cosine > 0.6


@pytest.mark.parametrize("seed", range(30, 50))
def test_another_sound_is_not_taken_for_a_known_one(seed):
    assert PRINTS.nearest(sound(seed, 3.0), RATE)[1] < 0.4


def test_two_tones_of_one_pitch_with_other_overtones_are_not_the_same():
    time = np.arange(RATE) / RATE
    rng = np.random.default_rng(0)
    tones = [
        sum(
            rng.uniform(0.1, 1) * np.sin(2 * np.pi * (220 * k * time + rng.uniform()))
            for k in range(1, 12)
        ).astype(np.float32)
        for _ in range(2)
    ]
    prints = Fingerprints({"one": (tones[0], RATE)})
    assert prints.nearest(tones[0], RATE)[1] == pytest.approx(1, abs=1e-3)
    assert prints.nearest(tones[1], RATE)[1] < 0.7


def test_the_cosine_of_a_sum_is_that_of_its_parts():
    """A wave and as much of an unrelated one have the cosine 1/√2."""
    wave, other = (
        np.random.default_rng(seed).standard_normal(RATE).astype(np.float32) for seed in range(2)
    )
    prints = Fingerprints({"wave": (wave, RATE)})
    assert prints.nearest(wave + other, RATE)[1] == pytest.approx(2**-0.5, abs=0.03)


@pytest.mark.parametrize("samples", [silence(1.0), silence(0.01)])
def test_nothing_is_like_silence(samples):
    assert PRINTS.nearest(samples, RATE) == ("", 0.0)


def test_where_nothing_is_known_nothing_is_like_it():
    assert Fingerprints({}).nearest(sound(0, 1.0), RATE) == ("", 0.0)

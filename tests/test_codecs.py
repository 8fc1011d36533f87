"""Sounds that a codec has passed: the same sound, the same length, not the same samples."""

from __future__ import annotations

import numpy as np
import pytest
from atlasd.tools import codecs
from atlasd.tools.codecs import CODECS, Codec, coded

RATE_HZ = 32_000


def _tones() -> np.ndarray:
    t = np.arange(RATE_HZ) / RATE_HZ
    return 0.4 * np.sin(2 * np.pi * 440 * t) + 0.1 * np.sin(2 * np.pi * 1760 * t)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_codec_keeps_the_pitch_the_level_and_the_length(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codecs, "CODECS", (codec,))
    wave = _tones()

    heard = coded(wave, np.random.default_rng(0), RATE_HZ)

    assert heard.shape == wave.shape
    later = heard[RATE_HZ // 5 :]  # the codec's delay is silence
    spectrum = np.abs(np.fft.rfft(later * np.hanning(len(later))))
    hz = np.fft.rfftfreq(len(later), 1 / RATE_HZ)
    assert hz[spectrum.argmax()] == pytest.approx(440, abs=3)
    assert later.std() == pytest.approx(wave.std(), rel=0.1)
    assert not np.allclose(heard, wave, atol=1e-4)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_what_overshoots_keeps_its_level(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "CODECS", (codec,))

    heard = coded(4 * _tones(), np.random.default_rng(0), RATE_HZ)

    assert heard[RATE_HZ // 5 :].std() == pytest.approx(4 * _tones().std(), rel=0.1)


def test_a_seed_draws_the_same_codec_and_rate() -> None:
    wave = np.random.default_rng(1).normal(0, 0.1, RATE_HZ // 2)
    heard = [coded(wave, np.random.default_rng(seed), RATE_HZ) for seed in (3, 3, 4, 5, 6)]

    assert np.array_equal(heard[0], heard[1])
    assert any(not np.array_equal(heard[0], other) for other in heard[2:])


def test_silence_stays_silent() -> None:
    for seed in range(8):
        heard = coded(np.zeros(RATE_HZ), np.random.default_rng(seed), RATE_HZ)
        assert np.abs(heard).max() < 1e-3

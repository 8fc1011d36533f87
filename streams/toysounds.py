"""The toy world's sounds: one synthesised voice for each drawn object, and a room to hear it in.

Every voice stays below 8 kHz (AVSBench's sounds have 16,000 samples a second), and none is silent
for longer than half a second, so that every second of it can be recognised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]


def _onsets(rng: np.random.Generator, seconds: float, low: float, high: float) -> list[float]:
    """Times of events with random gaps between ``low`` and ``high`` seconds."""
    times, now = [0.0], float(rng.uniform(0.0, low))
    while now < seconds:
        times.append(now)
        now += float(rng.uniform(low, high))
    return times


def _add(out: Samples, rate_hz: int, start_s: float, event: Samples) -> None:
    start = int(start_s * rate_hz)
    stop = min(start + len(event), len(out))
    out[start:stop] += event[: max(stop - start, 0)]


def _clock_of(seconds: float, rate_hz: int) -> Samples:
    return (np.arange(max(1, int(seconds * rate_hz))) / rate_hz).astype(np.float32)


def _sine(phase_cycles: NDArray[np.floating]) -> Samples:
    return np.sin(2 * math.pi * phase_cycles).astype(np.float32)


def _band(noise: Samples, rate_hz: int, low_hz: float, high_hz: float) -> Samples:
    """Keeps what lies between two frequencies, with soft edges."""
    spectrum = np.fft.rfft(noise)
    hertz = np.fft.rfftfreq(len(noise), 1 / rate_hz)
    gain = 1 / (1 + (low_hz / np.maximum(hertz, 1)) ** 8) / (1 + (hertz / high_hz) ** 16)
    return np.fft.irfft(spectrum * gain, len(noise)).astype(np.float32)


def _bell(rng: np.random.Generator, seconds: float, rate_hz: int) -> Samples:
    """Strikes of a frequency-modulated tone whose overtones fade first."""
    out = np.zeros(int(seconds * rate_hz), dtype=np.float32)
    pitch_hz, ratio = float(rng.uniform(450, 950)), float(rng.uniform(1.38, 1.43))
    t = _clock_of(1.4, rate_hz)
    for start in _onsets(rng, seconds, 0.35, 0.6):
        index = rng.uniform(2.0, 3.0) * np.exp(-t / 0.25)
        modulator = index * _sine(pitch_hz * ratio * t) / (2 * math.pi)
        strike = _sine(pitch_hz * t + modulator) * np.exp(-t / 0.35)
        _add(out, rate_hz, start, (strike * rng.uniform(0.7, 1.0)).astype(np.float32))
    return out


def _bird(rng: np.random.Generator, seconds: float, rate_hz: int) -> Samples:
    """High chirps that glide up or down."""
    out = np.zeros(int(seconds * rate_hz), dtype=np.float32)
    centre_hz = float(rng.uniform(2600, 4200))
    for start in _onsets(rng, seconds, 0.11, 0.3):
        length_s = float(rng.uniform(0.06, 0.12))
        t = _clock_of(length_s, rate_hz)
        glide = rng.uniform(0.25, 0.6) * rng.choice([-1.0, 1.0])
        hertz = centre_hz * (1 + glide * (t / length_s - 0.5))
        chirp = _sine((np.cumsum(hertz) / rate_hz).astype(np.float32))
        _add(out, rate_hz, start, chirp * np.hanning(len(t)).astype(np.float32))
    return out


def _clock(rng: np.random.Generator, seconds: float, rate_hz: int) -> Samples:
    """Ticks and tocks at an even pace: short damped clicks."""
    out = np.zeros(int(seconds * rate_hz), dtype=np.float32)
    pace_s, tick_hz = float(rng.uniform(0.16, 0.3)), float(rng.uniform(2000, 2800))
    t = _clock_of(0.05, rate_hz)
    for beat in range(int(seconds / pace_s) + 1):
        hertz = tick_hz * (1.0, 0.72)[beat % 2]
        click = (_sine(hertz * t) + 0.6 * _sine(1.73 * hertz * t)) * np.exp(-t / 0.006)
        _add(out, rate_hz, beat * pace_s, click.astype(np.float32))
    return out


def _drum(rng: np.random.Generator, seconds: float, rate_hz: int) -> Samples:
    """Low thumps whose pitch falls, each with the slap of the skin."""
    out = np.zeros(int(seconds * rate_hz), dtype=np.float32)
    low_hz = float(rng.uniform(60, 95))
    t = _clock_of(0.4, rate_hz)
    for start in _onsets(rng, seconds, 0.18, 0.45):
        fall = low_hz * (t + 1.6 * 0.04 * (1 - np.exp(-t / 0.04)))
        slap = rng.standard_normal(len(t), dtype=np.float32) * np.exp(-t / 0.012) * 0.25
        thump = _sine(fall.astype(np.float32)) * np.exp(-t / 0.13)
        _add(out, rate_hz, start, ((thump + slap) * rng.uniform(0.6, 1.0)).astype(np.float32))
    return out


def _frog(rng: np.random.Generator, seconds: float, rate_hz: int) -> Samples:
    """Croaks: trains of damped pulses, rough as a comb."""
    out = np.zeros(int(seconds * rate_hz), dtype=np.float32)
    throat_hz, pulse_s = float(rng.uniform(650, 1000)), float(1 / rng.uniform(38, 60))
    t = _clock_of(0.02, rate_hz)
    pulse = ((_sine(throat_hz * t) + 0.5 * _sine(2.1 * throat_hz * t)) * np.exp(-t / 0.004)).astype(
        np.float32
    )
    for start in _onsets(rng, seconds, 0.4, 0.65):
        pulses = int(rng.uniform(0.22, 0.34) / pulse_s)
        for beat in range(pulses):
            swell = 0.3 + 0.7 * math.sin(math.pi * (beat + 0.5) / pulses)
            _add(out, rate_hz, start + beat * pulse_s, pulse * np.float32(swell))
    return out


def _kettle(rng: np.random.Generator, seconds: float, rate_hz: int) -> Samples:
    """Steam: bright noise that flutters."""
    n = int(seconds * rate_hz)
    hiss = rng.standard_normal(n, dtype=np.float32)
    hiss = _band(hiss, rate_hz, float(rng.uniform(2200, 3200)), 7200.0)
    t = _clock_of(seconds, rate_hz)[:n]
    flutter = 1 + rng.uniform(0.2, 0.5) * _sine((rng.uniform(3, 8) * t).astype(np.float32))
    return (hiss * flutter).astype(np.float32)


def _robot(rng: np.random.Generator, seconds: float, rate_hz: int) -> Samples:
    """Bleeps: square waves that jump between the notes of a scale."""
    n = int(seconds * rate_hz)
    step_s, base_hz = float(rng.uniform(0.09, 0.16)), float(rng.uniform(170, 260))
    steps = int(seconds / step_s) + 2
    notes = base_hz * 2 ** (rng.choice([0, 3, 5, 7, 10, 12, 15], steps) / 12)
    which = np.minimum((_clock_of(seconds, rate_hz)[:n] / step_s).astype(np.int64), steps - 1)
    phase = (np.cumsum(notes[which]) / rate_hz).astype(np.float32)
    tone = sum((_sine(k * phase) / k for k in (1, 3, 5, 7, 9, 11)), np.zeros(n, dtype=np.float32))
    within = (np.arange(n) / rate_hz / step_s) % 1.0
    return np.asarray(tone * np.clip(8 * np.minimum(within, 0.85 - within), 0, 1), np.float32)


def _siren(rng: np.random.Generator, seconds: float, rate_hz: int) -> Samples:
    """A wail that sweeps up and down without a pause."""
    t = _clock_of(seconds, rate_hz)[: int(seconds * rate_hz)]
    centre_hz, sweep = float(rng.uniform(800, 1100)), float(rng.uniform(0.35, 0.5))
    turn = t / rng.uniform(0.5, 1.1) + rng.uniform(0, 1)
    hertz = centre_hz * 2 ** (sweep * _sine(turn.astype(np.float32)))
    phase = (np.cumsum(hertz) / rate_hz).astype(np.float32)
    wail = _sine(phase) + 0.45 * _sine(2 * phase) + 0.25 * _sine(3 * phase)
    return wail.astype(np.float32)


VOICES: Mapping[str, Callable[[np.random.Generator, float, int], Samples]] = {
    "toy_bell": _bell,
    "toy_bird": _bird,
    "toy_clock": _clock,
    "toy_drum": _drum,
    "toy_frog": _frog,
    "toy_kettle": _kettle,
    "toy_robot": _robot,
    "toy_siren": _siren,
}


def synthesise(
    category: str, rng: np.random.Generator, seconds: float, sample_rate_hz: int
) -> Samples:
    """Synthesises an object's sound, without pause from 0 s to the end, in a small room.

    Args:
        category: a key of `VOICES`.
        rng: decides pitch, pace and room.
        seconds: length, over 0.
        sample_rate_hz: samples a second, 16,000 or more.

    Returns:
        float32 (seconds * sample_rate_hz,) mono, root mean square 1.
    """
    dry = VOICES[category](rng, seconds, sample_rate_hz)
    wet = _in_room(dry, rng, sample_rate_hz)
    return wet / np.float32(max(float(np.sqrt(np.mean(np.square(wet)))), 1e-9))


def _in_room(dry: Samples, rng: np.random.Generator, rate_hz: int) -> Samples:
    """Adds the tail of a small room: noise that decays exponentially."""
    t = _clock_of(0.25, rate_hz)
    decay_s, amount = float(rng.uniform(0.02, 0.08)), float(rng.uniform(0.0, 0.35))
    tail = rng.standard_normal(len(t), dtype=np.float32) * np.exp(-t / decay_s)
    tail *= amount / max(float(np.sqrt(np.sum(np.square(tail)))), 1e-9)
    tail[0] += 1.0
    n = 1 << (len(dry) + len(tail) - 1).bit_length()
    spectrum = np.fft.rfft(dry, n) * np.fft.rfft(tail, n)
    return np.fft.irfft(spectrum, n)[: len(dry)].astype(np.float32)


def gated(samples: Samples, spans_s: tuple[tuple[float, float], ...], rate_hz: int) -> Samples:
    """Silences what lies outside the spans, with fades of 20 ms inside them.

    Args:
        samples: float32 (n,).
        spans_s: (start, end) in seconds.
        rate_hz: samples a second.

    Returns:
        float32 (n,).
    """
    t = _clock_of(len(samples) / rate_hz + 1 / rate_hz, rate_hz)[: len(samples)]
    gate = np.zeros(len(samples), dtype=np.float32)
    for start, end in spans_s:
        gate = np.maximum(gate, np.clip(np.minimum(t - start, end - t) / 0.02, 0, 1))
    return samples * gate


def pink_noise(rng: np.random.Generator, n: int) -> Samples:
    """Noise whose power falls with frequency: float32 (n,), root mean square 1."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    spectrum[0] = 0.0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    noise = np.fft.irfft(spectrum, n)
    return (noise / max(float(np.sqrt(np.mean(np.square(noise)))), 1e-9)).astype(np.float32)

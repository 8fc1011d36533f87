"""Takes of things that sound, and five seconds performed from them.

A take is a recording, trimmed, its pauses shortened; or endless: random melodies played on a
SoundFont. `perform` makes a track of it at another speed, in another room, as events with random
gaps. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from .catalogue import Item
from .packages import Package
from .recordings import decode_sound
from .soundfonts import Program, SoundFont, Zone, read_patch

Sound = NDArray[np.float32]
"""float32 (n,) mono in about [-1, 1]."""

_BLOCK_S = 0.02
_PAUSE_S = 0.22
_CHORDAL = frozenset(("acoustic_guitar", "electric_guitar", "piano", "accordion"))
_SUSTAINED = frozenset(("violin", "cello", "trumpet", "flute", "accordion", "saxophone"))
_DRUM_CHANNEL_BANK = 128


@dataclass(frozen=True, slots=True, eq=False)
class Take:
    """A recording, ready to be performed.

    Attributes:
        name: where it comes from.
        category: what sounds.
        samples: float32 (n,), peak 0.9, silence at both ends cut, pauses shortened.
        sample_rate_hz: their rate.
    """

    name: str
    category: str
    samples: Sound
    sample_rate_hz: int

    def phrase(self, rng: np.random.Generator, seconds: float) -> Sound:
        """Return a stretch of the take, at most ``seconds`` long."""
        n = round(seconds * self.sample_rate_hz)
        spare = len(self.samples) - n
        start = int(rng.integers(spare + 1)) if spare > 0 else 0
        return faded(self.samples[start : start + n], self.sample_rate_hz)


@dataclass(frozen=True, slots=True, eq=False)
class Instrument:
    """An endless take: a program of a SoundFont, played at random.

    Attributes:
        name: SoundFont and program.
        category: what sounds.
        program: the zones to play.
        notes: lowest and highest key.
        sample_rate_hz: rate of what it plays.
    """

    name: str
    category: str
    program: Program
    notes: tuple[int, int]
    sample_rate_hz: int

    def phrase(self, rng: np.random.Generator, seconds: float) -> Sound:
        """Play a random melody or rhythm, ``seconds`` long."""
        n = round(seconds * self.sample_rate_hz)
        out = np.zeros(n + self.sample_rate_hz, np.float32)
        score = self._rhythm if self.category == "drum_kit" else self._melody
        for start_s, held_s, key, velocity in score(rng, seconds):
            note = self.program.note(key, velocity, held_s, self.sample_rate_hz)
            at = round(start_s * self.sample_rate_hz)
            out[at : at + len(note)] += note[: len(out) - at]
        return faded(_peaked(out[:n]), self.sample_rate_hz)

    def _melody(
        self, rng: np.random.Generator, seconds: float
    ) -> Iterator[tuple[float, float, int, int]]:
        """Yield (start, held, key, velocity): a walk over a scale, with chords where they fit."""
        scale = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9))[rng.integers(3)]
        low, high = self.notes
        keys = [key for key in range(low, high + 1) if (key - low) % 12 in scale]
        at, step = 0.0, int(rng.integers(len(keys)))
        beat = rng.uniform(0.16, 0.55)
        legato = rng.uniform(0.85, 1.1) if self.category in _SUSTAINED else rng.uniform(0.5, 1.2)
        while at < seconds:
            length = beat * (1, 1, 1, 2, 2, 3)[rng.integers(6)]
            chord = self.category in _CHORDAL and rng.random() < 0.3
            for offset in (0, 2, 4) if chord else (0,):
                key = keys[min(len(keys) - 1, step + offset)]
                yield at, length * legato, key, int(rng.integers(70, 121))
            step = int(np.clip(step + rng.integers(-3, 4), 0, len(keys) - 1))
            at += length

    def _rhythm(
        self, rng: np.random.Generator, seconds: float
    ) -> Iterator[tuple[float, float, int, int]]:
        """Yield (start, held, key, velocity): a random pattern of kick, snare, hats and toms."""
        beat = rng.uniform(0.11, 0.24)
        toms = rng.integers(41, 51, 2)
        for count in range(int(seconds / beat) + 1):
            struck = [
                (36, 0.9 if count % 4 == 0 else 0.2),
                (38, 0.85 if count % 8 == 4 else 0.12),
                (int((42, 46, 51)[rng.integers(3)]), 0.75),
                (int(toms[count % 2]), 0.12),
            ]
            for key, chance in struck:
                if rng.random() < chance:
                    yield count * beat, beat, key, int(rng.integers(60, 121))


Source = Take | Instrument


def read_take(data: bytes, name: str, category: str, sample_rate_hz: int) -> Take:
    """Decode a recording, resample it, cut the silence at its ends and shorten its pauses.

    Raises:
        RecordingError: it cannot be decoded or is silent.
    """
    samples, rate_hz = decode_sound(data, name)
    if rate_hz != sample_rate_hz:
        samples = soxr.resample(samples, rate_hz, sample_rate_hz)
    return Take(name, category, _tightened(_peaked(samples), sample_rate_hz), sample_rate_hz)


def read_sources(
    items: Iterable[Item],
    found: dict[str, Package],
    split: str,
    *,
    sample_rate_hz: int = 16_000,
    progress: Callable[[str], None] = lambda _name: None,
) -> list[Source]:
    """Return all that sounds in one split: takes, and instruments on the split's SoundFonts.

    Args:
        items: the catalogue.
        found: the packages.
        split: ``train``, ``val`` or ``test``.
        sample_rate_hz: rate of the takes.
        progress: told of each item's key.
    """
    items = [item for item in items if split in item.splits]
    programs = [item for item in items if item.kind == "gm_program"]
    sources: list[Source] = [*_patched(items, found, sample_rate_hz)]
    for item in items:
        if item.kind == "sound":
            progress(item.key)
            data = found[item.package].read(item.path)
            sources.append(read_take(data, item.key, item.category, sample_rate_hz))
        elif item.kind == "soundfont" and programs:
            progress(item.key)
            font = SoundFont(found[item.package].read(item.path), item.path.rpartition("/")[2])
            sources.extend(_instrument(font, row, sample_rate_hz) for row in programs)
    return sources


def training_takes(
    items: Iterable[Item],
    found: dict[str, Package],
    *,
    seconds: float = 6.0,
    melodies: int = 12,
    sample_rate_hz: int = 32_000,
    seed: int = 0,
) -> Iterator[Take]:
    """Iterate over all sounds of the training split, each with its category.

    Recordings come whole, once each; of each instrument come ``melodies`` random melodies.

    Args:
        items: the catalogue.
        found: the packages.
        seconds: length of a melody.
        melodies: how many per instrument and SoundFont.
        sample_rate_hz: rate of the takes.
        seed: of the melodies.
    """
    for source in read_sources(items, found, "train", sample_rate_hz=sample_rate_hz):
        if isinstance(source, Take):
            yield source
            continue
        for count in range(melodies):
            rng = np.random.default_rng((seed, count, *source.name.encode()))
            name = f"{source.name} melody {count}"
            yield Take(name, source.category, source.phrase(rng, seconds), sample_rate_hz)


def _instrument(font: SoundFont, item: Item, sample_rate_hz: int) -> Instrument:
    number = item.path.partition(";")[0]
    program = (
        font.program(0, bank=_DRUM_CHANNEL_BANK)
        if number == "drum"
        else font.program(int(number) - 1)
    )
    return Instrument(program.name, item.category, program, _note_range(item), sample_rate_hz)


def _note_range(item: Item) -> tuple[int, int]:
    low, _, high = item.path.partition(";notes=")[2].partition("-")
    return int(low), int(high)


def _patched(
    items: Sequence[Item], found: dict[str, Package], sample_rate_hz: int
) -> Iterator[Instrument]:
    """Yield the instruments that come as patches; the drums' make one instrument together."""
    drums: list[Zone] = []
    ranges = {item.category: _note_range(item) for item in items if item.kind == "gm_program"}
    for item in (item for item in items if item.kind == "patch"):
        file = item.path.rpartition("/")[2]
        key = int(file[:3]) if item.category == "drum_kit" else None
        program = read_patch(found[item.package].read(item.path), f"FreePats {file}", drum_key=key)
        if key is not None:
            drums.extend(program.zones)
        else:
            notes = ranges[item.category]
            yield Instrument(program.name, item.category, program, notes, sample_rate_hz)
    if drums:
        program = Program("FreePats drums", tuple(drums))
        yield Instrument(program.name, "drum_kit", program, ranges["drum_kit"], sample_rate_hz)


def perform(
    source: Source, rng: np.random.Generator, seconds: float, spans: Sequence[tuple[float, float]]
) -> Sound:
    """Perform a take: phrases at random onsets within the spans, in one room, at one speed.

    Every half second of a span holds sound.

    Args:
        source: what is performed.
        rng: all randomness.
        seconds: length of the track.
        spans: (start, end) in seconds within which it may sound.

    Returns:
        float32 (seconds · rate,), root mean square 0.1 over the spans.
    """
    rate_hz = source.sample_rate_hz
    speed = rng.uniform(0.92, 1.09)
    dry = np.zeros(round(seconds * rate_hz), np.float32)
    for start_s, end_s in spans:
        at, end = start_s + rng.uniform(0, 0.08), round(end_s * rate_hz)
        while round(at * rate_hz) < end - rate_hz // 20:
            phrase = _at_speed(source.phrase(rng, (end_s - at) * speed + 0.05), speed)
            begin = round(at * rate_hz)
            phrase = faded(phrase[: end - begin], rate_hz)
            dry[begin : begin + len(phrase)] += phrase * rng.uniform(0.7, 1.0)
            at += len(phrase) / rate_hz + rng.uniform(0.03, 0.35)
    wet = _in_room(_low_passed(dry, rng, rate_hz), rng, rate_hz)
    gate = np.zeros(len(dry), np.float32)
    for start_s, end_s in spans:
        gate[round(start_s * rate_hz) : round(end_s * rate_hz)] = 1
    ramp = np.hanning(rate_hz // 50 + 2)[1:-1]
    wet = wet * np.convolve(gate, ramp / ramp.sum(), "same").astype(np.float32)
    active = max(1, int(np.count_nonzero(gate)))
    rms = float(np.sqrt(np.sum(wet**2, dtype=np.float64) / active))
    return wet * np.float32(0.1 / max(rms, 1e-6))


def mixed(
    tracks: Sequence[Sound], rng: np.random.Generator, sample_rate_hz: int, seconds: float
) -> Sound:
    """Mix tracks at levels 0 to 6 dB apart over pink noise.

    The loudest track plays at −26 to −16 dBFS, the noise lies at −58 to −38 dBFS; peaks over full
    scale turn everything down.
    """
    n = round(seconds * sample_rate_hz)
    total = noise(rng, n, tilt=0.5) * np.float32(_amplitude(rng.uniform(-58, -38)))
    level = _amplitude(rng.uniform(-26, -16))
    for index, track in enumerate(tracks):
        below_db = rng.uniform(0, 6) if index else 0.0
        total += track / np.float32(0.1) * np.float32(level * _amplitude(-below_db))
    return total / np.float32(max(1.0, float(np.abs(total).max()) / 0.98))


def noise(rng: np.random.Generator, n: int, *, tilt: float) -> Sound:
    """Return noise of root mean square 1 with amplitude ∝ 1/f^tilt: 0 white, 0.5 pink, 1 brown."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    spectrum /= np.maximum(np.arange(len(spectrum)), 8.0) ** tilt
    sound = np.fft.irfft(spectrum, n)
    return (sound / np.sqrt(np.mean(sound**2))).astype(np.float32)


def faded(samples: Sound, sample_rate_hz: int) -> Sound:
    """Return the samples with 8 ms faded in and out."""
    n = min(len(samples) // 2, sample_rate_hz // 125)
    out = samples.astype(np.float32, copy=True)
    if n:
        ramp = np.linspace(0, 1, n, dtype=np.float32)
        out[:n] *= ramp
        out[-n:] *= ramp[::-1]
    return out


def _amplitude(db: float) -> float:
    return 10 ** (db / 20)


def _peaked(samples: Sound) -> Sound:
    peak = float(np.abs(samples).max(initial=0))
    return samples * np.float32(0.9 / peak) if peak > 0 else samples


def _tightened(samples: Sound, sample_rate_hz: int) -> Sound:
    """Cut what lies 40 dB below the loudest block at both ends, and pauses over 0.22 s inside."""
    block = round(_BLOCK_S * sample_rate_hz)
    padded = np.pad(samples, (0, -len(samples) % block)).reshape(-1, block)
    loud = np.sqrt(np.mean(padded**2, axis=1))
    live = loud > 0.01 * loud.max(initial=1e-9)
    keep = np.zeros(len(live), np.bool_)
    reach = round(_PAUSE_S / _BLOCK_S / 2)
    for at in np.flatnonzero(live):
        keep[max(0, at - 1) : at + 2 * reach] = True
    last = int(np.flatnonzero(live)[-1]) if live.any() else 0
    keep[last + 2 :] = False
    return faded(padded[keep].reshape(-1), sample_rate_hz)


def _at_speed(samples: Sound, speed: float) -> Sound:
    if len(samples) < 2:
        return samples
    positions = np.arange(0, len(samples) - 1, speed)
    return np.interp(positions, np.arange(len(samples)), samples).astype(np.float32)


def _low_passed(samples: Sound, rng: np.random.Generator, sample_rate_hz: int) -> Sound:
    cutoff_hz = np.exp(rng.uniform(np.log(2500), np.log(9000)))
    ratio = np.fft.rfftfreq(len(samples), 1 / sample_rate_hz) / cutoff_hz
    spectrum = np.fft.rfft(samples) / np.sqrt(1 + ratio**4)
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def _in_room(samples: Sound, rng: np.random.Generator, sample_rate_hz: int) -> Sound:
    """Convolve with a synthetic room: a direct path, then noise that decays over 0.1 to 0.7 s."""
    decay_s, wet = rng.uniform(0.1, 0.7), rng.uniform(0.0, 0.5)
    n = round(decay_s * sample_rate_hz)
    tail = rng.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)
    tail[: round(rng.uniform(0.002, 0.02) * sample_rate_hz)] = 0
    response = wet * tail / np.sqrt(np.sum(tail**2))
    response[0] = 1
    size = len(samples) + n
    sound = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)
    return sound[: len(samples)].astype(np.float32)

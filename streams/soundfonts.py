"""Instruments from SoundFonts (``.sf2``, and ``.sf3`` with Vorbis samples), played note by note.

A small sampler of our own, so that composing needs no synthesizer to be installed: key and velocity
zones, tuning, loops, the volume envelope, attenuation and the low-pass filter of SoundFont 2.04; no
modulators, LFOs, effects or moving filters. What it plays depends on its arguments alone.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .recordings import decode_sound

_KEYS, _VELOCITIES, _INSTRUMENT, _SAMPLE = 43, 44, 41, 53
_PRESET_ABSOLUTE = frozenset((_KEYS, _VELOCITIES, _INSTRUMENT, _SAMPLE))
_DEFAULTS = {8: 13500, 33: -12000, 34: -12000, 35: -12000, 36: -12000, 38: -12000, 56: 100, 58: -1}
_COMPRESSED = 0x10


class SoundFontError(ValueError):
    """A SoundFont that cannot be read, or lacks a program: which, why."""


@dataclass(frozen=True, slots=True, eq=False)
class Zone:
    """One sample of a program with the keys and velocities it is for.

    Attributes:
        keys: lowest and highest key.
        velocities: lowest and highest velocity.
        samples: float32 (n,) in [-1, 1].
        rate_hz: their rate at the root key.
        root: key at which the sample plays as recorded, fractions are cents.
        cents_per_key: 100 for most; 0 for drums that do not follow the key.
        loop: first sample of the loop and the one after its last; None plays once.
        envelope_s: delay, attack, hold, decay (to −100 dB), release (to −100 dB) in seconds.
        sustain_db: attenuation after the decay.
        attenuation_db: of the whole zone.
        cutoff_hz: of the low-pass filter.
    """

    keys: tuple[int, int]
    velocities: tuple[int, int]
    samples: NDArray[np.float32]
    rate_hz: int
    root: float
    cents_per_key: int
    loop: tuple[int, int] | None
    envelope_s: tuple[float, float, float, float, float]
    sustain_db: float
    attenuation_db: float
    cutoff_hz: float


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """One playable program: its name and zones."""

    name: str
    zones: tuple[Zone, ...]

    def note(
        self, key: int, velocity: int, held_s: float, sample_rate_hz: int, *, ring_s: float = 0.5
    ) -> NDArray[np.float32]:
        """Play one note.

        Args:
            key: MIDI key, 0 to 127.
            velocity: MIDI velocity, 1 to 127.
            held_s: seconds until the key is let go.
            sample_rate_hz: rate of the result.
            ring_s: seconds that follow.

        Returns:
            float32 (n,), n = (held_s + ring_s) · sample_rate_hz; zeros where no zone fits.
        """
        n = round((held_s + ring_s) * sample_rate_hz)
        out = np.zeros(n, np.float32)
        for zone in self.zones:
            if (
                zone.keys[0] <= key <= zone.keys[1]
                and zone.velocities[0] <= velocity <= zone.velocities[1]
            ):
                out += _voice(zone, key, velocity, held_s, n, sample_rate_hz)
        return out


def read_patch(data: bytes, name: str, *, drum_key: int | None = None) -> Program:
    """Read a Gravis Ultrasound patch (``.pat``), the form in which FreePats come.

    Its envelopes are left out: what loops sustains and rings for 0.4 s, the rest plays to its end.

    Args:
        data: the whole file.
        name: what the program is called.
        drum_key: for percussion the one key that strikes it, always at the recorded pitch.

    Raises:
        SoundFontError: the file is no patch, or is cut short.
    """
    try:
        if data[:12] != b"GF1PATCH110\0":
            raise struct.error(f"begins with {data[:12]!r}, not with GF1PATCH110")
        (count,) = struct.unpack_from("<B", data, 129 + 63 + 6)
        at, zones = 129 + 63 + 47, list[Zone]()
        for _ in range(count):
            zone, at = _patch_zone(data, at, drum_key)
            zones.append(zone)
    except (struct.error, ValueError) as error:
        raise SoundFontError(f"{name} is no GUS patch or is cut short: {error}") from error
    return Program(name, tuple(zones))


def _patch_zone(data: bytes, at: int, drum_key: int | None) -> tuple[Zone, int]:
    """Return the sample whose header is at ``at``, and where the next one's is."""
    size, loop_start, loop_end, rate_hz, *tones, mode = struct.unpack_from(
        "<8xIIIHIII2x1x6x6x3x3xB", data, at
    )
    start = at + 96
    wide = mode & 1
    if start + size > len(data):
        raise struct.error(f"a sample ends at {start + size}, the file at {len(data)}")
    coded = np.frombuffer(data[start : start + size], "<i2" if wide else "i1")
    samples = coded.astype(np.float32) / np.float32(32768 if wide else 128)
    if mode & 2:
        samples = np.where(samples < 0, samples + 1, samples - 1).astype(np.float32)
    low, high, root = (69 + 12 * np.log2(max(tone, 8176) / 440_000) for tone in tones)
    loop = (loop_start // (1 + wide), loop_end // (1 + wide))
    looped = drum_key is None and mode & 4 and loop[0] < loop[1] <= len(samples)
    return Zone(
        keys=(round(low), round(high)) if drum_key is None else (drum_key, drum_key),
        velocities=(0, 127),
        samples=samples,
        rate_hz=rate_hz,
        root=float(root) if drum_key is None else drum_key,
        cents_per_key=100,
        loop=loop if looped else None,
        envelope_s=(0.0, 0.002, 0.0, 0.001, 1.0),
        sustain_db=0.0,
        attenuation_db=0.0,
        cutoff_hz=20_000.0,
    ), start + size


class SoundFont:
    """A SoundFont's tables; `program` gives the playable ones.

    Args:
        data: the whole file.
        name: what errors call it.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self._name = name
        try:
            chunks = dict(_chunks(data))
            self._samples = chunks["smpl"]
            self._presets = list(struct.iter_unpack("<20sHHHIII", chunks["phdr"]))
            self._instruments = list(struct.iter_unpack("<20sH", chunks["inst"]))
            self._headers = list(struct.iter_unpack("<20sIIIIIBbHH", chunks["shdr"]))
            self._preset_zones = _zones(chunks["pbag"], chunks["pgen"])
            self._instrument_zones = _zones(chunks["ibag"], chunks["igen"])
        except (KeyError, struct.error) as error:
            raise SoundFontError(f"{name} is no SoundFont or is cut short: {error!r}") from error
        self._decoded: dict[int, NDArray[np.float32]] = {}

    def program(self, number: int, *, bank: int = 0) -> Program:
        """Return a program (0 to 127) of a bank; bank 128 holds the drum kits.

        Raises:
            SoundFontError: the SoundFont has no such program.
        """
        for row, following in itertools.pairwise(self._presets):
            if (row[1], row[2]) == (number, bank):
                zones = tuple(self._preset(row[3], following[3]))
                return Program(f"{self._name} {_text(row[0])}", zones)
        raise SoundFontError(f"{self._name} has no program {number} in bank {bank}")

    def _preset(self, first: int, last: int) -> Iterator[Zone]:
        shared: dict[int, int] = {}
        for outer in self._preset_zones[first:last]:
            if _INSTRUMENT not in outer:
                shared = outer
                continue
            at = outer[_INSTRUMENT]
            yield from self._instrument(
                self._instruments[at][1], self._instruments[at + 1][1], {**shared, **outer}
            )

    def _instrument(self, first: int, last: int, outer: dict[int, int]) -> Iterator[Zone]:
        shared: dict[int, int] = {}
        for inner in self._instrument_zones[first:last]:
            if _SAMPLE not in inner:
                shared = inner
                continue
            values = {**_DEFAULTS, **shared, **inner}
            for generator, value in outer.items():
                if generator not in _PRESET_ABSOLUTE:
                    values[generator] = values.get(generator, 0) + value
            keys = _overlap(values.get(_KEYS), outer.get(_KEYS))
            velocities = _overlap(values.get(_VELOCITIES), outer.get(_VELOCITIES))
            if keys and velocities:
                yield self._zone(values, keys, velocities)

    def _zone(self, values: dict[int, int], keys: tuple[int, int], vels: tuple[int, int]) -> Zone:
        header = self._headers[values[_SAMPLE]]
        _, start, _, loop_start, loop_end, rate_hz, root, correction, _, kind = header
        base = 0 if kind & _COMPRESSED else start
        loop = (
            loop_start - base + values.get(2, 0) + 32768 * values.get(45, 0),
            loop_end - base + values.get(3, 0) + 32768 * values.get(50, 0),
        )
        samples = self._sample(values[_SAMPLE])
        looped = values.get(54, 0) & 1 and 0 <= loop[0] < loop[1] <= len(samples)
        root = values[58] if values[58] >= 0 else min(root, 127)
        cents = 100 * values.get(51, 0) + values.get(52, 0) + correction
        delay, attack, hold, decay, release = (_seconds(values[g]) for g in (33, 34, 35, 36, 38))
        return Zone(
            keys,
            vels,
            samples,
            rate_hz,
            root - cents / 100,
            values[56],
            loop if looped else None,
            (delay, attack, hold, decay, release),
            values.get(37, 0) / 10,
            0.4 * values.get(48, 0) / 10,
            8.176 * 2 ** (_cutoff_cents(values) / 1200),
        )

    def _sample(self, index: int) -> NDArray[np.float32]:
        if index not in self._decoded:
            _, start, end, *_rest, kind = self._headers[index]
            if kind & _COMPRESSED:
                samples, _ = decode_sound(self._samples[start:end], f"{self._name} sample {index}")
            else:
                coded = np.frombuffer(self._samples[2 * start : 2 * end], "<i2")
                samples = coded.astype(np.float32) / np.float32(32768)
            self._decoded[index] = samples
        return self._decoded[index]


def _voice(
    zone: Zone, key: int, velocity: int, held_s: float, n: int, sample_rate_hz: int
) -> NDArray[np.float32]:
    semitones = (key - zone.root) * zone.cents_per_key / 100
    step = zone.rate_hz / sample_rate_hz * 2 ** (semitones / 12)
    position = np.arange(n) * step
    samples = zone.samples
    if zone.loop:
        start, end = zone.loop
        beyond = position >= end
        position[beyond] = start + (position[beyond] - start) % (end - start)
        samples = np.append(samples[:end], samples[start])
    sound = np.interp(position, np.arange(len(samples)), samples, right=0.0)
    gain = (velocity / 127) ** 2 * 10 ** (-zone.attenuation_db / 20)
    if zone.cutoff_hz < 0.45 * sample_rate_hz:
        spectrum = np.fft.rfft(sound)
        ratio = np.fft.rfftfreq(n, 1 / sample_rate_hz) / zone.cutoff_hz
        sound = np.fft.irfft(spectrum / np.sqrt(1 + ratio**4), n)
    return (gain * sound * _envelope(zone, held_s, n, sample_rate_hz)).astype(np.float32)


def _envelope(zone: Zone, held_s: float, n: int, sample_rate_hz: int) -> NDArray[np.float64]:
    """Return the volume envelope: a linear attack, the rest straight lines in decibels."""
    delay, attack, hold, decay, release = zone.envelope_s
    time = np.arange(n) / sample_rate_hz - delay
    level_db = np.minimum(zone.sustain_db, np.maximum(0, time - attack - hold) / decay * 100)
    gain = np.clip(time / attack, 0, 1) * 10 ** (-level_db / 20)
    after = np.maximum(0, time + delay - held_s)
    return gain * 10 ** (-np.minimum(after / max(release, 0.02) * 100, 200) / 20)


def _chunks(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Walk the RIFF tree and yield the chunks by name."""
    if data[:4] != b"RIFF" or data[8:12] != b"sfbk":
        raise struct.error(f"begins with {data[:12]!r}, not with RIFF....sfbk")
    for kind, start, end in _children(data, 12, len(data)):
        if kind == "LIST":
            for name, first, last in _children(data, start + 4, end):
                yield name, data[first:last]


def _children(data: bytes, at: int, end: int) -> Iterator[tuple[str, int, int]]:
    """Yield the name, start and end of each chunk; some writers leave out the padding to even."""
    while at + 8 <= end:
        name, size = struct.unpack_from("<4sI", data, at)
        yield name.decode("latin-1"), at + 8, min(end, at + 8 + size)
        at += 8 + size
        if size % 2 and data[at : at + 1] == b"\0":
            at += 1


def _zones(bags: bytes, generators: bytes) -> list[dict[int, int]]:
    """Return each zone's generators; ranges as the two bytes of one number, the rest signed."""
    starts = [row[0] for row in struct.iter_unpack("<HH", bags)]
    values = [
        (kind, raw if kind in _PRESET_ABSOLUTE else raw - 65536 * (raw > 32767))
        for kind, raw in struct.iter_unpack("<HH", generators)
    ]
    return [dict(values[a:b]) for a, b in itertools.pairwise(starts)]


def _overlap(a: int | None, b: int | None) -> tuple[int, int] | None:
    low, high = 0, 127
    for packed in (a, b):
        if packed is not None:
            low, high = max(low, packed & 0xFF), min(high, packed >> 8)
    return (low, high) if low <= high else None


def _cutoff_cents(values: dict[int, int]) -> float:
    """Return the filter's cutoff: its modulation envelope's mean of peak and sustain, held."""
    sustain = 1 - min(max(values.get(29, 0), 0), 1000) / 1000
    return min(13500, values[8] + values.get(11, 0) * (1 + sustain) / 2)


def _seconds(timecents: int) -> float:
    return 2 ** (timecents / 1200)


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("latin-1").strip()

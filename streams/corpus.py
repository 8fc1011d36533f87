"""Every sound that 155 Debian packages give, to pretrain an audio encoder on.

The rows of ``corpus.csv`` name the packages: games, drum kits, announcements, desktops. Each sound
file of theirs gives one excerpt; SoundFonts give melodies on all their programs. Nobody says what
sounds in them. What Open-AVS validates or tests with is left out, by name, by content and by
likeness (see `Fingerprints`), and so are the packages of `_NEVER`.

The corpus is made once for the same packages and kept as 16-bit samples, which are read from disk
as they are asked for.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr
from numpy.typing import NDArray

from . import catalogue
from .catalogue import Item, content_sha256
from .fingerprints import Fingerprints
from .packages import (
    BUNDLES,
    Package,
    PackageError,
    Progress,
    Shelf,
    cache_folder,
    each_entry,
    each_file,
    obtain,
    quiet,
)
from .recordings import RecordingError, decode_sound
from .soundfonts import SoundFont, SoundFontError
from .sounds import Instrument, Sound, faded

SUFFIXES = (".ogg", ".oga", ".opus", ".wav", ".flac", ".mp3", ".au", ".aif", ".aiff")
"""Ends of the names of sound files."""

EXCERPT_S = 10.0
"""A longer sound gives a stretch of this length, so that ten thousand take some 2 GB."""

SHORTEST_S = 0.1
"""A shorter sound is left out."""

SAME = 0.6
"""From this cosine on two sounds count as the same."""

Stored = NDArray[np.int16]
"""int16 (n,) mono, peak 0.9 of full scale."""

_NEVER = frozenset(("freepats",))
"""What Open-AVS validates its instruments with."""

_FORMAT = 2
_SILENT = 1e-4
_MELODIES = 2
_MELODY_S = 6.0
_NOTES = (41, 79)
_DRUM_CHANNEL_BANK = 128


@dataclass(frozen=True, slots=True)
class Row:
    """One row of ``corpus.csv``.

    Attributes:
        package: its name.
        what: what it is.
        without: part of a path; files with it are left out; empty leaves out none.
        licence: what the package claims.
    """

    package: str
    what: str
    without: str
    licence: str


@dataclass(frozen=True, slots=True, eq=False)
class Excerpt:
    """A stretch of one sound.

    Attributes:
        name: ``package:path``, or a SoundFont's program and the number of its melody.
        stored: the samples, in the file of the corpus.
        sample_rate_hz: their rate.
    """

    name: str
    stored: Stored
    sample_rate_hz: int

    @property
    def samples(self) -> Sound:
        """The samples as float32 (n,) in [-1, 1], made anew each time."""
        return _as_float(self.stored)


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """The sounds, and what became of the rest.

    Attributes:
        id: of the content: another one where any name or sample is another.
        sounds: recordings ordered by package and path, then melodies.
        skipped: what gave no sound and why; packages that were missing come first.
        excluded: what Open-AVS holds out, or sounds like it.
        duplicates: how many files held what another one held already.
    """

    id: str
    sounds: Sequence[Excerpt]
    skipped: tuple[str, ...]
    excluded: tuple[str, ...]
    duplicates: int

    @property
    def minutes(self) -> float:
        """How long all sounds take together."""
        return sum(len(s.stored) / s.sample_rate_hz for s in self.sounds) / 60


def load(path: Path | None = None) -> tuple[Row, ...]:
    """Read the list of packages, by default the one that ships."""
    path = path or Path(__file__).with_name("corpus.csv")
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(Row(**row) for row in csv.DictReader(file))


def spoken(sounds: Iterable[Excerpt], rows: Sequence[Row] | None = None) -> list[Excerpt]:
    """Those in which people speak and nothing else: of packages that say so in ``what``."""
    rows = load() if rows is None else rows
    speak = {row.package for row in rows if row.what.startswith("spoken ")}
    return [sound for sound in sounds if sound.name.partition(":")[0] in speak]


def sounds(
    packages: Path | None,
    *,
    sample_rate_hz: int,
    seed: int = 0,
    cache: Path | None = None,
    rows: Sequence[Row] | None = None,
    items: Sequence[Item] | None = None,
    progress: Progress = quiet,
) -> Corpus:
    """Bring the corpus: out of the cache, or out of the packages.

    Args:
        packages: folder with ``.deb`` files or unpacked trees; None asks apt.
        sample_rate_hz: rate of the sounds.
        seed: of the excerpts and the melodies.
        cache: folder for packages and corpora; by default the user's, ``~/.cache/atlasd``.
        rows: the packages; None is what ships.
        items: Open-AVS's catalogue, whose held-out sounds are left out; None is what ships.
        progress: told of each package.

    Raises:
        PackageError: no package can be had, or not one with sounds that Open-AVS holds out: those
            must be heard before others can be compared with them.
    """
    rows = load() if rows is None else rows
    items = catalogue.load() if items is None else items
    cache = cache or cache_folder().parent
    shelf = Shelf(packages, cache / "packages")
    places, missing = _places(shelf, rows)
    without = {row.package: row.without for row in rows if row.without}
    key = _key(places, without, items, sample_rate_hz, seed)
    store = _Store(cache / "corpus", key)
    if not store.is_whole():
        held = [i for i in items if i.kind == "sound" and {"val", "test"} & {*i.splits}]
        fonts = [i for i in items if i.kind == "soundfont" and i.package in places]
        found = obtain(catalogue.wanted([*held, *fonts]), packages, cache=cache / "packages")
        sieve = _Sieve(held, found)
        recorded = _recorded(places, without, sieve, sample_rate_hz, seed, progress)
        played = _played(fonts, found, sieve, sample_rate_hz, seed, progress)
        store.write(chain(recorded, played), sieve)
    return store.read(sample_rate_hz, missing)


def _places(shelf: Shelf, rows: Sequence[Row]) -> tuple[dict[str, Path], list[str]]:
    """Return where the packages are, and a line for each that is not there."""
    places, missing = dict[str, Path](), list[str]()
    for name in sorted({row.package for row in rows} - _NEVER):
        try:
            places[name] = shelf.find(name)
        except PackageError as error:
            missing.append(f"package {name}: {error}")
    if not places:
        first = missing[0] if missing else "none is listed"
        raise PackageError(f"none of the corpus's {len(rows)} packages can be had: {first}")
    return places, missing


def _key(
    places: dict[str, Path],
    without: dict[str, str],
    items: Sequence[Item],
    sample_rate_hz: int,
    seed: int,
) -> str:
    """Name what a corpus is made of, without reading any sound."""
    parts = [f"{_FORMAT} {sample_rate_hz} {seed} {EXCERPT_S} {SAME} {sorted(without.items())}"]
    # Training rows may come and go: only what is held out, and what plays, decides.
    decisive = (i for i in items if i.kind == "soundfont" or {"val", "test"} & {*i.splits})
    parts += [f"{item.key} {item.sha256} {item.splits}" for item in decisive]
    for name, place in places.items():
        files = [place] if place.is_file() else sorted(place.rglob("*"))
        parts += [f"{name} {file.name} {file.stat().st_size}" for file in files if file.is_file()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


class _Sieve:
    """Lets through what is new and not held out; keeps a record of the rest.

    Args:
        held: what is held out.
        found: the packages that it is in.
    """

    def __init__(self, held: Sequence[Item], found: dict[str, Package]) -> None:
        self.skipped = list[str]()
        self.excluded = list[str]()
        self.duplicates = 0
        data = {item.key: found[item.package].read(item.path) for item in held}
        self._names = frozenset(data)
        self._held = {item.sha256: item.key for item in held}
        self._held |= {content_sha256(data[key], "sound"): key for key in data}
        self._prints = Fingerprints({key: decode_sound(data[key], key) for key in data})
        self._heard = set[str]()

    def holds_out(self, name: str, sha256: str) -> bool:
        """Whether a file is held out, by its name or its content."""
        if name not in self._names and sha256 not in self._held:
            return False
        self.excluded.append(f"{name} is {self._held.get(sha256, name)}")
        return True

    def is_new(self, name: str, sha256: str, stored: Stored, sample_rate_hz: int) -> bool:
        """Whether content comes for the first time and sounds like nothing that is held out."""
        if sha256 in self._heard:
            self.duplicates += 1
            return False
        self._heard.add(sha256)
        like, cosine = self._prints.nearest(_as_float(stored), sample_rate_hz)
        if cosine >= SAME:
            self.excluded.append(f"{name} sounds like {like} ({cosine:.2f})")
        return cosine < SAME


class _Found(NamedTuple):
    """An excerpt on its way into the corpus, with its file's content."""

    name: str
    sha256: str
    stored: Stored


def _recorded(
    places: dict[str, Path],
    without: dict[str, str],
    sieve: _Sieve,
    sample_rate_hz: int,
    seed: int,
    progress: Progress,
) -> Iterator[tuple[str, Stored]]:
    """Iterate over the packages' sound files, ordered by package and path."""
    for done, (package, place) in enumerate(places.items()):
        progress(f"sounds of {package}", done, len(places))
        try:
            files = _files(place, without.get(package, ""), sieve)
            decoded = list(_decoded(package, files, sieve, sample_rate_hz, seed))
        except PackageError as error:
            sieve.skipped.append(f"package {package}: {error}")
            continue
        for name, sha256, stored in sorted(decoded, key=lambda found: found.name):
            if sieve.is_new(name, sha256, stored, sample_rate_hz):
                yield name, stored
    progress("sounds", len(places), len(places))


def _decoded(
    package: str,
    files: Iterable[tuple[str, bytes]],
    sieve: _Sieve,
    sample_rate_hz: int,
    seed: int,
) -> Iterator[_Found]:
    """Decode a package's sound files; what gives no sound is skipped."""
    for path, data in files:
        name = f"{package}:{path}"
        try:
            whole, rate_hz = decode_sound(data, name)
        except RecordingError as error:
            sieve.skipped.append(str(error))
            continue
        sha256 = content_sha256(data, "sound")
        if sieve.holds_out(name, sha256):
            continue
        rng = np.random.default_rng((seed, *name.encode()))
        samples = _excerpt(whole, rate_hz, rng, sample_rate_hz)
        if fault := _fault(samples, sample_rate_hz):
            sieve.skipped.append(f"{name} {fault}")
        else:
            yield _Found(name, sha256, _as_stored(samples))


def _files(place: Path, without: str, sieve: _Sieve) -> Iterator[tuple[str, bytes]]:
    """Iterate over a package's sound files, those in bundles too."""
    for path, data in each_file(place, SUFFIXES + BUNDLES):
        if without and without in path:
            continue
        if not path.lower().endswith(BUNDLES):
            yield path, data
            continue
        try:
            yield from each_entry(data, path, SUFFIXES)
        except PackageError as error:
            sieve.skipped.append(str(error))


def _excerpt(samples: Sound, rate_hz: int, rng: np.random.Generator, sample_rate_hz: int) -> Sound:
    """Draw a stretch, again a few times where it holds less than a tenth of the usual level."""
    n = round(EXCERPT_S * rate_hz)
    if len(samples) > n:
        starts = rng.integers(len(samples) - n + 1, size=5)
        drawn = [samples[start : start + n] for start in starts]
        usual = _level(samples)
        loud = (part for part in drawn if _level(part) >= 0.1 * usual)
        samples = faded(next(loud, drawn[-1]), rate_hz)
    return samples if rate_hz == sample_rate_hz else soxr.resample(samples, rate_hz, sample_rate_hz)


def _fault(samples: Sound, sample_rate_hz: int) -> str:
    """Say why samples are no sound to learn from; nothing where they are one."""
    if len(samples) < SHORTEST_S * sample_rate_hz:
        return f"lasts {len(samples) / sample_rate_hz:.3f} s, less than {SHORTEST_S} s"
    if not np.isfinite(samples).all():
        return "holds numbers that are not finite"
    return "is silent" if float(np.abs(samples).max()) < _SILENT else ""


def _played(
    fonts: Sequence[Item],
    found: dict[str, Package],
    sieve: _Sieve,
    sample_rate_hz: int,
    seed: int,
    progress: Progress,
) -> Iterator[tuple[str, Stored]]:
    """Iterate over random melodies on all programs of the SoundFonts, and rhythms on the drums."""
    for item in fonts:
        font = SoundFont(found[item.package].read(item.path), item.path.rpartition("/")[2])
        for number in range(129):
            progress(f"melodies of {item.package}", number, 129)
            drums = number == 128
            try:
                program = (
                    font.program(0, bank=_DRUM_CHANNEL_BANK) if drums else font.program(number)
                )
            except SoundFontError as error:
                sieve.skipped.append(str(error))
                continue
            category = "drum_kit" if drums else ""
            player = Instrument(program.name, category, program, _NOTES, sample_rate_hz)
            for count in range(_MELODIES):
                name = f"{item.package}:{number + 1} {program.name} melody {count}"
                rng = np.random.default_rng((seed, *name.encode()))
                samples = player.phrase(rng, _MELODY_S)
                if fault := _fault(samples, sample_rate_hz):
                    sieve.skipped.append(f"{name} {fault}")
                else:
                    yield name, _as_stored(samples)


def _as_float(stored: Stored) -> Sound:
    return stored.astype(np.float32) / np.float32(32768)


def _as_stored(samples: Sound) -> Stored:
    peak = float(np.abs(samples).max())
    return np.round(samples * np.float32(0.9 * 32768 / peak)).astype(np.int16)


def _level(samples: Sound) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


class _Store:
    """A corpus on disk: all samples one after the other, and an index that is written last."""

    def __init__(self, folder: Path, key: str) -> None:
        self._samples = folder / f"{key}.pcm"
        self._index = folder / f"{key}.json"

    def is_whole(self) -> bool:
        return self._index.is_file()

    def write(self, excerpts: Iterable[tuple[str, Stored]], sieve: _Sieve) -> None:
        """Write all excerpts, then what the sieve kept back."""
        self._samples.parent.mkdir(parents=True, exist_ok=True)
        names, ends, digest = list[str](), [0], hashlib.sha256()
        aside = self._samples.with_suffix(".part")
        with aside.open("wb") as file:
            for name, stored in excerpts:
                data = stored.astype("<i2").tobytes()
                file.write(data)
                digest.update(f"{name}\n{len(stored)}\n".encode() + data)
                names.append(name)
                ends.append(ends[-1] + len(stored))
        aside.replace(self._samples)
        index = {
            "id": digest.hexdigest()[:16],
            "names": names,
            "ends": ends,
            "skipped": sieve.skipped,
            "excluded": sieve.excluded,
            "duplicates": sieve.duplicates,
        }
        aside.write_text(json.dumps(index, indent=1), encoding="utf-8")
        aside.replace(self._index)

    def read(self, sample_rate_hz: int, missing: Sequence[str]) -> Corpus:
        index = json.loads(self._index.read_text(encoding="utf-8"))
        ends = index["ends"]
        samples = np.memmap(self._samples, "<i2", "r") if ends[-1] else np.empty(0, "<i2")
        return Corpus(
            index["id"],
            [
                Excerpt(name, samples[start:end], sample_rate_hz)
                for name, (start, end) in zip(index["names"], pairwise(ends), strict=True)
            ],
            (*missing, *index["skipped"]),
            tuple(index["excluded"]),
            index["duplicates"],
        )

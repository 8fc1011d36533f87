"""What a sample shows: objects with a voice each, set side by side before a background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import soxr
from numpy.typing import NDArray
from PIL import Image

from .catalogue import Item, load, verified, wanted
from .packages import Package, Progress, obtain, quiet
from .pictures import read_background, read_cutout
from .scenes import Actor, Scene, cast_actor, draw_motion
from .sounds import perform, read_sources
from .toydrawings import draw_background, draw_object
from .toysounds import gated, synthesise
from .toyworld import CATEGORIES

Split = Literal["train", "val", "test"]
SOUND_RATE_HZ = 48_000
_SYNTHESIS_RATE_HZ = 16_000
SAMPLE_PACKAGES = ("gcompris-qt-data", "qabcs-data")
"""The Debian packages that a sample of Open-AVS is made of: 78 MB of the data set's 800."""
LIKELY_CATEGORIES: tuple[str, ...] = ("piano", "train")
"""Categories that eye and ear tell apart at once, and whose photos come with a matte."""


@dataclass(frozen=True, slots=True)
class SampleObject:
    """An object of a sample and where it comes from.

    Attributes:
        category: its class.
        cutout: provenance of its picture.
        cutout_split: split of Open-AVS whose pictures hold it; ``none`` for a toy, which is new
            with every seed.
        recording: provenance of its sound.
        recording_split: the same of its sound.
        turns_s: when it is meant to sound: (start, end) in seconds.
    """

    category: str
    cutout: str
    cutout_split: str
    recording: str
    recording_split: str
    turns_s: tuple[tuple[float, float], ...]

    @property
    def split(self) -> str:
        """Where it comes from, in a word, or in two where picture and sound differ."""
        if self.cutout_split == self.recording_split:
            return self.cutout_split
        return f"{self.cutout_split} picture, {self.recording_split} sound"


@dataclass(frozen=True, slots=True, eq=False)
class Cast:
    """A scene and the sound of each of its objects.

    Attributes:
        scene: what is seen.
        stems: float32 (n,) for each object at `SOUND_RATE_HZ`; silent outside of its turns.
        objects: what they are, in the scene's order.
        background: provenance of the background.
    """

    scene: Scene
    stems: tuple[NDArray[np.float32], ...]
    objects: tuple[SampleObject, ...]
    background: str


def turns(count: int, seconds: float) -> list[tuple[float, float]]:
    """When each of ``count`` objects sounds.

    The time is cut into ``count + 1`` equal turns, of which the last but one is silent.

    Args:
        count: objects, at least 1.
        seconds: length of the whole.

    Returns:
        (start, end) in seconds of each object.
    """
    turn_s = seconds / (count + 1)
    return [(slot * turn_s, (slot + 1) * turn_s) for slot in (*range(count - 1), count)]


def toy_cast(
    seed: int, seconds: float, size_px: tuple[int, int], categories: Sequence[str] = ()
) -> Cast:
    """Draws and synthesises a cast.

    Args:
        seed: decides all that is not given.
        seconds: length of the sample.
        size_px: (width, height) of its pictures.
        categories: two or three of the toy world's; none draws three.

    Raises:
        ValueError: other categories, or another number of them.
    """
    rng = np.random.default_rng([seed, 7])
    names = _chosen(rng, categories, CATEGORIES)
    spans = _shuffled_turns(rng, len(names), seconds)
    cutouts = [draw_object(name, rng) for name in names]
    high = round(size_px[1] * 1.25)
    backdrop = draw_background(rng, (round(high * size_px[0] / size_px[1]), high))
    stems: list[NDArray[np.float32]] = []
    for name, span in zip(names, spans, strict=True):
        voice = synthesise(name, rng, seconds, _SYNTHESIS_RATE_HZ)
        stems.append(gated(_resampled(voice, _SYNTHESIS_RATE_HZ), (span,), SOUND_RATE_HZ))
    drawn, heard = f"drawn from seed {seed}", f"synthesised from seed {seed}"
    objects = tuple(
        SampleObject(name, drawn, "none", heard, "none", (span,))
        for name, span in zip(names, spans, strict=True)
    )
    return Cast(_stage(rng, names, cutouts, backdrop, size_px), tuple(stems), objects, drawn)


def openavs_cast(
    seed: int,
    seconds: float,
    size_px: tuple[int, int],
    categories: Sequence[str] = (),
    *,
    cutout_split: Split = "train",
    recording_split: Split = "test",
    packages: Path | None = None,
    progress: Progress = quiet,
) -> Cast:
    """Composes a cast of photos and recordings.

    The background belongs to the split of the recordings, so the defaults are the condition of
    Open-AVS's ``test``: things that training has seen, in places and with sounds that it has not.

    Args:
        seed: decides all that is not given.
        seconds: length of the sample.
        size_px: (width, height) of its pictures.
        categories: two or three of Open-AVS's; none shows `LIKELY_CATEGORIES`.
        cutout_split: whose pictures; ``test`` are the ones of ``test_novel``, seen by no training.
        recording_split: whose recordings; General MIDI takes are left out.
        packages: folder with Debian packages; None asks apt.
        progress: told of packages and content.

    Raises:
        ValueError: the splits hold no such categories.
        PackageError: a package cannot be had.
        ContentError: content differs from the catalogue's pins.
    """
    rng = np.random.default_rng([seed, 9])
    items = [item for item in load() if item.package in SAMPLE_PACKAGES]
    pictures = [i for i in items if i.kind == "image" and cutout_split in i.splits]
    takes = [i for i in items if i.kind == "sound" and recording_split in i.splits]
    backdrops = [i for i in items if i.kind == "background" and recording_split in i.splits]
    both = {item.category for item in pictures} & {item.category for item in takes}
    likely = both & set(LIKELY_CATEGORIES)
    if len(both) < 2:
        raise ValueError(
            f"{', '.join(SAMPLE_PACKAGES)} picture and record {sorted(both)} in the splits "
            f"{cutout_split} and {recording_split}; a sample needs two, so choose other splits"
        )
    names = _chosen(rng, categories, sorted(both if categories or len(likely) < 2 else likely))
    spans = _shuffled_turns(rng, len(names), seconds)
    chosen = [_one(rng, pictures, name) for name in names]
    recorded = [_one(rng, takes, name) for name in names]
    backdrop = backdrops[int(rng.integers(len(backdrops)))]
    content = [*chosen, *recorded, backdrop]
    found = obtain(wanted(content), packages, progress=progress)
    verified(content, found, progress=progress)
    cutouts = [_cutout(item, found) for item in chosen]
    photo = read_background(
        found[backdrop.package].read(backdrop.path), backdrop.key, short_side_px=size_px[1] * 5 // 4
    )
    stems = tuple(
        _performed(item, found, recording_split, rng, seconds, span)
        for item, span in zip(recorded, spans, strict=True)
    )
    objects = tuple(
        SampleObject(name, picture.key, cutout_split, take.key, recording_split, (span,))
        for name, picture, take, span in zip(names, chosen, recorded, spans, strict=True)
    )
    scene = _stage(rng, names, cutouts, Image.fromarray(photo.rgb), size_px)
    return Cast(scene, stems, objects, backdrop.key)


def _chosen(
    rng: np.random.Generator, categories: Sequence[str], allowed: Sequence[str]
) -> list[str]:
    if not categories:
        return [str(name) for name in rng.permutation(allowed)[:3]]
    distinct = set(categories)
    if len(categories) not in {2, 3} or len(distinct) < len(categories) or distinct - set(allowed):
        raise ValueError(
            f"categories are {', '.join(categories)}; give two or three different of "
            f"{', '.join(allowed)}"
        )
    return list(categories)


def _shuffled_turns(
    rng: np.random.Generator, count: int, seconds: float
) -> list[tuple[float, float]]:
    in_order = turns(count, seconds)
    return [in_order[i] for i in rng.permutation(count)]


def _one(rng: np.random.Generator, items: Sequence[Item], category: str) -> Item:
    own = [item for item in items if item.category == category]
    return own[int(rng.integers(len(own)))]


def _cutout(item: Item, found: dict[str, Package]) -> Image.Image:
    data = found[item.package].read(item.path)
    return Image.fromarray(read_cutout(data, item.key, item.category, kind=item.kind).rgba)


def _performed(
    item: Item,
    found: dict[str, Package],
    split: Split,
    rng: np.random.Generator,
    seconds: float,
    span: tuple[float, float],
) -> NDArray[np.float32]:
    (source,) = read_sources([item], found, split, sample_rate_hz=32_000)
    stem = perform(source, rng, seconds, [span])
    return gated(_resampled(stem / np.float32(0.1), 32_000), (span,), SOUND_RATE_HZ)


def _resampled(samples: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    return np.asarray(soxr.resample(samples, rate_hz, SOUND_RATE_HZ), dtype=np.float32)


def _stage(
    rng: np.random.Generator,
    names: Sequence[str],
    cutouts: Sequence[Image.Image],
    backdrop: Image.Image,
    size_px: tuple[int, int],
) -> Scene:
    """Sets the objects side by side, large, none behind another."""
    aspect = size_px[0] / size_px[1]
    share = 1 / len(names)
    actors: list[Actor] = []
    for index, (name, cutout) in enumerate(zip(names, cutouts, strict=True)):
        ratio = cutout.width / cutout.height
        size = min(float(rng.uniform(0.5, 0.62)), 0.82 * aspect * share / ratio)
        x = (index + 0.5) * share + float(rng.uniform(-0.02, 0.02))
        motion = draw_motion(rng, x, float(rng.uniform(0.52, 0.62)), 6.0)
        calm = replace(motion, sway_x=min(motion.sway_x, 0.12 * share))
        actors.append(cast_actor(name, cutout, size, calm))
    return Scene(backdrop, tuple(actors), aspect, draw_motion(rng, 0.5, 0.5, 0.0))

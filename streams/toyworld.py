"""The toy world: drawn objects with synthesised voices, labeled exactly, needing nothing.

It follows Open-AVS's recipe, so that only the sound decides: most single-source clips hold silent
objects of sounding categories, each of these scenes has a twin with the same pictures in which
another object sounds, some clips have no source in view, and objects that sound move like those
that do not. It is for tests, for demonstrations where no photos can be had, and a small part of
what the shipped weights were trained on; results on it say nothing about AVSBench.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np
import soxr
from numpy.typing import NDArray

from .avsbench import frame_times_s, labeled_clip, windows_at
from .avslayout import (
    FRAMES_PER_CLIP,
    ClipFiles,
    Kind,
    Row,
    Subset,
    write_clip,
    write_table,
)
from .clips import LabeledClip
from .scenes import Scene, cast_actor, draw_motion, draw_places
from .toydrawings import DRAWINGS, draw_background, draw_object, sensor_noise
from .toysounds import gated, pink_noise, synthesise

CATEGORIES: tuple[str, ...] = tuple(sorted(DRAWINGS))
SAMPLE_RATE_HZ = 16_000
CLIP_S = 5
NEGATIVE_SHARE = 0.08
DISTRACTOR_SHARE = 0.75
Spans = tuple[tuple[float, float], ...]
"""When something sounds: (start, end) in seconds."""
_ASPECTS = (1.0, 4 / 3, 16 / 9)


@dataclass(frozen=True, slots=True, eq=False)
class ToyClip:
    """A labeled clip of the toy world.

    Attributes:
        frames: uint8 (5, H, W, 3) RGB.
        masks: uint8 (5, H, W) in {0, 1}: what sounds in the second that ends at each picture.
        sound: float32 (80000,) mono at 16 kHz.
        category: the sounding class; of a negative, a silent one in view; None in MS3.
        categories: the classes that sound in view.
        objects: the classes in view, back to front.
        object_masks: bool (A, 5, H, W), the visible pixels of each object.
        sounding: bool (A, 5): which object sounds in the second of which picture.
        kind: how it was composed.
        clip_id: made of the subset, the seed and the variant.
    """

    frames: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    sound: NDArray[np.float32]
    category: str | None
    categories: tuple[str, ...]
    objects: tuple[str, ...]
    object_masks: NDArray[np.bool_]
    sounding: NDArray[np.bool_]
    kind: Kind
    clip_id: str

    def windows(self, window_s: float = 1.0, sample_rate_hz: int = 32_000) -> NDArray[np.float32]:
        """The sound that ends at each picture, float32 (5, n); see `avsbench.windows_at`."""
        sound = self.sound
        if sample_rate_hz != SAMPLE_RATE_HZ:
            resampled = soxr.resample(sound, SAMPLE_RATE_HZ, sample_rate_hz)
            sound = np.asarray(resampled, dtype=np.float32)
        return windows_at(sound, frame_times_s(), window_s, sample_rate_hz)

    def labeled_clip(self, window_s: float = 1.0, sample_rate_hz: int = 32_000) -> LabeledClip:
        """The clip as the value that travels; a negative's has no class, as nothing sounds."""
        return labeled_clip(
            self.frames,
            self.masks,
            self.windows(window_s, sample_rate_hz),
            frame_times_s(),
            sample_rate_hz=sample_rate_hz,
            clip_id=self.clip_id,
            provenance="toy world, drawn and synthesised",
            category=None if self.kind == "negative" else self.category,
        )


def draw_scene(
    rng: np.random.Generator,
    categories: tuple[str, ...],
    *,
    aspect: float,
    background_px: tuple[int, int] = (320, 320),
) -> Scene:
    """Draws one object of each category over a background.

    Args:
        rng: decides everything else.
        categories: the objects, back to front.
        aspect: width by height of the world.
        background_px: (width, height) of the background, which a picture shows most of.

    Returns:
        The scene, to be drawn at any time and size.
    """
    low, high = (0.38, 0.75) if len(categories) == 1 else (0.30, 0.55)
    sizes = [float(rng.uniform(low, high)) for _ in categories]
    places = draw_places(rng, sizes, aspect)
    actors = tuple(
        cast_actor(category, draw_object(category, rng), size, draw_motion(rng, x, y, 18.0))
        for category, size, (x, y) in zip(categories, sizes, places, strict=True)
    )
    pan = draw_motion(rng, 0.5, 0.5, 0.0)
    return Scene(draw_background(rng, background_px), actors, aspect, pan)


def make_clip(
    seed: int,
    subset: Subset = "s4",
    *,
    size_px: int = 224,
    kind: Kind | None = None,
    cast: tuple[str, ...] = (),
    variant: Literal[0, 1] = 0,
) -> ToyClip:
    """Makes a clip; equal arguments give equal clips.

    Args:
        seed: decides everything that the other arguments leave open.
        subset: ``s4`` (at most one object sounds, in all five seconds) or ``ms3`` (two or three
            sound, each in a span of whole seconds).
        size_px: width and height of the pictures. Their world may be wider: it is squashed.
        kind: of an S4 clip; None draws one. ``swap`` scenes are also ``distractor`` scenes.
        cast: the first one or two objects of an S4 clip, where they are not to be drawn. The first
            sounds in variant 0 and the second in variant 1.
        variant: of a ``swap`` scene: which of its first two objects sounds. The pictures are the
            same to the last bit.

    Raises:
        ValueError: an argument outside of what is allowed.
    """
    _check_request(subset, size_px, kind, cast, variant)
    rng = np.random.default_rng([seed, 0])
    if subset == "ms3":
        kind, roles = "plain", _draw_ms3_roles(rng)
    else:
        kind = kind or _draw_kind(rng)
        roles = _draw_s4_roles(rng, kind, cast, variant)
    label = roles[variant].category if subset == "s4" else None
    roles = [roles[i] for i in rng.permutation(len(roles))]
    aspect = _ASPECTS[int(rng.integers(len(_ASPECTS)))]
    scene = draw_scene(rng, tuple(role.category for role in roles), aspect=aspect)
    frames, object_masks = _draw_pictures(scene, size_px, rng)
    sounding = np.array([role.sounding() for role in roles])
    return ToyClip(
        frames=frames,
        masks=np.any(object_masks & sounding[:, :, None, None], axis=0).astype(np.uint8),
        sound=_mix(np.random.default_rng([seed, variant, 1]), roles, kind),
        category=label,
        categories=tuple(role.category for role in roles if role.spans_s),
        objects=tuple(role.category for role in roles),
        object_masks=object_masks,
        sounding=sounding,
        kind=kind,
        clip_id=f"toy-{subset}-{kind}-{seed}-{variant}-{'-'.join(cast) or 'any'}-{size_px}px",
    )


@dataclass(frozen=True, slots=True)
class _Role:
    """An object and when it sounds."""

    category: str
    spans_s: Spans = ()

    def sounding(self) -> list[bool]:
        """Whether it sounds in each second of a clip."""
        return [any(a <= k < b for a, b in self.spans_s) for k in range(FRAMES_PER_CLIP)]


def _check_request(
    subset: Subset, size_px: int, kind: Kind | None, cast: tuple[str, ...], variant: int
) -> None:
    if size_px < 8:
        raise ValueError(f"size_px is {size_px}; a picture has at least 8")
    if len(cast) > 2 or len(set(cast)) < len(cast) or not set(cast) <= set(CATEGORIES):
        raise ValueError(f"cast is {cast}; it names up to two different of {', '.join(CATEGORIES)}")
    if subset == "ms3" and (kind not in {None, "plain"} or cast):
        raise ValueError("an ms3 clip draws its own kind and categories; leave both out")
    if len(cast) == 2 and kind not in {"swap", "distractor"}:
        raise ValueError(f"a clip of kind {kind!r} cannot be given two objects; 'swap' can")
    if variant not in {0, 1} or (variant == 1 and kind != "swap"):
        raise ValueError(
            f"variant is {variant} of kind {kind!r}; it is 0, or 1 of a scene of kind 'swap'"
        )


def _draw_kind(rng: np.random.Generator) -> Kind:
    if rng.random() < NEGATIVE_SHARE:
        return "negative"
    return "distractor" if rng.random() < DISTRACTOR_SHARE else "plain"


def _draw_s4_roles(
    rng: np.random.Generator, kind: Kind, cast: tuple[str, ...], variant: int
) -> list[_Role]:
    others = [str(name) for name in rng.permutation(CATEGORIES) if name not in cast]
    silent = int(rng.integers(1, 3))
    if kind == "plain":
        silent = 0
    elif kind == "negative":
        silent -= 1
    roles = [_Role(name) for name in [*cast, *others][: 1 + silent]]
    if kind != "negative":
        roles[variant] = _Role(roles[variant].category, ((0.0, float(CLIP_S)),))
    return roles


def _draw_ms3_roles(rng: np.random.Generator) -> list[_Role]:
    sounding, silent = int(rng.integers(2, 4)), int(rng.integers(0, 2))
    names = [str(name) for name in rng.permutation(CATEGORIES)[: sounding + silent]]
    roles: list[_Role] = []
    for index, name in enumerate(names):
        start, end = np.sort(rng.permutation(CLIP_S + 1)[:2])
        roles.append(_Role(name, ((float(start), float(end)),) if index < sounding else ()))
    return roles


def _draw_pictures(
    scene: Scene, size_px: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draws the five pictures, uint8 (5, H, W, 3), and objects, bool (A, 5, H, W)."""
    level = float(rng.uniform(0, 6))
    drawn = [scene.draw(float(time_s), (size_px, size_px)) for time_s in frame_times_s()]
    frames = np.stack([sensor_noise(picture, level, rng) for picture, _ in drawn])
    return frames, np.stack([masks for _, masks in drawn], axis=1)


def _mix(rng: np.random.Generator, roles: list[_Role], kind: Kind) -> NDArray[np.float32]:
    """The clip's sound: stems at −26…−16 dBFS and at most 6 dB apart, over pink noise."""
    loudest_db = float(rng.uniform(-26, -16))
    mix = pink_noise(rng, CLIP_S * SAMPLE_RATE_HZ) * np.float32(_gain(rng.uniform(-58, -38)))
    if kind == "negative":
        return np.clip(mix + _off_screen(rng, roles, loudest_db), -1.0, 1.0)
    level_db = loudest_db
    for role in roles:
        if role.spans_s:
            stem = synthesise(role.category, rng, float(CLIP_S), SAMPLE_RATE_HZ)
            mix += gated(stem, role.spans_s, SAMPLE_RATE_HZ) * np.float32(_gain(level_db))
            level_db = loudest_db - float(rng.uniform(0, 6))
    return np.clip(mix, -1.0, 1.0)


def _off_screen(
    rng: np.random.Generator, roles: list[_Role], level_db: float
) -> NDArray[np.float32]:
    """What a negative sounds like: nothing, loud noise, or an object that is not in view."""
    choice = int(rng.integers(3))
    gain = np.float32(_gain(level_db))
    if choice == 0:
        return np.zeros(CLIP_S * SAMPLE_RATE_HZ, dtype=np.float32)
    if choice == 1:
        return pink_noise(rng, CLIP_S * SAMPLE_RATE_HZ) * gain
    in_view = {role.category for role in roles}
    absent = str(rng.choice([name for name in CATEGORIES if name not in in_view]))
    return synthesise(absent, rng, float(CLIP_S), SAMPLE_RATE_HZ) * gain


def _gain(decibels: float) -> float:
    return float(10 ** (decibels / 20))


def write_dataset(
    root: Path,
    counts: Mapping[str, int],
    seed: int = 0,
    *,
    ms3_counts: Mapping[str, int] | None = None,
    size_px: int = 224,
) -> Path:
    """Writes a toy data set in AVSBench's layout, with our extra columns and ``dataset.json``.

    Three quarters of a category's S4 clips come in swap pairs; the rest are alone or negative.

    Args:
        root: a folder that does not exist or is empty.
        counts: S4 clips of each category by split (``train``, ``val``, ``test``).
        seed: decides all; equal arguments give equal files.
        ms3_counts: MS3 clips by split; none where it is left out.
        size_px: width and height of the pictures.

    Returns:
        ``root``.

    Raises:
        FileExistsError: there is something in ``root``.
    """
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root}: is not empty; give a new folder, or empty this one")
    s4_rows = [
        row
        for split, count in counts.items()
        for category in CATEGORIES
        for row in _write_s4(root, split, category, count, seed, size_px)
    ]
    if s4_rows:
        write_table(root, "s4", s4_rows)
    ms3_rows = [
        _write_ms3(root, split, index, seed, size_px)
        for split, count in (ms3_counts or {}).items()
        for index in range(count)
    ]
    if ms3_rows:
        write_table(root, "ms3", ms3_rows)
    manifest = {
        "id": f"toy-world-1-{seed}-{size_px}px",
        "seed": seed,
        "counts": {
            **{f"s4 {split}": len(CATEGORIES) * count for split, count in counts.items()},
            **{f"ms3 {split}": count for split, count in (ms3_counts or {}).items()},
        },
    }
    (root / "dataset.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return root


def _clip_seed(seed: int, split: str, index: int, category: str = "") -> int:
    """A seed of its own for each clip of a data set."""
    return int.from_bytes(blake2b(f"{seed}/{split}/{category}/{index}".encode()).digest()[:6])


def _write_s4(
    root: Path, split: str, category: str, count: int, seed: int, size_px: int
) -> list[Row]:
    """Writes the clips that begin with one category.

    The category leads as many swap pairs as it is the rival in, so each category gets ``count``.
    """
    pairs = min(round(count * DISTRACTOR_SHARE / 2), count // 2)
    negatives = min(round(count * NEGATIVE_SHARE), count - 2 * pairs)
    rows: list[Row] = []
    for index in range(count - pairs):
        clip_seed = _clip_seed(seed, split, index, category)
        name = f"{category}_{split}_{index:04d}"
        if index < pairs:
            step = 1 + index % (len(CATEGORIES) - 1)
            rival = CATEGORIES[(CATEGORIES.index(category) + step) % len(CATEGORIES)]
            cast = (category, rival)
            one = make_clip(clip_seed, size_px=size_px, kind="swap", cast=cast, variant=0)
            other = make_clip(clip_seed, size_px=size_px, kind="swap", cast=cast, variant=1)
            first, second = f"{name}_a", f"{name}_b"
            rows.append(_write(root, "s4", split, first, one, pair=second))
            rows.append(_write(root, "s4", split, second, other, pair=first))
        else:
            kind = "negative" if index < pairs + negatives else "plain"
            clip = make_clip(clip_seed, size_px=size_px, kind=kind, cast=(category,))
            rows.append(_write(root, "s4", split, name, clip))
    return rows


def _write_ms3(root: Path, split: str, index: int, seed: int, size_px: int) -> Row:
    clip = make_clip(_clip_seed(seed, split, index), "ms3", size_px=size_px)
    return _write(root, "ms3", split, f"toy_{split}_{index:04d}", clip)


def _write(
    root: Path, subset: Subset, split: str, name: str, clip: ToyClip, pair: str | None = None
) -> Row:
    row = Row(
        name=name,
        split=split,
        category=clip.category,
        categories=clip.categories,
        kind=clip.kind,
        pair=pair,
        recording=clip.clip_id,
        cutout=clip.clip_id,
    )
    write_clip(root, subset, ClipFiles(row, clip.frames, clip.masks, clip.sound, SAMPLE_RATE_HZ))
    return row

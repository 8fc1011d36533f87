"""Open-AVS: photo collages with sound and known masks, in AVSBench's layout, composed here.

Everything follows from one seed: `planned` lists the clips, `composed` makes one of them, `build`
writes them all. A clip depends on its plan and the materials alone, so neither the number of
workers nor an interruption changes a byte.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from .avslayout import ClipFiles, Row, subset_folder, write_clip, write_table
from .avsplan import RECIPE, Plan, Size, generator, planned
from .catalogue import Item, load, verified, wanted
from .packages import Package, Progress, obtain, quiet
from .pictures import Background, Cutout, Scene, read_background, read_cutout, stage
from .sounds import Sound, Source, mixed, noise, perform, read_sources

_T = TypeVar("_T")

FRAME_TIMES_S = tuple(second + 0.9375 for second in range(5))
DURATION_S = 5.0
SAMPLE_RATE_HZ = 16_000


class BuildError(RuntimeError):
    """A data set that cannot be composed where it was asked for: why, what to do."""


@dataclass(frozen=True, slots=True, eq=False)
class Materials:
    """All that clips are composed of, decoded.

    Attributes:
        cutouts: by pool (``train``, ``val``, ``test``, ``novel``), then by category.
        silent: things that never sound, by split.
        backgrounds: by split.
        sources: what sounds, by split, then by category.
    """

    cutouts: dict[str, dict[str, list[Cutout]]]
    silent: dict[str, list[Cutout]]
    backgrounds: dict[str, list[Background]]
    sources: dict[str, dict[str, list[Source]]]


@dataclass(frozen=True, slots=True)
class Built:
    """What `build` made: its folder, its id, and the number of clips by subset and split."""

    root: Path
    dataset_id: str
    counts: dict[str, int]


def build(
    out: Path,
    size: Size,
    *,
    seed: int = 0,
    packages: Path | None = None,
    workers: int | None = None,
    accept_content: bool = False,
    cache: Path | None = None,
    catalogue: Path | None = None,
    progress: Progress = quiet,
) -> Built:
    """Compose a data set; a build that was cut short is continued, a finished one left as it is.

    Args:
        out: the data set's folder: new, or one that the same call began.
        size: how many clips (see `PER_CATEGORY` and `SEVERAL`).
        seed: another seed gives other clips of the same content.
        packages: folder with Debian packages; None asks apt.
        workers: processes; None is one per core.
        accept_content: compose from content that differs from the pinned one; the id tells.
        cache: folder for packages; by default the user's.
        catalogue: what to compose of; None is what ships.
        progress: told of packages, content and clips.

    Raises:
        PackageError: a package cannot be had.
        ContentError: content differs from the catalogue's pins.
        BuildError: ``out`` holds something else.
    """
    items = load(catalogue)
    found = obtain(wanted(items), packages, cache=cache, progress=progress)
    hashes = verified(items, found, accept=accept_content, progress=progress)
    manifest = _manifest(hashes, size, seed, found)
    if counts := _claim(out, manifest):
        return Built(out, str(manifest["id"]), counts)
    materials = read_materials(items, found, progress=progress)
    plans = planned(
        size,
        seed,
        categories=sorted(materials.cutouts["train"]),
        novel=sorted(materials.cutouts["novel"]),
    )
    rows = _compose_all(out, plans, materials, workers or os.cpu_count() or 1, progress)
    counts = dict[str, int]()
    for subset in ("s4", "ms3"):
        chosen = [row for plan, row in zip(plans, rows, strict=True) if plan.subset == subset]
        write_table(out, subset, chosen)
        for row in chosen:
            split = "test_novel" if row.novel else row.split
            counts[f"{subset} {split}"] = counts.get(f"{subset} {split}", 0) + 1
    shutil.rmtree(out / ".building")
    _write_json(out / "dataset.json", {**manifest, "counts": counts})
    return Built(out, str(manifest["id"]), counts)


def read_materials(
    items: Sequence[Item], found: dict[str, Package], *, progress: Progress = quiet
) -> Materials:
    """Decode all pictures and sounds of the catalogue."""
    pictures = [item for item in items if item.kind.startswith("image")]
    pools = ("train", "val", "novel", "extra")
    cutouts: dict[str, dict[str, list[Cutout]]] = {pool: {} for pool in pools}
    for done, item in enumerate(pictures):
        progress("pictures", done, len(pictures))
        pool = {"test": "novel"}.get(item.splits[0], item.splits[0])
        data = found[item.package].read(item.path)
        cutout = read_cutout(data, item.key, item.category, kind=item.kind)
        cutouts[pool].setdefault(item.category, []).append(cutout)
    progress("pictures", len(pictures), len(pictures))
    cutouts["val"] = {**cutouts["train"], **cutouts["val"]}
    cutouts["test"] = cutouts["train"]
    extra = cutouts.pop("extra")
    cutouts["train"] = {name: own + extra.get(name, []) for name, own in cutouts["train"].items()}
    silent: dict[str, list[Cutout]] = {"train": [], "val": [], "test": []}
    backgrounds: dict[str, list[Background]] = {"train": [], "val": [], "test": []}
    for item in items:
        if item.kind == "background":
            data = found[item.package].read(item.path)
            backgrounds[item.splits[0]].append(read_background(data, item.key))
        elif item.kind == "distractor":
            data = found[item.package].read(item.path)
            silent[item.splits[0]].append(read_cutout(data, item.key))
    sources: dict[str, dict[str, list[Source]]] = {}
    for done, split in enumerate(("train", "val", "test")):
        progress("sounds", done, 3)
        by_category = sources.setdefault(split, {})
        for source in read_sources(items, found, split, sample_rate_hz=SAMPLE_RATE_HZ):
            by_category.setdefault(source.category, []).append(source)
    progress("sounds", 3, 3)
    return Materials(cutouts, silent, backgrounds, sources)


def composed(plan: Plan, materials: Materials) -> ClipFiles:
    """Compose one clip: five frames, their masks, five seconds of sound."""
    scene, places = staged(plan, materials)
    pictures = [scene.frame(t_s) for t_s in FRAME_TIMES_S]
    frames = np.stack([picture.image for picture in pictures])
    masks = np.zeros(frames.shape[:3], np.uint8)
    for place, spans in zip(places, plan.spans, strict=True):
        for second, picture in enumerate(pictures):
            if any(start <= second < end for start, end in spans):
                masks[second] |= picture.masks[place]
    sound, recordings = _sounding(plan, materials)
    heard = [place for place, spans in zip(places, plan.spans, strict=True) if spans]
    row = replace(
        plan.row,
        recording=";".join(recordings),
        cutout=";".join(scene.cutouts[at].name for at in heard),
    )
    return ClipFiles(row, frames, masks, sound, SAMPLE_RATE_HZ)


def staged(plan: Plan, materials: Materials) -> tuple[Scene, list[int]]:
    """Stage a clip's scene, its objects in random order of depth, so that none of it tells.

    Returns:
        The scene, and for each of the plan's objects its index among the scene's cut-outs.
    """
    rng = generator(plan.scene, "scene")
    pool = materials.cutouts[plan.pool]
    cutouts = [_one(rng, pool[category]) for category in plan.objects]
    silent = materials.silent[plan.row.split]
    if silent and len(cutouts) == 2 and rng.random() < 0.3:
        cutouts.append(_one(rng, silent))
    depth = rng.permutation(len(cutouts))
    background = _one(rng, materials.backgrounds[plan.row.split])
    scene = stage(rng, [cutouts[i] for i in depth], background)
    return scene, [int(place) for place in np.argsort(depth)[: len(plan.objects)]]


def _sounding(plan: Plan, materials: Materials) -> tuple[Sound, list[str]]:
    """Return the clip's sound and the recordings in it."""
    rng = generator(plan.sound, "sound")
    sources = materials.sources[plan.row.split]
    tracks: list[Sound] = []
    names: list[str] = []
    for category, spans in zip(plan.objects, plan.spans, strict=True):
        if spans:
            source = _one(rng, sources[category])
            tracks.append(perform(source, rng, DURATION_S, spans))
            names.append(source.name)
    if plan.row.kind == "negative":
        absent = [category for category in sources if category not in plan.objects]
        what = rng.integers(3)
        if what == 0:
            n = round(DURATION_S * SAMPLE_RATE_HZ)
            tracks.append(np.float32(0.1) * noise(rng, n, tilt=rng.uniform(0, 1)))
            names.append("noise")
        elif what == 1:
            source = _one(rng, sources[_one(rng, absent)])
            tracks.append(perform(source, rng, DURATION_S, [(0, DURATION_S)]))
            names.append(source.name)
    return mixed(tracks, rng, SAMPLE_RATE_HZ, DURATION_S), names


def _one(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    return choices[int(rng.integers(len(choices)))]


def _compose_all(
    out: Path, plans: Sequence[Plan], materials: Materials, workers: int, progress: Progress
) -> list[Row]:
    """Compose the clips that are missing and return all rows in the order of the plans."""
    rows: dict[str, Row] = {}
    missing: list[Plan] = []
    for plan in plans:
        row = _finished(out, plan)
        if row:
            rows[plan.row.name] = row
        else:
            missing.append(plan)
    for done, row in enumerate(_results(out, missing, materials, workers), start=len(rows)):
        progress("clips", done, len(plans))
        rows[row.name] = row
    progress("clips", len(plans), len(plans))
    return [rows[plan.row.name] for plan in plans]


def _results(out: Path, plans: Sequence[Plan], materials: Materials, workers: int) -> Iterable[Row]:
    if workers == 1 or len(plans) < 2:
        return (_write(out, plan, composed(plan, materials)) for plan in plans)
    return _results_of_pool(out, plans, materials, workers)


def _results_of_pool(
    out: Path, plans: Sequence[Plan], materials: Materials, workers: int
) -> Iterator[Row]:
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _begin_worker, (out, materials)
    ) as pool:
        try:
            yield from pool.map(_work, plans, chunksize=4)
        except BrokenProcessPool as error:
            raise BuildError(
                f"a worker process died ({error}), as happens when memory runs out; run the same "
                "command again to go on, with fewer --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_worker: tuple[Path, Materials] | None = None


def _begin_worker(out: Path, materials: Materials) -> None:
    global _worker  # noqa: PLW0603 - a process pool's initializer has no other place to put this
    _worker = (out, materials)


def _work(plan: Plan) -> Row:
    assert _worker is not None  # noqa: S101 - the pool's initializer ran
    out, materials = _worker
    return _write(out, plan, composed(plan, materials))


def _write(out: Path, plan: Plan, clip: ClipFiles) -> Row:
    """Write a clip aside, move its folders into place, then its sound, then the note on it.

    Each move is atomic and the note is last, so a clip with a note is whole.
    """
    try:
        _write_whole(out, plan, clip)
    except OSError as error:
        raise BuildError(
            f"clip {plan.row.name} cannot be written below {out} ({error}); free or mend what is "
            "in the way and run the same command again to go on"
        ) from error
    return clip.row


def _write_whole(out: Path, plan: Plan, clip: ClipFiles) -> None:
    with tempfile.TemporaryDirectory(dir=out / ".building") as folder:
        write_clip(Path(folder), plan.subset, clip)
        aside, final = (subset_folder(root, plan.subset) for root in (Path(folder), out))
        for source, target in (
            (aside.frame(clip.row, 1).parent, final.frame(clip.row, 1).parent),
            (aside.mask(clip.row, 1).parent, final.mask(clip.row, 1).parent),
            (aside.sound(clip.row), final.sound(clip.row)),
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                shutil.rmtree(target)
            source.replace(target)
    noted = {"recording": clip.row.recording, "cutout": clip.row.cutout}
    _write_json(_note(out, plan), noted)


def _note(out: Path, plan: Plan) -> Path:
    return out / ".building" / f"{plan.subset} {plan.row.name}.json"


def _finished(out: Path, plan: Plan) -> Row | None:
    """Return a clip's row if an earlier run of this build wrote it."""
    note = _note(out, plan)
    if not note.is_file() or not subset_folder(out, plan.subset).sound(plan.row).is_file():
        return None
    noted = json.loads(note.read_text(encoding="utf-8"))
    return replace(plan.row, recording=noted["recording"], cutout=noted["cutout"])


def _claim(out: Path, manifest: dict[str, object]) -> dict[str, int] | None:
    """Make ``out`` ours: new, or begun by the same call; return the counts of a finished one.

    Raises:
        BuildError: it holds another data set, or other files.
    """
    mark = out / ".building" / "id"
    done = out / "dataset.json"
    if done.is_file():
        found = json.loads(done.read_text(encoding="utf-8"))
        if found.get("id") == manifest["id"]:
            return found["counts"]
        raise BuildError(
            f"{out} holds data set {found.get('id')}; this call makes {manifest['id']}. "
            "Name another folder, or delete that one"
        )
    if mark.is_file():
        found = mark.read_text(encoding="utf-8")
        if found != manifest["id"]:
            raise BuildError(
                f"{out} holds the beginning of data set {found}; this call makes "
                f"{manifest['id']}. Continue it with its own size, seed and packages, or delete it"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BuildError(f"{out} is not empty and no data set of ours; name a new folder")
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(str(manifest["id"]), encoding="utf-8")
    return None


def _manifest(
    hashes: dict[str, str], size: Size, seed: int, found: dict[str, Package]
) -> dict[str, object]:
    """Return what ``dataset.json`` says of the data set before it is composed."""
    named = json.dumps([RECIPE, size, seed, sorted(hashes.items())]).encode()
    return {
        "id": f"open-avs-{size}-{hashlib.sha256(named).hexdigest()[:16]}",
        "name": "Open-AVS",
        "recipe": RECIPE,
        "size": size,
        "seed": seed,
        "packages": {name: package.version for name, package in sorted(found.items())},
        "content": dict(sorted(hashes.items())),
        "note": "Photo collages; results on them are not comparable with AVSBench's.",
    }


def _write_json(path: Path, content: object) -> None:
    aside = path.with_suffix(f".{os.getpid()}")
    aside.write_text(json.dumps(content, indent=1), encoding="utf-8")
    aside.replace(path)

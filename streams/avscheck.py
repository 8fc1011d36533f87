"""Checks a data set in AVSBench's layout: is all of it there, and is it what it says it is?

Errors are what breaks reading, training or scoring; warnings are what one should know. Every file
that the tables name is opened and decoded.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image

from .avslayout import (
    FRAMES_PER_CLIP,
    DatasetError,
    Row,
    Subset,
    SubsetFolder,
    find_subset,
    read_manifest,
    read_table,
)
from .avsmedia import opened_picture, read_wave
from .avsreport import Problem, Report, Severity, SubsetReport

FRAME_PX = (224, 224)
SOUND_RATE_HZ = 16_000
SOUND_S = (4.5, 5.6)

AVSBENCH_S4: Mapping[str, tuple[int, int]] = {
    "ambulance_siren": (196, 29),
    "baby_laughter": (91, 14),
    "cap_gun_shooting": (122, 18),
    "cat_meowing": (180, 27),
    "chainsawing_trees": (247, 37),
    "coyote_howling": (62, 9),
    "dog_barking": (260, 39),
    "driving_buses": (149, 22),
    "female_singing": (305, 45),
    "helicopter": (311, 47),
    "horse_clip-clop": (192, 29),
    "lawn_mowing": (81, 12),
    "lions_roaring": (249, 37),
    "male_speech": (222, 34),
    "mynah_bird_singing": (200, 30),
    "playing_acoustic_guitar": (299, 45),
    "playing_glockenspiel": (220, 33),
    "playing_piano": (298, 45),
    "playing_tabla": (276, 41),
    "playing_ukulele": (197, 30),
    "playing_violin": (293, 44),
    "race_car": (205, 31),
    "typing_on_computer_keyboard": (277, 42),
}
"""AVSBench's single-source categories: all clips, test clips (its home page's table and figure)."""
AVSBENCH_SPLITS: Mapping[Subset, Mapping[str, int]] = {
    "s4": {"train": 3452, "val": 740, "test": 740},
    "ms3": {"train": 296, "val": 64, "test": 64},
}


@dataclass(slots=True)
class _Log:
    """Collects problems, and keeps ``limit`` of each kind."""

    limit: int
    totals: Counter[tuple[Severity, str]] = field(default_factory=Counter)
    kept: list[Problem] = field(default_factory=list)

    def add(self, problem: Problem) -> None:
        key = (problem.severity, problem.kind)
        self.totals[key] += 1
        if self.totals[key] <= self.limit:
            self.kept.append(problem)


@dataclass(frozen=True, slots=True)
class _ClipFindings:
    """What the files of one clip showed; digests tell equal pictures and equal sounds."""

    row: Row
    problems: list[Problem]
    masks: int
    empty_masks: int
    picture_digest: bytes | None
    sound_digest: bytes | None


def check(
    root: Path,
    *,
    only: Subset | None = None,
    limit: int = 20,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Checks a data set.

    Args:
        root: the folder that holds ``Single-source`` or ``Multi-sources`` or both.
        only: read this subset alone; None reads those that are there.
        limit: problems of each kind to keep; all are counted.
        workers: threads; None takes two for each processor, at most 16.
        progress: called with the clips done and their number, from this thread.

    Returns:
        The report.

    Raises:
        DatasetError: there is no data set in ``root``, or ``dataset.json`` or a table cannot be
            read.
    """
    began = time.perf_counter()
    subsets: tuple[Subset, ...] = ("s4", "ms3")
    folders = [folder for subset in subsets if (folder := find_subset(root, subset))]
    if not folders:
        raise DatasetError(
            f"{root}: holds neither Single-source/s4_meta_data.csv nor "
            "Multi-sources/ms3_meta_data.csv; give the folder that holds these"
        )
    manifest = read_manifest(root)
    tables = [(folder, read_table(folder)) for folder in folders]
    avsbench = manifest is None and all(_is_avsbench(folder, rows) for folder, rows in tables)
    tables = [(folder, rows) for folder, rows in tables if only in (None, folder.subset)]
    log = _Log(limit)
    done, total = 0, sum(len(rows) for _, rows in tables)
    reports: list[SubsetReport] = []
    with ThreadPoolExecutor(workers or min(16, 2 * (os.cpu_count() or 1))) as pool:
        for folder, rows in tables:
            findings: list[_ClipFindings] = []
            for found in pool.map(lambda row, at=folder: _check_clip(at, row), rows):
                findings.append(found)
                done += 1
                if progress is not None:
                    progress(done, total)
            for problem in _problems_of(folder, findings, manifest, avsbench=avsbench):
                log.add(problem)
            reports.append(_subset_report(folder, findings, manifest, avsbench=avsbench))
    kept = sorted(log.kept, key=lambda problem: problem.severity)
    name = "AVSBench" if avsbench else str((manifest or {}).get("id", "unnamed"))
    seconds = time.perf_counter() - began
    totals = dict(sorted(log.totals.items()))
    return Report(root, name, tuple(reports), tuple(kept), totals, seconds)


def _is_avsbench(folder: SubsetFolder, rows: list[Row]) -> bool:
    if folder.subset == "ms3":
        return True
    return {row.category for row in rows} <= set(AVSBENCH_S4)


def _part(row: Row) -> str:
    return "test_novel" if row.novel else row.split


def _subset_report(
    folder: SubsetFolder,
    findings: list[_ClipFindings],
    manifest: Mapping[str, object] | None,
    *,
    avsbench: bool,
) -> SubsetReport:
    clips: dict[str, Counter[str]] = {}
    masks, empty = Counter[str](), Counter[str]()
    for split in ("train", "val", "test", "test_novel"):
        own = [found for found in findings if _part(found.row) == split]
        if own or split != "test_novel":
            clips[split] = Counter(found.row.category or "" for found in own)
            masks[split] = sum(found.masks for found in own)
            empty[split] = sum(found.empty_masks for found in own)
    claims = "dataset.json" if _claimed_counts(folder.subset, manifest) else ""
    return SubsetReport(
        folder.subset,
        folder.path,
        clips,
        Counter(found.row.kind for found in findings),
        masks,
        empty,
        "AVSBench's table" if avsbench else claims,
    )


def _check_clip(folder: SubsetFolder, row: Row) -> _ClipFindings:
    problems: list[Problem] = []
    picture, sizes = _check_frames(folder, row, problems)
    masks, empty = _check_masks(folder, row, sizes, problems)
    sound = _check_sound(folder.sound(row), problems)
    return _ClipFindings(row, problems, masks, empty, picture, sound)


def _check_frames(
    folder: SubsetFolder, row: Row, problems: list[Problem]
) -> tuple[bytes | None, dict[int, tuple[int, int]]]:
    """A digest of the first picture, and the sizes of all that can be read, by number."""
    digest: bytes | None = None
    sizes: dict[int, tuple[int, int]] = {}
    for k in range(1, FRAMES_PER_CLIP + 1):
        path = folder.frame(row, k)
        picture = _picture(path, "frame", problems)
        if picture is None:
            continue
        if k == 1:
            digest = blake2b(picture.tobytes(), digest_size=16).digest()
        sizes[k] = picture.size
    return digest, sizes


def _check_masks(
    folder: SubsetFolder, row: Row, sizes: Mapping[int, tuple[int, int]], problems: list[Problem]
) -> tuple[int, int]:
    """How many masks there are, and how many of them are empty."""
    read = empty = 0
    for k in range(1, FRAMES_PER_CLIP + 1):
        path = folder.mask(row, k)
        optional = k > 1 and row.split == "train" and folder.subset == "s4"
        if optional and not path.exists():
            continue
        mask = _picture(path, "mask", problems)
        if mask is None:
            continue
        size = sizes.get(k, mask.size)
        if not _is_alike(mask.size, size):
            detail = (
                f"is {mask.size[0]}x{mask.size[1]}, its picture {size[0]}x{size[1]}: scaled alike "
                "they would not match; make the mask in its picture's proportions"
            )
            problems.append(Problem("error", "mask_shape", path, detail))
        grey = np.asarray(mask.convert("L"))
        read += 1
        empty += not (grey > 127).any()
        between = int(((grey > 0) & (grey < 255)).sum())
        if between:
            detail = f"has {between} pixels that are neither 0 nor 255; over 127 counts as 1"
            problems.append(Problem("warning", "mask_values", path, detail))
    return read, empty


def _is_alike(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether sizes in px have one aspect ratio, up to a pixel's rounding."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)


def _check_sound(path: Path, problems: list[Problem]) -> bytes | None:
    if not path.is_file():
        problems.append(Problem("error", "missing_sound", path, "is missing; fetch it again"))
        return None
    try:
        samples, rate_hz = read_wave(path)
    except DatasetError as error:
        detail = str(error).removeprefix(f"{path}: ")
        problems.append(Problem("error", "damaged_sound", path, detail))
        return None
    if samples.size == 0:
        problems.append(Problem("error", "damaged_sound", path, "holds no samples"))
        return None
    if rate_hz != SOUND_RATE_HZ:
        detail = f"has {rate_hz} Hz; AVSBench's have {SOUND_RATE_HZ}, it is resampled"
        problems.append(Problem("warning", "sound_rate", path, detail))
    seconds = samples.size / rate_hz
    if not SOUND_S[0] <= seconds <= SOUND_S[1]:
        detail = f"lasts {seconds:.2f} s; a clip has 5 s, what is missing counts as silence"
        problems.append(Problem("warning", "sound_length", path, detail))
    if not samples.any():
        return None
    return blake2b(samples.tobytes(), digest_size=16).digest()


def _picture(path: Path, what: str, problems: list[Problem]) -> Image.Image | None:
    if not path.is_file():
        problems.append(Problem("error", f"missing_{what}", path, "is missing; fetch it again"))
        return None
    try:
        picture = opened_picture(path, f"a {what}")
    except DatasetError as error:
        detail = str(error).removeprefix(f"{path}: ")
        problems.append(Problem("error", f"damaged_{what}", path, detail))
        return None
    if picture.size != FRAME_PX:
        (width, height), (right_width, right_height) = picture.size, FRAME_PX
        detail = f"is {width}x{height}, not AVSBench's {right_width}x{right_height}; it is scaled"
        problems.append(Problem("warning", f"{what}_size", path, detail))
    return picture


def _problems_of(
    folder: SubsetFolder,
    findings: list[_ClipFindings],
    manifest: Mapping[str, object] | None,
    *,
    avsbench: bool,
) -> Iterator[Problem]:
    for found in findings:
        yield from found.problems
    rows = [found.row for found in findings]
    expected = AVSBENCH_SPLITS[folder.subset] if avsbench else None
    yield from _count_problems(folder, rows, expected or _claimed_counts(folder.subset, manifest))
    if avsbench and folder.subset == "s4":
        yield from _category_problems(folder, rows)
    yield from _name_problems(folder, rows)
    yield from _pair_problems(folder, findings)
    yield from _leaks(folder, findings)
    yield from _orphans(folder, rows)


def _claimed_counts(
    subset: Subset, manifest: Mapping[str, object] | None
) -> Mapping[str, int] | None:
    """What ``dataset.json`` says under ``counts``: clips by ``"SUBSET SPLIT"``."""
    counts = (manifest or {}).get("counts")
    if not isinstance(counts, dict):
        return None
    keys = [(str(key).partition(" "), number) for key, number in counts.items()]
    return {
        split: number
        for (owner, _, split), number in keys
        if owner == subset and isinstance(number, int)
    } or None


def _count_problems(
    folder: SubsetFolder, rows: list[Row], expected: Mapping[str, int] | None
) -> Iterator[Problem]:
    counts = Counter(_part(row) for row in rows)
    for split, count in (expected or {}).items():
        if counts[split] != count:
            detail = f"lists {counts[split]} clips of {split}; there should be {count}"
            yield Problem("error", "count", folder.table, detail)


def _category_problems(folder: SubsetFolder, rows: list[Row]) -> Iterator[Problem]:
    total = Counter(row.category for row in rows)
    test = Counter(row.category for row in rows if row.split == "test")
    for category, (all_clips, test_clips) in AVSBENCH_S4.items():
        if (total[category], test[category]) != (all_clips, test_clips):
            detail = (
                f"lists {total[category]} clips of {category}, {test[category]} of them for test; "
                f"AVSBench has {all_clips} and {test_clips}"
            )
            yield Problem("error", "category_count", folder.table, detail)


def _name_problems(folder: SubsetFolder, rows: list[Row]) -> Iterator[Problem]:
    splits: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        splits[row.name].append(row.split)
    for name, found in splits.items():
        if len(found) > 1:
            detail = f"lists {name} {len(found)} times, in {', '.join(found)}; once is right"
            yield Problem("error", "repeated_name", folder.table, detail)


def _pair_problems(folder: SubsetFolder, findings: list[_ClipFindings]) -> Iterator[Problem]:
    by_name = {found.row.name: found for found in findings}
    for found in findings:
        if found.row.pair is None:
            continue
        partner = by_name.get(found.row.pair)
        if partner is None or partner.row.split != found.row.split:
            where = "no split" if partner is None else partner.row.split
            detail = (
                f"pairs {found.row.name} of {found.row.split} with {found.row.pair} of {where}; "
                "twins lie in one split"
            )
            yield Problem("error", "pair", folder.table, detail)
        elif found.picture_digest != partner.picture_digest:
            detail = f"differs from its twin's, {folder.frame(partner.row, 1)}; they are the same"
            yield Problem("error", "pair", folder.frame(found.row, 1), detail)


def _leaks(folder: SubsetFolder, findings: list[_ClipFindings]) -> Iterator[Problem]:
    """Equal pictures or sounds in different splits."""
    pictures: dict[bytes, Row] = {}
    sounds: dict[bytes, Row] = {}
    for found in findings:
        for digest, seen, path_of, kind in (
            (found.picture_digest, pictures, lambda row: folder.frame(row, 1), "same_picture"),
            (found.sound_digest, sounds, folder.sound, "same_sound"),
        ):
            first = seen.setdefault(digest, found.row) if digest else found.row
            if first.split != found.row.split:
                detail = f"equals {path_of(first)}, which is of another split"
                yield Problem("warning", kind, path_of(found.row), detail)


def _orphans(folder: SubsetFolder, rows: list[Row]) -> Iterator[Problem]:
    expected = {path for row in rows for path in folder.files(row)}
    for name in ("visual_frames", "gt_masks", "audio_wav"):
        for path in _files_below(folder.data / name):
            if str(path) not in expected:
                yield Problem("warning", "orphan", path, "belongs to no clip of the table")


def _files_below(folder: Path) -> Iterator[Path]:
    for path, _, names in os.walk(folder):
        for name in sorted(names):
            yield Path(path) / name

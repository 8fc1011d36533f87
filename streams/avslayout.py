"""AVSBench's layout on disk: where each file lies and what its tables say.

Two subsets, each a folder of its own with one table (facts: OpenNLPLab/AVSBench@f7414af,
``avs_scripts/*/dataloader.py``)::

    Single-source/s4_meta_data.csv                                     name, start, category, split
    Single-source/s4_data/visual_frames/SPLIT/CATEGORY/NAME/NAME_K.png
    Single-source/s4_data/gt_masks/SPLIT/CATEGORY/NAME/NAME_K.png      train: K = 1 alone
    Single-source/s4_data/audio_wav/SPLIT/CATEGORY/NAME.wav
    Multi-sources/ms3_meta_data.csv                                    name, split
    Multi-sources/ms3_data/visual_frames/NAME/NAME.mp4_K.png           no split, and ".mp4_"
    Multi-sources/ms3_data/gt_masks/SPLIT/NAME/NAME_K.png
    Multi-sources/ms3_data/audio_wav/SPLIT/NAME.wav

K runs from 1 to 5. Sets of our own (Open-AVS, the toy world) add columns after AVSBench's, found by
their header's name. The log-mel pickles of AVSBench are never opened: a pickle can run code.
"""

from __future__ import annotations

import csv
import json
import wave
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Subset = Literal["s4", "ms3"]
Kind = Literal["plain", "distractor", "swap", "negative"]
"""``plain`` one object in view; ``distractor`` silent objects beside it; ``swap`` the same picture
exists with another object sounding; ``negative`` nothing in view sounds."""

FRAMES_PER_CLIP = 5
DISK_SPLITS = ("train", "val", "test", "test_novel")
S4_COLUMNS = ("name", "start_time", "category", "split")
MS3_COLUMNS = ("name", "split")
_KINDS: Mapping[str, Kind] = {kind: kind for kind in get_args(Kind)}
EXTRA_COLUMNS = ("categories", "kind", "novel", "pair", "recording", "cutout")


class DatasetError(Exception):
    """A data set that cannot be read: the file, what was expected, what to do."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a subset's table.

    Attributes:
        name: the clip's name, also that of its files.
        split: the split as the table and the folders have it.
        category: the class of a single-source clip (of a negative: a silent one, for the folder's
            sake); None in MS3.
        categories: the classes that sound in view; empty where nothing does or nobody says.
        kind: how the clip was composed; AVSBench's own are ``plain``.
        novel: whether its cut-outs were never seen in training (Open-AVS's ``test_novel``).
        pair: name of the swap partner, or None.
        recording: provenance of the sound, "" where unknown.
        cutout: provenance of the object's picture, "" where unknown.
    """

    name: str
    split: str
    category: str | None
    categories: tuple[str, ...]
    kind: Kind = "plain"
    novel: bool = False
    pair: str | None = None
    recording: str = ""
    cutout: str = ""


@dataclass(frozen=True, slots=True)
class SubsetFolder:
    """One subset on disk; builds the paths of its files."""

    path: Path
    subset: Subset

    @property
    def table(self) -> Path:
        """The CSV that lists the clips."""
        return self.path / f"{self.subset}_meta_data.csv"

    @property
    def data(self) -> Path:
        """The folder that holds frames, masks and sounds."""
        return self.path / f"{self.subset}_data"

    def _group(self, row: Row) -> Path:
        return Path(row.split) / (row.category or "") if self.subset == "s4" else Path(row.split)

    def frame(self, row: Row, k: int) -> Path:
        """Picture ``k``, 1 to 5."""
        if self.subset == "s4":
            folder = self.data / "visual_frames" / self._group(row) / row.name
            return folder / f"{row.name}_{k}.png"
        return self.data / "visual_frames" / row.name / f"{row.name}.mp4_{k}.png"

    def mask(self, row: Row, k: int) -> Path:
        """Mask ``k``, 1 to 5."""
        return self.data / "gt_masks" / self._group(row) / row.name / f"{row.name}_{k}.png"

    def sound(self, row: Row) -> Path:
        """The clip's sound."""
        return self.data / "audio_wav" / self._group(row) / f"{row.name}.wav"

    def files(self, row: Row) -> tuple[str, ...]:
        """All that a clip may have: its sound, pictures and masks; as text, as a set has 55,000."""
        heads = [str(path(row, 1)).removesuffix("1.png") for path in (self.frame, self.mask)]
        pictures = (f"{head}{k}.png" for head in heads for k in range(1, FRAMES_PER_CLIP + 1))
        return (str(self.sound(row)), *pictures)


_FOLDER_NAMES: Mapping[Subset, str] = {"s4": "Single-source", "ms3": "Multi-sources"}


def subset_folder(root: Path, subset: Subset) -> SubsetFolder:
    """The folder of ``subset`` below ``root``, which need not exist (for writing)."""
    return SubsetFolder(root / _FOLDER_NAMES[subset], subset)


def find_subset(root: Path, subset: Subset) -> SubsetFolder | None:
    """Finds ``subset`` in ``root``, in ``root/avsbench_data``, or as ``root`` itself."""
    name = _FOLDER_NAMES[subset]
    for path in (root / name, root / "avsbench_data" / name, root):
        found = SubsetFolder(path, subset)
        if found.table.is_file():
            return found
    return None


def read_table(folder: SubsetFolder) -> list[Row]:
    """Reads the table of a subset.

    AVSBench's columns count by position, whatever the header calls them, unless it names them
    elsewhere; ours count by name. A table without a header is read too.

    Raises:
        DatasetError: the table is missing, not text, or a line of it makes no sense.
    """
    path = folder.table
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file) if any(cell.strip() for cell in line)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(
            f"{path}: cannot be read as a CSV table ({error}); it lists the clips of the subset, "
            "so fetch it again with the data set"
        ) from error
    columns = S4_COLUMNS if folder.subset == "s4" else MS3_COLUMNS
    if not lines:
        raise DatasetError(f"{path}: is empty; expected lines of {', '.join(columns)}")
    header = [cell.strip().lower() for cell in lines[0]]
    has_header = len(header) < len(columns) or header[columns.index("split")] not in DISK_SPLITS
    at = {name: position for position, name in enumerate(columns)}
    if has_header:
        at |= {name: header.index(name) for name in (*columns, *EXTRA_COLUMNS) if name in header}
    first = 2 if has_header else 1
    return [
        _row(path, number, [cell.strip() for cell in line], at, folder.subset)
        for number, line in enumerate(lines[first - 1 :], start=first)
    ]


def _row(path: Path, number: int, cells: Sequence[str], at: Mapping[str, int], subset: str) -> Row:
    def cell(column: str) -> str:
        position = at.get(column)
        return cells[position] if position is not None and position < len(cells) else ""

    where = f"{path}, line {number}"
    name, split, category = cell("name"), cell("split"), cell("category")
    if split not in DISK_SPLITS:
        raise DatasetError(
            f"{where}: split is {split!r}; allowed are {', '.join(DISK_SPLITS)}, in column "
            f"{at['split'] + 1}"
        )
    for value, what in ((name, "name"), (category, "category")):
        if (not value and (what == "name" or subset == "s4")) or _leaves_folder(value):
            raise DatasetError(
                f"{where}: {what} is {value!r}; it must be a plain file name without a slash"
            )
    kind = _KINDS.get(cell("kind") or "plain")
    if kind is None:
        raise DatasetError(f"{where}: kind is {cell('kind')!r}; allowed are {', '.join(_KINDS)}")
    novel = cell("novel") or "0"
    if novel not in {"0", "1"}:
        raise DatasetError(f"{where}: novel is {novel!r}; allowed are 0 and 1")
    several = tuple(part.strip() for part in cell("categories").split(";") if part.strip())
    return Row(
        name=name,
        split=split,
        category=category or None,
        categories=several or ((category,) if category and kind != "negative" else ()),
        kind=kind,
        novel=novel == "1" or split == "test_novel",
        pair=cell("pair") or None,
        recording=cell("recording"),
        cutout=cell("cutout"),
    )


def _leaves_folder(name: str) -> bool:
    return "/" in name or "\\" in name or name in {".", ".."}


def read_class_map(path: Path) -> dict[str, tuple[str, ...]]:
    """Reads which classes each MS3 clip holds; ``ms3_meta_data.csv`` itself does not say.

    Two forms: AVSBench-semantic's ``metadata.csv`` (columns ``vid``, ``label``, ``a_obj``; the rows
    labeled ``v1m``, classes joined by ``_``), or a table ``name,categories`` with the classes
    joined by ``;``. The words of the first differ from S4's category names.

    Raises:
        DatasetError: neither form, or unreadable.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), set(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as a class map ({error})") from error
    if {"vid", "a_obj", "label"} <= columns:
        rows = [row for row in rows if row["label"] == "v1m"]
        key, value, joint = "vid", "a_obj", "_"
    elif {"name", "categories"} <= columns:
        key, value, joint = "name", "categories", ";"
    else:
        raise DatasetError(
            f"{path}: has the columns {sorted(columns)}; a class map has either vid, label, a_obj "
            "(AVSBench-semantic's metadata.csv) or name, categories"
        )
    return {
        row[key]: tuple(part for part in (row[value] or "").split(joint) if part) for row in rows
    }


@dataclass(frozen=True, slots=True, eq=False)
class ClipFiles:
    """What one clip puts on disk.

    Attributes:
        row: its line in the table.
        frames: uint8 (5, H, W, 3) RGB.
        masks: uint8 (5, H, W) in {0, 1}.
        sound: float32 (n,) mono in [-1, 1].
        sample_rate_hz: samples a second; AVSBench has 16,000.
        start_time_s: where the clip began in its video; 0 for composed clips.
    """

    row: Row
    frames: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    sound: NDArray[np.float32]
    sample_rate_hz: int = 16_000
    start_time_s: int = 0


def write_clip(root: Path, subset: Subset, clip: ClipFiles) -> None:
    """Writes a clip's frames, masks (all five, in every split) and sound below ``root``."""
    folder, row = subset_folder(root, subset), clip.row
    for path in (folder.frame(row, 1), folder.mask(row, 1), folder.sound(row)):
        path.parent.mkdir(parents=True, exist_ok=True)
    for index in range(FRAMES_PER_CLIP):
        picture = Image.fromarray(clip.frames[index])
        picture.save(folder.frame(row, index + 1), compress_level=1)
        mask = Image.fromarray(clip.masks[index] * np.uint8(255))
        mask.save(folder.mask(row, index + 1))
    pcm = np.round(np.clip(clip.sound, -1.0, 1.0) * 32767.0).astype("<i2")
    with wave.open(str(folder.sound(row)), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(clip.sample_rate_hz)
        file.writeframes(pcm.tobytes())


def write_table(root: Path, subset: Subset, rows: Iterable[Row]) -> None:
    """Writes a subset's table with our extra columns, in the order given."""
    folder = subset_folder(root, subset)
    folder.path.mkdir(parents=True, exist_ok=True)
    own = S4_COLUMNS if subset == "s4" else MS3_COLUMNS
    with folder.table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*own, *EXTRA_COLUMNS))
        for row in rows:
            head = (row.name, 0, row.category, row.split)
            writer.writerow(
                (
                    *(head if subset == "s4" else (row.name, row.split)),
                    ";".join(row.categories),
                    row.kind,
                    int(row.novel),
                    row.pair or "",
                    row.recording,
                    row.cutout,
                )
            )


def read_manifest(root: Path) -> dict[str, object] | None:
    """The set's ``dataset.json`` (ours have one, AVSBench has none), or None.

    Raises:
        DatasetError: the file is there and is not a JSON object.
    """
    path = root / "dataset.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{path}: cannot be read as JSON ({error}); build the set anew"
        ) from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: holds {type(content).__name__}; expected an object")
    return content

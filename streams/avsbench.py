"""Reads AVSBench, Open-AVS and the toy world from disk, clip by clip.

A clip is five pictures, five masks and five seconds of sound. AVSBench keeps the sixteenth of
sixteen pictures of each second, so picture k (from 1) stands at ``(k - 1) + 0.9375`` seconds, and
the sound that belongs to it is the second that ends there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import soxr
from numpy.typing import NDArray

from .avscheck import check
from .avslayout import (
    FRAMES_PER_CLIP,
    DatasetError,
    Kind,
    Row,
    Subset,
    SubsetFolder,
    find_subset,
    read_class_map,
    read_table,
)
from .avsmedia import read_mask, read_picture, read_wave
from .avsreport import Problem, Report, SubsetReport, Table
from .clips import NS_PER_S, AudioWindow, Clip, LabeledClip, Sample, VideoFrame

__all__ = [
    "AVSBench",
    "DatasetError",
    "Entry",
    "Kind",
    "Problem",
    "Report",
    "Split",
    "Subset",
    "SubsetReport",
    "Table",
    "check",
    "frame_times_s",
    "labeled_clip",
    "read_mask",
    "read_picture",
    "read_wave",
    "windows_at",
]

Labels = Literal["all", "first"]
Split = Literal["train", "val", "test", "test_novel"]
LAST_SIXTEENTH = 15 / 16


def frame_times_s() -> NDArray[np.float64]:
    """Times of a clip's pictures: float64 (5,), seconds from the clip's start."""
    return np.arange(FRAMES_PER_CLIP, dtype=np.float64) + np.float64(LAST_SIXTEENTH)


def windows_at(
    sound: NDArray[np.float32],
    times_s: NDArray[np.float64],
    window_s: float = 1.0,
    sample_rate_hz: int = 32_000,
) -> NDArray[np.float32]:
    """Cuts the sound that ends at each time.

    Args:
        sound: float32 (n,) mono at ``sample_rate_hz``, beginning at 0 s.
        times_s: float64 (T,), where the windows end.
        window_s: length of each, over 0.
        sample_rate_hz: samples a second.

    Returns:
        float32 (T, window_s * sample_rate_hz); zeros where the sound has not begun or is over.

    Raises:
        ValueError: a window without samples.
    """
    n = round(window_s * sample_rate_hz)
    if n < 1:
        raise ValueError(f"window_s is {window_s}; it must hold at least one sample")
    ends = np.round(times_s * sample_rate_hz).astype(np.int64)
    windows = np.zeros((len(ends), n), dtype=np.float32)
    for window, end in zip(windows, ends, strict=True):
        start = int(end) - n
        heard = sound[max(start, 0) : max(int(end), 0)]
        offset = max(-start, 0)
        window[offset : offset + len(heard)] = heard
    return windows


@dataclass(frozen=True, slots=True)
class Entry:
    """One clip of a data set; its files are read when asked for.

    Attributes:
        row: its line in the table; the properties below show the parts that matter.
        folder: where its files lie.
        labels: whether all masks count, or in ``train`` the first alone.
    """

    row: Row
    folder: SubsetFolder
    labels: Labels = "all"

    @property
    def name(self) -> str:
        """The clip's name, unique in its subset."""
        return self.row.name

    @property
    def category(self) -> str | None:
        """The class; of a negative, a silent one in view; None in MS3."""
        return self.row.category

    @property
    def categories(self) -> tuple[str, ...]:
        """The classes that sound in view; empty where nothing does or nobody says."""
        return self.row.categories

    @property
    def split(self) -> str:
        """``train``, ``val`` or ``test``, as in the table."""
        return self.row.split

    @property
    def novel(self) -> bool:
        """Whether the clip belongs to ``test_novel``."""
        return self.row.novel

    @property
    def kind(self) -> Kind:
        """How the clip was composed."""
        return self.row.kind

    @property
    def pair(self) -> str | None:
        """Name of the swap partner."""
        return self.row.pair

    def frames(self, size_px: int = 224) -> NDArray[np.uint8]:
        """The pictures, uint8 (5, size_px, size_px, 3) RGB; the aspect ratio is not kept.

        Raises:
            DatasetError: a picture is missing or cannot be decoded.
        """
        paths = (self.folder.frame(self.row, k + 1) for k in range(FRAMES_PER_CLIP))
        return np.stack([read_picture(path, size_px) for path in paths])

    def masks(self, size_px: int = 224) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The masks and which of them exist.

        Returns:
            uint8 (5, size_px, size_px) in {0, 1}, zeros where there is no mask; bool (5,). A
            training clip of S4 may lack masks 2 to 5, and lacks them with ``labels="first"``.

        Raises:
            DatasetError: a mask that must exist is missing, or one cannot be decoded.
        """
        masks = np.zeros((FRAMES_PER_CLIP, size_px, size_px), dtype=np.uint8)
        labeled = np.zeros(FRAMES_PER_CLIP, dtype=np.bool_)
        training = self.row.split == "train"
        for index in range(FRAMES_PER_CLIP):
            path = self.folder.mask(self.row, index + 1)
            if index > 0 and training and self.labels == "first":
                break
            if index > 0 and training and self.folder.subset == "s4" and not path.exists():
                continue
            masks[index] = read_mask(path, size_px)
            labeled[index] = True
        return masks, labeled

    def sound(self, sample_rate_hz: int = 32_000) -> NDArray[np.float32]:
        """The clip's sound, float32 (n,) mono, resampled.

        Raises:
            DatasetError: the file is missing or cannot be decoded.
        """
        samples, rate_hz = read_wave(self.folder.sound(self.row))
        if rate_hz == sample_rate_hz or samples.size == 0:
            return samples
        return np.asarray(soxr.resample(samples, rate_hz, sample_rate_hz), dtype=np.float32)

    def frame_times_s(self) -> NDArray[np.float64]:
        """Times of the pictures, float64 (5,), seconds from the clip's start."""
        return frame_times_s()

    def windows(self, window_s: float = 1.0, sample_rate_hz: int = 32_000) -> NDArray[np.float32]:
        """The sound that ends at each picture; see `windows_at`.

        Raises:
            DatasetError: the sound is missing or cannot be decoded.
        """
        sound = self.sound(sample_rate_hz)
        return windows_at(sound, frame_times_s(), window_s, sample_rate_hz)

    def labeled_clip(
        self, size_px: int = 224, window_s: float = 1.0, sample_rate_hz: int = 32_000
    ) -> LabeledClip:
        """The pictures that have a mask, each with its window of sound, as one clip.

        A negative's has no class: what is in view is silent.

        Raises:
            DatasetError: a file is missing or cannot be decoded.
        """
        masks, labeled = self.masks(size_px)
        return labeled_clip(
            self.frames(size_px)[labeled],
            masks[labeled],
            self.windows(window_s, sample_rate_hz)[labeled],
            frame_times_s()[labeled],
            sample_rate_hz=sample_rate_hz,
            clip_id=f"{self.folder.subset}/{self.row.split}/{self.row.name}",
            provenance=f"masks of {self.folder.mask(self.row, 1).parent}",
            category=None if self.kind == "negative" else self.row.category,
        )


def labeled_clip(
    frames: NDArray[np.uint8],
    masks: NDArray[np.uint8],
    windows: NDArray[np.float32],
    times_s: NDArray[np.float64],
    *,
    sample_rate_hz: int,
    clip_id: str,
    provenance: str,
    category: str | None,
) -> LabeledClip:
    """Joins arrays to a `LabeledClip`.

    Args:
        frames: uint8 (T, H, W, 3) RGB.
        masks: uint8 (T, H, W) in {0, 1}.
        windows: float32 (T, n), each ending at its picture's time.
        times_s: float64 (T,), seconds.
        sample_rate_hz: samples a second of ``windows``.
        clip_id: the clip's name for ever.
        provenance: where the masks come from.
        category: the class, where one is known.
    """
    height, width = frames.shape[1:3]
    window_ns = round(windows.shape[1] * NS_PER_S / sample_rate_hz)
    samples: list[Sample] = []
    for index, time_s in enumerate(times_s):
        pts_ns = round(float(time_s) * NS_PER_S)
        frame = VideoFrame(frames[index], pts_ns, pts_ns, clip_id, 0, index, (width, height))
        window = AudioWindow(windows[index], sample_rate_hz, pts_ns - window_ns, pts_ns, "ok")
        samples.append(Sample(frame, window))
    return LabeledClip(Clip(tuple(samples)), masks, clip_id, provenance, category)


class AVSBench:
    """A data set in AVSBench's layout.

    Args:
        root: the folder that holds ``Single-source`` and ``Multi-sources`` (or one of these).
        subset: ``s4`` or ``ms3``.
        labels: ``all`` masks that exist, or for training clips the ``first`` alone, which is
            AVSBench's S4 protocol (its own training clips have no others).
        class_map: for AVSBench's MS3, a table of the classes in each clip; see
            `avslayout.read_class_map`.

    Raises:
        DatasetError: the subset is not below ``root``, or its table cannot be read.
        ValueError: an unknown subset or choice of labels.
    """

    def __init__(
        self,
        root: Path | str,
        subset: Subset = "s4",
        labels: Labels = "all",
        *,
        class_map: Path | None = None,
    ) -> None:
        if subset not in get_args(Subset):
            raise ValueError(f"subset is {subset!r}; allowed are {', '.join(get_args(Subset))}")
        if labels not in get_args(Labels):
            raise ValueError(f"labels is {labels!r}; allowed are {', '.join(get_args(Labels))}")
        found = find_subset(Path(root), subset)
        if found is None:
            folder = "Single-source" if subset == "s4" else "Multi-sources"
            raise DatasetError(
                f"{root}: no {folder}/{subset}_meta_data.csv in it; give the folder that holds "
                "AVSBench's Single-source and Multi-sources, or build the open set with "
                "'atlasd dataset build'"
            )
        self.folder = found
        self.subset: Subset = subset
        rows = read_table(found)
        if class_map is not None:
            rows = _with_classes(rows, read_class_map(class_map))
        self._entries = [Entry(row, found, labels) for row in rows]

    def clips(self, split: Split) -> list[Entry]:
        """The clips of a split, in the table's order.

        ``test`` holds the clips that are not novel and ``test_novel`` those that are; AVSBench
        itself has none of these, and the list is empty then.

        Raises:
            ValueError: an unknown split.
        """
        if split not in get_args(Split):
            raise ValueError(f"split is {split!r}; allowed are {', '.join(get_args(Split))}")
        if split == "test_novel":
            return [entry for entry in self._entries if entry.novel]
        return [entry for entry in self._entries if entry.split == split and not entry.novel]

    @property
    def categories(self) -> tuple[str, ...]:
        """All classes that the table names, sorted."""
        return tuple(sorted({name for entry in self._entries for name in entry.categories}))


def _with_classes(rows: list[Row], classes: Mapping[str, tuple[str, ...]]) -> list[Row]:
    """Joins MS3 names to a class map, whose ids may lack the name's trailing ``_0``."""
    named: list[Row] = []
    for row in rows:
        found = classes.get(row.name) or classes.get(row.name.rpartition("_")[0])
        named.append(replace(row, categories=found) if found else row)
    return named

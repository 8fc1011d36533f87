"""Segment a whole file: the daemon's pipeline at full speed, its results as files.

What is written into the folder:

- ``overlay.mp4``: the upright video with its masks and its sound, in its own timing;
- ``masks/NNNNNN.png``: one a frame, one bit a pixel, at the size of the upright picture, named by
  the frame's index; the logits are stretched bilinearly and then compared with the threshold, so
  that edges are smooth;
- ``masks.npz``: the masks at the network's resolution, bit for bit what `atlasd run` publishes;
- ``frames.csv``: a row a frame: time, sound, area, score, latencies;
- ``contact_sheet.png``: up to twelve frames;
- ``summary.json``: speed, latency percentiles, drops, network, configuration. It is written last:
  where it stands, everything stands.

All of it grows in ``DIR/.partial`` and is moved into place at the end.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version as installed_version
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from ..daemon.config import Config, public
from ..daemon.latency import Latencies
from ..daemon.parts import build_engine, open_stream, pipeline_options
from ..daemon.pipeline import STAGES, Ended, Pipeline, Result
from ..daemon.results import ranked_classes
from ..streams.folders import SOUND_SUFFIXES
from ..streams.sources import Discontinuity, Source, Trouble
from .archive import MaskArchive
from .countbar import count_bar
from .overlay import OverlayWriter, blend, contact_sheet

PARTIAL = ".partial"
SUMMARY = "summary.json"
_OUTPUTS = ("overlay.mp4", "masks", "masks.npz", "frames.csv", "contact_sheet.png")
_COLUMNS = (
    *("index", "pts_ns", "epoch", "audio", "gap_ms", "rms"),
    *("mask_area", "score", "class", "class_score"),
    *(f"{stage}_ms" for stage in STAGES),
)
_SHEET_FRAMES = 12
_SHEET_WIDTH_PX = 320
_CAPACITY = 4


class SegmentError(Exception):
    """A folder that cannot be written to, or a medium that gave nothing."""


def segment(
    file: Path, out: Path, config: Config, *, console: Console | None = None
) -> dict[str, object]:
    """Segment a file into a folder; see the module for what is written.

    Args:
        file: a media file, or a folder of frames with at most one sound.
        out: the folder; results of an earlier run in it are replaced, other files stay.
        config: network, synchronisation and threshold; its source and queue are set here, and
            its deadline is not kept.
        console: where progress and the summary are shown; None is standard error.

    Returns:
        What ``summary.json`` holds.

    Raises:
        MediaError: the medium cannot be read.
        WeightsError: the weights are missing, broken or untrained.
        EngineError: the device or precision is not here.
        SegmentError: ``out`` is a file, or no frame came.
    """
    console = console or Console(stderr=True)
    config = _offline(config, file)
    with ExitStack() as stack:
        engine = build_engine(config)
        stack.callback(engine.close)
        source = stack.enter_context(open_stream(config, engine, keep_full=True))
        engine.warm()
        with _partial(out) as folder:
            with _Writer(folder, file, source, config.publish.threshold) as writer:
                pipeline = Pipeline(source, engine, pipeline_options(config))
                counts = _drive(pipeline, writer, engine.categories, source, console)
            writer.draw_contact_sheet()
            summary: dict[str, object] = {
                "version": installed_version("atlasd"),
                "file": str(file),
                "model": {"preset": engine.preset, "version": engine.version},
                "device": str(engine.device),
                "threads": engine.threads,
                **counts,
                "latency_ms": writer.latencies.percentiles(),
                "config": public(config).model_dump(mode="json"),
            }
            (folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    console.print(f"{counts['frames']} frames at {counts['fps']} fps: {out / 'overlay.mp4'}")
    return summary


def _offline(config: Config, file: Path) -> Config:
    """The same configuration for a file at full speed, few frames at full size in memory.

    Nobody waits for the masks, so there is no deadline: every frame is seen at the full size.
    """
    source = config.source.model_copy(
        update={
            "uri": str(file),
            "camera": None,
            "microphone": None,
            "pace": "free",
            "policy": "wait",
        }
    )
    capacity = max(_CAPACITY, config.model.batch)
    queue = config.queue.model_copy(update={"capacity": capacity})
    model = config.model.model_copy(update={"deadline_ms": None})
    return config.model_copy(update={"source": source, "queue": queue, "model": model})


def _drive(
    pipeline: Pipeline,
    writer: _Writer,
    categories: tuple[str, ...],
    source: Source,
    console: Console,
) -> dict[str, object]:
    """Write every result; returns the counts of the summary."""
    epochs = 0
    drops: dict[str, int] = {}
    audio: Counter[str] = Counter()
    troubles: dict[str, int] = {}
    began = time.perf_counter()
    with count_bar(console, transient=True) as progress, pipeline:
        task = progress.add_task("segment", total=_expected_frames(source))
        for item in pipeline:
            match item:
                case Result():
                    writer.write(item, categories)
                    audio[item.sample.window.state] += 1
                    progress.advance(task)
                case Discontinuity():
                    epochs += 1
                case Trouble():
                    if item.kind not in troubles:
                        progress.console.print(f"{item.kind}: {item.detail}", markup=False)
                    troubles[item.kind] = item.count
                case Ended():
                    drops = item.drops
    seconds = time.perf_counter() - began
    if writer.frames == 0:
        raise SegmentError("the medium gave no frame; play it to see whether it is whole")
    return {
        "frames": writer.frames,
        "seconds": round(seconds, 3),
        "fps": round(writer.frames / seconds, 2),
        "epochs": epochs,
        "audio": dict(audio),
        "troubles": troubles,
        "drops": drops,
    }


def _expected_frames(source: Source) -> int | None:
    if source.duration_ns is None or not source.fps:
        return None
    return max(1, round(source.duration_ns / 1e9 * source.fps))


@contextmanager
def _partial(out: Path) -> Generator[Path]:
    """A folder that becomes the contents of ``out`` at the end, and vanishes after an error."""
    folder = out / PARTIAL
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        raise SegmentError(
            f"{out} cannot be written to ({error.strerror}); give a folder that is yours"
        ) from error
    try:
        yield folder
        (out / SUMMARY).unlink(missing_ok=True)
        for name in _OUTPUTS:
            if (out / name).is_dir():
                shutil.rmtree(out / name)
            (folder / name).replace(out / name)
        (folder / SUMMARY).replace(out / SUMMARY)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Writer:
    """All files but the summary, written result by result."""

    def __init__(self, folder: Path, file: Path, source: Source, threshold: float) -> None:
        self.frames = 0
        self.latencies = Latencies(1 << 20)
        self._folder = folder
        self._size_px = source.source_size_px
        self._threshold = threshold
        self._sheet = _Sheet()
        (folder / "masks").mkdir()
        with ExitStack() as stack:
            self._overlay = stack.enter_context(
                OverlayWriter(
                    folder / "overlay.mp4",
                    self._size_px,
                    sound=_sound_of(file) if source.has_audio else None,
                    fps=source.fps or 25.0,
                )
            )
            self._archive = stack.enter_context(MaskArchive(folder / "masks.npz"))
            table = stack.enter_context((folder / "frames.csv").open("w", newline=""))
            self._table = csv.DictWriter(table, _COLUMNS)
            self._table.writeheader()
            self._stack = stack.pop_all()

    def write(self, result: Result, categories: tuple[str, ...]) -> None:
        """Append a result to every file."""
        began = time.perf_counter()
        frame = result.sample.frame
        small = result.mask(self._threshold)
        large = stretched_mask(result.prediction.logits, self._size_px, self._threshold)
        picture = _at_size(frame.image if frame.full is None else frame.full, self._size_px)
        shown = blend(picture, large)
        Image.fromarray(large).save(
            self._folder / "masks" / f"{frame.index:06d}.png", compress_level=1
        )
        self._overlay.write(shown, frame.pts_ns, frame.epoch)
        self._archive.add(small, pts_ns=frame.pts_ns, index=frame.index, epoch=frame.epoch)
        self._table.writerow(_row(result, small, categories))
        self._sheet.add(shown, f"{frame.pts_ns / 1e9:.2f} s  {100 * small.mean():.1f} %")
        self.frames += 1
        write_ms = (time.perf_counter() - began) * 1e3
        self.latencies.add({**result.latency_ms, "write": write_ms})

    def draw_contact_sheet(self) -> None:
        """Write the contact sheet of what was shown."""
        self._sheet.save(self._folder / "contact_sheet.png")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)


class _Sheet:
    """Frames spread evenly over a stream of unknown length: when too many, every other goes."""

    def __init__(self) -> None:
        self._every = 1
        self._seen = 0
        self._kept: list[tuple[NDArray[np.uint8], str]] = []

    def add(self, picture: NDArray[np.uint8], caption: str) -> None:
        if self._seen % self._every == 0:
            height, width, _ = picture.shape
            size = (_SHEET_WIDTH_PX, max(1, round(height * _SHEET_WIDTH_PX / width)))
            small = Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)
            self._kept.append((np.asarray(small), caption))
            if len(self._kept) > 2 * _SHEET_FRAMES:
                self._kept = self._kept[::2]
                self._every *= 2
        self._seen += 1

    def save(self, path: Path) -> None:
        count = min(_SHEET_FRAMES, len(self._kept))
        chosen = np.linspace(0, len(self._kept) - 1, count).round().astype(int)
        images, captions = zip(*(self._kept[i] for i in chosen), strict=True)
        contact_sheet(list(images), list(captions)).save(path)


def stretched_mask(
    logits: NDArray[np.float32], size_px: tuple[int, int], threshold: float
) -> NDArray[np.bool_]:
    """The mask at the picture's size: bilinear logits, then the threshold.

    Args:
        logits: float32 (H, W).
        size_px: (width, height) of the picture.
        threshold: probability above which a pixel is foreground.

    Returns:
        bool (height, width).
    """
    stretched = Image.fromarray(logits).resize(size_px, Image.Resampling.BILINEAR)
    return np.asarray(stretched) > math.log(threshold / (1 - threshold))


def _row(
    result: Result, mask: NDArray[np.bool_], categories: tuple[str, ...]
) -> Mapping[str, object]:
    frame, window = result.sample.frame, result.sample.window
    classes, scores = ranked_classes(categories, result.prediction.class_scores, most=1)
    inside = result.prediction.logits[mask]
    score = float(np.mean(1.0 / (1.0 + np.exp(-inside)))) if inside.size else 0.0
    return {
        "index": frame.index,
        "pts_ns": frame.pts_ns,
        "epoch": frame.epoch,
        "audio": window.state,
        "gap_ms": round(window.gap_ms, 3),
        "rms": round(window.rms, 6),
        "mask_area": round(float(mask.mean()), 6),
        "score": round(score, 4),
        "class": classes[0] if classes else "",
        "class_score": round(scores[0], 4) if scores else "",
        **{f"{stage}_ms": round(result.latency_ms[stage], 3) for stage in STAGES},
    }


def _at_size(picture: NDArray[np.uint8], size_px: tuple[int, int]) -> NDArray[np.uint8]:
    """The picture at the video's size; frames of a folder may differ in theirs."""
    if picture.shape[1::-1] == size_px:
        return picture
    return np.asarray(Image.fromarray(picture).resize(size_px, Image.Resampling.BILINEAR))


def _sound_of(file: Path) -> Path:
    """The medium that holds the sound: the file itself, or the sound in a folder."""
    if not file.is_dir():
        return file
    return next(p for p in sorted(file.iterdir()) if p.suffix.lower() in SOUND_SUFFIXES)

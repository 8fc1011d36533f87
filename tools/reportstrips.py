"""Pictures of a report: test clips after the last task, their truth, and what systems marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..model.metrics import FrameScores
from ..streams.manifest import Manifest
from .overlay import TRUTH, blend
from .reportruns import Run
from .reportstudy import Setting, Study

MOST_SYSTEMS = 6
"""That are shown where nobody chose."""

_CELL_PX, _GAP_PX, _HEAD_PX, _MOST_LABEL_PX = 220, 8, 36, 300
_INK, _PAPER = (34, 34, 34), (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Strip:
    """The same pictures as several systems segment them.

    Attributes:
        setting: where.
        seed: of the runs.
        tasks: of the n clips, from 0.
        clips: n ids.
        images: uint8 (n, H, W, 3).
        truth: bool (n, H, W).
        masks: bool (n, H, W) by system: where p is above one half.
        iou: (n,) by system, 1 where truth and mask are both empty.
    """

    setting: Setting
    seed: int
    tasks: tuple[int, ...]
    clips: tuple[str, ...]
    images: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    masks: dict[str, NDArray[np.bool_]]
    iou: dict[str, list[float]]


def strips(study: Study, systems: Sequence[str]) -> list[Strip]:
    """One strip a setting, of the first seed that has pictures.

    A system whose run of that seed has other clips, or none, is left out of it.

    Raises:
        ReportError: pictures cannot be read.
        ProtocolError: a manifest cannot be read.
    """
    found = (_strip(study, setting, systems) for setting in study.settings)
    return [strip for strip in found if strip is not None]


def _strip(study: Study, setting: Setting, systems: Sequence[str]) -> Strip | None:
    runs = [(name, run) for name in systems for run in study.of(name, setting)]
    for seed in sorted({run.spec.seed for _, run in runs}):
        own = {name: run for name, run in runs if run.spec.seed == seed}
        examples = {name: shown for name, run in own.items() if (shown := run.examples())}
        if examples:
            first = next(iter(examples))
            return _of_seed(setting, seed, _homes(own[first]), examples)
    return None


def _homes(run: Run) -> dict[str, int]:
    """The task of each test clip."""
    tasks = Manifest.read(run.path / "manifest.json").tasks
    return {clip: task.index for task in tasks for clip in task.test}


def _of_seed(
    setting: Setting,
    seed: int,
    homes: Mapping[str, int],
    examples: Mapping[str, Mapping[str, NDArray[Any]]],
) -> Strip:
    first = next(iter(examples.values()))
    truth, clips = first["truth"], first["clips"]
    masks = {
        name: shown["probs"] > 127  # 255·p, rounded
        for name, shown in examples.items()
        if np.array_equal(shown["clips"], clips) and shown["probs"].shape == truth.shape
    }
    names = tuple(map(str, clips))
    tasks = tuple(homes[name] for name in names)
    iou = {name: _iou(own, truth) for name, own in masks.items()}
    return Strip(setting, seed, tasks, names, first["images"], truth, masks, iou)


def _iou(masks: NDArray[np.bool_], truth: NDArray[np.bool_]) -> list[float]:
    scores = FrameScores()
    scores.add(masks.astype(np.float32), truth)
    both_empty = ~(masks | truth).any(axis=(1, 2))
    return np.where(both_empty, 1.0, scores.iou).tolist()


def draw_strip(strip: Strip) -> Image.Image:
    """A column a clip: the picture, its truth, then a row a system with the IoU in a corner."""
    rows: list[tuple[str, list[NDArray[np.uint8]], list[str]]] = [
        ("frame", list(strip.images), []),
        (
            "truth",
            [blend(*pair, TRUTH) for pair in zip(strip.images, strip.truth, strict=True)],
            [],
        ),
    ]
    for name, masks in strip.masks.items():
        marked = [
            blend(blend(image, mask), truth, TRUTH, opacity=0.0)
            for image, mask, truth in zip(strip.images, masks, strip.truth, strict=True)
        ]
        rows.append((name, marked, [f"{value:.2f}" for value in strip.iou[name]]))
    font, small = ImageFont.load_default(24), ImageFont.load_default(20)
    widest = max(font.getlength(name) for name, *_ in rows)
    left, step = int(min(widest, _MOST_LABEL_PX)) + 3 * _GAP_PX, _CELL_PX + _GAP_PX
    size = (left + len(strip.clips) * step, _HEAD_PX + len(rows) * step)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, task in enumerate(strip.tasks):
        middle = (left + column * step + _CELL_PX // 2, _HEAD_PX // 2)
        draw.text(middle, f"task {task + 1}", fill=_INK, font=small, anchor="mm")
    for row, (name, images, texts) in enumerate(rows):
        y = _HEAD_PX + row * step
        label = _fitting(name, font, _MOST_LABEL_PX)
        place = (left - 2 * _GAP_PX, y + _CELL_PX // 2)
        draw.text(place, label, fill=_INK, font=font, anchor="rm")
        for column, image in enumerate(images):
            cell = Image.fromarray(image).resize((_CELL_PX, _CELL_PX), Image.Resampling.LANCZOS)
            sheet.paste(cell, (left + column * step, y))
        for column, text in enumerate(texts):
            x = left + column * step
            draw.rectangle((x, y + _CELL_PX - 28, x + 52, y + _CELL_PX - 1), fill=_INK)
            draw.text((x + 26, y + _CELL_PX - 14), text, fill=_PAPER, font=small, anchor="mm")
    return sheet


def _fitting(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width_px: int) -> str:
    """The text, its middle left out where it is too wide."""
    short, kept = text, len(text)
    while font.getlength(short) > width_px and kept > 3:
        kept -= 1
        short = f"{text[: -(-kept // 2)]}…{text[len(text) - kept // 2 :]}"
    return short

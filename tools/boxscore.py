"""What a predicted mask is worth where only boxes round the objects are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..streams.photos import Box

_QUIET_SHARE = 0.005


class Measures(NamedTuple):
    """What a mask is worth where only boxes are known.

    Attributes:
        pointing: whether the most probable pixel lies in a box.
        inside: share of the mask's pixels that lie in a box; NaN of an empty mask.
        box_iou: intersection over union of the rectangle round the mask and that round all boxes;
            0 of an empty mask.
        share: share of the picture that is marked.
        quiet: whether that is under 0.5 %.
    """

    pointing: float
    inside: float
    box_iou: float
    share: float
    quiet: float


def measured(prob: NDArray[np.float32], boxes: Sequence[Box]) -> Measures:
    """Measure one prediction against a category's boxes.

    Args:
        prob: (H, W), probability that a pixel sounds.
        boxes: one or more.
    """
    region, mask = region_of(boxes, prob.shape), prob > 0.5
    marked = int(np.count_nonzero(mask))
    share = marked / mask.size
    return Measures(
        pointing=float(region.flat[int(np.argmax(prob))]),
        inside=np.count_nonzero(mask & region) / marked if marked else float("nan"),
        box_iou=_box_iou(mask, boxes),
        share=share,
        quiet=float(share < _QUIET_SHARE),
    )


def region_of(boxes: Sequence[Box], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The pixels whose centres lie in any of the boxes."""
    H, W = shape
    x, y = (np.arange(W) + 0.5) / W, (np.arange(H) + 0.5) / H
    region = np.zeros((H, W), np.bool_)
    for box in boxes:
        region |= np.outer((y > box.y0) & (y < box.y1), (x > box.x0) & (x < box.x1))
    return region


def _box_iou(mask: NDArray[np.bool_], boxes: Sequence[Box]) -> float:
    if not mask.any():
        return 0.0
    H, W = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    found = Box(columns[0] / W, rows[0] / H, (columns[-1] + 1) / W, (rows[-1] + 1) / H)
    return rectangle_iou(found, boxes)


def rectangle_iou(found: Box, boxes: Sequence[Box]) -> float:
    """Intersection over union of a rectangle and that round all boxes."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    truth = Box(min(lefts), min(tops), max(rights), max(bottoms))
    width = min(found.x1, truth.x1) - max(found.x0, truth.x0)
    height = min(found.y1, truth.y1) - max(found.y0, truth.y0)
    overlap = max(0.0, width) * max(0.0, height)
    return overlap / (_area(found) + _area(truth) - overlap)


def _area(box: Box) -> float:
    return (box.x1 - box.x0) * (box.y1 - box.y0)

"""Pictures and masks at the size that a network takes: squashed to a square, as AVSBench does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def fit_picture(picture: Image.Image | NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """A picture, squashed bilinearly where it has another size.

    Args:
        picture: RGB, or uint8 (H, W, 3).
        size_px: side of the square.

    Returns:
        uint8 (size_px, size_px, 3).
    """
    return _fitted(picture, size_px, Image.Resampling.BILINEAR)


def fit_mask(mask: Image.Image | NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """A picture in one channel, nearest neighbour.

    Args:
        mask: luminance, or uint8 (H, W).
        size_px: side of the square.

    Returns:
        uint8 (size_px, size_px), of the values that were there.
    """
    return _fitted(mask, size_px, Image.Resampling.NEAREST)


def _fitted(
    picture: Image.Image | NDArray[np.uint8], size_px: int, resampling: Image.Resampling
) -> NDArray[np.uint8]:
    opened = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    if opened.size != (size_px, size_px):
        opened = opened.resize((size_px, size_px), resampling)
    return np.asarray(opened, dtype=np.uint8)

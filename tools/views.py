"""Variety for training: other pictures that mean the same, with their masks.

All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

CELLS = 4
"""Cells of a view's grid along each side."""

LONGEST_TURN_DEG = 20.0
"""A view turns the picture by no more than this; half of the views do not turn it."""

BEND = 0.06
"""How far a node of a view's grid is moved, as a share of a cell's side, one standard deviation."""


class View(NamedTuple):
    """One geometric variation of a picture, to be used on its masks alike.

    Attributes:
        grid: float64 (`CELLS` + 1, `CELLS` + 1, 2), where in the picture the nodes of a regular
            grid over what is shown lie: rows, columns, (x, y) in pixels. Between them the picture
            is bent linearly.
    """

    grid: NDArray[np.float64]

    def of_picture(self, image: NDArray[np.uint8]) -> Image.Image:
        """Show uint8 (H, W, 3) at its own size."""
        return self._show(Image.fromarray(image), Image.Resampling.BILINEAR)

    def of_mask(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Show uint8 (H, W) in {0, 1} at its own size."""
        return np.asarray(self._show(Image.fromarray(mask), Image.Resampling.NEAREST))

    def _show(self, image: Image.Image, filtering: Image.Resampling) -> Image.Image:
        xs, ys = (np.linspace(0, side, CELLS + 1).round().astype(int) for side in image.size)
        mesh: list[tuple[tuple[int, int, int, int], tuple[float, ...]]] = []
        for row in range(CELLS):
            for column in range(CELLS):
                box = (int(xs[column]), int(ys[row]), int(xs[column + 1]), int(ys[row + 1]))
                corners = (
                    (row, column),
                    (row + 1, column),
                    (row + 1, column + 1),
                    (row, column + 1),
                )
                quad = tuple(float(part) for corner in corners for part in self.grid[corner])
                mesh.append((box, quad))
        return image.transform(image.size, Image.Transform.MESH, mesh, filtering)


def draw_view(rng: np.random.Generator, width: int, height: int) -> View:
    """Draw a view of 50 to 100 % of each side, flipped half of the time, often turned and bent."""
    share = 1 - 0.5 * rng.random(2) ** 1.5
    corner = rng.random(2) * (1 - share)
    flipped, turned, bent = rng.random(3) < 0.5
    side = np.linspace(-0.5, 0.5, CELLS + 1)
    nodes = np.stack(np.meshgrid(side, side), axis=-1)  # rows, columns, (x, y)
    if flipped:
        nodes[..., 0] *= -1
    if bent:
        nodes = nodes + rng.normal(0, BEND / CELLS, nodes.shape)
    nodes = nodes * share * (width, height)
    if turned:
        angle = np.radians(rng.uniform(-LONGEST_TURN_DEG, LONGEST_TURN_DEG))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        nodes = nodes @ turn.T
    nodes = nodes + (corner + share / 2) * (width, height)
    return View(np.clip(nodes, 0, (width, height)))


def restyled(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Give one object other colours and another contrast than the picture around it.

    Args:
        image: uint8 (H, W, 3).
        mask: uint8 (H, W) in {0, 1}, the object.
        rng: all randomness.
    """
    if not mask.any():
        return image
    soft = Image.fromarray(mask * np.uint8(255)).filter(ImageFilter.BoxBlur(1))
    share = np.asarray(soft, np.float32)[..., None] / 255
    x = image.astype(np.float32)
    mean = x[mask > 0].mean(axis=0)
    shift = mean * np.float32(rng.uniform(0.7, 1.3)) + rng.normal(0, 20, 3).astype(np.float32)
    other = (x - mean) * np.float32(rng.uniform(0.5, 1.4)) + shift
    if rng.random() < 0.15:
        other = other[..., rng.permutation(3)]
    return np.clip(x + share * (other - x), 0, 255).astype(np.uint8)


def varied_colours(picture: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Change brightness, contrast, tint and saturation; sometimes channels, sharpness, noise, JPEG.

    Returns:
        uint8 (H, W, 3).
    """
    if rng.random() < 0.25:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.6))))
    x = np.asarray(picture, dtype=np.float32)
    grey = x.mean(axis=2, keepdims=True)
    x = grey + (x - grey) * np.float32(rng.uniform(0.0, 1.6))
    if rng.random() < 0.2:
        x = x[..., rng.permutation(3)]
    x = (x - 128) * np.float32(rng.uniform(0.6, 1.4)) + np.float32(128 + rng.uniform(-40, 40))
    x = x * rng.uniform(0.8, 1.2, 3).astype(np.float32)
    if rng.random() < 0.3:
        x = x + rng.standard_normal(x.shape, dtype=np.float32) * np.float32(rng.uniform(1, 9))
    out = np.clip(x, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        coded = io.BytesIO()
        Image.fromarray(out).save(coded, "JPEG", quality=int(rng.integers(30, 90)))
        out = np.asarray(Image.open(coded))
    return out

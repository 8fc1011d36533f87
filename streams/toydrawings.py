"""The toy world's pictures: eight kinds of drawn objects, and backgrounds.

Every drawing varies in colour and proportion with the generator it is given, is drawn at twice its
size and scaled down for smooth edges, and is lit from above.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SPRITE_PX = 256
_CANVAS_PX = 2 * SPRITE_PX

Colour = tuple[int, int, int]
Point = tuple[float, float]


class _Pen:
    """Draws on a square canvas in coordinates from 0 to 1, y downwards."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.canvas = Image.new("RGBA", (_CANVAS_PX, _CANVAS_PX))
        self._draw = ImageDraw.Draw(self.canvas)
        self._rng = rng

    def colour(self, hue: float, saturation: float, value: float, spread: float = 0.03) -> Colour:
        """A colour near the one given; hue, saturation and value are 0 to 1."""
        h = (hue + self._rng.uniform(-spread, spread)) % 1.0
        s = float(np.clip(saturation * self._rng.uniform(0.85, 1.15), 0, 1))
        v = float(np.clip(value * self._rng.uniform(0.85, 1.12), 0, 1))
        red, green, blue = colorsys.hsv_to_rgb(h, s, v)
        return int(red * 255), int(green * 255), int(blue * 255)

    def ellipse(self, centre: Point, radii: Point, fill: Colour) -> None:
        (x, y), (rx, ry) = centre, radii
        self._draw.ellipse(self._scaled([(x - rx, y - ry), (x + rx, y + ry)]), fill=fill)

    def box(self, corner: Point, opposite: Point, fill: Colour, radius: float = 0.0) -> None:
        self._draw.rounded_rectangle(
            self._scaled([corner, opposite]), radius * _CANVAS_PX, fill=fill
        )

    def polygon(self, points: Sequence[Point], fill: Colour) -> None:
        self._draw.polygon(self._scaled(points), fill=fill)

    def line(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        self._draw.line(
            self._scaled(points), fill=fill, width=max(1, round(width * _CANVAS_PX)), joint="curve"
        )

    def arc(self, centre: Point, radii: Point, degrees: Point, width: float, fill: Colour) -> None:
        (x, y), (rx, ry) = centre, radii
        box = self._scaled([(x - rx, y - ry), (x + rx, y + ry)])
        self._draw.arc(box, *degrees, fill=fill, width=round(width * _CANVAS_PX))

    def vary(self, low: float, high: float) -> float:
        """A number between the two."""
        return float(self._rng.uniform(low, high))

    @staticmethod
    def _scaled(points: Sequence[Point]) -> list[Point]:
        return [(x * _CANVAS_PX, y * _CANVAS_PX) for x, y in points]


def _bell(pen: _Pen) -> None:
    gold, dark = pen.colour(0.12, 0.75, 0.85), pen.colour(0.10, 0.80, 0.50)
    flare = pen.vary(1.8, 2.8)
    pen.arc((0.5, 0.13), (0.07, 0.08), (0, 360), 0.03, dark)
    pen.ellipse((0.5, 0.86), (0.07, 0.07), dark)
    steps = np.linspace(0, 1, 24)
    widths = 0.13 + 0.10 * np.sqrt(steps) + pen.vary(0.14, 0.2) * steps**flare
    heights = 0.18 + 0.62 * steps
    right = [(0.5 + w, y) for w, y in zip(widths, heights, strict=True)]
    left = [(0.5 - w, y) for w, y in zip(widths[::-1], heights[::-1], strict=True)]
    pen.polygon(right + left, gold)
    pen.ellipse((0.5, 0.2), (0.14, 0.08), gold)
    pen.box((0.5 - widths[-1] - 0.02, 0.77), (0.5 + widths[-1] + 0.02, 0.84), dark, 0.03)
    pen.line([(0.5 - widths[15], 0.6), (0.5 + widths[15], 0.6)], 0.02, dark)
    pen.line([(0.38, 0.28), (0.34, 0.55)], 0.035, pen.colour(0.13, 0.25, 0.98))


def _drum(pen: _Pen) -> None:
    shell, rope = pen.colour(0.99, 0.80, 0.75), pen.colour(0.12, 0.15, 0.93)
    rim, skin = pen.colour(0.60, 0.55, 0.40), pen.colour(0.11, 0.18, 0.95)
    top, bottom, half = pen.vary(0.26, 0.34), pen.vary(0.70, 0.80), pen.vary(0.36, 0.42)
    pen.ellipse((0.5, bottom), (half, 0.14), rim)
    pen.box((0.5 - half, top), (0.5 + half, bottom), shell)
    pen.ellipse((0.5, bottom - 0.03), (half, 0.14), shell)
    peaks = 8
    zigzag = [
        (0.5 - half + 2 * half * i / peaks, (top + 0.1, bottom + 0.02)[i % 2])
        for i in range(peaks + 1)
    ]
    pen.line(zigzag, 0.02, rope)
    pen.ellipse((0.5, top + 0.02), (half + 0.01, 0.15), rim)
    pen.ellipse((0.5, top), (half, 0.14), skin)
    stick = pen.colour(0.08, 0.55, 0.60)
    for tip, end in (((0.42, top), (0.14, 0.06)), ((0.6, top), (0.88, 0.08))):
        pen.line([tip, end], 0.03, stick)
        pen.ellipse(tip, (0.035, 0.03), stick)


def _bird(pen: _Pen) -> None:
    body, wing = pen.colour(0.15, 0.80, 0.95, 0.02), pen.colour(0.09, 0.80, 0.85, 0.02)
    leg, black = pen.colour(0.06, 0.8, 0.7), pen.colour(0.0, 0.1, 0.1)
    for x in (0.46, 0.56):
        pen.line([(x, 0.78), (x, 0.93), (x - 0.06, 0.95)], 0.022, leg)
    pen.polygon([(0.66, 0.55), (0.97, pen.vary(0.40, 0.55)), (0.94, 0.66), (0.62, 0.75)], wing)
    pen.ellipse((0.52, 0.6), (0.29, 0.23), body)
    pen.ellipse((0.33, 0.34), (0.19, 0.18), body)
    pen.polygon([(0.2, 0.3), (0.02, 0.38), (0.19, 0.44)], leg)
    pen.ellipse((0.6, 0.58), (0.19, pen.vary(0.10, 0.15)), wing)
    pen.ellipse((0.29, 0.3), (0.045, 0.05), (250, 250, 250))
    pen.ellipse((0.28, 0.3), (0.025, 0.03), black)


def _robot(pen: _Pen) -> None:
    steel, dark = pen.colour(0.58, 0.22, 0.68), pen.colour(0.6, 0.35, 0.32)
    glow, knob = pen.colour(0.5, 0.75, 0.98, 0.05), pen.colour(0.95, 0.7, 0.85, 0.08)
    pen.line([(0.5, 0.2), (0.5, 0.08)], 0.025, dark)
    pen.ellipse((0.5, 0.07), (0.045, 0.045), knob)
    pen.box((0.42, 0.58), (0.58, 0.68), steel)
    pen.box((0.26, 0.64), (0.74, 0.95), dark, 0.04)
    pen.box((0.12, 0.66), (0.24, 0.88), steel, 0.04)
    pen.box((0.76, 0.66), (0.88, 0.88), steel, 0.04)
    pen.box((0.14, 0.3), (0.2, 0.5), dark, 0.02)
    pen.box((0.8, 0.3), (0.86, 0.5), dark, 0.02)
    pen.box((0.19, 0.18), (0.81, 0.62), steel, pen.vary(0.02, 0.09))
    eye = pen.vary(0.06, 0.085)
    for x in (0.36, 0.64):
        pen.ellipse((x, 0.34), (eye + 0.02, eye + 0.02), dark)
        pen.ellipse((x, 0.34), (eye, eye), glow)
    pen.box((0.32, 0.48), (0.68, 0.56), dark, 0.02)
    for x in np.linspace(0.37, 0.63, 5):
        pen.line([(x, 0.485), (x, 0.555)], 0.015, steel)
    for x in (0.38, 0.5, 0.62):
        pen.ellipse((x, 0.76), (0.04, 0.04), knob if x == 0.5 else glow)


def _kettle(pen: _Pen) -> None:
    enamel, trim = pen.colour(0.48, 0.70, 0.62), pen.colour(0.48, 0.6, 0.3)
    pen.arc((0.53, 0.36), (0.25, 0.28), (180, 360), 0.05, (45, 42, 40))
    pen.polygon([(0.3, 0.75), (0.03, pen.vary(0.30, 0.42)), (0.15, 0.32), (0.36, 0.5)], enamel)
    pen.ellipse((0.55, 0.66), (0.34, 0.26), enamel)
    pen.box((0.27, 0.8), (0.83, 0.92), trim, 0.04)
    pen.ellipse((0.54, 0.44), (0.2, 0.07), trim)
    pen.ellipse((0.54, 0.42), (0.19, 0.06), enamel)
    pen.ellipse((0.54, 0.34), (0.045, 0.045), (45, 42, 40))
    for x in (0.42, 0.56, 0.7):
        pen.ellipse((x, 0.66), (0.045, 0.045), (245, 240, 230))


def _clock(pen: _Pen) -> None:
    case, black = pen.colour(0.78, 0.5, 0.55, 0.05), (25, 25, 30)
    for side in (-1, 1):
        pen.line([(0.5 + side * 0.2, 0.8), (0.5 + side * 0.32, 0.96)], 0.05, black)
        pen.ellipse((0.5 + side * 0.25, 0.17), (0.13, 0.11), case)
    pen.line([(0.5, 0.2), (0.5, 0.06)], 0.04, black)
    pen.ellipse((0.5, 0.54), (0.39, 0.39), case)
    pen.ellipse((0.5, 0.54), (0.32, 0.32), (248, 246, 238))
    for hour in range(12):
        turn = hour * math.pi / 6
        tip, end = [(0.5 + r * math.sin(turn), 0.54 - r * math.cos(turn)) for r in (0.24, 0.3)]
        pen.line([tip, end], 0.022, black)
    for reach, width in ((0.15, 0.035), (0.23, 0.022)):
        turn = pen.vary(0, 2 * math.pi)
        pen.line(
            [(0.5, 0.54), (0.5 + reach * math.sin(turn), 0.54 - reach * math.cos(turn))],
            width,
            black,
        )
    pen.ellipse((0.5, 0.54), (0.03, 0.03), case)


def _siren(pen: _Pen) -> None:
    glass, glare = pen.colour(0.62, 0.85, 0.9, 0.02), pen.colour(0.58, 0.25, 1.0)
    width, top = pen.vary(0.2, 0.27), pen.vary(0.14, 0.22)
    pen.box((0.5 - width, top + width), (0.5 + width, 0.76), glass)
    pen.ellipse((0.5, top + width), (width, width), glass)
    pen.polygon([(0.46, 0.7), (0.3, 0.34), (0.5, 0.24), (0.56, 0.7)], pen.colour(0.6, 0.5, 1.0))
    pen.ellipse((0.5, 0.5), (0.07, 0.09), (255, 252, 225))
    pen.line([(0.5 + width * 0.6, top + width), (0.5 + width * 0.6, 0.66)], 0.03, glare)
    pen.box((0.18, 0.72), (0.82, 0.82), (120, 124, 130), 0.03)
    pen.polygon([(0.2, 0.8), (0.8, 0.8), (0.9, 0.93), (0.1, 0.93)], (62, 64, 70))


def _frog(pen: _Pen) -> None:
    skin, belly = pen.colour(0.33, 0.70, 0.65, 0.04), pen.colour(0.2, 0.4, 0.9)
    dark = pen.colour(0.35, 0.8, 0.35)
    for side in (-1, 1):
        pen.ellipse((0.5 + side * 0.31, 0.82), (0.17, 0.1), dark)
        pen.ellipse((0.5 + side * 0.2, 0.24), (0.13, 0.14), skin)
    pen.ellipse((0.5, 0.68), (0.34, 0.25), skin)
    pen.ellipse((0.5, 0.45), (0.4, pen.vary(0.20, 0.25)), skin)
    pen.ellipse((0.5, 0.74), (0.22, 0.17), belly)
    for side in (-1, 1):
        pen.ellipse((0.5 + side * 0.2, 0.23), (0.085, 0.09), (250, 248, 225))
        pen.ellipse((0.5 + side * 0.2, 0.24), (0.045, 0.055), (20, 22, 18))
        pen.ellipse((0.5 + side * 0.05, 0.4), (0.012, 0.015), dark)
    pen.arc((0.5, 0.42), (0.3, 0.14), (15, 165), 0.02, dark)
    for _ in range(5):
        pen.ellipse((pen.vary(0.2, 0.8), pen.vary(0.33, 0.38)), (0.02, 0.015), dark)


DRAWINGS: Mapping[str, Callable[[_Pen], None]] = {
    "toy_bell": _bell,
    "toy_bird": _bird,
    "toy_clock": _clock,
    "toy_drum": _drum,
    "toy_frog": _frog,
    "toy_kettle": _kettle,
    "toy_robot": _robot,
    "toy_siren": _siren,
}


def draw_object(category: str, rng: np.random.Generator) -> Image.Image:
    """Draws an object.

    Args:
        category: a key of `DRAWINGS`.
        rng: decides colours, proportions, light and whether it is mirrored.

    Returns:
        RGBA, 256 x 256 px; alpha is the matte.
    """
    pen = _Pen(rng)
    DRAWINGS[category](pen)
    sprite = pen.canvas.resize((SPRITE_PX, SPRITE_PX), Image.Resampling.BOX)
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _lit(sprite, rng)


def _lit(sprite: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Light from above, darker towards the edges of the shape, with a little grain."""
    pixels = np.asarray(sprite, dtype=np.float32)
    inside = sprite.getchannel("A").filter(ImageFilter.BoxBlur(SPRITE_PX / 16))
    depth = np.asarray(inside, dtype=np.float32) / 255.0
    ramp = np.linspace(-1, 1, SPRITE_PX, dtype=np.float32)
    slant = float(rng.uniform(-0.12, 0.12))
    light = 0.62 + 0.42 * depth - 0.16 * ramp[:, None] + slant * ramp[None, :]
    grain = rng.standard_normal((SPRITE_PX, SPRITE_PX), dtype=np.float32) * 4.0
    pixels[..., :3] = pixels[..., :3] * light[..., None] + grain[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGBA")


def draw_background(rng: np.random.Generator, size_px: tuple[int, int] = (320, 320)) -> Image.Image:
    """Draws a background: a gradient, cloudy noise in several octaves, soft shapes.

    Args:
        rng: decides all of it.
        size_px: (width, height).

    Returns:
        RGB.
    """
    width, height = size_px
    ends = rng.uniform(20, 235, (2, 3)).astype(np.float32)
    turn = float(rng.uniform(0, 2 * math.pi))
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    blend = np.clip(0.5 + 0.5 * (math.cos(turn) * x + math.sin(turn) * y), 0, 1)[..., None]
    pixels = ends[0] * (1 - blend) + ends[1] * blend
    tint = rng.uniform(-1, 1, 3).astype(np.float32)
    for cells in (4, 9, 20, 45, 110):
        strength = float(rng.uniform(5, 60)) / math.sqrt(cells)
        grid = rng.standard_normal((cells, cells)).astype(np.float32)
        cloud = Image.fromarray(grid).resize(size_px, Image.Resampling.BICUBIC)
        pixels += np.asarray(cloud)[..., None] * strength * (1 + 0.5 * tint)
    canvas = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")
    return _with_clutter(canvas, rng)


def _with_clutter(canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Pastes soft, half transparent shapes that belong to no category."""
    width, height = canvas.size
    for _ in range(int(rng.integers(0, 7))):
        reach = float(rng.uniform(0.05, 0.3)) * height
        x, y = float(rng.uniform(0, width)), float(rng.uniform(0, height))
        corners = int(rng.integers(3, 8))
        turns = np.sort(rng.uniform(0, 2 * math.pi, corners))
        points = [(x + reach * math.cos(t), y + reach * math.sin(t)) for t in turns]
        stencil = Image.new("L", canvas.size)
        ImageDraw.Draw(stencil).polygon(points, fill=int(rng.integers(60, 220)))
        stencil = stencil.filter(ImageFilter.BoxBlur(float(rng.uniform(0.5, 6))))
        colour = tuple(int(v) for v in rng.integers(10, 245, 3))
        canvas.paste(colour, (0, 0), stencil)
    return canvas


def sensor_noise(
    picture: NDArray[np.uint8], level: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Adds Gaussian noise of ``level`` grey values to a picture, uint8 (H, W, 3)."""
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * level
    return np.clip(picture + noise, 0, 255).astype(np.uint8)

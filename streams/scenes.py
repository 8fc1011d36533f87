"""Scenes of cut-out objects over a background: pictures and exact masks at any time and size.

Lengths are fractions of the frame (x of its width, y of its height, an object's size of its
height), so that the same scene can be drawn at any size, and squashed as AVSBench squashes: the
scene's ``aspect`` is that of the world, the picture's is the caller's choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

MAX_SPEED = 0.045
"""Fastest that an object or the background moves, in frame heights a second."""


@dataclass(frozen=True, slots=True)
class Motion:
    """A slow sway about a place; every object draws it alike, whether it sounds or not.

    Attributes:
        x: centre of the sway, fraction of the frame's width.
        y: the same of its height.
        sway_x: amplitude, fraction of the width.
        sway_y: amplitude, fraction of the height.
        period_s: seconds for one sway.
        phase: where the sway stands at 0 s, radians.
        angle_deg: mean angle, counter-clockwise.
        tilt_deg: amplitude of its rocking.
    """

    x: float
    y: float
    sway_x: float
    sway_y: float
    period_s: float
    phase: float
    angle_deg: float
    tilt_deg: float

    def at(self, time_s: float) -> tuple[float, float, float]:
        """(x, y, angle in radians) at ``time_s``."""
        turn = 2 * math.pi * time_s / self.period_s + self.phase
        return (
            self.x + self.sway_x * math.sin(turn),
            self.y + self.sway_y * math.cos(turn),
            math.radians(self.angle_deg + self.tilt_deg * math.sin(0.8 * turn)),
        )


def draw_motion(rng: np.random.Generator, x: float, y: float, max_angle_deg: float) -> Motion:
    """Draws a motion about (x, y) that is never faster than `MAX_SPEED`."""
    period_s = float(rng.uniform(6.0, 12.0))
    reach = MAX_SPEED * period_s / (2 * math.pi)
    return Motion(
        x=x,
        y=y,
        sway_x=reach * float(rng.uniform(0.2, 0.7)),
        sway_y=reach * float(rng.uniform(0.1, 0.4)),
        period_s=period_s,
        phase=float(rng.uniform(0, 2 * math.pi)),
        angle_deg=float(rng.uniform(-max_angle_deg, max_angle_deg)),
        tilt_deg=float(rng.uniform(1.0, 5.0)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Actor:
    """An object in a scene; see `cast_actor`.

    Attributes:
        category: its class.
        sprite: RGBA picture of the object and its shadow.
        matte: picture of mode L and the sprite's size: the object alone.
        size: the sprite's height (before rotation), fraction of the frame's height.
        motion: where it is when.
    """

    category: str
    sprite: Image.Image
    matte: Image.Image
    size: float
    motion: Motion


def cast_actor(
    category: str, cutout: Image.Image, size: float, motion: Motion, shadow: float = 0.3
) -> Actor:
    """Makes an actor of a cut-out object.

    Args:
        category: its class.
        cutout: RGBA picture whose alpha is the matte.
        size: its height, fraction of the frame's height.
        motion: where it is when.
        shadow: darkness of the soft shadow under it, 0 to 1.
    """
    reach = max(2, max(cutout.size) // 24)
    wide, high = cutout.width + 4 * reach, cutout.height + 4 * reach
    matte = Image.new("L", (wide, high))
    matte.paste(cutout.getchannel("A"), (2 * reach, 2 * reach))
    dark = Image.new("L", (wide, high))
    dark.paste(matte, (reach // 2, reach))
    dark = dark.filter(ImageFilter.BoxBlur(reach)).point([int(v * shadow) for v in range(256)])
    sprite = Image.new("RGBA", (wide, high))
    sprite.putalpha(dark)
    sprite.alpha_composite(cutout, (2 * reach, 2 * reach))
    return Actor(category, sprite, matte, size * high / cutout.height, motion)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Objects over a background, the last in front.

    Attributes:
        background: RGB picture; panned slowly within itself.
        actors: the objects, back to front.
        aspect: width by height of the world.
        pan: the background's sway.
    """

    background: Image.Image
    actors: tuple[Actor, ...]
    aspect: float
    pan: Motion

    def draw(
        self, time_s: float, size_px: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Draws the scene.

        Args:
            time_s: when.
            size_px: (width, height) of the picture; another aspect than the scene's squashes it.

        Returns:
            uint8 (H, W, 3) RGB, and bool (A, H, W): the visible pixels of each actor.
        """
        width, height = size_px
        picture = self._background(time_s, size_px)
        masks = np.zeros((len(self.actors), height, width), dtype=np.bool_)
        for index, actor in enumerate(self.actors):
            layer, matte, corner = _place(actor, time_s, size_px, self.aspect)
            picture.paste(layer, corner, layer)
            covered = np.asarray(matte) > 127
            left, top = corner
            rows, columns = slice(top, top + layer.height), slice(left, left + layer.width)
            masks[:index, rows, columns] &= ~covered
            masks[index, rows, columns] = covered
        return np.asarray(picture, dtype=np.uint8), masks

    def _background(self, time_s: float, size_px: tuple[int, int]) -> Image.Image:
        """The largest cut of the world's aspect that leaves a margin of an eighth to pan in."""
        wide, high = self.background.size
        cut_high = min(high, wide / self.aspect) / 1.125
        cut_wide = cut_high * self.aspect
        x, y, _ = self.pan.at(time_s)
        left = min(max((x - 0.5) * cut_high + (wide - cut_wide) / 2, 0.0), wide - cut_wide)
        top = min(max((y - 0.5) * cut_high + (high - cut_high) / 2, 0.0), high - cut_high)
        box = (left, top, left + cut_wide, top + cut_high)
        return self.background.resize(size_px, Image.Resampling.BILINEAR, box=box)


def _place(
    actor: Actor, time_s: float, size_px: tuple[int, int], aspect: float
) -> tuple[Image.Image, Image.Image, tuple[int, int]]:
    """Rotates, scales and squashes an actor: its layer, its matte, their top left corner."""
    sprite, matte = actor.sprite, actor.matte
    width, height = size_px
    x, y, angle = actor.motion.at(time_s)
    pixels_y = height * actor.size / sprite.height
    pixels_x = pixels_y * (width / height) / aspect
    shrink = int(1 / max(pixels_x, pixels_y, 1e-6))
    if shrink > 1:
        sprite, matte = sprite.reduce(shrink), matte.reduce(shrink)
        pixels_x, pixels_y = pixels_x * shrink, pixels_y * shrink
    cos, sin = math.cos(angle), math.sin(angle)
    half_x = (abs(cos) * sprite.width + abs(sin) * sprite.height) / 2 * pixels_x
    half_y = (abs(sin) * sprite.width + abs(cos) * sprite.height) / 2 * pixels_y
    centre_x, centre_y = x * width, y * height
    left = min(max(math.floor(centre_x - half_x), 0), width - 1)
    top = min(max(math.floor(centre_y - half_y), 0), height - 1)
    right = min(max(math.ceil(centre_x + half_x), left + 1), width)
    bottom = min(max(math.ceil(centre_y + half_y), top + 1), height)
    a, b = cos / pixels_x, -sin / pixels_y
    d, e = sin / pixels_x, cos / pixels_y
    c = sprite.width / 2 - a * (centre_x - left) - b * (centre_y - top)
    f = sprite.height / 2 - d * (centre_x - left) - e * (centre_y - top)
    layer, outline = (
        picture.transform(
            (right - left, bottom - top),
            Image.Transform.AFFINE,
            (a, b, c, d, e, f),
            resample=Image.Resampling.BICUBIC,
        )
        for picture in (sprite, matte)
    )
    return layer, outline, (left, top)


def draw_places(
    rng: np.random.Generator, sizes: Sequence[float], aspect: float
) -> list[tuple[float, float]]:
    """Draws centres for objects of the given sizes that overlap little.

    Of 30 draws the one with the least overlap is kept, so that crowded scenes end too.

    Args:
        rng: the seeded generator.
        sizes: heights of the objects, fractions of the frame's height.
        aspect: width by height of the world.

    Returns:
        (x, y) of each, fractions of the frame's width and height.
    """
    best: list[tuple[float, float]] = []
    least = math.inf
    for _ in range(30):
        places: list[tuple[float, float]] = []
        for size in sizes:
            margin_x, margin_y = min(0.4 * size / aspect, 0.5), min(0.4 * size, 0.5)
            places.append(
                (
                    float(rng.uniform(margin_x, 1 - margin_x)),
                    float(rng.uniform(margin_y, 1 - margin_y)),
                )
            )
        overlap = sum(
            max(
                0.0,
                0.45 * (sizes[i] + sizes[j])
                - math.hypot((places[i][0] - places[j][0]) * aspect, places[i][1] - places[j][1]),
            )
            for i in range(len(sizes))
            for j in range(i)
        )
        if overlap < least:
            best, least = places, overlap
        if least == 0.0:
            break
    return best

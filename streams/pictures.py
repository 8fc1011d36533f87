"""Photo collages with known masks: cut-outs, backgrounds and the scenes made of them.

A scene is staged once, at random, and then gives the picture at any time of its duration, so that
five frames for a data set and 250 for a video come from the same code. Whether an object sounds is
not known here: silent and sounding ones move and look alike.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .packages import PackageError

_CUTOUT_PX = 360
_TRIES = 24
_LEAST_VISIBLE = 0.62


class PictureError(ValueError):
    """A picture that cannot serve: which, why."""


@dataclass(frozen=True, slots=True, eq=False)
class Cutout:
    """A photographed thing.

    Attributes:
        name: where it comes from.
        category: what it is; empty for things that never sound.
        rgba: uint8 (H, W, 4), trimmed to the thing; alpha is the matte.
    """

    name: str
    category: str
    rgba: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Background:
    """A photograph to stand in: its name and uint8 (H, W, 3) pixels."""

    name: str
    rgb: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One rendered frame: uint8 (H, W, 3), and bool (n, H, W): what is seen of each object."""

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]


def read_cutout(data: bytes, name: str, category: str = "", *, kind: str = "image") -> Cutout:
    """Read a cut-out and trim it to its matte.

    Args:
        data: the whole file.
        name: kept as provenance.
        category: what it is.
        kind: ``image`` takes alpha as the matte, ``image_grabcut`` finds one (OpenCV's GrabCut,
            the border taken as background).

    Raises:
        PictureError: the picture is damaged or its matte is empty.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert("RGBA")
    except (OSError, ValueError) as error:
        raise PictureError(f"{name} cannot be read as a picture: {error}") from error
    if kind == "image_grabcut":
        image.thumbnail((_CUTOUT_PX, _CUTOUT_PX), Image.Resampling.LANCZOS)
        image.putalpha(_grabcut(np.asarray(image.convert("RGB"))))
    box = image.getchannel("A").point([0] * 128 + [255] * 128).getbbox()
    if box is None:
        raise PictureError(f"{name} has an empty matte: nothing in it is opaque")
    image = image.crop(box)
    image.thumbnail((_CUTOUT_PX, _CUTOUT_PX), Image.Resampling.LANCZOS)
    return Cutout(name, category, np.asarray(image))


def read_background(data: bytes, name: str, *, short_side_px: int = 400) -> Background:
    """Read a background and scale it so that its short side has ``short_side_px``."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.draft("RGB", (2 * short_side_px, 2 * short_side_px))
            image = opened.convert("RGB")
    except (OSError, ValueError) as error:
        raise PictureError(f"{name} cannot be read as a picture: {error}") from error
    ratio = short_side_px / min(image.size)
    size = (round(image.width * ratio), round(image.height * ratio))
    return Background(name, np.asarray(image.resize(size, Image.Resampling.LANCZOS)))


def _grabcut(rgb: NDArray[np.uint8]) -> Image.Image:
    """Return the matte (L) of a photo whose border is background."""
    try:
        import cv2
    except ImportError as error:
        raise PackageError(
            f"OpenCV, which cuts this photo out, does not load ({error}); "
            "where it misses libGL.so.1: apt install libgl1"
        ) from error
    cv2.setRNGSeed(0)
    H, W, _ = rgb.shape
    labels = np.zeros((H, W), np.uint8)
    inner = (max(1, W // 50), max(1, H // 50), W - 2 * (W // 50 + 1), H - 2 * (H // 50 + 1))
    cv2.grabCut(
        np.ascontiguousarray(rgb[..., ::-1]), labels, inner, np.zeros((1, 65)), np.zeros((1, 65)),
        6, cv2.GC_INIT_WITH_RECT,
    )  # fmt: skip
    solid = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(solid)
    if len(stats) > 1:
        solid = (parts == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))).astype(np.uint8)
    matte = Image.fromarray(255 * solid)
    return matte.filter(ImageFilter.MedianFilter(5)).filter(ImageFilter.GaussianBlur(0.8))


@dataclass(frozen=True, slots=True, eq=False)
class _Actor:
    """A cut-out at its size in the scene, with its path; lengths in pixels, times in seconds."""

    sprite: Image.Image
    shadow: Image.Image
    middle: tuple[float, float]
    velocity: tuple[float, float]
    sway: tuple[float, float, float]
    angle_deg: float
    spin_deg_s: float

    def matrix(self, t_s: float) -> tuple[float, float, float, float, float, float]:
        """Return the affine map from the frame to the sprite, ``t_s`` from mid-scene."""
        amplitude, period_s, phase = self.sway
        wave = 2 * np.pi * (t_s / period_s + phase)
        x = self.middle[0] + self.velocity[0] * t_s + amplitude * np.sin(wave)
        y = self.middle[1] + self.velocity[1] * t_s + 0.5 * amplitude * np.cos(wave)
        angle = np.deg2rad(self.angle_deg + self.spin_deg_s * t_s)
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        width, height = self.sprite.size
        return (
            cos,
            sin,
            width / 2 - cos * x - sin * y,
            -sin,
            cos,
            height / 2 + sin * x - cos * y,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A background with objects on it that moves for a while.

    Attributes:
        size_px: (width, height) of its pictures.
        duration_s: the time for which objects stay in view.
        cutouts: the objects, later ones in front.
    """

    size_px: tuple[int, int]
    duration_s: float
    cutouts: tuple[Cutout, ...]
    _backdrop: Image.Image
    _pan: tuple[float, float, float, float, float, float]
    _actors: tuple[_Actor, ...]
    _curves: NDArray[np.uint8] = field(repr=False)
    _noise: float
    _quality: int
    _seed: int

    def frame(self, t_s: float) -> Picture:
        """Render the picture at ``t_s`` seconds from the scene's beginning."""
        t = t_s - self.duration_s / 2
        canvas = self._background_at(t)
        masks = np.zeros((len(self._actors), self.size_px[1], self.size_px[0]), np.bool_)
        for index, actor in enumerate(self._actors):
            layer, shadow = _place(actor, t, self.size_px)
            canvas.paste((8, 8, 12), mask=shadow)
            canvas.paste(layer, mask=layer.getchannel("A"))
            solid = np.asarray(layer.getchannel("A")) > 127
            masks[:index] &= ~solid
            masks[index] = solid
        return Picture(self._photograph(canvas, round(t_s * 1000)), masks)

    def _background_at(self, t: float) -> Image.Image:
        x, y, half, dx, dy, growth = self._pan
        scale = half * (1 + growth * t)
        x, y = x + dx * t, y + dy * t
        aspect = self.size_px[1] / self.size_px[0]
        width, height = self._backdrop.size
        half_w = min(scale, scale / aspect, width / 2, height / 2 / aspect)
        half_h = half_w * aspect
        x = float(np.clip(x, half_w, width - half_w))
        y = float(np.clip(y, half_h, height - half_h))
        box = (x - half_w, y - half_h, x + half_w, y + half_h)
        return self._backdrop.resize(self.size_px, Image.Resampling.BICUBIC, box=box)

    def _photograph(self, canvas: Image.Image, moment: int) -> NDArray[np.uint8]:
        """Apply what a camera adds: tone curves, sensor noise, JPEG."""
        pixels = np.asarray(canvas)
        graded = np.stack([self._curves[c][pixels[..., c]] for c in range(3)], axis=-1)
        rng = np.random.default_rng((self._seed, moment % (1 << 32)))
        grain = rng.standard_normal(graded.shape, np.float32)
        noisy = np.clip(graded + self._noise * grain, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=self._quality)
        with Image.open(file) as image:
            return np.array(image.convert("RGB"))


def _place(actor: _Actor, t: float, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """Return an actor's RGBA layer and its shadow (L) in the frame."""
    matrix = actor.matrix(t)
    affine, bicubic = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    layer = actor.sprite.transform(size, affine, matrix, bicubic)
    return layer, actor.shadow.transform(size, affine, matrix, Image.Resampling.BILINEAR)


def stage(
    rng: np.random.Generator,
    cutouts: Sequence[Cutout],
    background: Background,
    *,
    size_px: tuple[int, int] = (224, 224),
    duration_s: float = 5.0,
) -> Scene:
    """Stage a scene at random: where each object is, how it moves, the light, the camera.

    Objects are drawn again until each is seen for the most part at the beginning, the middle and
    the end; of the tries the best is kept.

    Args:
        rng: all randomness.
        cutouts: what is in view, back to front.
        background: what is behind.
        size_px: (width, height) of the pictures.
        duration_s: length of the scene.
    """
    backdrop, pan = _backdrop(rng, background, size_px)
    look = _look(rng)
    best: tuple[float, Scene] | None = None
    for _ in range(_TRIES):
        actors = _cast(rng, cutouts, backdrop, size_px, duration_s)
        scene = Scene(size_px, duration_s, tuple(cutouts), backdrop, pan, actors, *look)
        seen = _least_visible(actors, size_px, duration_s)
        if best is None or seen > best[0]:
            best = (seen, scene)
        if seen >= _LEAST_VISIBLE:
            break
    assert best is not None  # noqa: S101 - the loop runs at least once
    return best[1]


def _look(rng: np.random.Generator) -> tuple[NDArray[np.uint8], float, int, int]:
    gamma, tint = rng.uniform(0.8, 1.25), rng.uniform(0.94, 1.06, 3)
    ramp = np.linspace(0, 1, 256) ** gamma
    curves = np.clip(255 * tint[:, None] * ramp, 0, 255).astype(np.uint8)
    return curves, rng.uniform(1.0, 5.0), int(rng.integers(70, 96)), int(rng.integers(1 << 31))


def _backdrop(
    rng: np.random.Generator, background: Background, size_px: tuple[int, int]
) -> tuple[Image.Image, tuple[float, float, float, float, float, float]]:
    """Return the background, flipped and blurred, with the camera's path over it."""
    image = Image.fromarray(background.rgb)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.6)))
    aspect = size_px[1] / size_px[0]
    widest = min(image.width, image.height / aspect) / 2
    half = widest * rng.uniform(0.62, 0.95)
    x = rng.uniform(half, max(half + 1e-6, image.width - half))
    y = rng.uniform(half * aspect, max(half * aspect + 1e-6, image.height - half * aspect))
    dx, dy = rng.uniform(-0.04, 0.04, 2) * half
    return image, (x, y, half, dx, dy, rng.uniform(-0.02, 0.02))


def _cast(
    rng: np.random.Generator,
    cutouts: Sequence[Cutout],
    backdrop: Image.Image,
    size_px: tuple[int, int],
    duration_s: float,
) -> tuple[_Actor, ...]:
    """Place the cut-outs side by side, in random order, most of them standing low."""
    n = len(cutouts)
    width, height = size_px
    slots = rng.permutation(n)
    small, large = (0.38, 0.75) if n == 1 else (0.30, 0.55 if n == 2 else 0.46)
    light = np.asarray(backdrop.resize((32, 32)), np.float32)
    actors: list[_Actor] = []
    for cutout, slot in zip(cutouts, slots, strict=True):
        length = rng.uniform(small, large) * min(size_px)
        sprite, shadow = _sprite(rng, cutout, length, light)
        x = rng.uniform(0.3, 0.7) if n == 1 else (slot + 0.5 + rng.uniform(-0.16, 0.16)) / n
        box = sprite.getchannel("A").getbbox() or (0, 0, *sprite.size)
        foot = height * rng.uniform(0.72, 0.97) - (box[3] - box[1]) / 2
        y = foot if rng.random() < 0.7 else height * rng.uniform(0.3, 0.7)
        velocity = rng.uniform(-0.045, 0.045, 2) * min(size_px) * np.array([1.0, 0.6])
        sway = (rng.uniform(0, 0.012) * min(size_px), rng.uniform(2, 5), rng.random())
        spin = rng.uniform(-1.5, 1.5)
        actors.append(
            _Actor(
                sprite,
                shadow,
                (x * width, y),
                (float(velocity[0]), float(velocity[1])),
                sway,
                rng.uniform(-12, 12),
                spin if duration_s <= 6 else spin * 6 / duration_s,
            )
        )
    return tuple(actors)


def _sprite(
    rng: np.random.Generator, cutout: Cutout, length_px: float, light: NDArray[np.float32]
) -> tuple[Image.Image, Image.Image]:
    """Return a cut-out at its size, its colours drawn towards the scene's, and its shadow."""
    image = Image.fromarray(cutout.rgba)
    ratio = length_px / max(image.size)
    size = (max(4, round(image.width * ratio)), max(4, round(image.height * ratio)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    margin = round(0.16 * length_px) + 4
    padded = Image.new("RGBA", (size[0] + 2 * margin, size[1] + 2 * margin))
    padded.paste(image, (margin, margin))
    matte = padded.getchannel("A").filter(ImageFilter.GaussianBlur(0.5))
    colours = _harmonised(rng, np.asarray(padded), light)
    sprite = Image.fromarray(colours)
    sprite.putalpha(matte)
    return sprite, _shadow(rng, matte, margin, length_px)


def _harmonised(
    rng: np.random.Generator, rgba: NDArray[np.uint8], light: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Jitter brightness, contrast and colour, then draw the colours 10 to 30 % to the scene's."""
    rgb = rgba[..., :3].astype(np.float32)
    solid = rgb[rgba[..., 3] > 127]
    mean, spread = solid.mean(axis=0), solid.std(axis=0) + 1
    grey = rgb.mean(axis=-1, keepdims=True)
    rgb = grey + (rgb - grey) * rng.uniform(0.8, 1.15)
    rgb = mean + (rgb - mean) * rng.uniform(0.85, 1.12)
    rgb = rgb * rng.uniform(0.85, 1.12) * rng.uniform(0.96, 1.04, 3).astype(np.float32)
    scale = np.clip(light.std(axis=(0, 1)) / spread, 0.7, 1.3)
    target = light.mean(axis=(0, 1)) + (rgb - mean) * scale
    share = rng.uniform(0.1, 0.3)
    return np.clip((1 - share) * rgb + share * target, 0, 255).astype(np.uint8)


def _shadow(
    rng: np.random.Generator, matte: Image.Image, margin: int, length_px: float
) -> Image.Image:
    """Return a soft shadow where the thing meets the ground, and a faint one around it."""
    width, height = matte.size
    flat = max(3, round(0.16 * (height - 2 * margin)))
    ground = Image.new("L", matte.size)
    pressed = matte.resize((width, 2 * flat), Image.Resampling.BILINEAR)
    ground.paste(pressed, (0, height - margin - round(1.1 * flat)))
    around = matte.filter(ImageFilter.GaussianBlur(0.05 * length_px + 1))
    ground = ground.filter(ImageFilter.GaussianBlur(0.03 * length_px + 1))
    strength = rng.uniform(0.3, 0.55)
    dark = np.maximum(
        strength * np.asarray(ground, np.float32), 0.35 * strength * np.asarray(around, np.float32)
    )
    return Image.fromarray(dark.astype(np.uint8))


def _least_visible(actors: Sequence[_Actor], size_px: tuple[int, int], duration_s: float) -> float:
    """Return the smallest share of any object that is seen at the beginning, middle and end."""
    least = 1.0
    small = (size_px[0] // 4, size_px[1] // 4)
    quarter = [(a.sprite.getchannel("A").reduce(4), a) for a in actors]
    for t in (-duration_s / 2, 0.0, duration_s / 2):
        covered = np.zeros((small[1], small[0]), np.bool_)
        for matte, actor in reversed(quarter):
            a, b, c, d, e, f = actor.matrix(t)
            matrix = (a, b, c / 4, d, e, f / 4)
            solid = np.asarray(matte.transform(small, Image.Transform.AFFINE, matrix)) > 127
            whole = np.count_nonzero(np.asarray(matte) > 127) or 1
            least = min(least, float(np.count_nonzero(solid & ~covered)) / whole)
            covered |= solid
    return least

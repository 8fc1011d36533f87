"""Photographs of whole scenes, nothing pasted: the rows of ``photos.csv``, and their pixels.

Open-AVS is a collage, and a network that learns from it has never seen a thing where it belongs.
These are photographs that lie in Debian packages for other reasons, with boxes drawn by hand round
what could sound. They are for checking, never for training; no picture here gave Open-AVS a
cut-out or a background. Each row is one object; content is pinned as in `catalogue`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .catalogue import CATEGORIES, RELEASES, ContentError, content_sha256
from .packages import Progress, obtain, quiet
from .pictures import PictureError


class Box(NamedTuple):
    """A rectangle in fractions of the upright picture: left, top, right, bottom."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True, slots=True)
class Sighting:
    """One thing in a photograph that could sound.

    Attributes:
        category: what it is, or the category that is nearest.
        box: where, drawn by hand; None where it is in view but too hidden, small or many to box.
        relative: what it really is, where it is only a relative of the category (a gosling for
            ``duck``); empty where it is the thing itself.
    """

    category: str
    box: Box | None
    relative: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """One photograph of the table.

    Attributes:
        package: Debian package.
        path: file inside it; ``bundle.rcc!entry`` inside a resource bundle.
        sha256: pinned content, see `catalogue.content_sha256`.
        licence: what the package claims.
        sightings: all things of Open-AVS's categories that are in view.
    """

    package: str
    path: str
    sha256: str
    licence: str
    sightings: tuple[Sighting, ...]

    @property
    def key(self) -> str:
        """The photograph's name: ``package:path``."""
        return f"{self.package}:{self.path}"


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """A photograph.

    Attributes:
        name: where it comes from.
        image: uint8 (H, W, 3) RGB, upright.
        sightings: what is in view.
    """

    name: str
    image: NDArray[np.uint8]
    sightings: tuple[Sighting, ...]

    @property
    def present(self) -> frozenset[str]:
        """All categories in view, boxed or not."""
        return frozenset(sighting.category for sighting in self.sightings)

    def boxes(self) -> dict[str, list[Box]]:
        """The boxes of each category whose every object in view has one."""
        hidden = {sighting.category for sighting in self.sightings if sighting.box is None}
        found: dict[str, list[Box]] = {}
        for sighting in self.sightings:
            if sighting.box is not None and sighting.category not in hidden:
                found.setdefault(sighting.category, []).append(sighting.box)
        return found


def load(path: Path | None = None) -> tuple[Listing, ...]:
    """Read a table of photographs, by default the one that ships with the package.

    Rows of one photograph stand anywhere; it takes the place of its first.

    Raises:
        ValueError: a category or a box that cannot be: which, in which row.
    """
    path = path or Path(__file__).with_name("photos.csv")
    files: dict[tuple[str, str, str, str], list[Sighting]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            identity = (row["package"], row["path"], row["sha256"], row["licence"])
            where = f"{path.name}, line {number}"
            files.setdefault(identity, []).append(_sighting(row, where))
    return tuple(Listing(*identity, tuple(seen)) for identity, seen in files.items())


def _sighting(row: dict[str, str], where: str) -> Sighting:
    if row["category"] not in CATEGORIES:
        raise ValueError(
            f"{where}: category is {row['category']!r}; allowed are {', '.join(CATEGORIES)}"
        )
    return Sighting(row["category"], _box(row["box"], where), row["relative"])


def _box(text: str, where: str) -> Box | None:
    if not text:
        return None
    sides = tuple(float(part) for part in text.split())
    if len(sides) != 4 or not (0 <= sides[0] < sides[2] <= 1 and 0 <= sides[1] < sides[3] <= 1):
        raise ValueError(
            f"{where}: box is {text!r}; a box is 'left top right bottom' in fractions of the "
            "picture, left under right and top under bottom, or empty"
        )
    return Box(*sides)


def wanted(listings: Iterable[Listing]) -> dict[str, list[str]]:
    """Return the paths that the photographs need, by package."""
    paths: dict[str, list[str]] = {}
    for listing in listings:
        paths.setdefault(listing.package, []).append(listing.path)
    return paths


def read(
    listings: Sequence[Listing],
    packages: Path | None = None,
    *,
    accept: bool = False,
    cache: Path | None = None,
    progress: Progress = quiet,
) -> list[Photo]:
    """Bring the packages onto this machine and read the photographs.

    Args:
        listings: from `load`.
        packages: folder with ``.deb`` files or unpacked trees; None asks apt.
        accept: take content that differs from what is pinned.
        cache: see `packages.obtain`.
        progress: told of each package.

    Raises:
        PackageError: a package or a file of one cannot be had.
        ContentError: content differs and ``accept`` is false.
        PictureError: a file is not a picture.
    """
    found = obtain(wanted(listings), packages, cache=cache, progress=progress)
    photos: list[Photo] = []
    for listing in listings:
        package = found[listing.package]
        data = package.read(listing.path)
        image = _upright(data, listing.key)
        sha256 = content_sha256(data, "image")
        if sha256 != listing.sha256 and not accept:
            raise ContentError(
                f"{listing.path} of {package.name} {package.version} is not the photograph whose "
                f"boxes are known: expected sha256 {listing.sha256}, found {sha256}. The table "
                f"knows {', '.join(RELEASES)}; bring that release's package"
            )
        photos.append(Photo(listing.key, image, listing.sightings))
    return photos


def _upright(data: bytes, name: str) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return np.array(ImageOps.exif_transpose(opened).convert("RGB"))
    except (OSError, ValueError) as error:
        raise PictureError(f"{name} cannot be read as a picture: {error}") from error

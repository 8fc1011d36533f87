"""What Open-AVS is composed of: the rows of ``catalogue.csv``, and their pinned content.

Each row is one file of a Debian package with its split, its licence as the package claims it and
the SHA-256 of its content: pixels for pictures, coded packets for sounds, bytes for the rest. So a
package that was merely repacked still matches, and one whose content changed does not.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
from PIL import Image

from .packages import Package, Progress, quiet

Split = Literal["train", "val", "test"]
Kind = Literal[
    "image", "image_grabcut", "sound", "gm_program", "soundfont", "patch",
    "background", "distractor",
]  # fmt: skip

CATEGORIES = (
    "accordion", "acoustic_guitar", "big_cat", "car", "cello", "chicken", "cow", "crow", "dog",
    "drum_kit", "duck", "electric_guitar", "flute", "frog", "horse", "piano", "pig", "saxophone",
    "sheep", "songbird", "train", "trumpet", "violin",
)  # fmt: skip
"""The 23 things that sound, in the order of their class numbers."""

SOUND_KINDS: tuple[Kind, ...] = ("sound", "gm_program", "soundfont", "patch")
"""The kinds that something sounds from."""

RELEASES = ("Debian 12",)
"""The releases whose packages hold exactly the pinned content."""


class ContentError(RuntimeError):
    """Content differs from what the catalogue pins: which file, what was expected, what to do."""


@dataclass(frozen=True, slots=True)
class Item:
    """One row of the catalogue.

    Attributes:
        category: what sounds; empty for backgrounds, soundfonts and silent things.
        splits: the splits that may use it. Clips of ``test`` show the cut-outs of ``train``; those
            of ``extra`` appear in training clips only.
        kind: how it is read.
        package: Debian package; empty for a ``gm_program``.
        path: file inside it (``bundle.rcc!entry`` inside a resource bundle), or for a
            ``gm_program`` the General MIDI program (1 to 128, or ``drum``) and its range of notes.
        sha256: pinned content; empty for a ``gm_program``, whose sound is its soundfont's.
        licence: what the package claims.
    """

    category: str
    splits: tuple[str, ...]
    kind: Kind
    package: str
    path: str
    sha256: str
    licence: str

    @property
    def key(self) -> str:
        """The item's name: ``package:path``."""
        return f"{self.package}:{self.path}"


def load(path: Path | None = None) -> tuple[Item, ...]:
    """Read a catalogue, by default the one that ships with the package."""
    path = path or Path(__file__).with_name("catalogue.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return tuple(
        Item(
            row["category"],
            tuple(row["split"].split("+")),
            row["kind"],  # pyright: ignore[reportArgumentType]
            row["package"],
            row["path"],
            row["sha256"],
            row["licence"],
        )
        for row in rows
    )


def wanted(items: Iterable[Item]) -> dict[str, list[str]]:
    """Return the paths that the items need, by package."""
    paths: dict[str, list[str]] = {}
    for item in items:
        if item.package:
            paths.setdefault(item.package, []).append(item.path)
    return paths


def content_sha256(data: bytes, kind: Kind) -> str:
    """Return the SHA-256 of a file's content.

    Pictures hash as their size and RGBA pixels. Sounds hash as rate, channels, codec set-up and
    coded packets: a lossy decoder's arithmetic may differ in the last bit between machines, the
    packets do not. Drawings and soundfonts hash as their bytes.
    """
    if kind in ("image", "image_grabcut", "background", "distractor"):
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("RGBA"))
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    if kind == "sound":
        digest = hashlib.sha256()
        with av.open(io.BytesIO(data), mode="r", metadata_errors="replace") as container:
            stream = container.streams.audio[0]
            digest.update(f"{stream.rate} {stream.channels}".encode())
            digest.update(stream.codec_context.extradata or b"")
            for packet in container.demux(stream):
                digest.update(bytes(packet))
        return digest.hexdigest()
    return hashlib.sha256(data).hexdigest()


def verified(
    items: Sequence[Item],
    found: dict[str, Package],
    *,
    accept: bool = False,
    progress: Progress = quiet,
) -> dict[str, str]:
    """Hash the content of all items and hold it against the pins.

    Args:
        items: rows of the catalogue.
        found: the packages.
        accept: take content that differs, instead of refusing it; the hashes returned, and with
            them the data set's id, are then others.
        progress: told of each item.

    Returns:
        The SHA-256 of each item's content, by key.

    Raises:
        ContentError: content differs and ``accept`` is false.
    """
    hashes: dict[str, str] = {}
    for done, item in enumerate(items):
        progress("content", done, len(items))
        if not item.package:
            continue
        package = found[item.package]
        hashes[item.key] = content_sha256(package.read(item.path), item.kind)
        if hashes[item.key] != item.sha256 and not accept:
            raise ContentError(
                f"{item.path} of {item.package} {package.version} is not the pinned content: "
                f"expected sha256 {item.sha256 or '(none)'}, found {hashes[item.key]}. The "
                f"catalogue knows {', '.join(RELEASES)}. Bring those packages (--packages DIR), or "
                "pass --accept-content to compose a data set with another id from what is here"
            )
    progress("content", len(items), len(items))
    return hashes

"""What pictures a camera offers, asked of its Video4Linux driver: formats, sizes, rates."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

Ioctl = Callable[[int, bytes], bytes]
"""Asks a driver: (request, structure) -> the structure as it came back; OSError: it refuses."""

ENUM_FMT: Final = 0xC0405602
"""``VIDIOC_ENUM_FMT``: struct v4l2_fmtdesc, 64 bytes."""
ENUM_FRAMESIZES: Final = 0xC02C564A
"""``VIDIOC_ENUM_FRAMESIZES``: struct v4l2_frmsizeenum, 44 bytes."""
ENUM_FRAMEINTERVALS: Final = 0xC034564B
"""``VIDIOC_ENUM_FRAMEINTERVALS``: struct v4l2_frmivalenum, 52 bytes."""
_FORMAT, _SIZE, _INTERVAL = (
    struct.Struct("=III32sI16x"),
    struct.Struct("=III6I8x"),
    struct.Struct("=IIIII6I8x"),
)
_CAPTURE, _DISCRETE = 1, 1
_BIG_ENDIAN = 1 << 31
_MOST = 64
"""Entries of a list that are asked for: some drivers never say that theirs is over."""


@dataclass(frozen=True, slots=True)
class PictureSize:
    """A size, or a range of sizes, that a format comes in.

    Attributes:
        least_px: (width, height) of the smallest.
        most_px: of the largest; the same where there is one only.
        step_px: from one to the next; (0, 0) where there is one only.
        fps: pictures a second, rising; of the largest size. Of a range its two ends.
        fps_is_range: whether all between the two are offered.
    """

    least_px: tuple[int, int]
    most_px: tuple[int, int]
    step_px: tuple[int, int]
    fps: tuple[float, ...]
    fps_is_range: bool

    def __str__(self) -> str:
        size = f"{self.most_px[0]}x{self.most_px[1]}"
        if self.least_px != self.most_px:
            size = f"{self.least_px[0]}x{self.least_px[1]} to {size}"
        rates = (" to " if self.fps_is_range else ", ").join(f"{fps:g}" for fps in self.fps)
        return f"{size} at {rates} fps" if rates else size


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """A format: its four characters (``-BE``: big-endian) and sizes, as the driver lists them."""

    fourcc: str
    sizes: tuple[PictureSize, ...]

    def __str__(self) -> str:
        return f"{self.fourcc} {', '.join(map(str, self.sizes))}".strip()


def picture_formats(path: str | Path, ioctl: Ioctl | None = None) -> list[PictureFormat]:
    """All formats of a camera; none where it does not open or lists none. Nothing is streamed.

    Args:
        path: its node.
        ioctl: asks the driver; None: of the node.
    """
    if ioctl is not None:
        return list(_formats(ioctl))
    import fcntl

    try:
        node = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        return list(_formats(lambda request, asked: fcntl.ioctl(node, request, asked)))
    finally:
        os.close(node)


def _formats(ioctl: Ioctl) -> Iterator[PictureFormat]:
    for told in _listed(ioctl, ENUM_FMT, lambda i: _FORMAT.pack(i, _CAPTURE, 0, b"", 0)):
        code = _FORMAT.unpack(told)[4]
        yield PictureFormat(_fourcc(code), tuple(_sizes(ioctl, code)))


def _sizes(ioctl: Ioctl, code: int) -> Iterator[PictureSize]:
    for told in _listed(ioctl, ENUM_FRAMESIZES, lambda i: _SIZE.pack(i, code, 0, *[0] * 6)):
        _, _, kind, *px = _SIZE.unpack(told)
        if kind == _DISCRETE:
            least, most, step = (px[0], px[1]), (px[0], px[1]), (0, 0)
        else:
            least, most, step = (px[0], px[3]), (px[1], px[4]), (px[2], px[5])
        fps, is_range = _rates(ioctl, code, most)
        yield PictureSize(least, most, step, fps, is_range)
        if kind != _DISCRETE:
            return  # a range is one entry


def _rates(ioctl: Ioctl, code: int, size_px: tuple[int, int]) -> tuple[tuple[float, ...], bool]:
    """Pictures a second, rising, and whether they are the ends of a range."""
    found: set[float] = set()

    def asked(i: int) -> bytes:
        return _INTERVAL.pack(i, code, *size_px, 0, *[0] * 6)

    for told in _listed(ioctl, ENUM_FRAMEINTERVALS, asked):
        *_, kind, shortest, per, longest, per_longest, _, _ = _INTERVAL.unpack(told)
        if kind == _DISCRETE:
            found |= _fps(shortest, per)
        else:
            return tuple(sorted(_fps(shortest, per) | _fps(longest, per_longest))), True
    return tuple(sorted(found)), False


def _fps(numerator: int, denominator: int) -> set[float]:
    return {round(denominator / numerator, 3)} if numerator and denominator else set()


def _listed(ioctl: Ioctl, request: int, asked: Callable[[int], bytes]) -> Iterator[bytes]:
    for index in range(_MOST):
        try:
            told = ioctl(request, asked(index))
        except OSError:
            return  # the list is over, or there is none
        yield told


def _fourcc(code: int) -> str:
    """The four characters of a format's code, whose highest bit says that it is big-endian."""
    letters = (code & ~_BIG_ENDIAN).to_bytes(4, "little").decode("ascii", "replace").strip("\0 ")
    name = letters if letters.isprintable() and letters.isascii() else f"0x{code:08x}"
    return f"{name}-BE" if code & _BIG_ENDIAN else name

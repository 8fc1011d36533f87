"""Decoded pictures become upright RGB at the size that was asked for, in one pass of swscale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import av
import numpy as np
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from numpy.typing import NDArray

Turn = tuple[bool, bool, bool]
"""How a stored picture becomes upright: transpose, then flip rows, then flip columns."""

UPRIGHT: Turn = (False, False, False)


def turn_of(frame: av.VideoFrame) -> Turn:
    """What a frame's display matrix asks for, to the nearest right angle.

    The matrix maps a stored point (x, y), y downwards, to (a·x + c·y, b·x + d·y). To look at it is
    dear: PyAV then ties frame and side data into a cycle, so that the picture's buffers stay until
    Python's collector comes round to them, which may take it an hour.
    """
    side_data = cast("Mapping[SideDataType, SideData]", frame.side_data)
    if SideDataType.DISPLAYMATRIX not in side_data:
        return UPRIGHT
    matrix = np.frombuffer(bytes(side_data[SideDataType.DISPLAYMATRIX]), np.int32)
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (False, d < 0, a < 0)
    return (True, b < 0, c < 0)


def turn(image: NDArray[np.uint8], how: Turn) -> NDArray[np.uint8]:
    """Turn a picture (H, W, 3) upright; (W, H, 3) where it is transposed."""
    transpose, flip_rows, flip_columns = how
    if transpose:
        image = image.transpose(1, 0, 2)
    if flip_rows:
        image = image[::-1]
    if flip_columns:
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def over_black(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Composite RGBA (H, W, 4) over black, as a player shows it: RGB (H, W, 3)."""
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 127) // 255).astype(np.uint8)


class Pixels:
    """Converts the pictures of one stream, with one reformatter for each size that comes out.

    Colour range and matrix are the frame's own; untagged ones are taken as FFmpeg takes them
    (limited range, BT.601). Alpha is composited over black.

    Args:
        size_px: (width, height) that comes out; None keeps the upright picture's size.
        keep_full: also convert at the picture's own size.
    """

    def __init__(self, size_px: tuple[int, int] | None, *, keep_full: bool) -> None:
        self._size_px = size_px
        self._keep_full = keep_full
        self._scaled = VideoReformatter()
        self._whole = VideoReformatter()
        self._turn: tuple[int, Turn] | None = None

    def upright_size_px(self, frame: av.VideoFrame) -> tuple[int, int]:
        """(width, height) of a picture after it was turned upright, before scaling."""
        transposed = self._turn_of(frame)[0]
        return (frame.height, frame.width) if transposed else (frame.width, frame.height)

    def _turn_of(self, frame: av.VideoFrame) -> Turn:
        """`turn_of`, looked at anew only where the matrix's angle is another than before."""
        angle = frame.rotation
        if self._turn is None or self._turn[0] != angle:
            self._turn = (angle, turn_of(frame))
        return self._turn[1]

    def convert(
        self, frame: av.VideoFrame
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None, tuple[int, int]]:
        """Convert a picture.

        Returns:
            The upright picture at the size that was asked for, uint8 (H, W, 3); the unscaled one
            where it is kept, else None; the unscaled one's (width, height).
        """
        how = self._turn_of(frame)
        native_px = self.upright_size_px(frame)
        size_px = self._size_px or native_px
        image = self._rgb(frame, self._scaled, size_px, how)
        if not self._keep_full:
            return image, None, native_px
        if size_px == native_px:
            return image, image, native_px
        return image, self._rgb(frame, self._whole, native_px, how), native_px

    def _rgb(
        self,
        frame: av.VideoFrame,
        reformatter: VideoReformatter,
        upright_px: tuple[int, int],
        how: Turn,
    ) -> NDArray[np.uint8]:
        width, height = reversed(upright_px) if how[0] else upright_px
        has_alpha = any(component.is_alpha for component in frame.format.components)
        out = reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgba" if has_alpha else "rgb24",
            interpolation=Interpolation.BILINEAR,
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
        pixels = np.asarray(out.to_ndarray(), np.uint8)
        return turn(over_black(pixels) if has_alpha else pixels, how)

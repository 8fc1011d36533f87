"""Masks as bytes: four encodings that any language can read, and their bounded decoding.

Every encoding holds one mask of H x W pixels; H and W travel beside it. Sizes are checked before
anything is allocated, so bytes from a stranger cost at most `MAX_PIXELS` bytes of memory.

- ``bits``: one bit a pixel, rows first, the leftmost pixel in the highest bit, no padding between
  rows, zero bits up to the last whole byte.
- ``bits+zstd``: the same bytes as one Zstandard frame.
- ``rle``: COCO's compressed run lengths (columns first), as pycocotools writes and reads them.
- ``prob8``: one byte a pixel, rows first: the probability in steps of 1/255.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import numpy as np
import zstandard
from numpy.typing import NDArray

Encoding = Literal["bits", "bits+zstd", "rle", "prob8"]
ENCODINGS: Final[tuple[Encoding, ...]] = get_args(Encoding)

MAX_SIDE: Final = 8192
"""Longest side of a mask in pixels."""

MAX_PIXELS: Final = 1 << 24
"""Most pixels of a mask: 4096 x 4096."""

MAX_FRAME_PIXELS: Final = 1 << 27
"""Largest picture that a mask is enlarged to."""

Transform = tuple[float, float, float, float]
"""(sx, sy, tx, ty): the point (x, y) of a mask lies at (sx·x + tx, sy·y + ty) in the picture."""

_ZSTD_LEVEL = 1
_ZSTD_WINDOW_BYTES = 1 << 23
_RLE_GROUPS = 7
_RLE_MAX_READ_GROUPS = 6  # 30 bits with sign: enough for MAX_PIXELS, and no sum can overflow


class MaskError(ValueError):
    """A mask, or its bytes, that breaks an encoding's rules: what came, what is allowed."""


def encode(
    mask: NDArray[np.bool_] | NDArray[np.floating], encoding: Encoding, *, threshold: float = 0.5
) -> bytes:
    """Write a mask as bytes.

    Args:
        mask: bool (H, W), or probabilities (H, W) in [0, 1] of any float type.
        encoding: one of `ENCODINGS`.
        threshold: a probability above it is foreground; the encodings of one bit a pixel use it.

    Returns:
        The bytes; their meaning is `encoding`'s, see the module.

    Raises:
        MaskError: the array or the encoding is none of those above.
    """
    if mask.ndim != 2:
        raise MaskError(f"the mask has shape {mask.shape}; it must be (H, W)")
    _check_shape((mask.shape[0], mask.shape[1]))
    if mask.dtype != np.bool_ and not np.issubdtype(mask.dtype, np.floating):
        raise MaskError(
            f"the mask is {mask.dtype}; it must be bool, or float with probabilities in [0, 1]"
        )
    if encoding == "prob8":
        return _quantise(mask).tobytes()
    binary = _binarise(mask, threshold)
    if encoding == "bits":
        return np.packbits(binary).tobytes()
    if encoding == "bits+zstd":
        return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(np.packbits(binary).tobytes())
    if encoding == "rle":
        return _write_counts(_run_lengths(binary))
    raise MaskError(f"the encoding is {encoding!r}; it must be one of {', '.join(ENCODINGS)}")


def decode(
    data: bytes, shape: tuple[int, int], encoding: Encoding, *, threshold: float = 0.5
) -> NDArray[np.bool_]:
    """Read a mask back.

    Args:
        data: what `encode` gave.
        shape: (H, W).
        encoding: how `data` is written.
        threshold: for ``prob8``, the probability above which a pixel is foreground.

    Returns:
        bool (H, W).

    Raises:
        MaskError: `data` does not hold exactly one mask of this shape.
    """
    height, width = _check_shape(shape)
    pixels = height * width
    if encoding == "prob8":
        return decode_probability(data, shape) > np.float32(threshold)
    if encoding == "rle":
        return _fill_runs(_read_counts(data, 2 * pixels + 2 * _RLE_GROUPS), height, width)
    if encoding == "bits+zstd":
        data = _decompress(data, (pixels + 7) // 8)
    elif encoding != "bits":
        raise MaskError(f"the encoding is {encoding!r}; it must be one of {', '.join(ENCODINGS)}")
    _check_length(data, (pixels + 7) // 8, encoding, shape)
    packed = np.frombuffer(data, dtype=np.uint8)
    return np.unpackbits(packed, count=pixels).reshape(height, width).view(np.bool_)


def decode_probability(data: bytes, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Read the probabilities of a ``prob8`` mask: float32 (H, W) in [0, 1], off by at most 1/510.

    Raises:
        MaskError: `data` is not H x W bytes.
    """
    height, width = _check_shape(shape)
    _check_length(data, height * width, "prob8", shape)
    steps = np.frombuffer(data, dtype=np.uint8).reshape(height, width)
    return steps.astype(np.float32) / np.float32(255)


def enlarge(
    mask: NDArray[np.bool_], size: tuple[int, int], transform: Transform | None = None
) -> NDArray[np.bool_]:
    """Bring a mask to the size of its picture, nearest neighbour.

    A pixel of the picture takes the value of the mask's pixel that its centre falls into; outside
    the mask it is background.

    Args:
        mask: bool (H, W).
        size: (w, h) of the picture.
        transform: where the mask lies in it; None where it covers all of it.

    Returns:
        bool (h, w).

    Raises:
        MaskError: the picture has over `MAX_FRAME_PIXELS`, or a scale is not positive.
    """
    w, h = size
    if w * h > MAX_FRAME_PIXELS:
        raise MaskError(
            f"the picture is {w} x {h} pixels; a mask is enlarged to at most {MAX_FRAME_PIXELS}"
        )
    height, width = mask.shape
    sx, sy, tx, ty = transform or (w / width, h / height, 0.0, 0.0)
    if sx <= 0 or sy <= 0:
        raise MaskError(f"the transform scales by {sx}, {sy}; both must be positive")
    columns = np.floor((np.arange(w) + 0.5 - tx) / sx)
    rows = np.floor((np.arange(h) + 0.5 - ty) / sy)
    inside = ((rows >= 0) & (rows < height))[:, None] & (columns >= 0) & (columns < width)
    columns = np.clip(columns, 0, width - 1).astype(np.intp)
    rows = np.clip(rows, 0, height - 1).astype(np.intp)
    return mask[rows[:, None], columns] & inside


def _check_shape(shape: tuple[int, int]) -> tuple[int, int]:
    height, width = shape
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and height * width <= MAX_PIXELS):
        raise MaskError(
            f"the mask is {height} x {width} pixels; each side must be 1 to {MAX_SIDE}, "
            f"all together at most {MAX_PIXELS}"
        )
    return height, width


def _check_length(data: bytes, expected: int, encoding: str, shape: tuple[int, int]) -> None:
    if len(data) != expected:
        raise MaskError(
            f"{encoding} data of a {shape[0]} x {shape[1]} mask has {len(data)} bytes; "
            f"it must have {expected}"
        )


def _binarise(
    mask: NDArray[np.bool_] | NDArray[np.floating], threshold: float
) -> NDArray[np.bool_]:
    return mask.astype(np.bool_, copy=False) if mask.dtype == np.bool_ else mask > threshold


def _quantise(mask: NDArray[np.bool_] | NDArray[np.floating]) -> NDArray[np.uint8]:
    if mask.dtype == np.bool_:
        return mask.astype(np.uint8) * np.uint8(255)
    low, high = float(mask.min()), float(mask.max())
    if not (low >= 0.0 and high <= 1.0):
        raise MaskError(f"the probabilities run from {low} to {high}; they must lie in [0, 1]")
    return np.rint(mask * 255).astype(np.uint8)


def _decompress(data: bytes, expected: int) -> bytes:
    """Undo Zstandard; the size that the frame claims is checked before it is allocated."""
    try:
        claimed = zstandard.frame_content_size(data)
        if claimed not in {-1, expected}:
            raise MaskError(f"the zstd frame claims {claimed} bytes; it must hold {expected}")
        reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        return reader.decompress(data, max_output_size=expected, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise MaskError(f"the data is no zstd frame of {expected} bytes: {error}") from error


def _run_lengths(binary: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Lengths of the runs of 0, 1, 0, ... down the columns; the first is 0 if pixel 0 is set."""
    flat = binary.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    start = [0, 0] if flat[0] else [0]
    edges = np.concatenate([start, changes, [flat.size]])
    return np.diff(edges).astype(np.int64)


def _write_counts(counts: NDArray[np.int64]) -> bytes:
    """COCO's text: from the fourth on, counts less the one two before; 5 bits a character."""
    values = counts.copy()
    values[3:] -= counts[1:-2]
    shifts = 5 * np.arange(_RLE_GROUPS, dtype=np.int64)
    groups = (values[:, None] >> shifts) & 0x1F
    rest = values[:, None] >> (shifts + 5)
    finished = rest == np.where(groups & 0x10, -1, 0)
    last = finished.argmax(axis=1)[:, None]
    position = np.arange(_RLE_GROUPS)
    characters = groups + np.where(position < last, 0x20, 0) + 48
    return characters[position <= last].astype(np.uint8).tobytes()


def _read_counts(data: bytes, most: int) -> NDArray[np.int64]:
    """Undo `_write_counts` for at most `most` characters (no mask needs over two a pixel)."""
    if not 0 < len(data) <= most:
        raise MaskError(f"rle data has {len(data)} bytes; for this shape it has 1 to {most}")
    characters = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    if characters.min() < 0 or characters.max() > 0x3F:
        raise MaskError("rle data holds a character outside COCO's alphabet, '0' to 'o'")
    ends = np.flatnonzero(characters < 0x20)
    if ends.size == 0 or ends[-1] != characters.size - 1:
        raise MaskError("rle data stops within a number")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _RLE_MAX_READ_GROUPS:
        raise MaskError(f"rle data holds a number of over {_RLE_MAX_READ_GROUPS} characters")
    shifts = 5 * (np.arange(characters.size) - np.repeat(starts, lengths))
    values = np.add.reduceat((characters & 0x1F) << shifts, starts)
    values -= np.where(characters[ends] & 0x10, np.int64(1) << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _fill_runs(counts: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    pixels = height * width
    if counts.min() < 0 or counts.max() > pixels or int(counts.sum()) != pixels:
        raise MaskError(
            f"the rle runs cover {int(counts.sum())} pixels, the shortest {int(counts.min())}; "
            f"they must be 0 or more and cover {height} x {width} = {pixels}"
        )
    colours = np.arange(counts.size) % 2 == 1
    return np.ascontiguousarray(np.repeat(colours, counts).reshape(width, height).T)

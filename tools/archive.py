"""The masks of a whole video as one compressed archive that NumPy reads, without pickle."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray


class MaskArchive:
    """Writes an ``.npz`` mask by mask, in memory that does not grow with the pixels.

    The archive holds ``masks`` bool (N, H, W) at the network's resolution, and of each mask
    ``pts_ns``, ``index`` and ``epoch`` int64 (N,). `numpy.load` reads it with
    ``allow_pickle=False``. Masks wait as packed bits in a temporary file, since their number
    stands before them in the archive.

    Args:
        path: the archive; it is written by `close`, and not at all after an exception.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._packed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._shape: tuple[int, int] | None = None
        self._rows: list[tuple[int, int, int]] = []

    def add(self, mask: NDArray[np.bool_], *, pts_ns: int, index: int, epoch: int) -> None:
        """Append bool (H, W).

        Raises:
            ValueError: its shape differs from that of the masks before it.
        """
        height, width = mask.shape
        self._shape = self._shape or (height, width)
        if mask.shape != self._shape:
            raise ValueError(f"the mask is {mask.shape}; those before it are {self._shape}")
        self._packed.write(np.packbits(mask).tobytes())
        self._rows.append((pts_ns, index, epoch))

    def close(self) -> None:
        """Write the archive."""
        columns = np.array(self._rows, np.int64).reshape(-1, 3).T
        with zipfile.ZipFile(self._path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            self._write_masks(archive)
            for name, values in zip(("pts_ns", "index", "epoch"), columns, strict=True):
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, np.ascontiguousarray(values))

    def _write_masks(self, archive: zipfile.ZipFile) -> None:
        height, width = self._shape or (0, 0)
        header = {
            "descr": "|b1",
            "fortran_order": False,
            "shape": (len(self._rows), height, width),
        }
        packed_bytes = (height * width + 7) // 8
        self._packed.seek(0)
        with archive.open("masks.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for _ in self._rows:
                packed = np.frombuffer(self._packed.read(packed_bytes), np.uint8)
                member.write(np.unpackbits(packed, count=height * width).tobytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.close()
        finally:
            self._packed.close()

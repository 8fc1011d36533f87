"""Arrays on disk, by key, within a size bound."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .leftovers import sweep

Arrays = dict[str, NDArray[np.generic]]


class DiskCache:
    """Keeps what was slow to compute; the least recently used goes first.

    Several processes may share a folder: what is there is whole, as files are renamed into place.
    A file that cannot be read counts as missing, a disk that is full as nothing kept.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Opens a folder, which need not be there.

        Each process looks what the others wrote once it has itself written a fiftieth of the bound.

        Args:
            folder: of the files.
            most_bytes: that all together may take; 0 keeps nothing.
        """
        self._folder = folder
        self._most = most_bytes
        self._size: int | None = None
        self._unseen = 0

    def get(self, key: str, make: Callable[[], Mapping[str, NDArray[np.generic]]]) -> Arrays:
        """The arrays of a key: out of the cache, else computed and kept.

        Args:
            key: names all that the arrays depend on.
            make: computes them, by name.
        """
        if not self._most:
            return dict(make())
        digest = hashlib.sha256(key.encode()).hexdigest()
        path = self._folder / digest[:2] / f"{digest[2:34]}.npz"
        found = _read(path)
        if found is None:
            found = dict(make())
            self._write(path, found)
        return found

    def _write(self, path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        aside = path.with_suffix(f".{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
            size = aside.stat().st_size
            aside.replace(path)
        except OSError:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            return
        if self._size is None:
            sweep(self._folder.glob("*/*.part"))
            self._size = sum(size for _, size, _ in self._files())
        else:
            self._size += size
        self._unseen += size
        if self._size > self._most or self._unseen > self._most // 50:
            self._shrink()

    def _shrink(self) -> None:
        """Over the bound, drop the least recently used files until a tenth of it is free."""
        files = self._files()
        size = sum(bytes_ for _, bytes_, _ in files)
        allowed = 0.9 * self._most if size > self._most else size
        for _, bytes_, file in sorted(files):
            if size <= allowed:
                break
            file.unlink(missing_ok=True)
            size -= bytes_
        self._size, self._unseen = size, 0

    def _files(self) -> list[tuple[float, int, Path]]:
        """When each file was last used, its bytes, its path."""
        files: list[tuple[float, int, Path]] = []
        for file in self._folder.glob("*/*.npz"):
            with suppress(FileNotFoundError):  # another process dropped it
                stat = file.stat()
                files.append((stat.st_mtime, stat.st_size, file))
        return files


def _read(path: Path) -> Arrays | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
        os.utime(path)
    except (OSError, ValueError, EOFError, KeyError):
        return None
    except Exception as error:  # zipfile.BadZipFile, zlib.error: a damaged file is a missing one
        if type(error).__module__ in {"zipfile", "zlib"}:
            return None
        raise
    return arrays

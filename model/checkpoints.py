"""Weights of a network on disk: safetensors with a JSON manifest, in one file or a folder.

A checkpoint holds what this project trains: LoRA (under PEFT's names), neck, conditioning, fusion,
decoder, head, and an audio encoder of ours. Published weights of frozen parts are named by their
hash instead. Nothing is ever pickled; what is at a path is the old checkpoint or the new one, never
a part of one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from .lora import adapter_config, adapter_state, base_state, load_adapter_state, merged_state
from .pretrained import TensorDict, WeightsError, check_tensors, tensor_hash

if TYPE_CHECKING:
    from .network import Network  # with it come timm and torchvision: 3 s of import

SHIPPED = Path(__file__).parent / "weights"
"""Folder of the trained weights that ship with the program, one folder a preset."""

FORMAT = 1
MANIFEST = "manifest.json"
LORA, BACKBONE = "lora.", "backbone."


class Manifest(BaseModel):
    """What a checkpoint says of itself.

    Attributes:
        format: of the checkpoint; this program reads 1.
        preset: the network's name.
        version: names these weights; by default the first digits of `content`.
        parent: the version that training started from; empty: none.
        step: steps of training so far.
        trained: whether the decoder was trained.
        categories: names of the class head's outputs, in order.
        varied: what is other than in the preset, by name.
        metrics: results on validation data.
        notes: whatever else is to be known: data, seeds, command.
        base_hash: SHA-256 of the backbone's tensors, which the weights belong to.
        audio_hash: likewise of the audio encoder's.
        content: SHA-256 of the checkpoint's tensors.
        file: in a folder, the name of the file that holds them.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    format: int = FORMAT
    preset: str
    version: str
    parent: str = ""
    step: int = Field(default=0, ge=0)
    trained: bool
    categories: list[str] = []
    varied: dict[str, int] = {}
    metrics: dict[str, float] = {}
    notes: dict[str, str] = {}
    base_hash: str
    audio_hash: str
    content: str
    file: str = ""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A manifest with its tensors, and where they came from."""

    manifest: Manifest
    tensors: TensorDict
    source: str


def save(
    network: Network,
    path: Path,
    *,
    version: str = "",
    parent: str = "",
    step: int = 0,
    metrics: Mapping[str, float] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Manifest:
    """Writes a checkpoint atomically.

    Args:
        network: before `for_serving`.
        path: ends in `.safetensors`: one file; anything else: a folder.
        version: names the weights; empty: from their content.
        parent: version that training started from.
        step: steps of training.
        metrics: results on validation data.
        notes: data, seeds, command.

    Returns:
        What was written into the manifest.
    """
    tensors = tensors_of(network)
    content = tensor_hash(tensors)
    manifest = Manifest(
        preset=network.preset.name,
        version=version or content[:12],
        parent=parent,
        step=step,
        trained=network.trained,
        categories=list(network.preset.categories),
        varied=dict(network.preset.varied),
        metrics=dict(metrics or {}),
        notes=dict(notes or {}),
        base_hash=tensor_hash(base_state(network.visual.backbone)),
        audio_hash=tensor_hash(network.audio.state_dict()),
        content=content,
    )
    if path.suffix == ".safetensors":
        write_tensors(path, tensors, {"manifest": manifest.model_dump_json()})
        return manifest
    path.mkdir(parents=True, exist_ok=True)
    file = f"{manifest.preset}-{content[:12]}.safetensors"
    manifest = manifest.model_copy(update={"file": file})
    write_tensors(path / file, tensors, {})
    _write(path / MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")
    for old in path.glob("*.safetensors"):
        if old.name != file:
            old.unlink()
    return manifest


def export_adapter(network: Network, folder: Path) -> None:
    """Writes the LoRA pairs as a folder that PEFT loads over the same timm backbone."""
    backbone = network.visual.backbone
    write_tensors(folder / "adapter_model.safetensors", adapter_state(backbone), {})
    config = json.dumps(adapter_config(backbone), indent=2)
    _write(folder / "adapter_config.json", config.encode() + b"\n")


def tensors_of(network: Network) -> TensorDict:
    """What a checkpoint of this network holds, by name; LoRA of a decoder is merged into it."""
    backbone, decoder = network.visual.backbone, network.get_submodule("decoder")
    tensors = {LORA + name: tensor for name, tensor in adapter_state(backbone).items()}
    for name, tensor in network.state_dict().items():
        if name.startswith(("visual.backbone.", "decoder.")):
            continue
        if not (name.startswith("audio.") and "audio" in network.published):
            tensors[name] = tensor
    tensors |= {f"decoder.{name}": tensor for name, tensor in merged_state(decoder).items()}
    if "backbone" not in network.published:
        tensors |= {BACKBONE + name: tensor for name, tensor in base_state(backbone).items()}
    return tensors


def apply(network: Network, checkpoint: Checkpoint) -> None:
    """Copies a checkpoint into a network of the same preset.

    Args:
        network: its frozen parts hold the weights that the checkpoint leaves out.
        checkpoint: from `read`.

    Raises:
        WeightsError: of another preset or base; names or shapes differ; values are not finite; the
            network's decoder has LoRA, which is merged in checkpoints.
    """
    manifest, source = checkpoint.manifest, checkpoint.source
    if network.decoder_adapted:
        raise WeightsError(
            f"{source} holds a whole decoder, and this network's has LoRA over an earlier one; "
            "build the network anew"
        )
    if manifest.preset != network.preset.name:
        raise WeightsError(
            f"{source} holds weights of preset {manifest.preset}; this network is "
            f"{network.preset.name}: choose that preset or other weights"
        )
    check_tensors(checkpoint.tensors, tensors_of(network), source)
    parts = split(checkpoint.tensors)
    own = base_state(network.visual.backbone)
    with torch.no_grad():
        for name, tensor in parts.backbone.items():
            own[name].copy_(tensor)
        state = network.state_dict()
        for name, tensor in parts.rest.items():
            state[name].copy_(tensor)
    load_adapter_state(network.visual.backbone, parts.lora, source)
    for part, wanted, found in (
        ("backbone", manifest.base_hash, tensor_hash(own)),
        ("audio encoder", manifest.audio_hash, tensor_hash(network.audio.state_dict())),
    ):
        if wanted != found:
            raise WeightsError(
                f"{source} was trained over another {part}: hash {wanted[:12]}, here "
                f"{found[:12]}; use the same published weights as in training"
            )
    network.version, network.trained = manifest.version, manifest.trained


@dataclass(frozen=True, slots=True)
class Parts:
    """A checkpoint's tensors by what they belong to, under the names they have there."""

    lora: TensorDict
    backbone: TensorDict
    rest: TensorDict


def split(tensors: Mapping[str, Tensor]) -> Parts:
    """Takes a checkpoint's names apart."""
    lora = {n.removeprefix(LORA): t for n, t in tensors.items() if n.startswith(LORA)}
    base = {n.removeprefix(BACKBONE): t for n, t in tensors.items() if n.startswith(BACKBONE)}
    rest = {n: t for n, t in tensors.items() if not n.startswith((LORA, BACKBONE))}
    return Parts(lora, base, rest)


def read(path: Path) -> Checkpoint:
    """Reads and verifies a checkpoint, a file or a folder.

    Raises:
        WeightsError: it is missing, truncated, altered, or of another format.
    """
    if path.is_dir():
        text = _read_text(path / MANIFEST)
        manifest = _parse(text, path / MANIFEST)
        if Path(manifest.file).name != manifest.file or not manifest.file:
            raise WeightsError(f"{path / MANIFEST} names {manifest.file!r}; a file name is needed")
        tensors, _ = read_tensors(path / manifest.file)
    else:
        tensors, metadata = read_tensors(path)
        manifest = _parse(metadata.get("manifest", ""), path)
    if tensor_hash(tensors) != manifest.content:
        raise WeightsError(
            f"{path}: the tensors are not those that its manifest was written for (version "
            f"{manifest.version}); the file was altered or mixed up: fetch or train it again"
        )
    return Checkpoint(manifest, tensors, str(path))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file atomically: under another name, synced, then renamed."""
    contiguous = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    _write(path, serialise(contiguous, dict(metadata) or None))


def read_tensors(path: Path) -> tuple[TensorDict, dict[str, str]]:
    """Reads a safetensors file with its metadata.

    Raises:
        WeightsError: it is missing, truncated or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118  not a dict
    except FileNotFoundError as error:
        raise WeightsError(
            f"{path}: there is no such file; give the path of a checkpoint"
        ) from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is not a readable safetensors file: {error}; it is truncated or something "
            "else: fetch it again or use an earlier version"
        ) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Reads what a safetensors file says of itself, without its tensors.

    Raises:
        WeightsError: it is missing, truncated or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error


def _parse(text: str, path: Path) -> Manifest:
    try:
        content: object = json.loads(text)
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise WeightsError(
                f"{path} has no manifest of format {FORMAT} (found {found}): it was not written "
                "by this program, or by a newer one"
            )
        return Manifest.model_validate_json(text)
    except (json.JSONDecodeError, ValidationError) as error:
        raise WeightsError(f"{path} has no readable manifest: {error}") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(
            f"{path} cannot be read: {error}; a checkpoint folder has one"
        ) from error


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    with suppress(PermissionError):  # Windows opens no folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

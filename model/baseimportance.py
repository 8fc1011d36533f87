"""What the weights of a deployed network are worth: measured once, and shipped beside them.

LRA's Ω is zero until its first consolidation, and so protects nothing of a network that was trained
before. These importances do from the first step on (`basepull`). Ours; the paper has none.

They are of *effective* weights. Of a map with LoRA that is W = W0 + s·B·A, whose gradient is W0's;
A and B by themselves say little, as dL/dA is zero where B is. They are the diagonal of the
empirical Fisher matrix (Kirkpatrick et al., arXiv 1612.00796): the mean over examples of the
squared gradient of the task's loss. A path integral over training, as LRA's own Ω, needs the
training to be made again, begins at a random start and not at the base, and grows with the noise of
each step; this takes one pass over a few hundred examples, of weights that are shipped already too.
As in EWC and MAS here, all are divided by the largest in the network, which is then 1.

The decoder has none: where a deployed network learns, its decoder stands still.

They are kept small. Of the rows that a LoRA pair acts on, Ω is the product of a row's and a
column's share, with the sums over each row and each column as measured (`factored`). All others are
a byte each, on a logarithmic scale below the tensor's largest (`encoded`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from .checkpoints import read_tensors, tensors_of, write_tensors
from .importance import mean_gradients, normalised
from .lora import LoraMap, LowRankPair, lora_maps
from .losses import total_loss
from .method import Batch
from .network import Network
from .pretrained import TensorDict, WeightsError, check_tensors, tensor_hash
from .teacher import answer

FILE = "importance.safetensors"
"""The file's name in a checkpoint's folder."""

OCTAVES = 24
"""A byte tells values from a tensor's largest down to 2⁻²⁴ of it, 6e-8."""

_FORMAT = 1
_DECODER = "decoder."
_STEPS = 254
_ROWS, _COLUMNS, _CODES, _PEAK = "rows.", "columns.", "codes.", "peak."


class ImportanceManifest(BaseModel):
    """What importances say of themselves.

    Attributes:
        format: of the file; this program reads 1.
        preset: the network's name.
        version: names the weights that they belong to.
        weights: SHA-256 of these weights' tensors, the `content` of their checkpoint.
        examples: how many they were measured on.
        notes: whatever else is to be known: data, seed, command.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    format: int = _FORMAT
    preset: str
    version: str
    weights: str
    examples: int = Field(ge=1)
    notes: dict[str, str] = {}


class Shares(NamedTuple):
    """Ω of a matrix as a product: `Ω[i, j] = rows[i]·columns[j]`.

    Attributes:
        rows: (out,).
        columns: (in,), of a k x k convolution in·k·k.
    """

    rows: Tensor
    columns: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class BaseImportance:
    """Importances, and the point that they hold.

    Attributes:
        pairs: Ω of the effective weight's rows that a LoRA pair acts on, by the pair's path.
        plain: Ω of parameters without LoRA, by name, float32 of their shape.
        point: the base's parameters by name: A and B of each pair, and those of `plain`.
        content: SHA-256 of all of these.
    """

    pairs: Mapping[str, Shares]
    plain: Mapping[str, Tensor]
    point: Mapping[str, Tensor]
    content: str


class PairAt(NamedTuple):
    """A LoRA pair and where it acts.

    Attributes:
        path: the pair's.
        lora: the map that it belongs to.
        start: the first row of the map's output that it acts on.
        stop: the row after the last.
        pair: A and B.
    """

    path: str
    lora: LoraMap
    start: int
    stop: int
    pair: LowRankPair


def pairs_of(network: Network) -> Iterator[PairAt]:
    """The LoRA pairs outside the decoder."""
    for path, lora in lora_maps(network).items():
        if not path.startswith(_DECODER):
            for i, (start, stop, pair) in enumerate(lora.named_slices()):
                yield PairAt(f"{path}.pairs.{i}", lora, start, stop, pair)


def plain_of(network: Network) -> dict[str, nn.Parameter]:
    """What trains besides LoRA and the decoder, by name."""
    return {
        name: parameter
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and ".lora_" not in name and not name.startswith(_DECODER)
    }


def measure(network: Network, data: Iterable[Batch], most: int) -> TensorDict:
    """Measures importances on examples.

    Args:
        network: holds the base's weights; it is in `eval()` meanwhile.
        data: batches as `teacher.answer` takes them, with ``masks``, ``valid`` and, where known,
            ``labels``; each example of them is asked by itself.
        most: examples to ask at most.

    Returns:
        Ω at least 0, the largest 1: by the path of each LoRA pair (out, in) for the rows of the
        effective weight that it acts on, and by name for other parameters that train. Zeros where
        no gradient came.
    """
    pairs, plain = list(pairs_of(network)), plain_of(network)
    maps = {id(at.lora): at.lora.base_layer.weight for at in pairs}

    def loss(one: Batch) -> Tensor:
        out = answer(network, one)
        one = {name: value.to(out.mask_logits.device) for name, value in one.items()}
        return total_loss(out, one["masks"], one["valid"], one.get("labels"))["loss"]

    asked = {str(key): weight for key, weight in maps.items()} | plain
    for weight in maps.values():
        weight.requires_grad_(True)
    try:
        fisher = mean_gradients(network, asked, data, loss, most, torch.square)
    finally:
        for weight in maps.values():
            weight.requires_grad_(False)
    rows = {at.path: fisher[str(id(at.lora))].flatten(1)[at.start : at.stop] for at in pairs}
    return normalised(rows | {name: fisher[name] for name in plain})


def write(
    folder: Path,
    network: Network,
    importance: Mapping[str, Tensor],
    *,
    examples: int,
    notes: Mapping[str, str] | None = None,
) -> ImportanceManifest:
    """Writes importances beside a checkpoint, atomically.

    Args:
        folder: the checkpoint's.
        network: holds the checkpoint's weights.
        importance: from `measure`.
        examples: how many it was measured on.
        notes: data, seed, command.
    """
    tensors: TensorDict = {}
    paths = {at.path for at in pairs_of(network)}
    for name, value in importance.items():
        if name in paths:
            tensors[_ROWS + name], tensors[_COLUMNS + name] = factored(value)
        else:
            tensors[_CODES + name], tensors[_PEAK + name] = encoded(value)
    manifest = ImportanceManifest(
        preset=network.preset.name,
        version=network.version,
        weights=tensor_hash(tensors_of(network)),
        examples=examples,
        notes=dict(notes or {}),
    )
    write_tensors(folder / FILE, tensors, {"manifest": manifest.model_dump_json()})
    return manifest


def read(folder: Path, network: Network) -> BaseImportance:
    """Reads the importances beside a checkpoint.

    Args:
        folder: the checkpoint's.
        network: holds the checkpoint's weights as they were deployed; nothing is learned on top
            yet, and no class was added. They become the point that is held.

    Raises:
        WeightsError: there are none, they cannot be read, or they belong to other weights.
    """
    path = folder / FILE
    if not path.exists():
        raise WeightsError(
            f"{folder} has no importances ({FILE}); measure them with "
            f"`atlasd importance {folder} --data DIR`, or hold no base"
        )
    tensors, metadata = read_tensors(path)
    manifest = _parse(metadata.get("manifest", ""), path)
    own = tensor_hash(tensors_of(network))
    if manifest.weights != own:
        raise WeightsError(
            f"{path} belongs to weights {manifest.version} of {manifest.preset} "
            f"({manifest.weights[:12]}), and the network holds {network.version} of "
            f"{network.preset.name} ({own[:12]}); measure these with `atlasd importance "
            "WEIGHTS --data DIR`, or take the weights that they belong to"
        )
    ats, plain = {at.path: at for at in pairs_of(network)}, plain_of(network)
    wanted: TensorDict = {}
    for name, at in ats.items():
        wanted[_ROWS + name] = at.pair.lora_B[:, 0]
        wanted[_COLUMNS + name] = at.pair.lora_A[0]
    for name, parameter in plain.items():
        wanted |= {_CODES + name: parameter, _PEAK + name: parameter.new_zeros(())}
    check_tensors(tensors, wanted, str(path))
    point = {name: parameter.detach().clone() for name, parameter in plain.items()}
    for name, at in ats.items():
        point[f"{name}.lora_A"] = at.pair.lora_A.detach().clone()
        point[f"{name}.lora_B"] = at.pair.lora_B.detach().clone()
    return BaseImportance(
        pairs={name: Shares(tensors[_ROWS + name], tensors[_COLUMNS + name]) for name in ats},
        plain={name: decoded(tensors[_CODES + name], tensors[_PEAK + name]) for name in plain},
        point=point,
        content=tensor_hash(tensors | {f"point.{name}": value for name, value in point.items()}),
    )


def factored(values: Tensor) -> Shares:
    """The product of shares that has the same sums over rows and over columns.

    Of all such products it is the closest by generalised Kullback-Leibler divergence (Shazeer and
    Stern, "Adafactor", arXiv 1804.04235, §3). A squared gradient is the product of an output's and
    an input's, summed over places: in `atlas-lite` the logarithms of product and measured Ω
    correlate by 0.89 to 0.998 from map to map.

    Args:
        values: (out, in), at least 0.
    """
    values = values.double()
    total = values.sum()
    rows = values.sum(dim=1) / total if total > 0 else torch.zeros_like(values[:, 0])
    return Shares(rows.float(), values.sum(dim=0).float())


def encoded(values: Tensor) -> tuple[Tensor, Tensor]:
    """A byte for each value: 0 for zero, else its logarithm below the largest.

    `decoded` is at most 3.4 % off, or by 2⁻²⁴ of the largest where a value is below that.

    Args:
        values: at least 0, of any shape.

    Returns:
        Codes, uint8 of that shape, and the largest, float32 ().
    """
    peak = values.max().float()
    depth = torch.log2(values.double() / peak.double())  # 0 and below; NaN where all are zero
    codes = (255 + depth * (_STEPS / OCTAVES)).round().clamp(0, 255).nan_to_num(0)
    return codes.to(torch.uint8), peak


def decoded(codes: Tensor, peak: Tensor) -> Tensor:
    """The values of `encoded`, float32."""
    values = peak * torch.exp2((codes.float() - 255) * (OCTAVES / _STEPS))
    return torch.where(codes > 0, values, 0.0)


def _parse(text: str, path: Path) -> ImportanceManifest:
    try:
        manifest = ImportanceManifest.model_validate_json(text)
    except ValidationError as error:
        raise WeightsError(f"{path} has no readable manifest: {error}") from error
    if manifest.format != _FORMAT:
        raise WeightsError(
            f"{path} has format {manifest.format}; this program reads {_FORMAT}: measure anew with "
            "`atlasd importance WEIGHTS --data DIR`"
        )
    return manifest

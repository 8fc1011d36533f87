"""Low-rank adaptation of frozen linear maps and convolutions: `W = W0 + (alpha / r)·B·A`.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685). `W0` is never
written to: merging makes a new map from it, so that versions do not drift. States carry the key
names of PEFT (`base_model.model.<path>.lora_A.weight`). Of a k x k convolution A is a convolution
of the same size, stride and padding to r channels (r, in, k, k), and B one of 1x1 (out, r, 1, 1),
as in PEFT: with the kernels flattened, W is the same sum.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .pretrained import TensorDict, WeightsError, check_tensors

LinearMap = nn.Linear | nn.Conv2d
Slices = tuple[tuple[int, int], ...]
PREFIX = "base_model.model."


class LowRankPair(nn.Module):
    """`A` (r, in), Kaiming-uniform, and `B` (out, r), zero: the pair starts as nothing.

    Of a k x k convolution `in` is its input channels times k·k.
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(rank, in_features))
        self.lora_B = nn.Parameter(torch.zeros(out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))


class LoraMap(nn.Module):
    """A frozen linear map or convolution with low-rank pairs on slices of its outputs."""

    def __init__(self, base_layer: LinearMap, rank: int, alpha: float, slices: Slices) -> None:
        """Wraps a map.

        Args:
            base_layer: the frozen map; it becomes a child and stops asking for gradients.
            rank: r of each pair.
            alpha: the pairs are scaled by alpha / rank.
            slices: (start, stop) rows of the output that carry a pair each.
        """
        super().__init__()
        self.base_layer = base_layer.requires_grad_(requires_grad=False)
        self.rank, self.alpha, self.slices = rank, alpha, slices
        columns = base_layer.weight[0].numel()
        pairs = nn.ModuleList(LowRankPair(columns, b - a, rank) for a, b in slices)
        self.pairs = pairs.to(base_layer.weight.device)

    @property
    def scale(self) -> float:
        """Alpha / r."""
        return self.alpha / self.rank

    def named_slices(self) -> Iterator[tuple[int, int, LowRankPair]]:
        """Gives (start, stop, pair) for each slice."""
        for (start, stop), pair in zip(self.slices, self.pairs, strict=True):
            yield start, stop, cast(LowRankPair, pair)

    def forward(self, x: Tensor) -> Tensor:
        """What the base gives, plus each pair's part on its rows."""
        layer = self.base_layer
        y = layer(x)
        for start, stop, pair in self.named_slices():
            if isinstance(layer, nn.Conv2d):
                kernels = pair.lora_A.unflatten(1, layer.weight.shape[1:])  # (r, in, k, k)
                hidden = F.conv2d(x, kernels, None, layer.stride, layer.padding, layer.dilation)
                part = F.conv2d(hidden, pair.lora_B[:, :, None, None])
            else:
                part = F.linear(F.linear(x, pair.lora_A), pair.lora_B)
            dim = 1 if isinstance(layer, nn.Conv2d) else -1
            y.narrow(dim, start, stop - start).add_(part, alpha=self.scale)
        return y

    def joined(self) -> tuple[Tensor, Tensor]:
        """All pairs as one equal pair: A (k·r, in) stacked, B (out, k·r) block-wise."""
        A = torch.cat([pair.lora_A for _, _, pair in self.named_slices()])
        B = A.new_zeros(self.base_layer.weight.shape[0], len(A))
        for i, (start, stop, pair) in enumerate(self.named_slices()):
            B[start:stop, i * self.rank : (i + 1) * self.rank] = pair.lora_B
        return A, B

    def merged(self) -> LinearMap:
        """A new map with `W0 + scale·B·A`; this one stays as it is."""
        A, B = self.joined()
        layer = copy.deepcopy(self.base_layer)
        delta = (B.double() @ A.double()) * self.scale
        weight = layer.weight.double() + delta.reshape(layer.weight.shape)
        layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
        return layer


def scale_to(model: nn.Module, alpha: float) -> None:
    """Scales all pairs in a model by another alpha."""
    for module in lora_maps(model).values():
        module.alpha = alpha


def inject(root: nn.Module, targets: str, rank: int, alpha: float) -> list[str]:
    """Puts LoRA on the linear maps and convolutions whose path matches.

    A map that ends in `qkv` (query, key and value in one) gets a pair on its query rows and one on
    its value rows; any other gets one pair over all rows.

    Args:
        root: the network to change in place; it must not be wrapped yet.
        targets: regular expression that a module's whole path matches.
        rank: r; 0 wraps nothing.
        alpha: the scale is alpha / r.

    Returns:
        The paths of the wrapped maps.

    Raises:
        ValueError: nothing matches, or something that is neither linear nor a plain convolution.
    """
    if rank == 0:
        return []
    paths = [name for name, _ in root.named_modules() if re.fullmatch(targets, name)]
    if not paths:
        raise ValueError(f"LoRA targets {targets!r} match no module of {type(root).__name__}")
    for path in paths:
        layer = root.get_submodule(path)
        if not _is_dense(layer):
            raise ValueError(
                f"{path} is {layer}; LoRA needs a linear map, or a convolution without groups that "
                "pads with zeros"
            )
        rows = int(layer.weight.shape[0])
        third = rows // 3
        qkv = path.rpartition(".")[2] == "qkv"
        slices = ((0, third), (rows - third, rows)) if qkv else ((0, rows),)
        root.set_submodule(path, LoraMap(layer, rank, alpha, slices))
    return paths


def _is_dense(layer: nn.Module) -> TypeGuard[LinearMap]:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros"
    return isinstance(layer, nn.Linear)


def lora_maps(root: nn.Module) -> dict[str, LoraMap]:
    """The wrapped maps by path."""
    return {name: m for name, m in root.named_modules() if isinstance(m, LoraMap)}


def merge(root: nn.Module) -> None:
    """Replaces each wrapped map by a new one with its pairs merged in; `W0` is not written to."""
    for path, lora in lora_maps(root).items():
        root.set_submodule(path, lora.merged())


def base_state(root: nn.Module) -> TensorDict:
    """The state dict without LoRA, under the names that it had before `inject`."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in root.state_dict().items()
        if ".lora_A" not in name and ".lora_B" not in name
    }


def merged_state(root: nn.Module) -> TensorDict:
    """`base_state` with the pairs merged in; the maps stay as they are."""
    merged = {f"{path}.weight": lora.merged().weight for path, lora in lora_maps(root).items()}
    return base_state(root) | merged


def adapter_state(root: nn.Module) -> TensorDict:
    """The pairs under PEFT's key names; several pairs of one map are joined to one equal pair."""
    state: TensorDict = {}
    for path, lora in lora_maps(root).items():
        size = lora.base_layer.weight.shape  # (out, in) or (out, in, k, k)
        A, B = lora.joined()
        for letter, matrix, shape in (
            ("A", A, (len(A), *size[1:])),
            ("B", B, (*B.shape, *(1 for _ in size[2:]))),
        ):
            state[f"{PREFIX}{path}.lora_{letter}.weight"] = matrix.detach().reshape(shape).clone()
    return state


def adapter_config(root: nn.Module) -> dict[str, object]:
    """What PEFT's `adapter_config.json` says of `adapter_state`: rank and alpha as joined."""
    maps = lora_maps(root)
    ranks = {lora.rank * len(lora.slices) for lora in maps.values()}
    alphas = {lora.alpha * len(lora.slices) for lora in maps.values()}
    if len(ranks) != 1 or len(alphas) != 1:
        raise ValueError(f"joined ranks {ranks} and alphas {alphas}: PEFT needs one of each")
    return {
        "peft_type": "LORA",
        "r": ranks.pop(),
        "lora_alpha": alphas.pop(),
        "target_modules": sorted(maps),
        "bias": "none",
    }


def load_adapter_state(root: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copies pairs in.

    Args:
        root: a network after `inject`.
        state: as `adapter_state` gives it.
        source: names the file in errors.

    Raises:
        WeightsError: names or shapes differ, values are not finite, or a joined pair acts on rows
            or across pairs where this network has none.
    """
    check_tensors(state, adapter_state(root), source)
    for path, lora in lora_maps(root).items():
        A, B = (state[f"{PREFIX}{path}.lora_{letter}.weight"].flatten(1) for letter in "AB")
        with torch.no_grad():
            for i, (start, stop, pair) in enumerate(lora.named_slices()):
                columns = slice(i * lora.rank, (i + 1) * lora.rank)
                pair.lora_A.copy_(A[columns])
                pair.lora_B.copy_(B[start:stop, columns])
        if not torch.equal(lora.joined()[1], B.to(lora.joined()[1])):
            raise WeightsError(
                f"{source}: {path}.lora_B is not zero outside rows {lora.slices}; "
                "this adapter was made for other targets"
            )

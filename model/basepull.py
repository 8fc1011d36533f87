"""A pull that holds a deployed base from the first step on: `(k/2)·Σ Ω·(W − W_base)²`.

Ours; in the paper nothing is held before the first consolidation. Ω is `baseimportance`'s, of
effective weights W = W0 + s·B·A. LoRA of a deployed base need not be zero, so what was learned
since is `D = s·(B·A − B_base·A_base)`, and with `G = k·Ω∘D` the gradients are `∂B += s·G·Aᵀ` and
`∂A += s·Bᵀ·G`. Of parameters without LoRA it is `k·Ω∘(θ − θ_base)`.

It is one more quadratic pull beside those to the anchors θ*. No consolidation moves it, and nothing
fades it. What it knows are constants: whoever owns the network gives them anew at each start, and
the method's state names them by their hash.

`D = s·(B·ΔA + ΔB·A_base)` has rank 2r and Ω is a product of shares, so neither is ever formed: a
step costs four products of LoRA matrices for each pair. In this form the pull is exactly zero at
the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import foreach
from .anchoring import grads_of
from .anchorring import AnchorRing
from .baseimportance import BaseImportance, pairs_of
from .method import MethodError, Segment
from .network import Network


class _Pair(NamedTuple):
    """A LoRA pair with its base, scale and shares: `rows` (out, 1), `columns` (in,)."""

    A: nn.Parameter
    B: nn.Parameter
    A_base: Tensor
    B_base: Tensor
    scale: float
    rows: Tensor
    columns: Tensor

    def away(self) -> tuple[Tensor, Tensor]:
        """U (out, 2r) and V (2r, in) with `U·V = B·A − B_base·A_base`."""
        U = torch.cat([self.B, self.B - self.B_base], dim=1)
        V = torch.cat([self.A - self.A_base, self.A_base])
        return U, V

    def weighed(self) -> tuple[Tensor, Tensor]:
        """U (out, 2r) and V (2r, in) with `U·V = Ω∘(B·A − B_base·A_base)`."""
        U, V = self.away()
        return U * self.rows, V * self.columns


class BasePull:
    """The pull on one network's parameters."""

    def __init__(self, importance: BaseImportance, network: Network) -> None:
        """Finds the parameters; rows that the class head got since are free.

        Raises:
            MethodError: the network lacks a part that the importances are of.
        """
        self._pairs: list[_Pair] = []
        found, named = {at.path: at for at in pairs_of(network)}, dict(network.named_parameters())
        missing = (importance.pairs.keys() - found.keys()) | (
            importance.plain.keys() - named.keys()
        )
        if missing:
            raise MethodError(
                f"the base's importances are of parts that this {network.preset.name} lacks "
                f"({min(missing)} and {len(missing) - 1} more); hold the importances of the "
                "weights that learning started from"
            )
        for path, shares in importance.pairs.items():
            lora, pair = found[path].lora, found[path].pair
            like = pair.lora_A
            held = _Pair(
                A=pair.lora_A,
                B=pair.lora_B,
                A_base=importance.point[f"{path}.lora_A"].to(like),
                B_base=importance.point[f"{path}.lora_B"].to(like),
                scale=lora.scale,
                rows=shares.rows.to(like)[:, None],
                columns=shares.columns.to(like),
            )
            self._pairs.append(held)
        self._named = {name: named[name] for name in importance.plain}
        self._point = {n: _grown(importance.point[n], p) for n, p in self._named.items()}
        self._importance = {
            n: _grown(importance.plain[n], torch.zeros_like(p)) for n, p in self._named.items()
        }

    @torch.no_grad()
    def add(self, stiffness: float) -> None:
        """Adds `k·Ω·(θ − θ_base)` to the gradients of what has one."""
        for pair in self._pairs:
            if pair.A.grad is None or pair.B.grad is None:
                continue
            U, V = pair.weighed()
            k = stiffness * pair.scale**2
            pair.B.grad.addmm_(U, V @ pair.A.T, alpha=k)
            pair.A.grad.addmm_(pair.B.T @ U, V, alpha=k)
        moving = {name: p for name, p in self._named.items() if p.grad is not None}
        if not moving:
            return
        away = foreach.difference(list(moving.values()), [self._point[n] for n in moving])
        foreach.multiply(away, [self._importance[n] for n in moving])
        foreach.scale(away, stiffness)
        foreach.add(grads_of(moving), away)

    def penalty(self, stiffness: float) -> Tensor:
        """`(k/2)·Σ Ω·(θ − θ_base)²`, a scalar with a graph to the parameters."""
        parts = [
            (self._importance[n] * (p - self._point[n]).square()).sum()
            for n, p in self._named.items()
        ]
        for pair in self._pairs:
            U, V = pair.away()
            D = pair.scale * (U @ V)
            parts.append((pair.rows * pair.columns * D.square()).sum())
        return 0.5 * stiffness * torch.stack(parts).sum()


def _grown(held: Tensor, like: Tensor) -> Tensor:
    """What was held, and in new rows what ``like`` has there."""
    grown = like.detach().clone()
    grown[: len(held)] = held.to(grown)
    return grown


@dataclass(eq=False)
class BaseHeld(AnchorRing):
    """Anchors, and the base that learning started from; nothing of it until `hold_base`.

    State besides `AnchorRing`'s: ``base``, the SHA-256 of the importances and their base as
    uint8 (32,).
    """

    _importance: BaseImportance | None = field(init=False, repr=False, default=None)
    _base: BasePull | None = field(init=False, repr=False, default=None)

    @property
    def base_stiffness(self) -> float:
        """K: the factor of Ω·(θ − θ_base) in the gradient."""
        raise NotImplementedError

    def hold_base(self, importance: BaseImportance) -> None:
        """Holds a base, from the `prepare` that follows on.

        Args:
            importance: of the weights that all learning started from, not of what was learned.
        """
        self._importance = importance

    def prepare(self, network: Network) -> None:
        """Finds the parameters in scope, and the base's."""
        super().prepare(network)
        if self._importance is not None:
            self._base = BasePull(self._importance, network)
            self.state["base"] = torch.tensor(
                list(bytes.fromhex(self._importance.content)), dtype=torch.uint8
            )

    def begin(self, segment: Segment | None) -> None:
        """The class head may have grown."""
        super().begin(segment)
        if self._importance is not None:
            self._base = BasePull(self._importance, self.network)

    @torch.no_grad()
    def edit_grads(self) -> None:
        """Pulls to the anchors and, unmeasured like that, to the base."""
        super().edit_grads()
        if self._base is not None and self.base_stiffness:
            self._base.add(self.base_stiffness)

    def penalty(self) -> Tensor:
        """The anchors' and the base's, a scalar with a graph to the parameters."""
        total = super().penalty()
        return total if self._base is None else total + self._base.penalty(self.base_stiffness)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on, with the same base.

        Raises:
            MethodError: the state was learned with another base, or without one.
        """
        there, here = _name(state.get("base")), _name(self.state.get("base"))
        if there != here:
            raise MethodError(
                f"the state was learned with base importances {there}, and {here} are held; give "
                "hold_base those of the weights that its learning started from, or begin anew"
            )
        super().load_state_dict(state)


def _name(base: Tensor | None) -> str:
    return "none" if base is None else bytes(base.tolist()).hex()[:12]

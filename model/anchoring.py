"""A quadratic penalty that holds parameters where they were: `(k/2)·Σ Ω·(θ − θ*)²`.

What EWC, SI, MAS and LRA share. The penalty is never part of the loss: its gradient is added in
closed form after the backward pass, so that importances are measured on the task alone and a step
costs three passes over the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from . import foreach
from .method import Method, Segment, parts_of
from .network import Network

Scope = Literal["lora+decoder", "all"]


@dataclass(eq=False)
class Anchored(Method):
    """The penalty; who inherits says what Ω is.

    State: ``anchor.NAME`` (θ*) and ``importance.NAME`` (Ω ≥ 0) for each parameter, from the first
    consolidation on.
    """

    @property
    def scope(self) -> Scope:
        """What is anchored."""
        return "all"

    @property
    def stiffness(self) -> float:
        """K: the factor of Ω·(θ − θ*) in the gradient."""
        raise NotImplementedError

    def prepare(self, network: Network) -> None:
        """Finds the parameters in scope."""
        super().prepare(network)
        self.named = parts_of(network, self.scope)

    def begin(self, segment: Segment | None) -> None:
        """The class head may have grown or come, the decoder have got LoRA over a frozen base.

        What is new is free, and anchored where it is; what no longer trains is let go.
        """
        anchored, before = self.is_anchored, self.named
        self.named = parts_of(self.network, self.scope)
        gone = before.keys() - self.named.keys()
        self.state = {k: v for k, v in self.state.items() if k.partition(".")[2] not in gone}
        for name, parameter in self.named.items():
            for kind in ("anchor", "importance", "path"):
                held = self.state.get(f"{kind}.{name}")
                fresh = parameter.detach().clone()
                if kind != "anchor":
                    fresh.zero_()
                if held is not None and held.shape != parameter.shape:
                    self.state[f"{kind}.{name}"] = torch.cat([held, fresh[len(held) :]])
                elif held is None and anchored and kind != "path":
                    self.state[f"{kind}.{name}"] = fresh

    @torch.no_grad()
    def edit_grads(self) -> None:
        """`∂θ += k·Ω·(θ − θ*)`, for what has a gradient."""
        if self.pulls:
            moving = self.with_grad()
            foreach.add(grads_of(moving), self.pull(moving))

    @property
    def pulls(self) -> bool:
        """Whether the penalty can be other than zero."""
        return self.stiffness != 0 and self.is_anchored

    @torch.no_grad()
    def pull(self, names: Mapping[str, nn.Parameter]) -> list[Tensor]:
        """`k·Ω·(θ − θ*)` for some parameters, in new tensors."""
        away = foreach.difference(list(names.values()), self.held("anchor", names))
        foreach.multiply(away, self.held("importance", names))
        foreach.scale(away, self.stiffness)
        return away

    def penalty(self) -> Tensor:
        """`(k/2)·Σ Ω·(θ − θ*)²`, a scalar with a graph to the parameters."""
        total = next(iter(self.named.values())).new_zeros(())
        if not self.is_anchored:
            return total
        for name, parameter in self.named.items():
            away = parameter - self.state[f"anchor.{name}"]
            total = total + (self.state[f"importance.{name}"] * away.square()).sum()
        return 0.5 * self.stiffness * total

    @property
    def is_anchored(self) -> bool:
        """Whether a consolidation took place."""
        return any(key.startswith("anchor.") for key in self.state)

    def with_grad(self) -> dict[str, nn.Parameter]:
        """The parameters that the last backward pass reached, by name."""
        return {name: p for name, p in self.named.items() if p.grad is not None}

    def held(self, kind: str, names: Mapping[str, nn.Parameter]) -> list[Tensor]:
        """State of one kind, in the order of ``names``."""
        return [self.state[f"{kind}.{name}"] for name in names]

    @torch.no_grad()
    def anchor(self) -> None:
        """`θ* ← θ`."""
        for name, parameter in self.named.items():
            self.state[f"anchor.{name}"] = parameter.detach().clone()


def grads_of(names: Mapping[str, nn.Parameter]) -> list[Tensor]:
    """The gradients of parameters that have one."""
    return [parameter.grad for parameter in names.values() if parameter.grad is not None]

"""Several anchors at once: the penalty `(k/2)·Σ_j Ω_j·(θ − θ*_j)²` over the latest few θ*_j.

Ours. The paper has one anchor, and so have the task-free methods that this stands beside: Aljundi
et al., "Task-Free Continual Learning" (arXiv 1812.03596), move it at each plateau and average Ω;
Online-LoRA merges at each plateau, which makes it zero. In a stream a consolidation may come at a
bad moment, and a single anchor then pulls there with all the importance that there is. Here each
anchor pulls with the importance that was gained on the way to it, and no more.

At a consolidation the ring turns: all Ω_j fade by γ, the new θ* enters with its own increment, and
if the ring was full the oldest anchor falls out: its point is forgotten, and its importance is
folded into that of the next one. So Σ_j Ω_j is what a single anchor would have, whatever the size
of the ring, and with one anchor this is `Ω ← γΩ + Ω_new`. (Dropping it instead would make a ring
of one forget everything but the latest segment.) Where Σ_j Ω_j exceeds the cap, the oldest yields.

Ω_j and θ*_j of each anchor are independent, and each must be there to let the oldest out again;
the gradient's two sums, ΣΩ_j and ΣΩ_jθ*_j, do not say what to take away. In float32 that would be
two tensors for each anchor. An earlier anchor is therefore kept as Ω_j and as the way back to it
from its successor, `θ*_j − θ*_(j+1)`, in bfloat16 both: together the size of one tensor, with 0.4 %
rounding at most of what was gained and of how far away it is. With the latest θ*, its Ω and ω in
full that makes 2 + k tensors of a parameter's size for k anchors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import foreach
from .method import Segment
from .pathintegral import PathIntegral

PACKED = torch.bfloat16
"""What earlier anchors are kept in."""


@dataclass(eq=False)
class AnchorRing(PathIntegral):
    """The ring; who inherits says what fades and what is added.

    State besides `PathIntegral`'s, whose anchor and Ω are the latest: ``importance1.NAME`` and
    ``offset1.NAME`` for the anchor before it, ``importance2.NAME`` and so on.

    Attributes:
        cap: largest Σ_j Ω_j.
        anchors: k, at least 1.
    """

    cap: float = 1e3
    anchors: int = 1

    @property
    def kept(self) -> float:
        """What remains of each Ω at a consolidation."""
        raise NotImplementedError

    def increment(self, gained: Tensor) -> Tensor:
        """What a consolidation adds to Ω."""
        raise NotImplementedError

    @property
    def earlier(self) -> range:
        """Ages of the anchors before the latest, from 1."""
        return range(1, min(int(self.state["consolidations"]), self.anchors))

    def begin(self, segment: Segment | None) -> None:
        """What is new of the class head has been where it is for all anchors."""
        super().begin(segment)
        for age in self.earlier:
            for name, parameter in self.named.items():
                for key in (f"importance{age}.{name}", f"offset{age}.{name}"):
                    fresh = torch.zeros_like(parameter, dtype=PACKED, requires_grad=False)
                    held = self.state.get(key, fresh)
                    fresh[: len(held)] = held
                    self.state[key] = fresh

    @torch.no_grad()
    def pull(self, names: Mapping[str, nn.Parameter]) -> list[Tensor]:
        """`k·Σ_j Ω_j·(θ − θ*_j)` for some parameters, in new tensors."""
        if not self.earlier:
            return super().pull(names)
        away = foreach.difference(list(names.values()), self.held("anchor", names))
        total = foreach.product(away, self.held("importance", names))
        for age in self.earlier:
            foreach.subtract(away, self.held(f"offset{age}", names))
            foreach.add_product(total, self.held(f"importance{age}", names), away)
        foreach.scale(total, self.stiffness)
        return total

    def penalty(self) -> Tensor:
        """`(k/2)·Σ_j Ω_j·(θ − θ*_j)²`, a scalar with a graph to the parameters."""
        total = super().penalty()
        for name, parameter in self.named.items():
            away = parameter - self.state[f"anchor.{name}"]
            for age in self.earlier:
                away = away - self.state[f"offset{age}.{name}"]
                pull = self.state[f"importance{age}.{name}"] * away.square()
                total = total + 0.5 * self.stiffness * pull.sum()
        return total

    def remember(self, name: str, here: Tensor, gained: Tensor) -> None:
        """Turns the ring of one parameter."""
        shares, offsets = [self.increment(gained)], list[Tensor]()
        if self.is_anchored:
            shares.append(self.kept * self.state[f"importance.{name}"])
            offsets.append(self.state[f"anchor.{name}"] - here)
        for age in self.earlier:
            shares.append(self.kept * self.state[f"importance{age}.{name}"].to(here.dtype))
            offsets.append(self.state[f"offset{age}.{name}"])
        if len(shares) > self.anchors:
            *shares, successor, oldest = shares
            shares.append(successor + oldest)
            offsets.pop()
        self.state[f"anchor.{name}"] = here
        room = torch.full_like(here, self.cap)
        for age, share in enumerate(shares):
            share.clamp_(max=room)
            room -= share
            if age == 0:
                self.state[f"importance.{name}"] = share
            else:
                self.state[f"importance{age}.{name}"] = share.to(PACKED)
                self.state[f"offset{age}.{name}"] = offsets[age - 1].to(PACKED)

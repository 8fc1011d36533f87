"""MAS: Memory Aware Synapses.

Aljundi et al. (arXiv 1711.09601), Eq. 2 to 4 and §4.1: a parameter matters by how much the squared
length of the network's output changes with it, `Ω_new = mean |∂ ‖f(x)‖² / ∂θ|` over examples, no
labels needed; `L = L_task + λ·Σ Ω·(θ − θ*)²`; Ω of segments adds up.

Here f is the mask's logits (their mean square over pixels) and the class logits (likewise), ours;
Ω_new is divided by its largest value, so that λ is of order 1, ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..anchoring import Anchored
from ..importance import mean_gradients, normalised
from ..method import Batch, MethodError
from ..teacher import answer


@dataclass(eq=False)
class MAS(Anchored):
    """Anchors all that trains.

    Attributes:
        lam: λ.
        examples: at most so many of a segment are asked.
    """

    strength: ClassVar[str] = "lam"

    lam: float = 1.0
    examples: int = 500

    def __post_init__(self) -> None:
        if self.lam < 0 or self.examples < 1:
            raise MethodError(
                f"lam {self.lam}, examples {self.examples}: lam must be at least 0, examples at "
                "least 1"
            )

    @property
    def stiffness(self) -> float:
        """2·λ: the penalty has no ½."""
        return 2 * self.lam

    def consolidate(self, data: Iterable[Batch]) -> None:
        """`Ω ← Ω + Ω_new`, `θ* ← θ`."""

        def length(one: Batch) -> torch.Tensor:
            out = answer(self.network, one)
            total = out.mask_logits.square().mean()
            return total if out.class_logits is None else total + out.class_logits.square().mean()

        gained = mean_gradients(self.network, self.named, data, length, self.examples, torch.abs)
        for name, value in normalised(gained).items():
            held = self.state.get(f"importance.{name}")
            self.state[f"importance.{name}"] = value if held is None else held + value
        self.anchor()

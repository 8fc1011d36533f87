"""ATLAS: LoRA with Low-Rank Anchoring (LRA).

"Can You Hear, Localize, and Segment Continually?" (arXiv 2603.08967), Eq. 9 and 10:
`L = L_task + (c/2)·Σ Ω·(θ − θ*)²` over the LoRA matrices and the decoder, c = 0.3, Ω from gradients
times updates along training.

The paper leaves open how Ω is normalised, what becomes of signs, how segments add up. Here, after
SI (see `pathintegral`): `Ω ← γΩ + ReLU(ω)/((θ − θ*)² + ξ)`, capped. With ``growth="mean"``, for
streams without boundaries, Ω is a moving average of step-normalised increments,
`Ω ← γΩ + (1 − γ)·100/n·ReLU(ω)/((θ − θ*)² + ξ)`, so that it depends neither on the period nor on
how many there were.

``c=0`` is the ablation without LRA; the one without audio-guided conditioning is the network's
(`Preset.vary`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..anchoring import Scope
from ..method import MethodError, Trainable
from ..pathintegral import PathIntegral


@dataclass(eq=False)
class Atlas(PathIntegral):
    """Low-Rank Anchoring.

    Attributes:
        c: strength (Eq. 9).
        xi: ξ.
        gamma: γ, what remains of Ω at each consolidation: 1 for up to ten segments, 0.9 for fifty.
        cap: largest Ω.
        growth: ``sum``, or ``mean``: see above.
        everything: anchor all that trains, not LoRA and decoder alone.
    """

    trainable: ClassVar[Trainable] = "lora"
    strength: ClassVar[str] = "c"

    c: float = 0.3
    gamma: float = 1.0
    cap: float = 1e3
    growth: str = "sum"
    everything: bool = False

    def __post_init__(self) -> None:
        if self.c < 0 or self.xi <= 0 or not 0 <= self.gamma <= 1 or self.cap <= 0:
            raise MethodError(
                f"c {self.c}, xi {self.xi}, gamma {self.gamma}, cap {self.cap}: c must be at "
                "least 0, xi and cap above 0, gamma from 0 to 1"
            )
        if self.growth not in ("sum", "mean"):
            raise MethodError(f"growth is {self.growth!r}; allowed are 'sum' and 'mean'")

    @property
    def scope(self) -> Scope:
        """What is anchored."""
        return "all" if self.everything else "lora+decoder"

    @property
    def stiffness(self) -> float:
        """C."""
        return self.c

    def grown(self, held: Tensor, gained: Tensor) -> Tensor:
        """Ω after a consolidation."""
        if self.growth == "sum":
            return (self.gamma * held + gained).clamp(max=self.cap)
        gained = gained * (100.0 / float(self.state["steps"]))
        kept = self.gamma if self.is_anchored else 0.0
        return (kept * held + (1 - kept) * gained).clamp(max=self.cap)

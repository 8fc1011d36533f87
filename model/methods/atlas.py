"""ATLAS: LoRA with Low-Rank Anchoring (LRA).

"Can You Hear, Localize, and Segment Continually?" (arXiv 2603.08967), Eq. 9 and 10:
`L = L_task + (c/2)·Σ Ω·(θ − θ*)²` over the LoRA matrices and the decoder, c = 0.3, Ω from gradients
times updates along training.

The paper leaves open how Ω is normalised, what becomes of signs, how segments add up (``unit``,
``sign``, ``growth``). By default, after SI (see `pathintegral`):
`Ω ← γΩ + ReLU(ω)/((θ − θ*)² + ξ)`, capped. With ``growth="mean"``, for streams without boundaries,
Ω is a moving average of step-normalised increments,
`Ω ← γΩ + (1 − γ)·100/n·ReLU(ω)/((θ − θ*)² + ξ)`, so that it depends neither on the period nor on
how many there were. ``anchors`` over 1, for such streams too, is ours (see `anchorring`): earlier
points keep pulling for a while, each with its own increment, as `(c/2)·Σ_j Ω_j·(θ − θ*_j)²`.

Ω is zero until the first consolidation, so a deployed network would lose what it can do before.
`hold_base` is ours too, and the paper's has nothing of it: `(base_c/2)·Σ Ω_base·(W − W_base)²` with
importances that ship with the weights (see `basepull`), from the first step on, never moved, never
faded.

``c=0`` is the ablation without LRA; the one without audio-guided conditioning is the network's
(`Preset.vary`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..anchoring import Scope
from ..basepull import BaseHeld
from ..method import MethodError, Trainable


@dataclass(eq=False)
class Atlas(BaseHeld):
    """Low-Rank Anchoring.

    Attributes:
        c: strength (Eq. 9).
        xi: ξ.
        gamma: γ, what remains of Ω at each consolidation: 1 for up to ten segments, 0.9 for fifty;
            below 0: 1, and 0.8 with ``growth="mean"``, where 1 would learn nothing after the first.
        cap: largest Ω, the anchors' taken together.
        anchors: how many of the latest θ* pull; 1 is the paper's.
        growth: ``sum``, or ``mean``: see above.
        unit: of what a consolidation gains: as it is (``none``), for 100 steps (``steps``), or
            divided by its largest value (``largest``); empty: ``none``, and ``steps`` where growth
            is ``mean``.
        sign: of ω what is above zero (``positive``), or all without its sign (``absolute``).
        everything: anchor all that trains, not LoRA and decoder alone.
        base_c: strength of the base's pull where one is held; below 0: c. Its Ω is at most 1 and
            mostly far smaller: for what ships 100 to 1,000 (docs/log.md).
    """

    trainable: ClassVar[Trainable] = "lora"
    strength: ClassVar[str] = "c"

    c: float = 0.3
    gamma: float = -1.0
    growth: str = "sum"
    unit: str = ""
    sign: str = "positive"
    everything: bool = False
    base_c: float = -1.0

    def __post_init__(self) -> None:
        if self.c < 0 or self.xi <= 0 or self.gamma > 1 or self.cap <= 0:
            raise MethodError(
                f"c {self.c}, xi {self.xi}, gamma {self.gamma}, cap {self.cap}: c must be at "
                "least 0, xi and cap above 0, gamma at most 1"
            )
        if self.anchors < 1:
            raise MethodError(f"anchors is {self.anchors}; it must be at least 1")
        if self.growth not in ("sum", "mean"):
            raise MethodError(f"growth is {self.growth!r}; allowed are 'sum' and 'mean'")
        if self.unit not in ("", "none", "steps", "largest"):
            raise MethodError(f"unit is {self.unit!r}; allowed are 'none', 'steps' and 'largest'")
        if self.sign not in ("positive", "absolute"):
            raise MethodError(f"sign is {self.sign!r}; allowed are 'positive' and 'absolute'")
        if self.growth == "mean" and self.gamma == 1:
            raise MethodError(
                "growth is mean and gamma 1: importance would stay what the first consolidation "
                "made it; set gamma below 1, or leave it out for 0.8"
            )

    @property
    def scope(self) -> Scope:
        """What is anchored."""
        return "all" if self.everything else "lora+decoder"

    @property
    def stiffness(self) -> float:
        """C."""
        return self.c

    @property
    def base_stiffness(self) -> float:
        """Of the base's pull."""
        return self.c if self.base_c < 0 else self.base_c

    @property
    def kept(self) -> float:
        """γ, but nothing of the zeros before the first consolidation."""
        if self.growth == "mean" and not self.is_anchored:
            return 0.0
        if self.gamma < 0:
            return 1.0 if self.growth == "sum" else 0.8
        return self.gamma

    def increment(self, gained: Tensor) -> Tensor:
        """What a consolidation adds to Ω."""
        return gained if self.growth == "sum" else (1 - self.kept) * gained

    def signless(self, path: Tensor) -> Tensor:
        """What counts of ω."""
        return path.abs() if self.sign == "absolute" else super().signless(path)

    def factor(self) -> float:
        """Of all that a consolidation gains."""
        match self.unit or ("none" if self.growth == "sum" else "steps"):
            case "steps":
                return 100.0 / float(self.state["steps"])
            case "largest":
                largest = max(float(self.gained(name).max()) for name in self.named)
                return 1 / largest if largest > 0 else 1.0
            case _:
                return 1.0

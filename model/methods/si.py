"""SI: Synaptic Intelligence.

Zenke, Poole, Ganguli (arXiv 1703.04200), Eq. 3 to 5: `L = L_task + c·Σ Ω·(θ − θ*)²`, with
`Ω ← Ω + ReLU(ω)/((θ − θ*)² + ξ)` at each boundary. No ½ in front of c, as in the paper and in the
authors' code; ξ = 1e-3 is theirs for split CIFAR.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..method import MethodError
from ..pathintegral import PathIntegral


@dataclass(eq=False)
class SI(PathIntegral):
    """Anchors all that trains.

    Attributes:
        c: strength (Eq. 4).
        xi: ξ (Eq. 5).
    """

    strength: ClassVar[str] = "c"

    c: float = 0.1

    def __post_init__(self) -> None:
        if self.c < 0 or self.xi <= 0:
            raise MethodError(f"c {self.c}, xi {self.xi}: c must be at least 0 and xi above 0")

    @property
    def stiffness(self) -> float:
        """2·c: the penalty has no ½."""
        return 2 * self.c

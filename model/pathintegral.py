"""How much each parameter's path lowered the loss: what SI and LRA weigh parameters by.

Zenke, Poole, Ganguli, "Continual Learning Through Synaptic Intelligence" (arXiv 1703.04200),
Eq. 3 to 5: `ω += −g·Δθ` at each step, with the gradient g of the task's loss alone and the step
Δθ that the optimizer truly made (momentum, weight decay and clipping included). At consolidation
`Ω_new = ReLU(ω) / ((θ − θ*)² + ξ)`; the sign is dropped there, not step by step, as in the authors'
code (ganguli-lab/pathint).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import foreach
from .anchoring import Anchored, grads_of
from .method import Batch, Segment
from .network import Network


@dataclass(eq=False)
class PathIntegral(Anchored):
    """Accumulates ω, of which Ω grows as in SI; who inherits may say otherwise.

    State besides `Anchored`'s: ``path.NAME`` (ω), ``steps`` since the last consolidation, and the
    point that displacement is measured from: the anchor, set when learning begins.
    """

    xi: float = 1e-3
    """ξ: keeps parameters that hardly moved from becoming infinitely stiff."""

    _before: list[Tensor] = field(init=False, repr=False, default_factory=list[Tensor])
    _grads: list[Tensor] = field(init=False, repr=False, default_factory=list[Tensor])
    _names: list[str] = field(init=False, repr=False, default_factory=list[str])

    def prepare(self, network: Network) -> None:
        """Finds the parameters in scope."""
        super().prepare(network)
        self._ensure()

    def begin(self, segment: Segment | None) -> None:
        """Follows a class head that grew."""
        super().begin(segment)
        self._ensure()

    def _ensure(self) -> None:
        for name, parameter in self.named.items():
            if f"path.{name}" not in self.state:
                self.state[f"anchor.{name}"] = parameter.detach().clone()
                self.state[f"path.{name}"] = torch.zeros_like(parameter)
        self.state.setdefault("steps", torch.zeros((), dtype=torch.int64))
        self.state.setdefault("consolidations", torch.zeros((), dtype=torch.int64))

    @property
    def is_anchored(self) -> bool:
        """Whether a consolidation took place; until then Ω is zero."""
        return bool(self.state["consolidations"] > 0)

    @torch.no_grad()
    def edit_grads(self) -> None:
        """Takes g and θ down, and puts `g + k·Ω·(θ − θ*)` in g's place."""
        moving = self.with_grad()
        self._names = list(moving)
        self._grads = grads_of(moving)
        if self.pulls:
            total = self.pull(moving)
            foreach.add(total, self._grads)
        else:
            total = [grad.clone() for grad in self._grads]
        # Two tensors per parameter until `after_step`: θ, and the new gradient beside g. What else
        # `pull` needed is gone by now.
        self._before = [p.detach().clone() for p in moving.values()]
        for parameter, grad in zip(moving.values(), total, strict=True):
            parameter.grad = grad

    @torch.no_grad()
    def after_step(self) -> None:
        """`ω += g·(θ_before − θ_after)`."""
        now = [self.named[name] for name in self._names]
        foreach.subtract(self._before, now)
        foreach.add_product(
            [self.state[f"path.{name}"] for name in self._names], self._grads, self._before
        )
        self.state["steps"] = self.state["steps"] + 1
        self._before, self._grads = [], []

    @torch.no_grad()
    def consolidate(self, data: Iterable[Batch]) -> None:
        """Lets Ω grow, moves the anchor, empties ω; the data is not looked at."""
        if not self.state["steps"]:
            return
        factor = self.factor()
        for name, parameter in self.named.items():
            self.remember(name, parameter.detach().clone(), factor * self.gained(name))
            self.state[f"path.{name}"] = torch.zeros_like(parameter, requires_grad=False)
        self.state["consolidations"] = self.state["consolidations"] + 1
        self.state["steps"] = torch.zeros((), dtype=torch.int64)

    def gained(self, name: str) -> Tensor:
        """`ReLU(ω)/((θ − θ*)² + ξ)` of one parameter."""
        away = self.named[name].detach() - self.state[f"anchor.{name}"]
        return self.signless(self.state[f"path.{name}"]) / (away.square() + self.xi)

    def signless(self, path: Tensor) -> Tensor:
        """What counts of ω."""
        return path.clamp(min=0)

    def factor(self) -> float:
        """Of all that a consolidation gains."""
        return 1.0

    def remember(self, name: str, here: Tensor, gained: Tensor) -> None:
        """`Ω ← Ω + Ω_new`, `θ* ← θ`, for one parameter.

        Args:
            name: the parameter's.
            here: θ, to keep.
            gained: Ω_new.
        """
        held = self.state.get(f"importance.{name}")
        self.state[f"importance.{name}"] = gained if held is None else held + gained
        self.state[f"anchor.{name}"] = here

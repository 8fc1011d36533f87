"""RanPAC: random projections, and a ridge regression whose statistics add up.

McDonnell et al., "RanPAC: Random Projections and Pre-trained Models for Continual Learning" (arXiv
2307.02251), Algorithm 1: train in the first segment (phase 1), then freeze; with `h = ReLU(f·W)`, W
random and never changed, `G ← G + hᵀh`, `Q ← Q + hᵀy` over all data, and scores `h·(G + λI)⁻¹·Q`;
λ from 1e-8 to 1e8 is the one that predicts a fifth of the segment's data best from the other four.

Here f is the pooled fused feature. The fifth is every fifth labelled frame, and its error is had
from sums as well, so that no features are kept; a λ with which G is not numerically positive
definite is passed over. 2,000 projections (G: 32 MB), not the paper's 10,000 (800 MB).

The masks are ours, as the paper has classes alone:

- ``frozen_after_first``: the decoder's, which stands still after the first segment.
- ``ridge_pixels``: a second ridge regression, from fused tokens to the share ŷ of each token's cell
  that sounds. The logit is `4·(ŷ − ½)`, the tangent of `log(ŷ/(1 − ŷ))` at one half, upsampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..freezing import FrozenAfterFirst, grown, shares_of, tokens_of, with_masks
from ..losses import NO_LABEL
from ..method import Batch, MethodError, Segment, Trainable, labels_of, within
from ..network import Output

RIDGES = tuple(10.0**exponent for exponent in range(-8, 9))
HELD_OUT = 5
"""One frame of so many chooses λ."""


@dataclass(eq=False)
class RanPAC(FrozenAfterFirst):
    """Trains LoRA and what follows it in the first segment, as the paper trains adapters.

    State, for the KINDs ``classes`` and ``masks``: ``KIND.all``, G and Q side by side in float64;
    the same of what came since the last consolidation, ``KIND.fit`` and ``KIND.held``;
    ``KIND.ridge`` (λ), ``KIND.weight``, and ``KIND.seen``, how many frames were learned.

    Attributes:
        masks: see above.
        projections: columns of W.
        seed: of W.
    """

    trainable: ClassVar[Trainable] = "lora"

    masks: str = "frozen_after_first"
    projections: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        self._random: Tensor | None = None
        allowed = ("frozen_after_first", "ridge_pixels")
        if self.masks not in allowed:
            raise MethodError(f"masks is {self.masks!r}; allowed are {allowed}")
        if self.projections < 1 or self.seed < 0:
            raise MethodError(
                f"projections {self.projections}, seed {self.seed}: at least 1, and at least 0"
            )

    def project(self, features: Tensor) -> Tensor:
        """`ReLU(f·W)`: (n, D) to (n, M). W is drawn from the seed."""
        D = features.shape[1]
        if self._random is None or self._random.device != features.device:
            draw = torch.Generator().manual_seed(self.seed)
            self._random = torch.randn(D, self.projections, generator=draw).to(features.device)
        return F.relu(features @ self._random)

    def learn(self, batch: Batch, out: Output) -> None:
        """Adds the frames whose class is known, and those whose mask is."""
        tokens = tokens_of(out)  # (B, h, w, D)
        if out.class_logits is not None:
            labels = labels_of(batch).to(tokens.device)
            known = labels != NO_LABEL
            target = F.one_hot(labels[known], out.class_logits.shape[1])
            self._add("classes", tokens[known].mean(dim=(1, 2))[:, None], target[:, None])
        if self.masks == "ridge_pixels":
            valid = batch["valid"]
            shares = shares_of(batch["masks"][valid], tokens[valid])
            self._add("masks", tokens[valid].flatten(1, 2), shares.flatten(1)[..., None])

    def _add(self, kind: str, features: Tensor, targets: Tensor) -> None:
        """Features (B, n, D) of some frames, and targets (B, n, C)."""
        seen = int(self.state.get(f"{kind}.seen", 0))
        self.state[f"{kind}.seen"] = torch.tensor(seen + len(features))
        number = torch.arange(seen, seen + len(features), device=features.device)
        held = (number + 1) % HELD_OUT == 0
        for part, rows in (("fit", ~held), ("held", held)):
            hidden = self.project(features[rows].flatten(0, 1))
            y = targets[rows].flatten(0, 1).to(hidden)
            moments = hidden.T @ torch.cat([hidden, y], dim=1)  # (M, M + C)
            self._sum(f"{kind}.{part}", moments.double())

    def _sum(self, name: str, moments: Tensor) -> None:
        self.state[name] = grown(self.state.get(name), moments, dim=1) + moments

    def settle(self) -> None:
        """Chooses λ on what came since the last time, adds that to the rest, and solves."""
        for kind in ("classes", "masks"):
            if f"{kind}.fit" not in self.state:
                continue
            fit, held = self.state.pop(f"{kind}.fit"), self.state.pop(f"{kind}.held")
            ridge = best_ridge(fit, held)
            self._sum(f"{kind}.all", fit + held)
            solved = (solve(self.state[f"{kind}.all"], r) for r in RIDGES if r >= ridge)
            self.state[f"{kind}.weight"] = next(w for w in solved if w is not None).float()
            self.state[f"{kind}.ridge"] = torch.tensor(ridge, dtype=torch.float64)

    def predict(self, batch: Batch, out: Output, segment: Segment | None) -> Output:
        """Closed forms instead of the class head, and instead of the decoder where so chosen."""
        weight = self.state.get("classes.weight")
        if weight is not None and out.class_logits is not None:
            scores = self.project(tokens_of(out).mean(dim=(1, 2))) @ weight
            out = out._replace(class_logits=grown(scores, out.class_logits, dim=1))
        weight = self.state.get("masks.weight")
        if weight is not None:
            shares = self.project(tokens_of(out).flatten(0, 2)) @ weight
            out = with_masks(out, 4 * (shares - 0.5))
        return within(out, segment)


def solve(moments: Tensor, ridge: float) -> Tensor | None:
    """`(G + λI)⁻¹·Q`; None where G + λI is not numerically positive definite."""
    M = len(moments)
    factor, failed = torch.linalg.cholesky_ex(moments[:, :M] + ridge * torch.eye(M).to(moments))
    return None if bool(failed) else torch.cholesky_solve(moments[:, M:], factor)


def best_ridge(fit: Tensor, held: Tensor) -> float:
    """The λ with which ``fit`` has the least squared error on ``held``; 1 if that is empty.

    `Σ ‖h·A − y‖² = tr(Aᵀ·(G·A − 2·Q)) + Σ ‖y‖²`, whose last term no λ changes.
    """
    M, best, least = len(fit), 1.0, torch.inf
    for ridge in RIDGES if bool(held.any()) else ():
        A = solve(fit, ridge)
        if A is not None:
            error = float((A * (held[:, :M] @ A - 2 * held[:, M:])).sum())
            if error < least:
                best, least = ridge, error
    return best

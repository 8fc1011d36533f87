"""EWC, online: Elastic Weight Consolidation with one running Fisher.

Kirkpatrick et al. (arXiv 1612.00796), Eq. 3: `L = L_task + (λ/2)·Σ F·(θ − θ*)²`; Schwarz et al.
(arXiv 1805.06370), §3.2, for one anchor and `F ← γF + F_new`.

F is by default the empirical Fisher: squares of the gradients of the task's loss, *example by
example* (a batch's mean gradient squared is too small by about the batch's size). Masks make it
tiny, as each loss is a mean over pixels, so F_new is divided by its largest value and λ is of order
1 to 100: ours; the papers leave F as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..anchoring import Anchored
from ..importance import mean_gradients, normalised
from ..losses import total_loss
from ..method import Batch, MethodError
from ..network import Output
from ..teacher import answer


@dataclass(eq=False)
class EWC(Anchored):
    """Anchors all that trains.

    Attributes:
        lam: λ.
        gamma: γ, what remains of F at each consolidation.
        examples: at most so many of a segment are asked.
        truth: what the likelihood is of: ``given`` masks and classes (the empirical Fisher), or
            ``sampled`` ones, drawn from what the network itself says (the Fisher, without labels).
    """

    strength: ClassVar[str] = "lam"

    lam: float = 10.0
    gamma: float = 1.0
    examples: int = 500
    truth: str = "given"

    def __post_init__(self) -> None:
        if self.lam < 0 or not 0 <= self.gamma <= 1 or self.examples < 1:
            raise MethodError(
                f"lam {self.lam}, gamma {self.gamma}, examples {self.examples}: lam must be at "
                "least 0, gamma from 0 to 1, examples at least 1"
            )
        if self.truth not in ("given", "sampled"):
            raise MethodError(f"truth is {self.truth!r}; allowed are 'given' and 'sampled'")

    @property
    def stiffness(self) -> float:
        """λ."""
        return self.lam

    def consolidate(self, data: Iterable[Batch]) -> None:
        """`F ← γF + F_new`, `θ* ← θ`."""
        draw = torch.Generator(next(self.network.parameters()).device).manual_seed(0)

        def loss(one: Batch) -> Tensor:
            out = answer(self.network, one)
            if self.truth == "sampled":
                return self._likelihood(out, draw)
            terms = total_loss(
                out, one["masks"], one["valid"], one.get("labels"), class_weight=self.class_weight
            )
            return terms["loss"]

        fisher = normalised(
            mean_gradients(self.network, self.named, data, loss, self.examples, torch.square)
        )
        for name, value in fisher.items():
            held = self.state.get(f"importance.{name}")
            self.state[f"importance.{name}"] = value if held is None else self.gamma * held + value
        self.anchor()

    def _likelihood(self, out: Output, draw: torch.Generator) -> Tensor:
        """Minus the log-likelihood of a mask and a class that are drawn from an answer.

        Mean over pixels, as `taskloss` weighs them; Dice is no likelihood and has no part in it.
        """
        logits = out.mask_logits.float()
        mask = torch.bernoulli(torch.sigmoid(logits.detach()), generator=draw)
        total = F.binary_cross_entropy_with_logits(logits, mask)
        if out.class_logits is None or not out.class_logits.shape[1]:
            return total
        scores = out.class_logits.float()
        label = torch.multinomial(scores.detach().softmax(dim=1), 1, generator=draw)[:, 0]
        return total + self.class_weight * F.cross_entropy(scores, label)

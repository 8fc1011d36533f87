"""DGR: gradients of the class head's rows, reweighted apart for old and for new classes.

He, Zhu, "Gradient Reweighting: Towards Imbalanced Class-Incremental Learning" (arXiv 2402.18528).
With Φ the summed norms of the rows' gradients of the cross-entropy in this segment, each row's
gradient is multiplied by

    α = min Φ / Φ, the least one among the old, or among the new classes (intra-phase), and by
    r = min(1, Φ̄_new/Φ̄_old) for old, min(1, Φ̄_new/Φ̄_old · exp(−γ·known/all)) for new ones
    (inter-phase);

the distillation's gradient of old rows is multiplied by β = ‖α·r·‖g‖‖ / ‖‖g_kd‖‖, so that it
weighs as much. Logits in the cross-entropy get the log of the class's share of the segment added.

Here no examples of old segments are kept, and the paper's fractions would be 0/0: a class without
an example in the segment takes no part in any least or mean; if it is old, its row learns from the
distillation alone; shares are at least 1e-3. Φ and shares are counted as the stream goes by. The
paper weighs distillation by what was lost of each class; here it is plain.

Masks are ours: what sounds and what does not are two more classes, so logits in the BCE get the
log of their pixels' odds added (``balance``), and masks are distilled. Without labels nothing else
is left. Balancing assumes the weights of Eq. 10 (`Method.class_weight`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distillation import class_distillation, mask_distillation
from ..freezing import grown
from ..losses import NO_LABEL, mask_terms
from ..method import Batch, Method, MethodError, Segment, labels_of
from ..network import Output
from ..teacher import Teacher

TINY = 1e-6
"""The least norm that anything is divided by."""


@dataclass(eq=False)
class DGR(Method):
    """Reweights the class head, distils all that trains.

    State: ``norms`` (Φ), ``clips`` (by class) and ``pixels`` (silent, sounding) of the segment,
    ``known`` (rows of old classes), and ``teacher.NAME``.

    Attributes:
        lam: weight of the distillation.
        temperature: T of the distillation.
        attenuation: γ.
        balance: whether the mask's BCE is balanced.
    """

    lam: float = 1.0
    temperature: float = 2.0
    attenuation: float = 1.0
    balance: bool = True

    def __post_init__(self) -> None:
        self._teacher: Teacher | None = None
        self._kd: tuple[Tensor, Tensor] | None = None
        if self.lam < 0 or self.temperature <= 0 or self.attenuation < 0:
            raise MethodError(
                f"lam {self.lam}, temperature {self.temperature}, attenuation {self.attenuation}: "
                "lam and attenuation must be at least 0, temperature above 0"
            )

    def begin(self, segment: Segment | None) -> None:
        """Follows a class head that grew."""
        if self.network.head is not None:
            like = self.network.head.linear.bias.detach()
            for name in ("norms", "clips"):
                self.state[name] = grown(self.state.get(name), like)

    def extra_loss(self, batch: Batch, out: Output) -> dict[str, Tensor]:
        """What balances the task's loss, and the distillation."""
        terms: dict[str, Tensor] = {}
        labels, masks, valid = labels_of(batch), batch["masks"], batch["valid"]
        known = labels[labels != NO_LABEL]
        if out.class_logits is not None and len(known):
            logits = out.class_logits.float()
            seen = F.one_hot(known, logits.shape[1]).sum(dim=0)
            self.state["clips"] = self.state["clips"] + seen
            balanced = F.cross_entropy(
                logits + log_shares(self.state["clips"]), labels, ignore_index=NO_LABEL
            )
            plain = F.cross_entropy(logits, labels, ignore_index=NO_LABEL)
            terms["class_balance"] = self.class_weight * (balanced - plain)
        if self.balance:
            sounding = masks[valid].sum().double()
            seen = torch.stack([masks[valid].numel() - sounding, sounding])
            self.state["pixels"] = seen + self.state.get("pixels", 0)
            silent, sounds = log_shares(self.state["pixels"])
            balanced, _ = mask_terms(out.mask_logits + (sounds - silent), masks, valid)
            terms["mask_balance"] = balanced - mask_terms(out.mask_logits, masks, valid)[0]
        return terms | self._distil(batch, out)

    def _distil(self, batch: Batch, out: Output) -> dict[str, Tensor]:
        self._kd = None
        if self._teacher is None or self.lam == 0:
            return {}
        old, head = self._teacher(batch), self.network.head
        terms = {"kd": self.lam * mask_distillation(out, old, self.temperature)}
        if old.class_logits is not None and head is not None:
            kd = self.lam * class_distillation(out, old, self.temperature)
            rows = [head.linear.weight, head.linear.bias]
            weight, bias = torch.autograd.grad(kd, rows, retain_graph=True)
            self._kd, terms["kd_class"] = (weight, bias), kd
        return terms

    @torch.no_grad()
    def edit_grads(self) -> None:
        """`g ← α·r·g + β·g_kd`, row by row."""
        head = self.network.head
        if head is None or head.linear.weight.grad is None or head.linear.bias.grad is None:
            return
        weight, bias = head.linear.weight.grad, head.linear.bias.grad
        kd_weight, kd_bias = self._kd or (torch.zeros_like(weight), torch.zeros_like(bias))
        own_weight, own_bias = weight - kd_weight, bias - kd_bias
        norms = own_weight.norm(dim=1)
        self.state["norms"] = self.state["norms"] + norms
        known = int(self.state.get("known", 0))
        alpha = row_weights(self.state["norms"], self.state["clips"], known, self.attenuation)
        beta = (alpha * norms).norm() / kd_weight.norm().clamp(min=TINY)
        if norms.sum() > TINY:  # else nothing had a label: the distillation stands alone
            weight.copy_(alpha[:, None] * own_weight + beta * kd_weight)
            bias.copy_(alpha * own_bias + beta * kd_bias)

    def consolidate(self, data: Iterable[Batch]) -> None:
        """The network of now is the next segment's teacher; counting begins anew."""
        self._teacher = Teacher(self.network)
        self.state = {f"teacher.{n}": value for n, value in self._teacher.state_dict().items()}
        if self.network.head is not None:
            self.state["known"] = torch.tensor(self.network.head.linear.out_features)
        self.begin(None)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Makes the teacher anew."""
        super().load_state_dict(state)
        own = {n.removeprefix("teacher."): v for n, v in state.items() if n.startswith("teacher.")}
        if own:
            self._teacher = Teacher(self.network)
            self._teacher.load_state_dict(own)
            self.state |= {f"teacher.{n}": v for n, v in self._teacher.state_dict().items()}


def log_shares(counts: Tensor) -> Tensor:
    """The log of each count's share, which is taken to be at least 1e-3."""
    return (counts / counts.sum().clamp(min=1)).clamp(min=1e-3).log()


def row_weights(norms: Tensor, clips: Tensor, known: int, attenuation: float) -> Tensor:
    """α·r of each row of the class head.

    Args:
        norms: Φ (C,).
        clips: examples of each class in the segment (C,).
        known: rows of old classes, which come first.
        attenuation: γ.
    """
    weights, norms = torch.ones_like(norms), norms.clamp(min=TINY)
    is_old = torch.arange(len(norms), device=norms.device) < known
    old, new = (clips > 0) & is_old, (clips > 0) & ~is_old
    for group in (old, new):
        if bool(group.any()):
            weights[group] = norms[group].min() / norms[group]
    if bool(old.any()) and bool(new.any()):
        gap = norms[new].mean() / norms[old].mean()
        weights[old] *= gap.clamp(max=1)
        weights[new] *= (gap * math.exp(-attenuation * known / len(norms))).clamp(max=1)
    weights[is_old & ~old] = 0
    return weights

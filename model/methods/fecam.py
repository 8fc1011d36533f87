"""FeCAM: a Gaussian for each class, and the nearest one by its own covariance.

Goswami et al., "FeCAM: Exploiting the Heterogeneity of Class Distributions in Exemplar-Free
Continual Learning" (arXiv 2309.14062), §3: the network is trained in the first segment and then
frozen; a class has the mean μ and the covariance Σ of its features; Σ is shrunk,
`Σ + α₁·V₁·I + α₂·V₂·(1 − I)` with the mean V₁ of its diagonal and V₂ of the rest, and divided by
`σᵢ·σⱼ` (correlation normalisation), so that classes can be compared; the class is the one with the
least `(x − μ)ᵀ·Σ⁻¹·(x − μ)`.

Features are scaled to unit length, and raised to a power λ (Tukey's transform), here `sign·|x|^λ`,
as fused features have signs. The authors take λ = 1 and α = (1, 0) for ViTs, λ = ½ and α = (1, 1)
with two shrinkages for ResNets. Where a class comes again, the authors average covariances; here
its scatter is added up exactly (Chan's formula), so that one Gaussian fits all its data.

The masks are ours, as the paper has classes alone:

- ``frozen_after_first``: the decoder's, which stands still after the first segment.
- ``tokens``: Gaussians over fused tokens: one of the background, one of what sounds for each class
  (and one for what has no label). A token at least half covered is of what sounds, one that is not
  covered of the background. The logit is the distance to the background minus the least of the
  others, upsampled.
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

BACKGROUND, UNLABELLED, FIRST_CLASS = 0, 1, 2
"""Which Gaussians over tokens come first."""


@dataclass(eq=False)
class FeCAM(FrozenAfterFirst):
    """Keeps the backbone as it is, and trains what follows it in the first segment.

    State, for the KINDs ``classes`` and ``tokens``, by Gaussian: ``KIND.count``, ``KIND.mean``,
    ``KIND.scatter``; as they were at the last consolidation, ``KIND.known``, ``KIND.center`` and
    ``KIND.inverse``.

    Attributes:
        masks: see above.
        alpha1: α₁.
        alpha2: α₂.
        shrinkages: how often Σ is shrunk.
        power: λ of Tukey's transform; 1: none.
    """

    trainable: ClassVar[Trainable] = "decoder"

    masks: str = "frozen_after_first"
    alpha1: float = 1.0
    alpha2: float = 0.0
    shrinkages: int = 1
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.masks not in ("frozen_after_first", "tokens"):
            raise MethodError(f"masks is {self.masks!r}; allowed: 'frozen_after_first', 'tokens'")
        if self.alpha1 <= 0 or self.alpha2 < 0 or not 0 < self.power <= 1 or self.shrinkages < 1:
            raise MethodError(
                f"alpha1 {self.alpha1}, alpha2 {self.alpha2}, power {self.power}, shrinkages "
                f"{self.shrinkages}: alpha1 must be above 0, alpha2 at least 0, power above 0 and "
                "at most 1, shrinkages at least 1"
            )

    def learn(self, batch: Batch, out: Output) -> None:
        """Adds the frames whose class is known, and the tokens of those whose mask is."""
        tokens = tokens_of(out)  # (B, h, w, D)
        labels = labels_of(batch).to(tokens.device)
        C = 0 if out.class_logits is None else out.class_logits.shape[1]
        known = (labels != NO_LABEL) & (labels < C)
        if C:
            self._add("classes", tokens[known].mean(dim=(1, 2)), labels[known], C)
        if self.masks == "tokens":
            shares = shares_of(batch["masks"], tokens)
            shares[~batch["valid"]] = 0.25  # of neither
            sounding = torch.where(known, labels + FIRST_CLASS, UNLABELLED)
            which = sounding[:, None, None].expand_as(shares).masked_fill(shares == 0, BACKGROUND)
            clear = (shares == 0) | (shares >= 0.5)
            self._add("tokens", tokens[clear], which[clear], C + FIRST_CLASS)

    def _add(self, kind: str, features: Tensor, which: Tensor, n: int) -> None:
        """Features (N, D), each of one of n Gaussians."""
        x, D = self.scaled(features), features.shape[1]
        blank = {"count": x.new_empty(n, dtype=torch.float64)}
        blank |= {"mean": x.new_empty(n, D), "scatter": x.new_empty(n, D, D)}
        count, mean, scatter = (
            grown(self.state.get(f"{kind}.{name}"), like).clone() for name, like in blank.items()
        )
        for i in which.unique().tolist():
            new = x[which == i]
            away = new.mean(dim=0) - mean[i]
            total = count[i] + len(new)
            centered = new - new.mean(dim=0)
            scatter[i] += centered.T @ centered + away.outer(away) * (count[i] * len(new) / total)
            mean[i] += away * (len(new) / total)
            count[i] = total
        self.state |= {f"{kind}.count": count, f"{kind}.mean": mean, f"{kind}.scatter": scatter}

    def scaled(self, features: Tensor) -> Tensor:
        """Of unit length, then Tukey's transform."""
        x = F.normalize(features, dim=-1)
        return x if self.power == 1 else x.sign() * x.abs() ** self.power

    def settle(self) -> None:
        """Inverts the covariances."""
        for kind in ("classes", "tokens"):
            if f"{kind}.count" in self.state:
                count, scatter = self.state[f"{kind}.count"], self.state[f"{kind}.scatter"]
                covariance = scatter.double() / (count - 1).clamp(min=1)[:, None, None]
                inverse = torch.stack(
                    [torch.linalg.inv(self.correlation(one)).float() for one in covariance]
                )
                self.state[f"{kind}.inverse"] = inverse
                self.state[f"{kind}.center"] = self.state[f"{kind}.mean"].clone()
                self.state[f"{kind}.known"] = count > 0

    def correlation(self, covariance: Tensor) -> Tensor:
        """A covariance (D, D) shrunk and divided by its standard deviations."""
        D = len(covariance)
        unit, shrunk = torch.eye(D).to(covariance), covariance
        for _ in range(self.shrinkages):
            diagonal = shrunk.diagonal()
            rest = (shrunk.sum() - diagonal.sum()) / (D * (D - 1))
            # One example has no variance: the distance is then Euclid's.
            variance = diagonal.mean().clamp(min=1e-12)
            shrunk = shrunk + self.alpha1 * variance * unit + self.alpha2 * rest * (1 - unit)
        deviation = shrunk.diagonal().sqrt()
        return shrunk / deviation.outer(deviation)

    def distances(self, kind: str, features: Tensor) -> Tensor:
        """Squared Mahalanobis distances (N, n) of features (N, D); infinite to what is unknown."""
        x = self.scaled(features)
        known, center, inverse = (
            self.state[f"{kind}.{name}"] for name in ("known", "center", "inverse")
        )
        found = x.new_full((len(x), len(known)), torch.inf)
        for i in known.nonzero()[:, 0].tolist():
            away = x - center[i]
            found[:, i] = ((away @ inverse[i]) * away).sum(dim=1)
        return found

    def predict(self, batch: Batch, out: Output, segment: Segment | None) -> Output:
        """Distances instead of the class head, and instead of the decoder where so chosen."""
        least = torch.finfo(torch.float32).min  # finite, so that softmax is, whatever is unknown
        if "classes.known" in self.state and out.class_logits is not None:
            logits = torch.full_like(out.class_logits, least, dtype=torch.float32)
            far = self.distances("classes", tokens_of(out).mean(dim=(1, 2)))
            logits[:, : far.shape[1]] = (-far).clamp(min=least)
            out = out._replace(class_logits=logits)
        known = self.state.get("tokens.known")
        if known is not None and known[BACKGROUND] and known[UNLABELLED:].any():
            far = self.distances("tokens", tokens_of(out).flatten(0, 2))
            out = with_masks(out, far[:, BACKGROUND] - far[:, UNLABELLED:].amin(dim=1))
        return within(out, segment)

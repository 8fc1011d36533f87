"""MacQueen's k-means: clusters of a stream, each point seen once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

SAME = 1e-4
"""Points of length 1 that lie nearer together are one: a sound is encoded in other company by other
roundings."""


@dataclass(slots=True)
class OnlineKMeans:
    """Clusters so far (MacQueen, "Some methods for classification and analysis", 1967).

    The first k distinct points are the means; each point after these joins the nearest mean and
    moves it by 1/n of the way, n being the points that joined it, so that it is their mean.

    Attributes:
        means: float64 (k, D); those of clusters that nothing joined yet come last.
        counts: int64 (k,), the points of each.
    """

    means: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, k: int, dim: int) -> Self:
        """Before the first point (D,)."""
        return cls(torch.zeros(k, dim, dtype=torch.float64), torch.zeros(k, dtype=torch.int64))

    def observe(self, point: Tensor) -> int:
        """Take a point (D,), of length 1, into its cluster; which one is that?"""
        found = int((self.counts > 0).sum())
        away = (self.means[:found] - point).norm(dim=1)  # (found,)
        if found < len(self.means) and not bool((away < SAME).any()):
            nearest = found
        else:
            nearest = int(away.argmin())
        self.counts[nearest] += 1
        self.means[nearest] += (point - self.means[nearest]) / self.counts[nearest]
        return nearest

"""K-means in float64: greedy k-means++ seeds, Lloyd's iterations, no empty cluster; and chains.

Equal points and an equal seed give equal clusters on one machine. Products of matrices may differ
in their last bits between machines, so what hangs on clusters is written down, not computed again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESTARTS = 8
ITERATIONS = 100

Points = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """What k-means found.

    Attributes:
        labels: int64 (N,), the cluster of each point, 0 to k - 1; each has a point.
        centres: float64 (k, D), the mean of each cluster's points.
        inertia: the sum of squared distances of the points from their centres.
    """

    labels: Labels
    centres: Points
    inertia: float


def kmeans(points: Points, k: int, *, seed: int) -> Clusters:
    """Clusters points by their Euclidean distance.

    The best of 8 runs. A run begins with greedy k-means++ (Arthur and Vassilvitskii 2007; of
    2 + ln k candidates the one that helps most) and repeats Lloyd's two steps until no point
    changes its cluster, 100 times at most. A cluster that runs empty gets the point that lies
    farthest from its own centre, so that even equal points fill all clusters.

    Args:
        points: float64 (N, D), finite, N >= k; below 1e100 in size.
        k: clusters, from 1.
        seed: of the draws, from 0.

    Raises:
        ValueError: fewer points than clusters, or no cluster asked for.
    """
    if not 1 <= k <= len(points):
        raise ValueError(f"k is {k}; with {len(points)} points it must be 1 to {len(points)}")
    middle = points.mean(axis=0)
    centred = points - middle  # the squares below cancel less about the origin
    rng = np.random.default_rng(seed)
    runs = (_lloyd(centred, _seeds(centred, k, rng)) for _ in range(RESTARTS))
    best = min(runs, key=lambda run: run.inertia)
    return Clusters(best.labels, best.centres + middle, best.inertia)


def nearest(points: Points, centres: Points) -> Labels:
    """The nearest centre of each point: int64 (N,) for float64 (N, D) and (k, D)."""
    middle = centres.mean(axis=0)
    return np.argmin(_squared_distances(points - middle, centres - middle), axis=1)


def chain(centres: Points, start: int) -> list[int]:
    """Orders centres so that neighbours are similar: from ``start`` always to the nearest left.

    Args:
        centres: float64 (k, D).
        start: the first, 0 to k - 1.

    Returns:
        0 to k - 1, each once.
    """
    middle = centres.mean(axis=0)
    distances = _squared_distances(centres - middle, centres - middle)
    order = [start]
    while len(order) < len(centres):
        distances[:, order[-1]] = np.inf
        order.append(int(np.argmin(distances[order[-1]])))
    return order


def _squared_distances(points: Points, centres: Points) -> Points:
    squares = np.square(points).sum(axis=1)[:, None] + np.square(centres).sum(axis=1)
    return np.maximum(squares - 2.0 * (points @ centres.T), 0.0)


def _seeds(points: Points, k: int, rng: np.random.Generator) -> Points:
    candidates = 2 + int(math.log(k))
    chosen = [int(rng.random() * len(points))]
    closest = _squared_distances(points, points[chosen])  # (N, 1)
    while len(chosen) < k:
        cumulated = np.cumsum(closest)
        at = np.searchsorted(cumulated, rng.random(candidates) * cumulated[-1], side="right")
        at = np.minimum(at, len(points) - 1)
        improved = np.minimum(closest, _squared_distances(points, points[at]))  # (N, candidates)
        best = int(np.argmin(improved.sum(axis=0)))
        chosen.append(int(at[best]))
        closest = improved[:, best : best + 1]
    return points[chosen]


def _lloyd(points: Points, centres: Points) -> Clusters:
    k = len(centres)
    labels = _assigned(points, centres)
    for _ in range(ITERATIONS):
        before, labels = labels, _assigned(points, _means(points, labels, k))
        if np.array_equal(before, labels):
            break
    centres = _means(points, labels, k)
    return Clusters(labels, centres, float(np.square(points - centres[labels]).sum()))


def _means(points: Points, labels: Labels, k: int) -> Points:
    members = (labels[:, None] == np.arange(k)).astype(np.float64)  # (N, k)
    return (members.T @ points) / members.sum(axis=0)[:, None]


def _assigned(points: Points, centres: Points) -> Labels:
    """The nearest centre of each point, but for those that fill clusters that would be empty."""
    distances = _squared_distances(points, centres)
    labels = np.argmin(distances, axis=1)
    counts = np.bincount(labels, minlength=len(centres))
    for empty in np.flatnonzero(counts == 0):
        own = np.take_along_axis(distances, labels[:, None], axis=1)[:, 0]
        farthest = int(np.argmax(np.where(counts[labels] > 1, own, -1.0)))
        counts[labels[farthest]] -= 1
        counts[empty] = 1
        labels[farthest] = empty
    return labels

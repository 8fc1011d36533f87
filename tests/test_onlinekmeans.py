"""MacQueen's k-means beside a plain loop and scikit-learn."""

import numpy as np
import pytest
import torch
from atlasd.model.onlinekmeans import OnlineKMeans
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin


def macqueen(points, k):
    """By the definition: lists of members, and their means."""
    groups, labels = [], []
    for point in points:
        means = [np.mean(group, axis=0) for group in groups]
        away = [np.sqrt(np.sum((point - mean) ** 2)) for mean in means]
        if len(groups) < k and not any(distance < 1e-4 for distance in away):
            groups.append([point])
            labels.append(len(groups) - 1)
        else:
            labels.append(int(np.argmin(away)))
            groups[labels[-1]].append(point)
    return labels, groups


def unit(points):
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def followed(points, k):
    known = OnlineKMeans.empty(k, points.shape[1])
    return [known.observe(point) for point in torch.from_numpy(points)], known


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [2, 5, 23])
def test_a_stream_is_clustered_as_by_a_plain_loop(k, seed):
    points = unit(np.random.default_rng(seed).normal(size=(200, 6)))
    expected, groups = macqueen(points, k)
    labels, known = followed(points, k)
    assert labels == expected
    assert known.counts.tolist() == [len(group) for group in groups]
    np.testing.assert_allclose(known.means, [np.mean(g, axis=0) for g in groups], atol=1e-12)


def test_what_is_well_apart_is_clustered_as_scikit_learn_does_it():
    draw = np.random.default_rng(0)
    kinds = np.concatenate([[0, 1, 2, 3], draw.integers(4, size=300)])
    points = unit(np.eye(8)[kinds] + 0.05 * draw.normal(size=(304, 8)))
    labels, known = followed(points, 4)
    assert labels == kinds.tolist()
    assert labels == pairwise_distances_argmin(points, known.means.numpy()).tolist()
    lloyd = KMeans(4, init=known.means.numpy(), n_init=1).fit(points)
    assert labels == lloyd.labels_.tolist()
    np.testing.assert_allclose(known.means, lloyd.cluster_centers_, atol=1e-10)


def test_as_many_clusters_as_distinct_points_where_these_are_few():
    points = np.eye(4)[[2, 0, 2, 2, 0]]
    labels, known = followed(points, 10)
    assert labels == [0, 1, 0, 0, 1]
    assert known.counts.tolist() == [3, 2] + [0] * 8
    assert torch.equal(known.means[:2], torch.eye(4, dtype=torch.float64)[[2, 0]])


def test_one_sound_that_was_encoded_in_other_company_is_one():
    point = unit(np.ones((1, 16)))
    labels, _ = followed(np.concatenate([point, point + 1e-6]), 3)
    assert labels == [0, 0]

"""The linear probe of an audio encoder: its classifier, unseen recordings, leave-one-out."""

from __future__ import annotations

import numpy as np
import pytest
from atlasd.tools.probe import Heard, classifier, leave_one_out, unseen
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

CENTRE = 20


def recordings(per_category=4, spread=1.0, dim=5, split="train", seed=0):
    """Clouds about one centre a category, of different sizes."""
    rng = np.random.default_rng(seed)
    heard = []
    for at, category in enumerate(("bell", "drum", "horn")):
        for number in range(per_category):
            n = 3 + 2 * number + at
            features = rng.normal(0, spread, (n, dim)) + CENTRE * np.eye(dim)[at]
            name = f"{split} {category} {number}"
            heard.append(Heard(name, category, split, False, features.astype(np.float32)))
    return heard


def test_the_classifier_is_scikit_learns_logistic_regression():
    """Each recording weighs the same within its category, and each category the same."""
    learned = recordings(spread=12.0)[:-1]
    x = np.concatenate([h.features for h in learned]).astype(np.float64)
    y = np.concatenate([[h.category] * len(h.features) for h in learned])
    of_category = {name: sum(h.category == name for h in learned) for name in set(y)}
    each = [1 / len(h.features) / of_category[h.category] for h in learned]
    weight = np.repeat(each, [len(h.features) for h in learned])
    scaler = StandardScaler().fit(x)
    reference = LogisticRegression(C=1 / 10, max_iter=2000, tol=1e-8)
    reference.fit(scaler.transform(x), y, sample_weight=weight * len(x) / weight.sum())
    asked = np.random.default_rng(1).normal(4, 12, (300, 5)).astype(np.float32)
    told = classifier(learned, penalty=10.0)(asked)
    assert told == list(reference.predict(scaler.transform(asked)))
    elsewhere = classifier(recordings(spread=3.0, seed=9))
    assert classifier(learned, penalty=10.0, start=elsewhere)(asked) == told


def test_unseen_recordings_count_alike_within_their_category_and_categories_alike():
    learned = recordings()
    asked = recordings(per_category=1, split="val", seed=1)
    wrong = Heard("val bell x", "bell", "val", False, np.tile(CENTRE * np.eye(5)[2], (50, 1)))
    told = unseen(learned, [*asked, wrong])
    assert told.by_category == {"bell": 0.5, "drum": 1.0, "horn": 1.0}
    assert told.accuracy == pytest.approx(2.5 / 3)
    assert told.recordings == 4
    assert told.low <= told.accuracy <= told.high <= 1


def test_a_recording_left_out_teaches_nothing_about_itself():
    """One that lies among another category's is told wrong, though it was there to be learned."""
    heard = recordings(per_category=3)
    odd = Heard(
        "odd", "bell", "train", False, np.tile(CENTRE * np.eye(5)[1], (5, 1)).astype(np.float32)
    )
    alone = Heard("alone", "gong", "train", False, np.ones((4, 5), np.float32))
    tune = Heard("tune", "bell", "train", True, heard[0].features)
    told = leave_one_out([*heard, odd, alone, tune])
    assert told.recordings == 10
    assert told.by_category == {"bell": 0.75, "drum": 1.0, "horn": 1.0}


def test_nothing_to_learn_from_is_refused():
    with pytest.raises(ValueError, match="0 recordings to learn from"):
        unseen([], recordings())

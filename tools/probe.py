"""How well an audio encoder tells the categories apart: a linear classifier on its embeddings.

The classifier learns from recordings of one split and is asked about recordings of another, or
about each recording in turn by one that learned from all the others. The encoder stays as it is.
Recordings are the sample, not windows: each counts the same within its category, and each category
the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..model.network import Network
from ..streams import catalogue
from ..streams.packages import obtain
from ..streams.sounds import Sound, Take, read_sources
from .score import interval

PENALTY = 10.0
"""λ of λ/2·‖W‖² against the windows' summed cross-entropies; scikit-learn's 1 / C."""

_MELODIES, _MELODY_S = 4, 6.0
_MOST_WINDOWS = 20


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """The windows of one recording, encoded.

    Attributes:
        recording: its name; all melodies of one instrument have the same.
        category: what sounds.
        split: ``train``, ``val`` or ``test``.
        played: whether a SoundFont played it.
        features: float32 (n, D).
    """

    recording: str
    category: str
    split: str
    played: bool
    features: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Told:
    """How often recordings were told right.

    Attributes:
        accuracy: mean over the categories of the mean over their recordings.
        low: lower end of its 95 % interval, bootstrapped over recordings.
        high: upper end.
        recordings: how many were asked about.
        by_category: accuracy of each category.
    """

    accuracy: float
    low: float
    high: float
    recordings: int
    by_category: dict[str, float]


@torch.no_grad()
def hear(
    network: Network,
    packages: Path | None,
    splits: Sequence[str],
    progress: Callable[[], None] = lambda: None,
    *,
    items: Sequence[catalogue.Item] | None = None,
) -> list[Heard]:
    """Encode the recordings and instruments of Open-AVS's splits.

    Args:
        network: its log-mel and audio encoder are used.
        packages: folder with the Debian packages; None asks apt.
        splits: which.
        progress: told of each recording.
        items: the catalogue; None is what ships.

    Raises:
        PackageError: a package cannot be had.
    """
    rate_hz = network.preset.sample_rate_hz
    n = round(network.preset.window_s * rate_hz)
    items = catalogue.load() if items is None else items
    items = [item for item in items if item.kind in catalogue.SOUND_KINDS]
    found = obtain(catalogue.wanted(items), packages)
    heard: list[Heard] = []
    for split in splits:
        for source in read_sources(items, found, split, sample_rate_hz=rate_hz):
            played = not isinstance(source, Take)
            if isinstance(source, Take):
                sounds = [source.samples]
            else:
                seeds = [(7, count, *source.name.encode()) for count in range(_MELODIES)]
                sounds = [source.phrase(np.random.default_rng(s), _MELODY_S) for s in seeds]
            waves = torch.from_numpy(np.concatenate([_windows(sound, n) for sound in sounds]))
            features = network.encode_audio(network.log_mel(waves)).embedding.numpy()
            heard.append(Heard(source.name, source.category, split, played, features))
            progress()
    return heard


def _windows(sound: Sound, n: int) -> Sound:
    """Windows (k, n), each half a window after the one before, spread over long sounds."""
    if len(sound) < n:
        sound = np.tile(sound, n // max(1, len(sound)) + 1)
    starts = np.arange(0, len(sound) - n + 1, n // 2)
    if len(starts) > _MOST_WINDOWS:
        starts = starts[np.linspace(0, len(starts) - 1, _MOST_WINDOWS).astype(int)]
    return np.stack([sound[start : start + n] for start in starts]).astype(np.float32)


def unseen(learned: Sequence[Heard], asked: Sequence[Heard]) -> Told:
    """Learn from some recordings and be asked about others.

    Raises:
        ValueError: none are left to learn from or to ask about.
    """
    if not learned or not asked:
        raise ValueError(f"{len(learned)} recordings to learn from, {len(asked)} to be asked about")
    tell = classifier(learned)
    return _summary(asked, [_share(tell, heard) for heard in asked])


def leave_one_out(heard: Sequence[Heard], progress: Callable[[], None] = lambda: None) -> Told:
    """Ask about each recording (melodies excepted) what all the others teach.

    Recordings that are the only ones of their category are left out.
    """
    asked: list[Heard] = []
    shares: list[float] = []
    whole = classifier(heard)
    for one in heard:
        rest = [h for h in heard if h.recording != one.recording]
        if not one.played and any(h.category == one.category for h in rest):
            asked.append(one)
            shares.append(_share(classifier(rest, start=whole), one))
        progress()
    return _summary(asked, shares)


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """A linear one: the category whose score ``features @ weight + bias`` is highest.

    Attributes:
        names: C categories.
        weight: float64 (D, C).
        bias: float64 (C,).
    """

    names: tuple[str, ...]
    weight: Tensor
    bias: Tensor

    def __call__(self, features: NDArray[np.float32]) -> list[str]:
        """Tell the category of each of (n, D)."""
        scores = torch.from_numpy(features).double() @ self.weight + self.bias
        return [self.names[int(i)] for i in scores.argmax(dim=1)]


def classifier(
    learned: Sequence[Heard], penalty: float = PENALTY, *, start: Classifier | None = None
) -> Classifier:
    """Fit a multinomial logistic regression on standardised features.

    Args:
        learned: each recording weighs the same within its category, each category the same.
        penalty: λ of λ/2·‖W‖², against the weighted sum of the windows' cross-entropies.
        start: where to begin, for the same categories; the problem is convex, so that only the time
            depends on it.
    """
    names = tuple(sorted({h.category for h in learned}))
    x = torch.from_numpy(np.concatenate([h.features for h in learned])).double()
    mean, spread = x.mean(dim=0), x.std(dim=0, correction=0).clamp(min=1e-8)
    x = (x - mean) / spread
    counts = [len(h.features) for h in learned]
    y = torch.tensor([names.index(h.category) for h in learned]).repeat_interleave(
        torch.tensor(counts)
    )
    recordings = np.array([h.category for h in learned])
    share = [
        1 / (n * np.sum(recordings == h.category)) for h, n in zip(learned, counts, strict=True)
    ]
    weight = torch.tensor(share).repeat_interleave(torch.tensor(counts))
    weight = weight * len(x) / weight.sum()
    if start is not None and start.names == names:
        w, b = start.weight * spread[:, None], start.bias + mean @ start.weight
    else:
        w = torch.zeros(x.shape[1], len(names), dtype=torch.float64)
        b = torch.zeros(len(names), dtype=torch.float64)
    w.requires_grad_()
    b.requires_grad_()
    solver = torch.optim.LBFGS([w, b], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        entropy = F.cross_entropy(x @ w + b, y, reduction="none")
        total = (weight * entropy).sum() + 0.5 * penalty * w.square().sum()
        total = total / len(x)
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(loss)  # pyright: ignore[reportArgumentType]  torch's stub wants a float

    unscaled = w.detach() / spread[:, None]
    return Classifier(names, unscaled, b.detach() - mean @ unscaled)


def _share(tell: Classifier, heard: Heard) -> float:
    return float(np.mean([name == heard.category for name in tell(heard.features)]))


def _summary(asked: Sequence[Heard], shares: Sequence[float]) -> Told:
    by_category: dict[str, list[float]] = {}
    for heard, share in zip(asked, shares, strict=True):
        by_category.setdefault(heard.category, []).append(share)
    means = {name: float(np.mean(values)) for name, values in sorted(by_category.items())}
    weights = [1 / len(by_category[heard.category]) for heard in asked]
    low, high = interval(shares, [h.recording for h in asked], weights=weights)
    return Told(float(np.mean(list(means.values()))), low, high, len(asked), means)

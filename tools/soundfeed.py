"""What the audio encoder learns from: windows of training sounds, varied, mixed and spliced.

The encoder is trained to tell which categories sound in a window and which of them sound at its
end (see `TAIL_S`): a mask belongs to the moment where its window ends, and a window in which one
object falls silent and another begins must say so. A teacher, where one is given, adds its scores
of the same windows as soft targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..model.training import Batch, LossFunction, Outcome
from .augmentation import FLOOR_DB, mixed, spliced, varied_mel, varied_wave
from .tagger import Taught

TAIL_S = 0.5
"""What sounds within this time before the end of a window counts as sounding there."""

SHORTEST_S = 0.08
"""A sound that lasts less in a window is not asked for."""

HINT_WEIGHT = 20.0
"""Of the squared error of the teacher's features against the cross-entropies."""

_BLOCK = 64
"""Windows whose spectrograms are computed at once."""

_MIXED_SHARE = 0.25
"""Share of a pool's windows in which two recordings sound at once."""

Teacher = Callable[[NDArray[np.float32], int], Taught]
"""What it says of a window: float32 (n,) and its rate. It is called from several threads."""


class Recorded(Protocol):
    """A sound to cut windows from."""

    @property
    def samples(self) -> NDArray[np.float32]:
        """Float32 (n,) mono at the network's rate; it may be read from disk each time."""
        ...


class Recording(Recorded, Protocol):
    """A sound of which it is said what sounds in it."""

    @property
    def categories(self) -> tuple[str, ...]:
        """What sounds in it; empty where nobody knows."""
        ...


class Labeled(NamedTuple):
    """A sound in memory whose categories are known, or () where they are not."""

    samples: NDArray[np.float32]
    categories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SoundPool:
    """Windows as spectrograms, with what is known of them.

    Attributes:
        mel: float16 (N, T, M), decibels.
        tags: float32 (N, C), 1 where the category sounds.
        known: bool (N,), whether ``tags`` says anything.
        teacher: float16 (N, K), the teacher's scores; K is 0 without a teacher.
        hints: float16 (N, H), the teacher's features, each of mean 0 and variance 1 over the pool;
            H is 0 without a teacher.
    """

    mel: Tensor
    tags: Tensor
    known: Tensor
    teacher: Tensor
    hints: Tensor

    @property
    def n_tags(self) -> int:
        """Outputs that a tagger needs: each category anywhere, each at the end, the teacher's."""
        return 2 * self.tags.shape[1] + self.teacher.shape[1] + self.hints.shape[1]


class _Window(NamedTuple):
    """A window of sound: float32 (n,), the recordings in it, what the teacher says of it."""

    wave: NDArray[np.float32]
    heard: tuple[Recording, ...]
    taught: Taught | None


def make_pool(
    recordings: Sequence[Recording],
    categories: Sequence[str],
    log_mel: Callable[[Tensor], Tensor],
    *,
    windows: int,
    window_samples: int,
    sample_rate_hz: int,
    seed: int,
    unlabeled_share: float = 0.5,
    teacher: Teacher | None = None,
    progress: Callable[[], None] = lambda: None,
) -> SoundPool:
    """Cut and vary windows; a quarter of them hold two recordings at once.

    Of those with categories each category comes as often, and within it each recording; of those
    without, each recording. A window follows from the seed and its number alone.

    Args:
        recordings: training sounds, with categories or without.
        categories: names of the tags, in order.
        log_mel: (B, n) to decibels (B, 1, T, M).
        windows: how many.
        window_samples: n.
        sample_rate_hz: rate of the recordings.
        seed: of all randomness.
        unlabeled_share: share of the windows that are of recordings without categories, where there
            are recordings of both kinds.
        teacher: scores windows.
        progress: told of each window.

    Raises:
        ValueError: there is no recording, or one has an unknown category.
    """
    if not recordings:
        raise ValueError("no sound to learn from")
    index = {name: i for i, name in enumerate(categories)}
    unknown = {c for r in recordings for c in r.categories} - index.keys()
    if unknown:
        raise ValueError(f"categories {sorted(unknown)} are not among {list(categories)}")
    order = list(_order(recordings, windows, unlabeled_share))
    mels: list[Tensor] = []
    taught: list[Taught] = []
    tags = torch.zeros(windows, len(categories))
    known = torch.zeros(windows, dtype=torch.bool)

    def window(number: int) -> _Window:
        rng = np.random.default_rng((seed, number))
        heard = (order[number],)
        wave = _audible_window(heard[0].samples, rng, window_samples, sample_rate_hz)
        if rng.random() < _MIXED_SHARE:
            heard = (*heard, order[int(rng.integers(windows))])
            other = _audible_window(heard[1].samples, rng, window_samples, sample_rate_hz)
            wave = _added(wave, other, float(rng.uniform(-10, 10)))
        wave = wave / np.float32(max(1.0, float(np.abs(wave).max())))  # rooms and sums overshoot
        return _Window(wave, heard, teacher(wave, sample_rate_hz) if teacher else None)

    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as threads:
        for first in range(0, windows, _BLOCK):
            numbers = range(first, min(first + _BLOCK, windows))
            block = list(threads.map(window, numbers))
            waves = torch.from_numpy(np.stack([made.wave for made in block]))
            mels.append(log_mel(waves)[:, 0].half())
            for number, made in zip(numbers, block, strict=True):
                known[number] = all(recording.categories for recording in made.heard)
                for name in (c for recording in made.heard for c in recording.categories):
                    tags[number, index[name]] = 1
                if made.taught is not None:
                    taught.append(made.taught)
                progress()
    return SoundPool(torch.cat(mels), tags, known, *_lessons(taught, windows))


def _order(
    recordings: Sequence[Recording], windows: int, unlabeled_share: float
) -> Iterator[Recording]:
    """The first recording of each window."""
    groups: dict[tuple[str, ...], list[Recording]] = {}
    for recording in recordings:
        groups.setdefault(recording.categories, []).append(recording)
    unlabeled = groups.pop((), [])
    keys = sorted(groups)
    share = 0.0 if not unlabeled else 1.0 if not keys else unlabeled_share
    for i in range(windows):
        done = int(i * share)
        if int((i + 1) * share) > done:
            yield unlabeled[done % len(unlabeled)]
        else:
            turn, place = divmod(i - done, len(keys))
            group = groups[keys[place]]
            yield group[turn % len(group)]


def _added(
    wave: NDArray[np.float32], other: NDArray[np.float32], gain_db: float
) -> NDArray[np.float32]:
    """Add a sound at a level relative to the first one's."""
    one, two = (float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) for x in (wave, other))
    gain = one / max(two, 1e-6) * 10 ** (gain_db / 20)
    return (wave + gain * other).astype(np.float32)


def _lessons(taught: Sequence[Taught], windows: int) -> tuple[Tensor, Tensor]:
    """The teacher's scores (N, K), and its features (N, H) in units of their spread."""
    if not taught:
        return torch.zeros(windows, 0).half(), torch.zeros(windows, 0).half()
    hints = torch.from_numpy(np.stack([said.embedding for said in taught]))
    hints = (hints - hints.mean(dim=0)) / hints.std(dim=0, correction=0).clamp(min=1e-3)
    return torch.from_numpy(np.stack([said.scores for said in taught])).half(), hints.half()


def _audible_window(
    samples: NDArray[np.float32], rng: np.random.Generator, n: int, sample_rate_hz: int
) -> NDArray[np.float32]:
    """Draw again, a few times, where a window holds less than a tenth of the usual level."""
    usual = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if samples.size else 0.0
    for _ in range(4):
        window = varied_wave(samples, rng, n, sample_rate_hz)
        if float(np.sqrt(np.mean(np.square(window, dtype=np.float64)))) >= 0.1 * usual:
            return window
    return varied_wave(samples, rng, n, sample_rate_hz)


def cut_over(
    rng: np.random.Generator, count: int, window_s: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Draw when, in windows, one sound gives way to another.

    Nothing is asked about the doubtful moments in which the first sound leaves the tail.

    Args:
        rng: all randomness.
        count: windows.
        window_s: length of each, over `TAIL_S`.

    Returns:
        float64 (count,), how long the second sound has lasted at the end, in seconds, at least
        `SHORTEST_S`; and bool (count,), whether the first sound still counts there.
    """
    lasted_s = rng.uniform(SHORTEST_S, window_s - SHORTEST_S, count)
    side = np.where(lasted_s < TAIL_S, -SHORTEST_S, SHORTEST_S)
    doubtful = np.abs(lasted_s - TAIL_S) < SHORTEST_S
    lasted_s = np.where(doubtful, TAIL_S + side, lasted_s)
    return lasted_s, lasted_s < TAIL_S


class SoundFeed:
    """Batches of a pool; the same for the same seed, epoch and step.

    Of each batch a quarter are two windows at once, and in 35 % one gives way to another or to
    silence, or comes after silence.
    """

    def __init__(
        self, pool: SoundPool, batch_size: int, steps: int, seed: int, window_s: float = 1.0
    ) -> None:
        self.pool = pool
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.window_s = window_s

    def __call__(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """The epoch's batches from ``first_step`` on."""
        for step in range(first_step, self.steps):
            yield self._batch(np.random.default_rng((self.seed, epoch, step)))

    def _batch(self, rng: np.random.Generator) -> Batch:
        one, two = self._draw(rng), self._draw(rng)
        B, T, _ = one["mel"].shape
        kind = torch.from_numpy(rng.random(B))
        mix, splice = kind < 0.25, kind >= 0.65
        _silence(one, kind >= 0.95)
        _silence(two, (kind >= 0.85) & (kind < 0.95))
        gain = torch.from_numpy(rng.uniform(-8, 8, B).astype(np.float32))
        lasted_s, lasts = cut_over(rng, B, self.window_s)
        at = torch.from_numpy(np.round(T * (1 - lasted_s / self.window_s)))
        union = {k: torch.maximum(one[k], two[k]) for k in ("tags", "teacher")}
        mel = _where(mix, mixed(one["mel"], two["mel"], gain), one["mel"])
        mel = _where(splice, spliced(one["mel"], two["mel"], at), mel)
        anywhere = _where(mix | splice, union["tags"], one["tags"])
        taught = _where(mix | splice, union["teacher"], one["teacher"])
        return {
            "mel": varied_mel(mel, rng)[:, None],
            "anywhere": anywhere,
            "at_end": _where(splice & torch.from_numpy(~lasts), two["tags"], anywhere),
            "known": one["known"] & (two["known"] | ~(mix | splice)),
            "teacher": taught,
            "hints": one["hints"],
            "hinted": ~(mix | splice),
        }

    def _draw(self, rng: np.random.Generator) -> Batch:
        pool = self.pool
        index = torch.from_numpy(rng.integers(0, len(pool.mel), self.batch_size))
        return {
            "mel": pool.mel[index].float(),
            "tags": pool.tags[index],
            "known": pool.known[index],
            "teacher": pool.teacher[index].float(),
            "hints": pool.hints[index].float(),
        }


def _where(chosen: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`torch.where` for a bool (B,) against (B, ...)."""
    return torch.where(chosen.view(-1, *[1] * (no.ndim - 1)), yes, no)


def _silence(windows: Batch, chosen: Tensor) -> None:
    windows["mel"][chosen] = FLOOR_DB
    windows["tags"][chosen] = 0
    windows["known"][chosen] = True
    windows["teacher"][chosen] = 0


def tagging_loss(tagger: nn.Module, teacher_weight: float = 1.0) -> LossFunction:
    """The loss of a tagger on the batches of a `SoundFeed`.

    Binary cross-entropies, each summed over the outputs and averaged over the windows: categories
    anywhere, categories at the end, and the teacher's scores. Besides, on windows that were not
    mixed or cut since the teacher heard them, the mean squared error of its features.
    """

    def loss(batch: Batch) -> Outcome:
        logits = tagger(batch["mel"]).float()
        C = batch["anywhere"].shape[1]
        known = batch["known"].float()
        count = known.sum().clamp(min=1)
        own = torch.cat([batch["anywhere"], batch["at_end"]], dim=1)
        tags = F.binary_cross_entropy_with_logits(logits[:, : 2 * C], own, reduction="none")
        terms = {"tags": (tags.sum(dim=1) * known).sum() / count}
        terms["loss"] = terms["tags"]
        K = batch["teacher"].shape[1]
        if K:
            taught = F.binary_cross_entropy_with_logits(
                logits[:, 2 * C : 2 * C + K], batch["teacher"], reduction="none"
            )
            terms["teacher"] = taught.sum(dim=1).mean()
            hinted = batch["hinted"].float()
            error = (logits[:, 2 * C + K :] - batch["hints"]).square().mean(dim=1)
            terms["hints"] = (error * hinted).sum() / hinted.sum().clamp(min=1)
            lessons = terms["teacher"] + HINT_WEIGHT * terms["hints"]
            terms["loss"] = terms["loss"] + teacher_weight * lessons
        return Outcome(terms)

    return loss


def tagging_accuracy(
    tagger: nn.Module,
    recordings: Iterable[Recording],
    categories: Sequence[str],
    log_mel: Callable[[Tensor], Tensor],
    window_samples: int,
) -> float:
    """How often the loudest tag of a window is its recording's only category.

    Windows follow each other by half their length; each recording counts the same within its
    category and each category the same.
    """
    by_category: dict[str, list[float]] = {}
    device = next((p.device for p in tagger.parameters()), torch.device("cpu"))
    for recording in recordings:
        if len(recording.categories) != 1 or recording.samples.size == 0:
            continue
        samples = recording.samples
        if len(samples) < window_samples:
            samples = np.tile(samples, window_samples // len(samples) + 1)
        starts = range(0, len(samples) - window_samples + 1, window_samples // 2)
        waves = np.stack([samples[s : s + window_samples] for s in starts])
        with torch.no_grad():
            mel = log_mel(torch.from_numpy(waves)).to(device)
            logits = tagger(mel)[:, : len(categories)].cpu()
        right = logits.argmax(dim=1) == list(categories).index(recording.categories[0])
        by_category.setdefault(recording.categories[0], []).append(float(right.float().mean()))
    return float(np.mean([np.mean(scores) for scores in by_category.values()]))

"""Measure the ranking metrics against scikit-learn's, frame by frame, on the same predictions."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from ..daemon.cores import available_cores
from ..model.ranking import BETA_SQUARED, average_precision, ranking_scores
from .bareforward import BenchError

TOGETHER_BAR = 20.0
"""Least that scikit-learn's time may be of ours, for AP, AUPR and the best F together."""
AP_BAR = 8.0
"""The same for AP alone."""
DIFFERENCE_BAR = 1e-6
"""Most that any score of any frame may differ."""

FRAME_PX = 224
_FRAMES_A_ROUND = 50
_SATURATED = 16.0

Frames = tuple[NDArray[np.float32], NDArray[np.bool_]]
Rows = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Race:
    """One round of ours and scikit-learn's on the same frames, in milliseconds a frame."""

    ours_ms: float
    theirs_ms: float

    @property
    def ratio(self) -> float:
        """How many times as long scikit-learn took."""
        return self.theirs_ms / self.ours_ms


@dataclass(frozen=True, slots=True)
class MetricsReport:
    """What `bench_metrics` measured.

    Attributes:
        frames: how many, of 224 x 224.
        cores: that the process may use; both sides run on one thread.
        together: rounds of AP, AUPR and the best F.
        ap: rounds of AP alone.
        together_ratio: median of the rounds' ratios.
        ap_ratio: likewise.
        max_difference: over all scores of all frames.
        distinct: share of a frame's pixels with a score of their own, on average.
        saturated: share of pixels that score exactly the least or the most that there is.
        passed: whether both ratios and the difference keep to their bars.
    """

    frames: int
    cores: int
    together: tuple[Race, ...]
    ap: tuple[Race, ...]
    together_ratio: float
    ap_ratio: float
    max_difference: float
    distinct: float
    saturated: float
    passed: bool


def bench_metrics(
    frames: int = 1_000,
    *,
    json_path: Path | None = None,
    console: Console | None = None,
) -> MetricsReport:
    """Compare our AP, AUPR and best F with a loop over scikit-learn's.

    In rounds of 50 frames, ours and scikit-learn's in turn on the same predictions. Theirs is what
    one writes: `average_precision_score`, then `precision_recall_curve` for ``auc`` and for the
    best F; and `average_precision_score` alone.

    Args:
        frames: how many, at least 1; each costs scikit-learn about 20 ms.
        json_path: where to write the report, or None.
        console: where to print, or None for standard output.

    Raises:
        BenchError: scikit-learn is not there, or there are no frames.
    """
    if frames < 1:
        raise BenchError(f"{frames} frames; at least 1 is needed")
    theirs, their_ap = _reference()
    console = console or Console()
    warm = predictions(2, seed=1)
    for work in (_ours, theirs, _our_ap, their_ap):
        work(*warm)
    together: list[Race] = []
    alone: list[Race] = []
    differences: list[float] = []
    kinds: list[tuple[float, float]] = []
    starts = range(0, frames, _FRAMES_A_ROUND)
    for start in track(starts, "metrics: rounds", console=console, transient=True):
        batch = predictions(min(_FRAMES_A_ROUND, frames - start), seed=start)
        ours_first = (start // _FRAMES_A_ROUND) % 2 == 0
        for races, mine, other in ((together, _ours, theirs), (alone, _our_ap, their_ap)):
            race, difference = _race(mine, other, batch, ours_first=ours_first)
            races.append(race)
            differences.append(difference)
        kinds.append(_kind(batch[0]))
    distinct, saturated = (statistics.fmean(column) for column in zip(*kinds, strict=True))
    report = _report(frames, together, alone, float(np.max(differences)), distinct, saturated)
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(report), indent=2) + "\n")
    console.print(_table(report))
    return report


def _reference() -> tuple[Callable[..., Rows], Callable[..., Rows]]:
    """The loops over scikit-learn: AP, AUPR and best F, (N, 3), and AP alone, (N, 1)."""
    try:
        from sklearn.metrics import auc, average_precision_score, precision_recall_curve
    except ImportError as error:
        raise BenchError(
            "scikit-learn, which this measures against, is not installed: "
            "pip install 'scikit-learn>=1.4'"
        ) from error

    def best_f(precision: Rows, recall: Rows) -> float:
        divisor = BETA_SQUARED * precision + recall
        f = (1 + BETA_SQUARED) * precision * recall / np.where(divisor > 0, divisor, 1.0)
        return float(f.max())

    def together(probs: NDArray[np.float32], truth: NDArray[np.bool_]) -> Rows:
        rows: list[tuple[float, float, float]] = []
        for score, target in zip(_flat(probs), _flat(truth), strict=True):
            ap = float(average_precision_score(target, score))
            precision, recall, _ = precision_recall_curve(target, score)
            rows.append((ap, float(auc(recall, precision)), best_f(precision, recall)))
        return np.array(rows)

    def alone(probs: NDArray[np.float32], truth: NDArray[np.bool_]) -> Rows:
        pairs = zip(_flat(probs), _flat(truth), strict=True)
        return np.array([[average_precision_score(target, score)] for score, target in pairs])

    return together, alone


def _flat(frames: NDArray[np.generic]) -> NDArray[np.generic]:
    return frames.reshape(len(frames), -1)


def _ours(probs: NDArray[np.float32], truth: NDArray[np.bool_]) -> Rows:
    scores = ranking_scores(probs, truth)
    return np.stack((scores.ap, scores.aupr, scores.f_max), axis=1)


def _our_ap(probs: NDArray[np.float32], truth: NDArray[np.bool_]) -> Rows:
    return average_precision(probs, truth)[:, None]


def _race(
    ours: Callable[..., Rows], theirs: Callable[..., Rows], batch: Frames, *, ours_first: bool
) -> tuple[Race, float]:
    """Both on one batch, and the most by which their scores differ."""
    taken_ms: list[float] = []
    rows: list[Rows] = []
    for work in (ours, theirs) if ours_first else (theirs, ours):
        began = time.perf_counter()
        rows.append(work(*batch))
        taken_ms.append(1e3 * (time.perf_counter() - began) / len(batch[0]))
    race = Race(*taken_ms) if ours_first else Race(*reversed(taken_ms))
    return race, float(np.abs(rows[0] - rows[1]).max())


def _kind(probs: NDArray[np.float32]) -> tuple[float, float]:
    """What share of pixels have a score of their own, and what share is saturated."""
    flat = _flat(probs)
    distinct = [len(np.unique(frame)) / frame.size for frame in flat]
    ends = (probs == probs.min()) | (probs == probs.max())
    return statistics.fmean(distinct), float(ends.mean())


def predictions(frames: int, *, seed: int) -> Frames:
    """Draw what a trained network might predict, and the truth.

    The truth is a wobbly ellipse over 1 to 30 % of the frame. The logits fall off with the
    distance from it, at a slope of the frame's own, and err smoothly: coarse noise enlarged as by
    a decoder, an outline too wide or too narrow, in a third of the frames a second object that
    does not sound. They are clamped, so that pixels tie at either end.

    Args:
        frames: how many.
        seed: of everything random.

    Returns:
        Probabilities float32 and truth bool, both (N, 224, 224); each truth has an object.
    """
    source = torch.Generator().manual_seed(seed)
    drawn = torch.rand(frames, 7, generator=source)[..., None, None]
    x, y, wide, high, steep, faulty, second = drawn.unbind(dim=1)
    offset = 0.15 * torch.randn(frames, 1, 1, generator=source)
    wobble, error = (
        _enlarged(torch.randn(frames, 1, cells, cells, generator=source).clamp(-2, 2))
        for cells in (7, 28)
    )
    inside = 0.2 * wobble - _log_radius(0.25 + 0.5 * x, 0.25 + 0.5 * y, wide, high)
    silent = -0.5 - _log_radius(1 - x, y, high, wide)
    seen = torch.where(second < 1 / 3, torch.maximum(inside, silent), inside) + offset
    logits = (4 + 8 * steep) * (seen + (0.1 + 0.5 * faulty**2) * error)
    probs = torch.sigmoid(logits.clamp(-_SATURATED, _SATURATED))
    return probs.numpy(), (inside > 0).numpy()


def _enlarged(noise: Tensor) -> Tensor:
    """Noise (N, 1, h, w) at the frames' size, (N, 224, 224), without steps."""
    return F.interpolate(noise, size=(FRAME_PX, FRAME_PX), mode="bicubic")[:, 0]


def _log_radius(x: Tensor, y: Tensor, wide: Tensor, high: Tensor) -> Tensor:
    """Log of the distance (N, 224, 224) from centres (N, 1, 1), in units of an ellipse's radii."""
    at = torch.linspace(0, 1, FRAME_PX)
    across, down = (at - x) / (0.08 + 0.22 * wide), (at[:, None] - y) / (0.08 + 0.22 * high)
    return torch.hypot(across, down).clamp(min=1e-3).log()


def _report(
    frames: int,
    together: list[Race],
    alone: list[Race],
    difference: float,
    distinct: float,
    saturated: float,
) -> MetricsReport:
    together_ratio = statistics.median(race.ratio for race in together)
    ap_ratio = statistics.median(race.ratio for race in alone)
    return MetricsReport(
        frames=frames,
        cores=available_cores(),
        together=tuple(together),
        ap=tuple(alone),
        together_ratio=together_ratio,
        ap_ratio=ap_ratio,
        max_difference=difference,
        distinct=distinct,
        saturated=saturated,
        passed=(
            together_ratio >= TOGETHER_BAR and ap_ratio >= AP_BAR and difference <= DIFFERENCE_BAR
        ),
    )


def _table(report: MetricsReport) -> Table:
    table = Table(
        title=f"{report.frames} frames of {FRAME_PX} x {FRAME_PX},"
        f" {100 * report.distinct:.0f} % of the scores distinct, {100 * report.saturated:.0f} %"
        f" saturated; {report.cores} cores, one thread\n"
        "together: AP, AUPR and the best F of each frame"
    )
    for name in ("", "median", "first quartile", "third quartile", "least", "most"):
        table.add_column(name, justify="right" if name else "left")
    for name, races in (("together", report.together), ("AP", report.ap)):
        for what, values in (
            ("ours, ms a frame", [race.ours_ms for race in races]),
            ("scikit-learn, ms", [race.theirs_ms for race in races]),
            ("scikit-learn ÷ ours", [race.ratio for race in races]),
        ):
            spread = np.percentile(values, (50, 25, 75, 0, 100))
            table.add_row(f"{name}: {what}", *(f"{value:.2f}" for value in spread))
    verdict = "[green]passed[/]" if report.passed else "[red]failed[/]"
    table.caption = (
        f"together {report.together_ratio:.1f} (bar {TOGETHER_BAR:.0f}), AP alone"
        f" {report.ap_ratio:.1f} (bar {AP_BAR:.0f}), largest difference"
        f" {report.max_difference:.1e} (bar {DIFFERENCE_BAR:.0e}): {verdict}"
    )
    return table

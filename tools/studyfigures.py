"""The stream experiment's figures: scores over the stream, and how long masks took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .reportdrawing import STYLE, Style, styles
from .studyrun import PHASES, SystemResult

_GRID = 40
_DASHES = ("-", "-", "--", "-.")
"""Two systems may give the same weights, and their lines then lie on each other."""


def draw_scores(results: Sequence[SystemResult], titles: Mapping[str, str]) -> Figure:
    """Mean J on old and on new classes, and of clips before they were learned, over the stream.

    Lines are means over seeds, bands reach from the lowest seed to the highest.
    """
    names = list(dict.fromkeys(result.system for result in results))
    look = {
        name: style._replace(dashes=_DASHES[place % len(_DASHES)])
        for place, (name, style) in enumerate(styles(names).items())
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        axes = figure.subplots(1, 3)
        heads = ("classes of the base", "classes of the stream", "clips before they are learned")
        for place, (ax, head) in enumerate(zip(axes, heads, strict=True)):
            for name in names:
                mine = [result for result in results if result.system == name]
                _draw_band(ax, [_curve(r, place) for r in mine], look[name], titles[name])
            ax.set_title(head)
            ax.set_xlabel("clips learned")
        axes[0].set_ylabel("mean J, points")
        axes[0].legend(frameon=False, fontsize=8)
        return figure


def draw_latencies(results: Sequence[SystemResult], titles: Mapping[str, str]) -> Figure:
    """How long masks took from capture to publication, and how long swaps held them up."""
    names = list(dict.fromkeys(result.system for result in results))
    look = styles(names)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for place, name in enumerate(names):
            mine = [result for result in results if result.system == name]
            for k, phase in enumerate(PHASES):
                pooled = np.concatenate([np.asarray(r.latency_ms[phase]) for r in mine])
                p50, p95, p99 = np.percentile(pooled, (50, 95, 99))
                x = k + 0.15 * (place - (len(names) - 1) / 2)
                left.plot([x, x], [p50, p99], color=look[name].color, linewidth=1.5)
                left.plot(x, p50, look[name].marker, color=look[name].color, markersize=5)
                left.plot(x, p95, "_", color=look[name].color, markersize=8)
            stalls = np.sort(np.concatenate([np.asarray(r.stalls_ms) for r in mine]))
            share = np.arange(1, len(stalls) + 1) / max(1, len(stalls))
            right.step(stalls, share, where="post", color=look[name].color, label=titles[name])
        left.set_xticks(range(len(PHASES)), ["before learning", "while learning", "after"])
        left.set_ylabel("mask latency, ms")
        left.set_title("p50 (mark), p95 (dash), p99 (end of the line)")
        left.set_ylim(bottom=0)
        right.set_xlabel("stall at a swap, ms")
        right.set_ylabel("share of swaps")
        right.set_xlim(left=0)
        right.legend(frameon=False, fontsize=8)
        return figure


def _curve(result: SystemResult, place: int) -> tuple[list[float], list[float]]:
    """(clips, points of J) of one panel."""
    if place == 2:
        return (
            [float(clips) for clips, _, _ in result.prequential],
            [100 * score for _, score, _ in result.prequential],
        )
    scores = [point.old if place == 0 else point.new for point in result.points]
    return [float(point.clips) for point in result.points], [100 * score for score in scores]


def _draw_band(
    ax: Axes, curves: Sequence[tuple[list[float], list[float]]], style: Style, title: str
) -> None:
    drawn = [curve for curve in curves if curve[0]]
    if not drawn:
        return
    first = max(x[0] for x, _ in drawn)
    last = min(x[-1] for x, _ in drawn)
    at = np.linspace(first, max(first, last), _GRID)
    values = np.stack([np.interp(at, x, y) for x, y in drawn])
    ax.plot(at, values.mean(axis=0), style.dashes, color=style.color, label=title)
    if len(drawn) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        ax.fill_between(at, low, high, color=style.color, alpha=0.15, linewidth=0)

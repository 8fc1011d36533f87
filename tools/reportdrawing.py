"""Draws a report's figures with matplotlib, on its Agg canvas alone."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.projections.polar import PolarAxes

from .reportfigures import AXES, AnytimeCurve, HeatMap, Radar, Transfer
from .reportstudy import Setting

COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#666666",
)  # fmt: skip
"""Okabe and Ito's, which people with any colour vision tell apart, its yellow and black replaced
by wine and grey to show on white as on the page's dark."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", ":")
_INK, _FAINT = "#222222", "#cccccc"
_COLUMNS = 4
_DPI = 200

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "atlasd report",
    "svg.fonttype": "path",
}


class Style(NamedTuple):
    """How a system is drawn, in all figures alike."""

    color: str
    marker: str
    dashes: str


def styles(systems: Sequence[str]) -> dict[str, Style]:
    """A style for each system; colours come again after eight, with other marks and dashes."""
    return {
        name: Style(
            COLORS[place % len(COLORS)],
            _MARKERS[place % len(_MARKERS)],
            _DASHES[place // len(COLORS) % len(_DASHES)],
        )
        for place, name in enumerate(systems)
    }


def png(figure: Figure) -> bytes:
    """The figure as PNG at twice the size of a page's pixels, the same bytes each time."""
    return _saved(figure, "png", {"Software": None})


def svg(figure: Figure) -> bytes:
    """A figure that was drawn before, as `png` does, as SVG; the same bytes each time."""
    figure.set_layout_engine("none")  # it is laid out; again would take as long
    return _saved(figure, "svg", {"Date": None, "Creator": None})


def _saved(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    data = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(data, format=kind, dpi=_DPI, metadata=metadata, facecolor="white")
    return data.getvalue()


def draw_heat_maps(maps: Sequence[HeatMap], measure: str) -> Figure:
    """One map a system over one scale of colours; what was not scored stays blank."""
    T = max(len(one.matrix) for one in maps)
    top = 100 * max(float(np.nanmax(one.matrix)) for one in maps) or 1.0
    with mpl.rc_context(STYLE):
        figure, axes = _fixed(len(maps), (2.7, 2.9), _Box(0.5, 0.5, 2.1, 2.1), right=0.8)
        image = None
        for place, (one, ax) in enumerate(zip(maps, axes, strict=True)):
            percent = 100 * one.matrix
            image = ax.imshow(percent, cmap="cividis", vmin=0, vmax=top, interpolation="none")
            ax.set_title(_short(one.system))
            ax.spines[:].set_visible(False)
            _task_ticks(ax, one.matrix.shape)
            if T <= 8:
                _write_cells(ax, percent, top)
            if place % _COLUMNS == 0:
                ax.set_ylabel("after task")
            if place >= len(maps) - _COLUMNS:
                ax.set_xlabel("test task")
        assert image is not None  # noqa: S101  there is a map
        across, up = figure.get_size_inches()
        place = ((across - 0.75) / across, (up - 2.4) / up, 0.13 / across, 2.1 / up)
        bar = figure.colorbar(image, cax=figure.add_axes(place))
        bar.set_label(f"{measure}, %")
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure


def _task_ticks(ax: Axes, shape: tuple[int, ...]) -> None:
    """Tasks from 1, at most eight of them named."""
    rows, columns = shape
    for axis, count in ((ax.xaxis, columns), (ax.yaxis, rows)):
        places = list(range(0, count, max(1, -(-count // 8))))
        axis.set_ticks(places, [str(place + 1) for place in places])
        axis.set_tick_params(length=0)


def _write_cells(ax: Axes, matrix: np.ndarray[Any, Any], top: float) -> None:
    size = min(7.5, 44 / len(matrix))
    for (row, column), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            ink = "white" if value < 0.55 * top else "black"
            ax.text(column, row, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=size)


def draw_transfers(points: Sequence[Transfer], look: Mapping[str, Style], measure: str) -> Figure:
    """One panel a setting: FWT upwards, forgetting to the right, bars of one sd."""
    settings = _settings(point.setting for point in points)
    with mpl.rc_context(STYLE):
        figure, axes = _panels(len(settings))
        for setting, ax in zip(settings, axes, strict=True):
            for point in (p for p in points if p.setting == setting):
                color, marker, _ = look[point.system]
                x, y = 100 * point.forgetting.mean, 100 * point.forward.mean
                bars = [100 * spread.sd for spread in (point.forgetting, point.forward)]
                x_bar, y_bar = (None if math.isnan(bar) else bar for bar in bars)
                ax.errorbar(x, y, y_bar, x_bar, color=color, elinewidth=1, alpha=0.55)
                ax.plot(x, y, marker=marker, color=color, markersize=8, mec="white", mew=0.8)
            ax.set_title(setting.title)
            ax.set_ylim(bottom=max(0.0, ax.get_ylim()[0]))
            ax.set_xlim(left=max(-0.05 * ax.get_xlim()[1], ax.get_xlim()[0]))
            ax.set_xlabel(f"forgetting F of {measure}, points (left is better)")
            ax.set_ylabel(f"FWT of {measure}, % (up is better)")
            ax.grid(color="#eeeeee")
            ax.set_axisbelow(True)
        names = [name for name in look if any(p.system == name for p in points)]
        _legend(figure, names, look, lines=False)
    return figure


def draw_anytime(curves: Sequence[AnytimeCurve], look: Mapping[str, Style], measure: str) -> Figure:
    """One panel a setting: the score along the stream, with a band of one sd."""
    settings = _settings(curve.setting for curve in curves)
    with mpl.rc_context(STYLE):
        figure, axes = _panels(len(settings))
        for setting, ax in zip(settings, axes, strict=True):
            own = [curve for curve in curves if curve.setting == setting]
            for curve in own:
                _draw_curve(ax, curve, look[curve.system], band=len(own) <= 8)
            ax.set_title(setting.title)
            ax.set_ylim(bottom=max(0.0, ax.get_ylim()[0]))
            ax.set_xlabel("clips learned")
            ax.set_ylabel(f"{measure}, %")
            ax.grid(color="#eeeeee")
            ax.set_axisbelow(True)
        _legend(figure, [name for name in look if any(c.system == name for c in curves)], look)
    return figure


def _draw_curve(ax: Axes, curve: AnytimeCurve, style: Style, *, band: bool) -> None:
    x, mean, sd = curve.clips, 100 * curve.mean, 100 * curve.sd
    every = max(1, len(x) // 8)
    ax.plot(
        x, mean, style.dashes, color=style.color, marker=style.marker, markevery=every,
        markersize=5, mec="white", mew=0.5, lw=1.6,
    )  # fmt: skip
    if band and not np.isnan(sd).all():
        ax.fill_between(x, mean - sd, mean + sd, color=style.color, alpha=0.13, lw=0)


def draw_radars(radars: Sequence[Radar], look: Mapping[str, Style], measure: str) -> Figure:
    """One radar a system, the others faint behind it, its raw values below."""
    angles = np.linspace(0, 2 * np.pi, len(AXES) + 1)
    outlines = [[max(0.0, one.axes[axis]) for axis in (*AXES, AXES[0])] for one in radars]
    with mpl.rc_context(STYLE):
        figure, axes = _fixed(len(radars), (2.9, 3.35), _Box(0.6, 0.85, 1.7, 1.7), polar=True)
        for one, outline, ax in zip(radars, outlines, axes, strict=True):
            for other in outlines:
                ax.plot(angles, other, color=_FAINT, lw=0.6)
            color = look[one.system].color
            ax.plot(angles, outline, color=color, lw=1.8)
            ax.fill(angles, outline, color=color, alpha=0.2, lw=0)
            _dress_radar(ax)
            ax.set_title(_short(one.system), color=color, fontweight="bold", pad=12)
            ax.text(
                0.5, -0.22, _raw(one, measure), transform=ax.transAxes, ha="center", va="top",
                fontsize=7, linespacing=1.4,
            )  # fmt: skip
    return figure


def _dress_radar(ax: PolarAxes) -> None:
    ax.set_theta_offset(np.pi / 2)
    ax.set_theta_direction(-1)
    ax.set_ylim(0, 1)
    ax.set_yticks([0.25, 0.5, 0.75, 1], ["", ".5", "", "1"], fontsize=6, color="#888888")
    ax.set_xticks(np.linspace(0, 2 * np.pi, len(AXES), endpoint=False), AXES, fontsize=7)
    ax.tick_params(axis="x", pad=4)
    ax.grid(color="#dddddd", lw=0.6)
    ax.spines["polar"].set_color("#bbbbbb")


def _raw(one: Radar, measure: str) -> str:
    raw = one.raw
    memory, seconds = raw["peak_memory_mb"], raw["train_s"]
    return (
        f"{measure} AA {100 * raw['AA']:.1f}, LA {100 * raw['LA']:.1f}, F {100 * raw['F']:.1f},\n"
        f"BWT {100 * raw['BWT']:+.1f}, {seconds:,.{0 if seconds >= 100 else 1}f} s, "
        + (f"{memory / 1024:.1f} GB" if memory >= 1024 else f"{memory:.0f} MB")
    )


class _Box(NamedTuple):
    """Where axes lie in their cell of a grid; inches from its lower left corner."""

    left: float
    bottom: float
    width: float
    height: float


def _fixed(
    count: int, cell: tuple[float, float], box: _Box, *, right: float = 0.0, polar: bool = False
) -> tuple[Figure, list[Any]]:
    """A figure with so many axes of one size, four in a row.

    matplotlib's own layout takes a quarter of a minute for 14 radars.

    Args:
        count: of the axes.
        cell: width and height of each's place in inches.
        box: of the axes in it.
        right: inches left free at the right.
        polar: whether the axes are round.
    """
    columns, (width, height) = min(_COLUMNS, count), cell
    rows = -(-count // columns)
    across, up = columns * width + right, rows * height
    figure = Figure((across, up))
    axes: list[Any] = []
    for place in range(count):
        row, column = divmod(place, columns)
        x, y = column * width + box.left, (rows - 1 - row) * height + box.bottom
        rectangle = (x / across, y / up, box.width / across, box.height / up)
        axes.append(figure.add_axes(rectangle, projection="polar" if polar else None))
    return figure, axes


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, two in a row, laid out by matplotlib around a legend."""
    columns = min(2, count)
    rows = -(-count // columns)
    figure = Figure((columns * 4.6 + 0.6, rows * 3.4 + 0.6), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(count)]


def _legend(
    figure: Figure, systems: Sequence[str], look: Mapping[str, Style], *, lines: bool = True
) -> None:
    """All systems below the panels, in as many columns as their names leave room for."""
    handles = [
        Line2D(
            [],
            [],
            color=s.color,
            marker=s.marker,
            ls=s.dashes if lines else "",
            mec="white",
            mew=0.5,
        )
        for s in (look[name] for name in systems)
    ]
    names = [_short(name, 40) for name in systems]
    longest = max(len(name) for name in names)
    fit = int(figure.get_figwidth() / (0.55 + 0.075 * longest))
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=max(1, min(fit, len(names))),
        frameon=False,
    )


def _settings(found: Iterable[Setting]) -> list[Setting]:
    return list(dict.fromkeys(found))


def _short(name: str, most: int = 26) -> str:
    """A name that fits, and that matplotlib doesn't read as mathematics."""
    if len(name) > most:
        half = (most - 1) // 2
        name = f"{name[:half]}…{name[-half:]}"
    return name.replace("$", r"\$")

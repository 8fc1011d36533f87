"""Drawing: what `reportfigures` and `reportstrips` found, as figures, PNG and SVG.

Nothing here depends on pyplot's state, on a user's matplotlibrc or on the clock, so that the same
values give the same bytes.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.projections.polar import PolarAxes
from numpy.typing import NDArray

from .reportcells import MISSING, cell_text, shown
from .reportfigures import AXES, RAW, Anytime, Headline, HeatMap, Radar, Transfer
from .reportgroups import TITLES, Values
from .reportpalette import Look
from .reportstrips import Strip

Looks = Mapping[str, Look]

_INK, _FAINT = "#222222", "#8a8a8a"
_NUMBERED = 8
"""Up to so many tasks a heat map's cells carry their numbers."""

_TILE_PX = 160
"""Pictures of a strip are thinned to about this."""

_STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "text.parse_math": False,
    "svg.hashsalt": "atlasd report",
    "svg.fonttype": "path",
    "savefig.dpi": 160,
    "figure.dpi": 100,
}


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures, whatever the user's settings; figures are made and saved in it."""
    with warnings.catch_warnings(), mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        # A name in a script that the font lacks is drawn as boxes; tables show it as it is.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from", category=UserWarning)
        yield


def saved(figure: Figure) -> tuple[bytes, bytes]:
    """A figure as PNG and SVG, without dates or the names of programs."""
    png, svg = io.BytesIO(), io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(png, format="png", metadata={"Software": None})
    FigureCanvasSVG(figure)
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return png.getvalue(), svg.getvalue()


def short(label: str, most: int = 22) -> str:
    """A name that fits beside a figure."""
    return label if len(label) <= most else f"{label[: most - 1]}…"


def draw_headline(data: Headline, looks: Looks) -> Figure:
    """A panel a protocol: mAP with its interval, the best system on top."""
    names, n = data.labels, len(data.labels)
    wide = len(data.protocols)
    figure = Figure(figsize=(2.0 + 2.2 * wide, 1.1 + 0.3 * n), layout="constrained")
    panels = figure.subplots(1, wide, sharey=True, squeeze=False)[0]
    for axes, protocol in zip(panels, data.protocols, strict=True):
        _headline_panel(axes, data, protocol, looks)
    panels[0].set_yticks(range(n), [short(name) for name in names])
    for tick, name in zip(panels[0].get_yticklabels(), names, strict=True):
        tick.set_color(looks[name].colour)
        tick.set_fontweight("bold")
    panels[0].set_ylim(n - 0.4, -0.6)
    figure.supxlabel("mAP after the last task, %, with 95 % intervals over seeds", fontsize=9)
    return figure


def _headline_panel(axes: Axes, data: Headline, protocol: str, looks: Looks) -> None:
    axes.set_title(TITLES.get(protocol, protocol))
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.22)
    means = {
        label: spread.mean
        for label in data.labels
        if (value := data.scores.get((label, protocol))) and (spread := value.spread)
    }
    for place, label in enumerate(data.labels):
        look, value = looks[label], data.scores.get((label, protocol))
        if label not in means or value is None:
            axes.text(0.02, place, MISSING, transform=axes.get_yaxis_transform(), va="center")
            continue
        mean, half = 100 * means[label], 100 * _half(value)
        if half > 0:
            axes.plot([mean - half, mean + half], [place] * 2, color=look.colour, alpha=0.45, lw=3)
        axes.plot(mean, place, look.marker, color=look.colour, markersize=7, mec="white", mew=0.8)
        weight = "bold" if means[label] == max(means.values()) else "normal"
        axes.annotate(
            f"{mean:.1f}", (mean, place), (0, 6), textcoords="offset points", ha="center",
            fontsize=7, fontweight=weight,
        )  # fmt: skip


def _half(value: Values) -> float:
    """Half the width of an interval, 0 where there is none."""
    spread = value.spread
    return 0.0 if spread is None or math.isnan(spread.half_width) else spread.half_width


def draw_heat_maps(maps: Sequence[HeatMap], title: str, looks: Looks) -> Figure:
    """A panel a system: rows after a task, columns test tasks; grey was not scored."""
    across = min(5, len(maps))
    down = -(-len(maps) // across)
    size = 2.4
    figure = Figure(figsize=(size * across + 1.0, (size + 0.35) * down + 0.7), layout="constrained")
    low = min((float(np.nanmin(m.cells)) for m in maps if not np.isnan(m.cells).all()), default=0)
    high = max((float(np.nanmax(m.cells)) for m in maps if not np.isnan(m.cells).all()), default=1)
    norm = Normalize(100 * low, 100 * max(high, low + 0.01))
    panels = figure.subplots(down, across, squeeze=False)
    for place, axes in enumerate(panels.flat):
        if place < len(maps):
            _heat_panel(axes, maps[place], norm, looks)
            axes.set_ylabel("after task" if place % across == 0 else "")
            axes.set_xlabel("test task" if place + across >= len(maps) else "")
        else:
            axes.set_axis_off()
    name = {"F": "Max-F, pooled over a task's frames", "F_max": "Max-F, mean of frames"}
    bar = figure.colorbar(
        ScalarMappable(norm, "cividis"), ax=panels, fraction=0.03, aspect=30, shrink=0.9
    )
    bar.set_label(f"{name[maps[0].measure]}, %")
    figure.suptitle(title, fontsize=11, fontweight="bold")
    return figure


def _heat_panel(axes: Axes, one: HeatMap, norm: Normalize, looks: Looks) -> None:
    rows, columns = one.cells.shape
    axes.set_facecolor("#ebebeb")
    axes.imshow(np.ma.masked_invalid(100 * one.cells), cmap="cividis", norm=norm, aspect="auto")
    axes.set_title(short(one.label), color=looks[one.label].colour, fontweight="bold")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xticks(_ticks(columns), [str(k + 1) for k in _ticks(columns)])
    axes.set_yticks(_ticks(rows), [str(k + 1) for k in _ticks(rows)])
    axes.tick_params(length=0, labelsize=7)
    if max(rows, columns) > _NUMBERED:
        return
    for (row, column), value in np.ndenumerate(one.cells):
        if not np.isnan(value):
            ink = "white" if norm(100 * value) < 0.55 else "black"
            text = f"{100 * value:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=6.5)


def _ticks(count: int) -> list[int]:
    """Places to label: all up to 10, else five or six."""
    step = 1 if count <= 10 else -(-count // 5)
    return list(range(0, count, step))


def draw_transfers(points: Sequence[Transfer], title: str, looks: Looks) -> Figure:
    """FWT against forgetting with their intervals; upper left is best."""
    figure = Figure(figsize=(7.2, max(4.4, 0.27 * len(points) + 1.2)), layout="constrained")
    axes = figure.subplots()
    axes.grid(color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    spots: list[tuple[float, float]] = []
    for point in points:
        look, x, y = looks[point.label], point.forgetting.spread, point.transfer.spread
        if x is None or y is None:
            continue
        spots.append((100 * x.mean, 100 * y.mean))
        axes.errorbar(
            *spots[-1], xerr=100 * _half(point.forgetting), yerr=100 * _half(point.transfer),
            fmt="none", ecolor=look.colour, alpha=0.35, elinewidth=1.2,
        )  # fmt: skip
        axes.plot(
            *spots[-1], look.marker, color=look.colour, markersize=8, mec="white", mew=0.8, zorder=3
        )
    axes.set_xlabel("forgetting of AP, % (left is better)")
    axes.set_ylabel("forward transfer of AP, % (up is better)")
    axes.set_title(title, fontweight="bold")
    axes.annotate(
        "better", (0.012, 0.985), (0.085, 0.90), "axes fraction", "axes fraction", color=_FAINT,
        arrowprops={"arrowstyle": "->", "color": _FAINT},
    )  # fmt: skip
    handles = [
        Line2D([], [], ls="", marker=look.marker, color=look.colour, markersize=7, mec="white")
        for look in (looks[point.label] for point in points)
    ]
    _legend(figure, handles, [short(point.label) for point in points])
    return figure


def _legend(figure: Figure, handles: Sequence[Line2D], names: Sequence[str]) -> None:
    figure.legend(handles, names, loc="outside right upper", frameon=False, handlelength=2.6)


def draw_anytime(curves: Sequence[Anytime], title: str, looks: Looks) -> Figure:
    """AP along the stream with the interval as a band; the legend by A_AUC, the best first."""

    def area(curve: Anytime) -> float:
        return -curve.auc.spread.mean if curve.auc.spread else math.inf

    figure = Figure(figsize=(8.2, max(4.4, 0.27 * len(curves) + 1.2)), layout="constrained")
    axes = figure.subplots()
    axes.grid(color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    handles: list[Line2D] = []
    few = max(len(curve.mean) for curve in curves) <= 15
    for curve in curves:
        look = looks[curve.label]
        mean, half = 100 * np.array(curve.mean), 100 * np.array(curve.half_width)
        at = np.arange(1, len(mean) + 1)
        axes.fill_between(at, mean - half, mean + half, color=look.colour, alpha=0.10, lw=0)
    for curve in sorted(curves, key=area):
        look = looks[curve.label]
        mean = 100 * np.array(curve.mean)
        at = np.arange(1, len(mean) + 1)
        told: dict[str, object] = {"color": look.colour, "ls": look.line, "lw": 1.7}
        if few:
            told |= {"marker": look.marker, "markersize": 5, "mec": "white", "mew": 0.6}
        axes.plot(at, mean, **told)  # pyright: ignore[reportArgumentType]  keywords by name
        handles.append(Line2D([], [], **told))  # pyright: ignore[reportArgumentType]  likewise
    axes.set_xlabel("tasks learned")
    axes.set_ylabel("AP, %")
    axes.set_xticks([k + 1 for k in _ticks(max(len(curve.mean) for curve in curves))])
    axes.set_title(title, fontweight="bold")
    names = [
        f"{short(curve.label)}  {cell_text(curve.auc, 'percent')}"
        for curve in sorted(curves, key=area)
    ]
    _legend(figure, handles, names)
    figure.legends[0].set_title("A_AUC, %")
    return figure


def draw_radars(radars: Sequence[Radar], title: str, looks: Looks) -> Figure:
    """A small radar a system over the outline of the best of all; raw values and formulae below."""
    across = min(5, len(radars))
    down = -(-len(radars) // across)
    heights = (2.15 * down, 0.26 * (len(radars) + 1) + 0.3, 0.2 * len(AXES) + 0.1)
    width = max(2.2 * across, 8.4)
    figure = Figure(figsize=(width, sum(heights) + 0.5), layout="constrained")
    upper, middle, lower = figure.subfigures(3, 1, height_ratios=heights)
    best = [max((_mean(one.axes[name]) for one in radars), default=0.0) for name in AXES]
    panels = upper.subplots(down, across, squeeze=False, subplot_kw={"projection": "polar"})
    for place, axes in enumerate(panels.flat):
        if place < len(radars):
            _radar_panel(axes, radars[place], best, looks[radars[place].label])
        else:
            axes.set_axis_off()
    figure.suptitle(title, fontsize=11, fontweight="bold")
    _raw_values(middle.subplots(), radars, looks)
    axes = lower.subplots()
    axes.set_axis_off()
    formulae = "\n".join(f"{name} = {formula}" for name, formula in AXES.items())
    axes.text(0, 1, formulae, va="top", fontsize=7.5, transform=axes.transAxes)
    return figure


def _mean(value: Values) -> float:
    """For drawing: an axis runs from 0 to 1, and what is not known is drawn at 0."""
    return min(max(value.spread.mean, 0.0), 1.0) if value.spread else 0.0


def _radar_panel(axes: PolarAxes, radar: Radar, best: Sequence[float], look: Look) -> None:
    angles = np.linspace(0, 2 * np.pi, len(AXES), endpoint=False)
    closed = np.append(angles, angles[0])
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    axes.set_ylim(0, 1)
    axes.set_yticks([0.25, 0.5, 0.75, 1], [""] * 4)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines["polar"].set_color("#dddddd")
    marks = [name if radar.axes[name] else f"{name} –" for name in AXES]
    axes.set_xticks(angles, marks, fontsize=6.5)
    axes.tick_params(pad=-1)
    for tick, angle in zip(axes.get_xticklabels(), angles, strict=True):
        side = np.sin(angle)
        tick.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    axes.plot(closed, [*best, best[0]], color=_FAINT, lw=0.8, ls=":")
    values = [_mean(radar.axes[name]) for name in AXES]
    axes.fill(closed, [*values, values[0]], color=look.colour, alpha=0.25)
    axes.plot(closed, [*values, values[0]], color=look.colour, lw=1.6)
    axes.set_title(short(radar.label), color=look.colour, fontweight="bold", pad=10)


def _raw_values(axes: Axes, radars: Sequence[Radar], looks: Looks) -> None:
    """The axes and what they were made of, a row a system."""
    axes.set_axis_off()
    heads = ["", *AXES, *(f"{name}{', %' if unit == 'percent' else ''}" for name, unit in RAW.items())]
    axes.set_xlim(0, len(heads) + 0.6)
    axes.set_ylim(len(radars) + 0.5, -0.6)
    for column, head in enumerate(heads[1:], 1):
        axes.text(column + 1.4, 0, head, ha="right", fontsize=7.5, fontweight="bold")
    for row, radar in enumerate(radars, 1):
        colour = looks[radar.label].colour
        axes.text(0, row, short(radar.label), fontsize=7.5, color=colour, fontweight="bold")
        cells = [_number(radar.axes[name]) for name in AXES]
        for name, unit in RAW.items():
            spread = radar.raw[name].spread
            cells.append(MISSING if spread is None else shown(spread.mean, unit))
        for column, text in enumerate(cells, 1):
            axes.text(column + 1.4, row, text, ha="right", fontsize=7.5)


def _number(value: Values) -> str:
    return MISSING if value.spread is None else f"{value.spread.mean:.2f}".replace("-", "−")


def draw_strips(shown_strips: Sequence[Strip], title: str, looks: Looks) -> Figure:
    """A row a picture: the frame, the truth, each system's mask in its colour."""
    labels = [name for name in looks if any(name in strip.masks for strip in shown_strips)]
    columns = ["frame", "truth", *labels]
    side = 1.05
    figure = Figure(
        figsize=(side * len(columns) + 0.1, side * len(shown_strips) + 1.35), layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.0, hspace=0.0)  # type: ignore[union-attr]
    panels = figure.subplots(len(shown_strips), len(columns), squeeze=False)
    for row, strip in zip(panels, shown_strips, strict=True):
        tiles = [strip.image, tinted(strip.image, strip.truth, "#ffffff")]
        masks = [strip.masks.get(name) for name in labels]
        tiles += [
            None if mask is None else tinted(strip.image, mask, looks[name].colour)
            for name, mask in zip(labels, masks, strict=True)
        ]
        for axes, tile in zip(row, tiles, strict=True):
            axes.set_axis_off()
            if tile is None:
                axes.text(0.5, 0.5, MISSING, ha="center", transform=axes.transAxes)
            else:
                axes.imshow(thinned(tile), interpolation="nearest")
    for axes, name in zip(panels[0], columns, strict=True):
        colour = looks[name].colour if name in labels and name in looks else _INK
        axes.set_title(
            short(name, 16), fontsize=8, rotation=35, ha="left", x=0.15, color=colour,
            fontweight="bold",
        )  # fmt: skip
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    return figure


def tinted(image: NDArray[np.uint8], mask: NDArray[np.bool_], colour: str) -> NDArray[np.uint8]:
    """A picture in dim grey with what is marked in a colour, the picture shining through."""
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    tint = 255 * np.array(to_rgb(colour))
    marked = 0.35 * grey + 0.65 * tint
    return np.where(mask[..., None], marked, 0.45 * grey + 20).round().astype(np.uint8)


def thinned(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every n-th pixel, so that a tile is no larger than it is shown."""
    step = max(1, math.ceil(max(image.shape[:2]) / _TILE_PX))
    return image[::step, ::step]

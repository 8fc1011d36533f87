"""All figures of a report: drawn, written with their data, and captioned."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure
from PIL import Image

from . import reportfigures as figures
from .reportdrawing import (
    Style,
    draw_anytime,
    draw_heat_maps,
    draw_radars,
    draw_transfers,
    png,
    svg,
)
from .reportformats import to_csv
from .reportpage import Picture, Section
from .reportstrips import draw_strip, strips
from .reportstudy import Setting, Study
from .reporttables import MAX_F, shown

CURVES = ("AP", "J", "F")
"""The measures that runs keep along the stream."""

Write = Callable[[str, str | bytes], None]
"""Called with a file's name and what it holds."""

_STRIPS = (
    "The middle frame of a test clip of up to eight tasks, the first in which something sounds, "
    "after the last task. Green outline: truth. Pink: where the mask's probability is above one "
    "half. In the corner: IoU; where nothing should be marked, the share that is not."
)
_MAPS = (
    "A[t, k]: score on the test clips of task k after task t, mean over seeds, in percent. Max-F: "
    "Eq. 12 with β² = 0.3, the best F of the mean curve of a task's frames. Blank: not scored."
)
_TRANSFER = (
    "F = mean over k < T of (max over t ≥ k of A[t, k]) − A[T, k]. FWT = mean over k ≥ 2 of "
    "A[k−1, k], the untrained network's not subtracted. Mean over seeds, bars ± one standard "
    "deviation. Who learns nothing forgets nothing: read F beside what was learned."
)
_ANYTIME = (
    "Score after each task against the clips learned by then; A_AUC is the curve's mean over these "
    "clips: each score counts for those since the one before. TF-CL: on all test clips; elsewhere "
    "on those of the tasks seen by then. Mean over seeds, bands ± one standard deviation (not in "
    "panels of over eight systems)."
)
_RADAR = (
    "1 is best. Accuracy = AA, the mean over k of A[T, k]. Plasticity = LA, the mean over k of "
    "A[k, k]. Retention = 1 − F / LA. Stability = 1 + min(BWT, 0), BWT = mean over k < T of "
    "A[T, k] − A[k, k]. Speed = least training seconds / own, Memory = least peak memory / own, "
    "against the least of the systems shown: both change with the company. Below 0 is drawn as 0. "
    "Raw values stand below each; grey: the others."
)


def gallery(
    study: Study,
    measure: str,
    show: Sequence[str],
    look: dict[str, Style],
    write: Write,
    tell: Callable[[str], None],
) -> list[Section]:
    """Draw all figures; write each as PNG and SVG, and the data of each kind as CSV.

    Args:
        study: the runs.
        measure: of transfer, radar and, where runs keep it along the stream, the curves.
        show: whose masks to show.
        look: of the systems.
        write: writes a file.
        tell: told what is being drawn.

    Raises:
        ReportError: a run's pictures cannot be read.
    """
    along = measure if measure in CURVES else CURVES[0]
    maps = figures.heat_maps(study, MAX_F)
    points = figures.transfers(study, measure)
    curves = figures.anytime_curves(study, along)
    radars = figures.radars(study, measure)
    for name, (heads, rows) in (
        ("heat-maps", figures.heat_map_rows(maps)),
        ("transfer", figures.transfer_rows(points)),
        ("anytime", figures.anytime_rows(curves)),
        ("radar", figures.radar_rows(radars)),
    ):
        write(f"figures/{name}.csv", to_csv(heads, rows))

    def drawn(name: str, figure: Figure, title: str, alt: str) -> Picture:
        tell(f"drawing {name}")
        data = png(figure)
        write(f"figures/{name}.png", data)
        write(f"figures/{name}.svg", svg(figure))
        return Picture(title, data, alt)

    def heat_map(setting: Setting) -> Picture | None:
        own = [one for one in maps if one.setting == setting]
        if not own:
            return None
        figure = draw_heat_maps(own, shown(MAX_F))
        alt = f"Max-F of each task after each task, {setting.title}"
        return drawn(f"heat-map-{setting.stem}", figure, setting.title, alt)

    def radar(setting: Setting) -> Picture | None:
        own = [one for one in radars if one.setting == setting]
        if not own:
            return None
        figure = draw_radars(own, look, shown(measure))
        alt = f"Six axes of each system, {setting.title}"
        return drawn(f"radar-{setting.stem}", figure, setting.title, alt)

    def each(draw: Callable[[Setting], Picture | None]) -> list[Picture]:
        return [picture for setting in study.settings if (picture := draw(setting)) is not None]

    transfer: list[Picture] = []
    if points:
        figure = draw_transfers(points, look, shown(measure))
        alt = "Forward transfer against forgetting, a panel a setting"
        transfer.append(drawn("transfer", figure, "Transfer", alt))
    figure = draw_anytime(curves, look, shown(along))
    stream = [drawn("anytime", figure, "Anytime", "Score along the stream, a panel a setting")]
    return [
        Section("masks", "What they mark", _STRIPS, {}, _strips(study, show, write, tell)),
        Section("kept", "What is kept", _MAPS, {}, each(heat_map)),
        Section("transfer", "Forgetting and transfer", _TRANSFER, {}, transfer),
        Section("stream", "Along the stream", _ANYTIME, {}, stream),
        Section("axes", "Six axes", _RADAR, {}, each(radar)),
    ]


def _strips(
    study: Study, show: Sequence[str], write: Write, tell: Callable[[str], None]
) -> list[Picture]:
    pictures: list[Picture] = []
    for strip in strips(study, show):
        title = strip.setting.title
        tell(f"drawing masks, {title}")
        sheet = draw_strip(strip)
        write(f"figures/masks-{strip.setting.stem}.png", _saved(sheet, "PNG"))
        clips = ", ".join(strip.clips)
        alt = f"Masks of {', '.join(strip.masks)}, {title}, seed {strip.seed}; clips {clips}"
        photo = _saved(sheet, "JPEG", quality=90)  # a fifth of the PNG
        pictures.append(Picture(f"{title}, seed {strip.seed}", photo, alt))
    return pictures


def _saved(image: Image.Image, kind: str, **options: int) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()

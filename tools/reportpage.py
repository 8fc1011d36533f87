"""A report as one page of HTML that needs nothing beside it: style, script and pictures within."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from PIL import Image

from .reportdrawing import COLORS, Style
from .reportformats import html_table, plain
from .reportstudy import Study
from .reporttables import Number, Table

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure of the page.

    Attributes:
        title: of its tab: the setting, or what it shows.
        data: the picture, PNG or JPEG.
        alt: what it shows, for who cannot see it.
        scale: pixels of the file for each of the page.
    """

    title: str
    data: bytes
    alt: str
    scale: int = 2


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: tables and pictures of one thing, those of several settings as tabs.

    Attributes:
        anchor: its name in links.
        title: its heading.
        caption: what is shown, with its formulae; plain text.
        tables: by the title of their tabs.
        pictures: likewise.
    """

    anchor: str
    title: str
    caption: str = ""
    tables: Mapping[str, Table] = field(default_factory=dict[str, Table])
    pictures: Sequence[Picture] = ()


def page(study: Study, main: Table, sections: Sequence[Section], look: Mapping[str, Style]) -> str:
    """The page.

    Args:
        study: the runs.
        main: the table that tells who is best, as `reporttables.main_table` makes it.
        sections: in order; those without tables and pictures are left out.
        look: of the systems.
    """
    colors = {name: style.color for name, style in look.items()}
    shown = [section for section in sections if section.tables or section.pictures]
    links = [(section.anchor, section.title) for section in shown] + [("runs", "Runs")]
    nav = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title in links)
    title = _headline(study)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>atlasd report: {escape(title)}</title>",
            f"<style>\n{_read('reportpage.css')}</style></head><body>",
            "<header><h1>Can they hear, localise and segment continually?</h1>",
            f'<p class="lead">{escape(title)}</p>',
            _tiles(study, main, colors),
            _notes(study),
            f"</header><nav><div>{nav}</div></nav><main>",
            *(_section(section, colors) for section in shown),
            _runs(study),
            "</main><footer>Written by <code>atlasd report</code>.</footer>",
            f"<script>\n{_read('reportpage.js')}</script></body></html>",
            "",
        ]
    )


def _headline(study: Study) -> str:
    seeds = sorted({run.spec.seed for run in study.runs})
    settings = ", ".join(setting.title for setting in study.settings)
    networks = ", ".join(dict.fromkeys(run.spec.folder.parts[0] for run in study.runs))
    return (
        f"{_count(len(study.systems), 'system')} in {settings}: {_count(len(study.runs), 'run')} "
        f"of {networks}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    )


def _tiles(study: Study, main: Table, colors: Mapping[str, str]) -> str:
    """The best system of each setting, large."""
    tiles: list[str] = []
    for place, setting in enumerate(study.settings):
        column = 1 + 2 * place
        numbers = [(row[0], row[column]) for row in main.rows]
        known = [(str(n), value) for n, value in numbers if isinstance(value, Number)]
        if not known:
            continue
        name, best = max(known, key=lambda one: one[1].mean)
        what = f"{setting.title}: best {main.columns[column]} of {len(known)}"
        tiles.append(
            f'<div class="tile" style="--c:{colors.get(name, COLORS[0])}">'
            f"<small>{escape(what)}</small><strong>{escape(plain(best))}</strong> "
            f"<br><em>{escape(name)}</em></div>"
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _notes(study: Study) -> str:
    lines: list[str] = []
    for data in study.data:
        named = f"Data: <code>{escape(data.path)}</code>"
        named += f", id <code>{escape(data.id)}</code>." if data.id else "."
        if not data.is_avsbench:
            named += (
                " These are not AVSBench numbers and compare with no published ones: other clips, "
                "other sounds."
            )
        lines.append(named)
    lines += [escape(note) for note in study.notes()]
    if study.unfinished:
        count = _count(len(study.unfinished), "run folder")
        lines.append(f'{count} without results of its own, <a href="#runs">listed below</a>.')
    return '<div class="notes">' + "".join(f"<p>{line}</p>" for line in lines) + "</div>"


def _section(section: Section, colors: Mapping[str, str]) -> str:
    tables = _panes((title, html_table(t, colors)) for title, t in section.tables.items())
    pictures = _panes((picture.title, _figure(picture)) for picture in section.pictures)
    caption = f'<p class="note">{escape(section.caption)}</p>' if section.caption else ""
    return (
        f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>\n'
        f"{pictures}{tables}{caption}</section>"
    )


def _panes(parts: Iterable[tuple[str, str]]) -> str:
    inner = "\n".join(f'<div data-title="{escape(title)}">{body}</div>' for title, body in parts)
    return f'<div class="panes">\n{inner}\n</div>' if inner else ""


def _figure(picture: Picture) -> str:
    with Image.open(io.BytesIO(picture.data)) as image:
        width, kind = image.width, (image.format or "png").lower()
    source = base64.b64encode(picture.data).decode("ascii")
    return (
        f'<figure><img src="data:image/{kind};base64,{source}" alt="{escape(picture.alt)}" '
        f'width="{width // picture.scale}"></figure>'
    )


def _runs(study: Study) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f'<td class="text short">{escape(setting.title)}</td>'
        f"<td>{run.spec.seed}</td><td><code>{escape(run.hash)}</code></td>"
        f"<td><code>{escape(run.manifest[:16])}</code></td></tr>"
        for setting in study.settings
        for name in study.systems
        for run in study.of(name, setting)
    )
    left = "".join(
        f"<li><b>{escape(one.name)}</b>: {escape(one.why)} "
        f"<code>{escape(str(one.path))}</code></li>"
        for one in study.unfinished
    )
    unfinished = f"<h3>Without results</h3><ul>{left}</ul>" if left else ""
    heads = "".join(
        f'<th scope="col"><button type="button">{head}</button></th>'
        for head in ("system", "setting", "seed", "run", "tasks (manifest)")
    )
    return (
        f'<section id="runs"><h2>Runs</h2>{unfinished}'
        f"<details><summary>All {len(study.runs)} runs with their hashes</summary>"
        f'<div class="scroll"><table class="sortable"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details></section>"
    )


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"

"""Tables as Markdown, LaTeX, CSV and HTML, with all escaped that a format reads as its own."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .reporttables import Cell, Number, Table

MISSING = "–"

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$", "–": "--",
    "≤": r"$\leq$",
}  # fmt: skip


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, also in a table."""
    escaped = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def latex_text(text: str) -> str:
    """Text that LaTeX shows as it is."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def plain(number: Number) -> str:
    """A number as people write it: ``34.1 ± 0.6``."""
    mean = f"{number.mean:,.{number.digits}f}"
    counted_alike = number.digits == 0 and number.sd == 0
    return (
        mean
        if math.isnan(number.sd) or counted_alike
        else f"{mean} ± {number.sd:,.{number.digits}f}"
    )


def markdown(table: Table) -> str:
    """The table with its title and note."""
    marks = {0: "{}", 1: "**{}**", 2: "<u>{}</u>"}

    def cell(value: Cell) -> str:
        if isinstance(value, Number):
            return marks[value.rank].format(plain(value))
        return MISSING if value is None else markdown_text(value)

    text = _text_columns(table)
    lines = [
        [markdown_text(head) for head in table.headers],
        ["---" if number in text else "---:" for number in range(len(table.columns))],
        *([cell(value) for value in row] for row in table.rows),
    ]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"## {markdown_text(table.title)}\n\n{markdown_text(table.note)}\n\n{body}\n"


def latex(table: Table) -> str:
    """A ``tabular`` for the package booktabs."""
    marks = {0: "{}", 1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}

    def cell(value: Cell) -> str:
        if isinstance(value, Number):
            return marks[value.rank].format(plain(value).replace(" ± ", r"\,$\pm$\,"))
        return latex_text(MISSING if value is None else value)

    text = _text_columns(table)
    shape = "".join("l" if number in text else "r" for number in range(len(table.columns)))
    lines = [f"% {table.title}. {table.note}", rf"\begin{{tabular}}{{{shape}}}", r"\toprule"]
    if table.groups:
        spans = [rf"\multicolumn{{{n}}}{{c}}{{{latex_text(name)}}}" for name, n in table.groups]
        lines.append(" & ".join(["", *spans]) + r" \\")
        first = 2
        rules: list[str] = []
        for _, span in table.groups:
            rules.append(rf"\cmidrule(lr){{{first}-{first + span - 1}}}")
            first += span
        lines.append(" ".join(rules))
    lines.append(" & ".join(latex_text(head) for head in table.columns) + r" \\")
    lines.append(r"\midrule")
    lines += [" & ".join(cell(value) for value in row) + r" \\" for row in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def to_csv(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV; None and NaN become empty cells; numbers are read back exactly."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    for row in rows:
        writer.writerow(["" if _is_missing(value) else value for value in row])
    return text.getvalue()


def table_csv(table: Table) -> str:
    """The table; each column of numbers with two more, sd and n."""
    text = _text_columns(table)
    heads: list[str] = []
    for number, head in enumerate(table.headers):
        heads += [head] if number in text else [head, f"{head} sd", f"{head} n"]
    rows: list[list[object]] = []
    for row in table.rows:
        line: list[object] = []
        for number, value in enumerate(row):
            if isinstance(value, Number):
                line += [value.mean, value.sd, value.n]
            else:
                line += [value] if number in text else [None, None, None]
        rows.append(line)
    return to_csv(heads, rows)


def html_table(table: Table, colors: Mapping[str, str]) -> str:
    """A ``table`` that the page's script can sort.

    Args:
        table: the table.
        colors: of the systems, by name, as CSS.
    """
    marks = {0: "{}", 1: "<b>{}</b>", 2: "<u>{}</u>"}

    def cell(value: Cell, first: bool) -> str:
        if isinstance(value, Number):
            mean, plus_minus, sd = plain(value).partition(" ± ")
            shown = marks[value.rank].format(f"{mean}<i>{plus_minus}{sd}</i>" if sd else mean)
            best = ' class="best"' if value.rank == 1 else ""
            return f'<td{best} data-v="{value.mean!r}">{shown}</td>'
        if value is None:
            return f'<td class="none">{MISSING}</td>'
        if first:
            dot = f'<span class="dot" style="background:{colors.get(value, "#888")}"></span>'
            return f'<th scope="row">{dot}{html.escape(value)}</th>'
        return f'<td class="text">{html.escape(value)}</td>'

    text = _text_columns(table)
    over = ""
    if table.groups:
        spans = (f'<th colspan="{n}" class="over">{html.escape(g)}</th>' for g, n in table.groups)
        over = f"<tr><td></td>{''.join(spans)}</tr>"
    heads = "".join(
        f'<th scope="col"{" class=text" if place in text else ""}>'
        f'<button type="button">{html.escape(head)}</button></th>'
        for place, head in enumerate(table.columns)
    )
    rows = "\n".join(
        "<tr>" + "".join(cell(value, place == 0) for place, value in enumerate(row)) + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="scroll"><table class="sortable"><thead>{over}<tr>{heads}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>\n"
        f'<p class="note">{html.escape(table.note)}</p>'
    )


def _text_columns(table: Table) -> set[int]:
    """The columns that hold text: the first, and those with any text in them."""
    return {0} | {
        place for row in table.rows for place, value in enumerate(row) if isinstance(value, str)
    }


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))

"""Tables hold what the definitions give for each run, averaged; missing values are never zero."""

from __future__ import annotations

import csv
import io
import json
import math
from html.parser import HTMLParser
from statistics import mean, stdev

import pytest
from atlasd.model.matrix import Spread
from atlasd.tools.reportformats import (
    html_table,
    latex,
    latex_text,
    markdown,
    markdown_text,
    plain,
    table_csv,
)
from atlasd.tools.reportruns import read_runs
from atlasd.tools.reportstudy import study
from atlasd.tools.reporttables import (
    LONG_COLUMNS,
    Number,
    Table,
    ablation_tables,
    cost_table,
    long_rows,
    main_table,
    prequential_table,
    ranked,
    run_rows,
    task_table,
)
from runs import write_run

GOOD = ((0.8, 0.3), (0.7, 0.9))
"""AA 0.8, F 0.1"""
POOR = ((0.9, 0.2), (0.4, 0.6))
"""AA 0.5, F 0.5"""


@pytest.fixture
def found(tmp_path):
    """Two systems, two settings; one of them has but one setting."""
    write_run(tmp_path, "a", "cil", 0, GOOD)
    write_run(tmp_path, "a", "cil", 1, POOR)
    write_run(tmp_path, "a", "task-free", 0, GOOD)
    write_run(tmp_path, "a", "task-free", 1, GOOD)
    write_run(tmp_path, "b", "cil", 0, GOOD, options={"c": 2.0})
    return study(read_runs([tmp_path])[0])


def test_table_1_has_mean_and_sd_over_seeds_of_each_runs_own_measures(found):
    table = main_table(found, "AP")
    assert table.headers == (
        "system", "CIL mAP", "CIL For.", "TF-CL mAP", "TF-CL For.", "Avg mAP", "Avg For."
    )  # fmt: skip
    a, b = table.rows
    assert a[1].mean == pytest.approx(100 * mean([0.8, 0.5]))
    assert a[1].sd == pytest.approx(100 * stdev([0.8, 0.5]))
    assert a[2].mean == pytest.approx(100 * mean([0.1, 0.5]))  # of the mean matrix it would be 25
    assert (a[1].n, b[1].n) == (2, 1)
    assert b[1].mean == pytest.approx(80)
    assert math.isnan(b[1].sd)


def test_best_is_the_highest_score_and_the_least_forgetting(found):
    a, b = main_table(found, "AP").rows
    assert (a[1].rank, b[1].rank) == (2, 1)
    assert (a[2].rank, b[2].rank) == (2, 1)


def test_averages_over_settings_are_only_of_systems_with_all_of_them(found):
    a, b = main_table(found, "AP").rows
    by_seed = [mean([0.8, 0.8]), mean([0.5, 0.8])]
    assert (a[5].mean, a[5].sd) == pytest.approx((100 * mean(by_seed), 100 * stdev(by_seed)))
    assert b[3:] == (None, None, None, None)
    assert "only for systems with all of them" in main_table(found, "AP").note


def test_categories_count_as_one_setting_and_til_can_be_left_out(tmp_path):
    for protocol, matrix in (("til", GOOD), ("cil", GOOD), ("task-free", POOR)):
        write_run(tmp_path, "a", protocol, 0, matrix)
    for category, matrix in (("dog", GOOD), ("cow", POOR)):
        told = {"category": category, "apart": category}
        write_run(tmp_path, "a", "dil-per-category", 0, matrix, **told)
    table = main_table(study(read_runs([tmp_path])[0]), "AP")
    row = dict(zip(table.headers, table.rows[0], strict=True))
    assert len(row) == 1 + 2 * (4 + 2)
    assert row["DIL, mean of 2 categories mAP"].mean == pytest.approx(65)
    assert row["Avg mAP"].mean == pytest.approx((80 + 80 + 65 + 50) / 4)
    assert row["without TIL mAP"].mean == pytest.approx((80 + 65 + 50) / 3)
    assert row["without TIL For."].mean == pytest.approx((10 + 30 + 50) / 3)


def test_table_2_tells_what_differs_and_leaves_absent_systems_out(found):
    cil, free = ablation_tables(found)
    assert [row[:2] for row in cil.rows] == [("a", "nothing"), ("b", "c=2.0")]
    assert [row[0] for row in free.rows] == ["a"]
    of_b = [cell.mean for cell in cil.rows[1][2:]]
    # mAP, LA, F, FWT, incremental, A_AUC, mIoU, Max-F
    assert of_b == pytest.approx([80, 85, 10, 30, 80, 80, 80, 80])


def test_ranks_share_a_place_at_a_tie_and_need_company():
    one, two = Spread(0.5, math.nan, math.nan, 1), Spread(0.4, math.nan, math.nan, 1)
    assert [n and n.rank for n in ranked([one, two, one, None], max)] == [1, 2, 1, None]
    assert [n and n.rank for n in ranked([one, None], max)] == [0, None]
    assert [n and n.rank for n in ranked([one, two])] == [0, 0]


def test_costs_are_per_scored_frame_and_tell_their_machine(found):
    table = cost_table(found)
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["ms a scored frame"].mean == pytest.approx(1000 * 4 / 8)
    assert row["trained parameters"] == Number(1234.0, 0.0, 2, 0)
    assert plain(row["trained parameters"]) == "1,234"
    assert row["machine"] == "A"
    assert "A: a processor." in table.note


def test_costs_that_were_not_kept_are_missing_not_zero(tmp_path):
    folder = write_run(tmp_path)
    (folder / "costs.json").unlink()
    table = cost_table(study(read_runs([tmp_path])[0]))
    assert table.rows[0] == ("atlas", "CIL", None, None, None, None, None, None)
    assert markdown(table).splitlines()[-1].endswith("| – | – | – | – | – | – |")
    assert "0" not in table_csv(table).splitlines()[1]


def test_tables_of_tasks_and_of_streams_are_there_only_where_they_were_scored(found):
    assert task_table(found, "AP") is None
    assert prequential_table(found) is None


def test_tasks_and_streams_have_tables_where_they_were_scored(tmp_path):
    metrics = write_run(tmp_path, "a", "task-free") / "metrics.json"
    told = json.loads(metrics.read_text())
    told["measures"]["AP"]["summary"] = {"AA": 0.5, "LA": 0.6, "F": 0.1, "FWT": 0.2}
    told["groups"] = {"AP": {"summary": {"AA": 0.7, "F": 0.3}, "matrix": [[0.6, 0.2], [0.3, 0.7]]}}
    told["prequential"] = {"frames": 9, "J": 0.25, "AP": None}
    metrics.write_text(json.dumps(told))
    write_run(tmp_path, "b", "task-free")
    found = study(read_runs([tmp_path])[0])
    by_task, before = task_table(found, "AP"), prequential_table(found)
    assert [(row[0], *(n.mean for n in row[1:])) for row in by_task.rows] == [("a", 50, 60, 10, 20)]
    main = main_table(found, "AP")
    assert [cell.mean for cell in main.rows[0][1:]] == [70, 30]
    assert "TF-CL: over groups of tasks with about a tenth of the test clips each" in main.note
    assert found.runs[0].matrices["AP"].tolist() == [[0.6, 0.2], [0.3, 0.7]]
    a, b = before.rows
    assert (a[1], a[2].mean, b[1:]) == (None, 25, (None, None))


def test_max_f_is_over_groups_as_its_note_says_or_missing(tmp_path):
    """A run that kept curves by task alone has no Max-F over groups, and is given no other."""
    cells = {"summary": {"AA": 0.7, "F": 0.3}, "matrix": [[0.6, 0.2], [0.3, 0.7]]}
    batched = {"old": (), "four": ("F", "F_batch"), "new": ("F", "F_batch", "F_batch2", "F_batch1")}
    for system, kept in batched.items():
        metrics = write_run(tmp_path, system, "task-free") / "metrics.json"
        told = json.loads(metrics.read_text())
        told["measures"]["F"]["summary"] = {"AA": 0.99, "F": 0.01}
        told["groups"] = dict.fromkeys(("AP", "J", *kept), cells)
        metrics.write_text(json.dumps(told))
    found = study(read_runs([tmp_path])[0])
    (table,) = ablation_tables(found)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    names = ("Max-F", "b = 4", "b = 2", "b = 1")
    means = {
        system: [row[name] and row[name].mean for name in names] for system, row in rows.items()
    }
    assert means == {
        "old": [None] * 4, "four": [70, 70, None, None], "new": [70, 70, 70, 70]
    }  # fmt: skip
    assert "Max-F –: runs of earlier versions" in table.note
    assert "b – or without a column: runs of earlier versions" in table.note
    by_task = task_table(found, "F")
    assert [row[1].mean for row in by_task.rows] == [99, 99, 99]


def test_batches_that_no_run_kept_have_no_column(tmp_path):
    metrics = write_run(tmp_path) / "metrics.json"
    told = json.loads(metrics.read_text())
    told["measures"]["F_batch"] = told["measures"]["F"]
    metrics.write_text(json.dumps(told))
    (table,) = ablation_tables(study(read_runs([tmp_path])[0]))
    assert [name for name in table.columns if name.startswith("b = ")] == ["b = 4"]


def test_long_form_has_interval_and_n_of_everything(found):
    rows = [dict(zip(LONG_COLUMNS, row, strict=True)) for row in long_rows(found)]
    (row,) = [
        r for r in rows
        if (r["system"], r["protocol"], r["measure"], r["statistic"]) == ("a", "cil", "AP", "AA")
    ]  # fmt: skip
    half = 12.7062047 * stdev([0.8, 0.5]) / math.sqrt(2)  # Student's t, one degree of freedom
    assert (row["low"], row["high"]) == pytest.approx((0.65 - half, 0.65 + half))
    assert row["n"] == 2


def test_every_run_has_a_row(found):
    heads, rows = run_rows(found)
    assert len(rows) == 5
    assert [dict(zip(heads, row, strict=True))["AP.F"] for row in rows][:2] == pytest.approx(
        [0.1, 0.5]
    )


NASTY = r"a_b|c*d`e<b>&$50%#{x}\y~^"


def nasty() -> Table:
    number = Number(12.345, 0.678, 3, 1, 1)
    return Table("t", NASTY, NASTY, ((NASTY, 2),), ("system", NASTY, "n"), ((NASTY, None, number),))


def test_names_cannot_break_markdown():
    assert markdown_text("a|b*c_d`e<f>&[g]") == r"a\|b\*c\_d\`e&lt;f&gt;&amp;\[g\]"
    lines = [line for line in markdown(nasty()).splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in lines} == {4}
    assert lines[-1].endswith("| – | **12.3 ± 0.7** |")


def test_names_cannot_break_latex():
    assert latex_text(r"50%_a&b#{c}$\~^") == (
        r"50\%\_a\&b\#\{c\}\$\textbackslash{}\textasciitilde{}\textasciicircum{}"
    )
    text = latex(nasty())
    assert r"\textbf{12.3\,$\pm$\,0.7}" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert [line.replace(r"\&", "").count("&") for line in body] == [1, 2, 2]
    assert r"\cmidrule(lr){2-3}" in text


def test_names_cannot_break_html():
    class Cells(HTMLParser):
        tags, texts = [], []

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)

        def handle_data(self, data):
            self.texts.append(data)

    parser = Cells()
    parser.feed(html_table(nasty(), {}))
    assert parser.tags.count("b") == 1  # the best number's, none of the name's
    assert parser.texts.count(NASTY) == 4


def test_csv_is_read_back_exactly():
    (row,) = csv.DictReader(io.StringIO(table_csv(nasty())))
    assert row["system"] == NASTY
    assert float(row[f"{NASTY} n"]) == 12.345
    assert (row[f"{NASTY} n sd"], row[f"{NASTY} n n"]) == ("0.678", "3")
    assert row[f"{NASTY} {NASTY}"] == ""

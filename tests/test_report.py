"""`atlasd report` from end to end: real runs in, tables, figures and a page that needs nothing."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from atlasd.streams.toyworld import write_dataset
from atlasd.tools import cli, cliresearch
from atlasd.tools.diskcache import DiskCache
from atlasd.tools.machine import machine
from atlasd.tools.replay import replay
from atlasd.tools.report import Options, report
from atlasd.tools.reportruns import ReportError
from atlasd.tools.runmetrics import MEASURES, POOLED
from atlasd.tools.runspec import RunSpec
from runs import write_run
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Runs of a tiny network on the toy world: two methods, and one task-free stream."""
    root = tmp_path_factory.mktemp("real")
    halves = {"train": 1, "val": 1, "test": 1}
    data = write_dataset(
        root / "toy", halves, ms3_counts={"train": 4, "val": 1, "test": 3}, size_px=64
    )
    cache = DiskCache(root / "cache", 1 << 30)
    small = {
        "data": data, "network": "tiny", "random": True, "epochs": 1, "batch": 8, "score_px": 64,
        "variants": 1, "score_frames": "one",
    }  # fmt: skip
    cil = [
        small | {"method": method, "split": "6-1", "seed": seed}
        for method, seed in (("atlas", 0), ("atlas", 1), ("finetune", 0))
    ]
    stream = {"protocol": "task-free", "split": "2-1", "schedule": "stream"}
    for told in (*cil, small | stream):
        spec = RunSpec(**told)
        replay(spec, root / "runs" / spec.folder, cache=cache)
    return root


class Page(HTMLParser):
    """What a page refers to and holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources, self.anchors, self.ids, self.tags, self.text = [], [], [], [], ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        told = dict(attrs)
        self.sources += [told[name] for name in ("src", "srcset", "data") if name in told]
        self.ids += [told["id"]] if "id" in told else []
        if tag == "link" or "href" in told:
            self.anchors.append(told.get("href", ""))
        if tag not in {"meta", "img", "br", "link"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_real_runs_become_a_page_that_needs_nothing_beside_it(real):
    out = real / "report"
    result = CliRunner().invoke(cli.app, ["report", str(real / "runs"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    text = (out / "index.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.sources
    assert all(re.match(r"data:image/(png|jpeg);base64,", source) for source in page.sources)
    assert all(a.startswith("#") and a[1:] in page.ids for a in page.anchors)
    assert not re.search(r"@import|url\(|https?://", text)
    assert "prefers-color-scheme: dark" in text
    assert "These are not AVSBench numbers" in page.text
    assert "Speed = least training seconds" in page.text
    figures = {path.stem for path in (out / "figures").glob("*.png")}
    kinds = [f"{kind}-{s}-random" for kind in ("masks", "heat-map") for s in ("cil", "task-free")]
    assert figures == {*kinds, "radar-cil-random", "transfer", "anytime"}
    assert page.tags.count("img") == len(figures)
    names = {path.name for path in (out / "tables").iterdir()}
    assert {"table1.md", "table1.tex", "table1.csv", "prequential.md"} <= names
    assert machine() in page.text

    found = [
        json.loads((real / f"runs/tiny/atlas/cil-random/seed{seed}/metrics.json").read_text())
        for seed in (0, 1)
    ]
    expected = sum(one["measures"]["J"]["summary"]["AA"] for one in found) / 2
    (row, _) = csv.DictReader((out / "tables" / "table2-cil-random.csv").read_text().splitlines())
    assert float(row["mIoU"]) == pytest.approx(100 * expected)

    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    report([real / "runs"], out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_names_and_reasons_with_special_characters_arrive_whole(tmp_path):
    data = Path("/data/<b>&\"$x$'_")
    write_run(tmp_path / "runs", "", method="a<b>&$c$_d", data=data)
    failed = write_run(tmp_path / "runs", "ewc", finished=False)
    (failed / "failed.json").write_text('{"why": "loss is <NaN>"}')
    page = Page(report([tmp_path / "runs"], tmp_path / "out").read_text())
    assert page.open == []
    assert "a<b>&$c$_d" in page.text
    assert str(data) in page.text
    assert "failed: loss is <NaN>" in page.text
    assert json.loads((tmp_path / "out" / "report.json").read_text())["unfinished"] == [
        {"path": str(failed), "why": "failed: loss is <NaN>"}
    ]


def test_an_earlier_reports_files_go_and_others_stay(tmp_path):
    write_run(tmp_path / "runs", "a", "cil")
    write_run(tmp_path / "runs", "b", "dil")
    out = tmp_path / "out"
    report([tmp_path / "runs"], out)
    (out / "mine.txt").write_text("mine")
    assert (out / "figures" / "radar-dil-random.png").exists()
    report([tmp_path / "runs"], out, Options(systems=("a",)))
    assert not (out / "figures" / "radar-dil-random.png").exists()
    assert (out / "mine.txt").exists()


def test_what_cannot_be_reported_is_refused(tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "out"
    write_run(runs / "one", finished=False)
    with pytest.raises(ReportError, match=r"no run is finished .*; finish one with"):
        report([runs], out)
    write_run(runs / "two", seed=1)
    with pytest.raises(ReportError, match="--measure AUPR: no run has it; there are AP, J, F"):
        report([runs], out, Options(measure="AUPR"))
    with pytest.raises(ReportError, match="--show x: not among the report's systems atlas"):
        report([runs], out, Options(show=("x",)))
    (tmp_path / "file").touch()
    with pytest.raises(ReportError, match="file is a file; name a folder"):
        report([runs], tmp_path / "file")
    assert not out.exists()


def test_an_error_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["atlasd", "report", str(tmp_path), "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_the_command_knows_all_measures_of_runs():
    told = get_type_hints(cliresearch.report)["measure"]
    assert set(get_args(told)) == {*MEASURES, *POOLED}

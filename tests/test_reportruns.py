"""Runs are read and put in order; what is broken, clashes or is unfinished is told."""

from __future__ import annotations

import json
import shutil

import pytest
from atlasd.tools.reportruns import ReportError, read_runs
from atlasd.tools.reportstudy import Data, study
from runs import write_run


def test_runs_are_found_at_any_depth_and_other_folders_are_passed_by(tmp_path):
    write_run(tmp_path / "a" / "b")
    write_run(tmp_path / "a", "ewc")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"hash": "x", "preset": "atlas"}')
    runs, unfinished = read_runs([tmp_path])
    assert sorted(run.spec.name for run in runs) == ["atlas", "ewc"]
    assert unfinished == []
    assert len(read_runs([tmp_path / "a", tmp_path])[0]) == 2  # a folder named twice


def test_what_has_no_results_is_listed_with_its_reason(tmp_path):
    write_run(tmp_path, "atlas")
    failed = write_run(tmp_path, "ewc", finished=False)
    (failed / "failed.json").write_text('{"why": "the loss is NaN"}')
    begun = write_run(tmp_path, "si", finished=False)
    (begun / "frames").mkdir()
    for name in ("untrained", "000", "001"):
        (begun / "frames" / f"{name}.csv").touch()
    runs, unfinished = read_runs([tmp_path])
    assert [run.spec.name for run in runs] == ["atlas"]
    assert [(one.path, one.why) for one in unfinished] == [
        (failed, "failed: the loss is NaN"),
        (begun, "not finished: 2 tasks are scored; the same command goes on with it"),
    ]


def test_a_copy_of_a_run_counts_once(tmp_path):
    first = write_run(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    runs, (copy,) = read_runs([tmp_path])
    assert [run.path for run in runs] == [first]
    assert copy.why == f"the same run as {first}, which is counted"


def test_two_runs_of_one_name_that_were_told_different_things_clash(tmp_path):
    write_run(tmp_path / "a", lr=0.1)
    write_run(tmp_path / "b", lr=0.2)
    with pytest.raises(ReportError, match=r"are both atlas .* differ in lr; report them apart"):
        read_runs([tmp_path])


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("config.json", "{", "cannot be read as JSON"),
        ("metrics.json", "{", "cannot be read as JSON"),
        ("metrics.json", "[]", "no metrics of this version"),
        ("metrics.json", '{"run": {"hash": "other"}}', "is of run other, its config.json of"),
        ("costs.json", "", "cannot be read as JSON"),
    ],
)
def test_a_broken_run_is_an_error_that_names_its_file(file, text, why, tmp_path):
    folder = write_run(tmp_path)
    (folder / file).write_text(text)
    with pytest.raises(ReportError, match=why) as caught:
        read_runs([tmp_path])
    assert str(folder / file) in str(caught.value)


def test_a_run_of_another_version_is_an_error(tmp_path):
    folder = write_run(tmp_path)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"colour": 1}))
    with pytest.raises(ReportError, match=r"not a run of this version .*colour"):
        read_runs([tmp_path])


def test_a_folder_without_runs_is_an_error(tmp_path):
    with pytest.raises(ReportError, match=r"no run of `atlasd evaluate` in it"):
        read_runs([tmp_path])
    with pytest.raises(ReportError, match="is not there; name a folder"):
        read_runs([tmp_path / "none"])
    (tmp_path / "file").touch()
    with pytest.raises(ReportError, match="is a file; name a folder"):
        read_runs([tmp_path / "file"])


def test_settings_stand_in_the_papers_order_and_systems_as_asked(tmp_path):
    for protocol in ("task-free", "dil", "cil", "til"):
        for system in ("b", "a"):
            write_run(tmp_path, system, protocol)
    write_run(tmp_path, "a", "cil", order="similarity")
    runs, _ = read_runs([tmp_path])
    found = study(runs)
    titles = [setting.title for setting in found.settings]
    assert titles == ["TIL", "CIL", "DIL", "TF-CL", "CIL similar"]
    assert found.systems == ("a", "b")
    assert study(runs, systems=["b", "a"]).systems == ("b", "a")
    assert study(runs, systems=["b"]).systems == ("b",)
    with pytest.raises(ReportError, match="--systems c: no finished run is of it; there are a, b"):
        study(runs, systems=["c"])


def test_one_name_with_two_networks_is_two_systems(tmp_path):
    write_run(tmp_path, network="atlas")
    write_run(tmp_path, network="atlas-lite", vary={"image_px": 128})
    runs, _ = read_runs([tmp_path])
    assert study(runs).systems == ("atlas (atlas)", "atlas (atlas-lite+image_px=128)")


def test_seeds_that_were_told_different_things_are_not_averaged(tmp_path):
    write_run(tmp_path, seed=0, epochs=3)
    write_run(tmp_path, seed=1, epochs=4, threads=2)
    runs, _ = read_runs([tmp_path])
    with pytest.raises(ReportError, match="averaged as seeds of one system, but differ in epochs;"):
        study(runs)


def test_notes_say_what_makes_rows_incomparable(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "a", seed=seed)
    write_run(tmp_path, "b", manifest="other", costs={"machine": "another"})
    notes = list(study(read_runs([tmp_path])[0]).notes())
    assert notes == [
        "CIL: b has seeds 0, others 0, 1; their means are of different streams.",
        "CIL, seed 0: b learned other tasks than a.",
        "One seed has no spread: where no ± stands, chance may decide the order.",
        "The runs ran on several machines: their seconds are not comparable.",
    ]


def test_a_data_set_tells_its_id_and_only_avsbench_passes_for_it(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dataset.json").write_text('{"id": "open-avs-ci-1"}')
    write_run(tmp_path / "runs", data=tmp_path / "set")
    (data,) = study(read_runs([tmp_path / "runs"])[0]).data
    assert (data.path, data.id, data.is_avsbench) == (str(tmp_path / "set"), "open-avs-ci-1", False)
    (config,) = (tmp_path / "runs").rglob("config.json")
    noted = {**json.loads(config.read_text()), "data_content": "0123abcd open-avs-ci-0"}
    config.write_text(json.dumps(noted))  # what a run learned from, whatever lies there now
    (data,) = study(read_runs([tmp_path / "runs"])[0]).data
    assert data.id == "open-avs-ci-0"
    assert Data("/data/AVSBench", "").is_avsbench
    assert Data("/data/avs-bench/v1", "").is_avsbench
    assert not Data("/data/open-avs", "").is_avsbench

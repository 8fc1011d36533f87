"""The stream experiment, in small and whole: real daemons, every number there, drawn."""

from __future__ import annotations

import json

import pytest
from atlasd.streams.avslayout import DatasetError
from atlasd.streams.sources import MediaError
from atlasd.streams.toyworld import write_dataset
from atlasd.tools import studyrun
from atlasd.tools.study import study, summary
from atlasd.tools.studyplan import StudyOptions, plan_of


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "toy"
    return write_dataset(root, {"train": 4, "val": 1, "test": 1}, size_px=64)


def options(data, folder, **changes) -> StudyOptions:
    told = {
        "data": data,
        "out": folder,
        "seeds": (0,),
        "preset": "tiny",
        "image_px": 64,
        "clips_per_class": 4,
        "tests_per_class": 1,
        "base_epochs": 1,
        "quiet_s": 2.0,
    }
    return StudyOptions(**{**told, **changes})


def test_a_plan_deals_every_class_once_and_every_clip_of_the_new_ones(data, tmp_path):
    plan = plan_of(options(data, tmp_path), 0)
    entries = plan.entries
    assert not set(plan.old) & set(plan.new)
    assert abs(len(plan.old) - len(plan.new)) <= 1
    assert {entries[clip].category for clip in plan.base} == set(plan.old)
    assert {entries[clip].category for clip in plan.stream} == set(plan.new)
    assert len(set(plan.stream)) == len(plan.stream) == 4 * len(plan.new)
    assert {entries[clip].split for clip in (*plan.base, *plan.stream)} == {"train"}
    for name, classes in (("old", plan.old), ("new", plan.new)):
        assert {entries[clip].category for clip in plan.tests[name]} == set(classes)
        assert {entries[clip].split for clip in plan.tests[name]} == {"test"}
    assert plan_of(options(data, tmp_path), 0).stream == plan.stream
    assert plan_of(options(data, tmp_path), 1).stream != plan.stream


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_experiment_runs_whole_and_goes_on_where_it_was(data, tmp_path, monkeypatch):
    """Also where the store goes without its oldest versions, of which the base is one."""
    monkeypatch.setattr(studyrun, "_VERSIONS", 2)
    told = options(data, tmp_path)
    results = study(told, systems=("atlas", "finetune"))
    plan = plan_of(told, 0)
    assert [result.system for result in results] == ["atlas", "finetune"]
    for result in results:
        assert result.prequential[-1][0] + 8 * result.refused >= len(plan.stream)
        assert result.points[0].clips == 0
        assert result.points[-1].clips > 0
        assert all(result.latency_ms[phase] for phase in ("before", "during", "after"))
        assert result.stalls_ms
        assert all(0 <= point.old <= 1 and 0 <= point.new <= 1 for point in result.points)
    assert results[0].points[0].old == results[1].points[0].old
    assert set(summary(results, "atlas")) >= {"old_lost", "new_gained", "a_auc", "p99_during_ms"}
    written = json.loads((tmp_path / "results.json").read_text())
    assert len(written["results"]) == 2
    assert (tmp_path / "scores.png").stat().st_size > 10_000
    assert (tmp_path / "latency.png").stat().st_size > 10_000
    assert study(told, systems=("atlas", "finetune")) == results


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_clip_that_cannot_be_put_ends_the_experiment_and_says_why(tmp_path):
    data = write_dataset(tmp_path / "toy", {"train": 4, "val": 1, "test": 1}, size_px=64)
    told = options(data, tmp_path / "out")
    plan = plan_of(told, 0)
    entry = plan.entries[plan.stream[3]]
    for sound in data.rglob(f"*{entry.name}*.wav"):
        sound.write_bytes(b"no sound")
    with pytest.raises((DatasetError, MediaError), match=entry.name):
        study(told, systems=("finetune",))

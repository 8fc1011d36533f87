"""Figures show what the definitions give, and are drawn the same each time."""

from __future__ import annotations

import io
import math
from statistics import mean, stdev

import numpy as np
import pytest
from atlasd.streams.manifest import Manifest, Protocol, Task
from atlasd.tools.reportdrawing import (
    draw_anytime,
    draw_heat_maps,
    draw_radars,
    draw_transfers,
    png,
    styles,
    svg,
)
from atlasd.tools.reportfigures import (
    anytime_curves,
    anytime_rows,
    heat_map_rows,
    heat_maps,
    radars,
    transfers,
)
from atlasd.tools.reportruns import ReportError, read_runs
from atlasd.tools.reportstrips import draw_strip, strips
from atlasd.tools.reportstudy import study
from PIL import Image
from runs import NAN, write_run

FIRST = ((0.8, 0.3, NAN), (0.7, 0.9, 0.2), (0.6, 0.5, 0.4))
SECOND = ((0.4, 0.5, NAN), (0.6, 0.7, 0.4), (0.5, 0.6, 0.8))


@pytest.fixture
def found(tmp_path):
    write_run(tmp_path, "a", seed=0, matrix=FIRST, costs={"train_s": 10.0})
    write_run(tmp_path, "a", seed=1, matrix=SECOND, costs={"train_s": 30.0})
    write_run(tmp_path, "b", matrix=FIRST, costs={"train_s": 40.0, "peak_memory_mb": 256.0})
    return study(read_runs([tmp_path])[0])


def test_heat_maps_are_means_over_seeds_and_blank_where_nothing_was_scored(found):
    a, b = heat_maps(found, "F")
    assert (a.system, a.n, b.n) == ("a", 2, 1)
    expected = [
        [mean(pair) for pair in zip(*rows, strict=True)] for rows in zip(FIRST, SECOND, strict=True)
    ]
    assert np.isnan(a.matrix[0, 2])
    np.testing.assert_allclose(a.matrix, expected)
    _, rows = heat_map_rows([a])
    assert len(rows) == 8
    assert rows[0] == ("a", "cil", "", "random", 1, 1, pytest.approx(0.6), 2)


def test_transfer_averages_the_measures_not_the_matrices(found):
    a, b = transfers(found, "AP")
    lost = [((0.8 - 0.6) + (0.9 - 0.5)) / 2, ((0.6 - 0.5) + (0.7 - 0.6)) / 2]
    ahead = [(0.3 + 0.2) / 2, (0.5 + 0.4) / 2]
    assert (a.forgetting.mean, a.forgetting.sd) == pytest.approx((mean(lost), stdev(lost)))
    assert (a.forward.mean, a.forward.sd) == pytest.approx((mean(ahead), stdev(ahead)))
    assert math.isnan(b.forward.sd)


def test_radar_holds_costs_against_the_least_of_the_systems(found):
    a, b = radars(found, "AP")
    assert a.raw["train_s"] == 20  # of 10 and 30
    assert (a.axes["Speed"], b.axes["Speed"]) == (1, 20 / 40)
    assert (a.axes["Memory"], b.axes["Memory"]) == (256 / 512, 1)
    assert b.axes["Accuracy"] == pytest.approx(mean([0.6, 0.5, 0.4]))
    assert b.axes["Plasticity"] == pytest.approx(mean([0.8, 0.9, 0.4]))
    assert b.axes["Retention"] == pytest.approx(1 - 0.3 / 0.7)
    assert b.axes["Stability"] == pytest.approx(1 + mean([0.6 - 0.8, 0.5 - 0.9]))
    retained = [1 - 0.3 / 0.7, 1 - 0.1 / mean([0.4, 0.7, 0.8])]
    assert a.axes["Retention"] == pytest.approx(mean(retained))


def test_a_system_without_costs_or_with_one_task_has_no_radar(tmp_path):
    write_run(tmp_path, "a", costs={"train_s": 0.0})
    write_run(tmp_path, "b", matrix=((0.5,),))
    write_run(tmp_path, "c")
    assert [one.system for one in radars(study(read_runs([tmp_path])[0]), "AP")] == ["c"]


def test_anytime_curves_match_seeds_task_by_task(found):
    a, b = anytime_curves(found, "AP")
    first, second = [0.8, 0.8, 0.5], [0.4, 0.65, mean([0.5, 0.6, 0.8])]
    np.testing.assert_allclose(a.mean, [mean(p) for p in zip(first, second, strict=True)])
    np.testing.assert_allclose(a.sd, [stdev(p) for p in zip(first, second, strict=True)])
    assert np.isnan(b.sd).all()
    assert a.clips.tolist() == [10, 20, 30]
    assert [row[4:6] for row in anytime_rows([b])[1]] == [(1, 10), (2, 20), (3, 30)]


def test_a_system_looks_the_same_in_all_figures_and_like_no_other():
    look = styles([f"system{number}" for number in range(20)])
    assert len(set(look.values())) == 20
    assert look["system3"] == styles([f"system{number}" for number in range(5)])["system3"]


def test_figures_are_pictures_with_the_same_bytes_each_time(found):
    look = styles(found.systems)
    for draw in (
        lambda: draw_heat_maps(heat_maps(found, "F"), "Max-F"),
        lambda: draw_transfers(transfers(found, "AP"), look, "mAP"),
        lambda: draw_anytime(anytime_curves(found, "AP"), look, "mAP"),
        lambda: draw_radars(radars(found, "AP"), look, "mAP"),
    ):
        once, again = draw(), draw()
        picture = png(once)
        assert picture == png(again)
        assert svg(once) == svg(again)
        assert Image.open(io.BytesIO(picture)).width > 600


# -- strips ------------------------------------------------------------------------------------


def with_pictures(folder, clips=("t/0", "t/1"), marked=slice(0, 4)):
    """Two pictures of 8 x 8 pixels: the truth is the left half, the mask the columns ``marked``."""
    tasks = tuple(Task(k, f"task{k}", (f"x{k}",), (f"t/{k}",), (), ()) for k in range(2))
    Manifest(Protocol("task-free"), "toy", tasks, (), (), ()).write(folder / "manifest.json")
    truth, probs = np.zeros((2, 8, 8), bool), np.full((2, 8, 8), 127, np.uint8)
    truth[:, :, :4] = True
    probs[:, :, marked] = 128
    (folder / "examples").mkdir()
    arrays = {"clips": np.array(clips), "frames": np.full(2, 2), "truth": truth, "probs": probs}
    images = np.full((2, 8, 8, 3), 90, np.uint8)
    np.savez_compressed(folder / "examples" / "001.npz", images=images, **arrays)


def test_strips_show_the_first_seed_with_masks_above_one_half(tmp_path):
    for seed in (1, 2):
        with_pictures(write_run(tmp_path, "a", seed=seed))
    with_pictures(write_run(tmp_path, "b", seed=1), marked=slice(2, 6))
    with_pictures(write_run(tmp_path, "c", seed=1), clips=("t/1", "t/0"))
    write_run(tmp_path, "a", seed=0)  # without pictures
    found = study(read_runs([tmp_path])[0])
    (strip,) = strips(found, found.systems)
    assert (strip.seed, strip.clips, strip.tasks) == (1, ("t/0", "t/1"), (0, 1))
    assert list(strip.masks) == ["a", "b"]  # c shows other clips
    assert strip.masks["b"].sum(axis=(1, 2)).tolist() == [32, 32]
    assert strip.iou["a"] == pytest.approx([1, 1])
    assert strip.iou["b"] == pytest.approx([16 / 48, 16 / 48])
    assert draw_strip(strip).height > 4 * 200
    assert list(strips(found, ["b"])[0].masks) == ["b"]


def test_broken_pictures_are_an_error(tmp_path):
    folder = write_run(tmp_path)
    (folder / "examples").mkdir()
    (folder / "examples" / "000.npz").write_bytes(b"no")
    with pytest.raises(ReportError, match=r"000\.npz cannot be read as examples"):
        strips(study(read_runs([tmp_path])[0]), ["atlas"])

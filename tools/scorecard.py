"""`atlasd score`: how good weights are, as a person reads it and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..model.network import Network
from ..model.presets import build, load
from ..streams.avsbench import AVSBench, Entry, Split
from ..streams.avslayout import find_subset
from . import probe
from .masksheet import mask_sheet
from .score import nulls, report
from .trainoptions import TrainError


def score_masks(
    data: Path,
    *,
    weights: Path | None = None,
    preset: str = "atlas-lite",
    split: Split = "val",
    json_path: Path | None = None,
    pictures: Path | None = None,
    console: Console | None = None,
) -> dict[str, dict[str, Any]]:
    """Score the clips of a split with their own sound, with none, and with another clip's.

    Args:
        data: a data set in AVSBench's layout. Clips of its ``test`` split with cut-outs never seen
            in training (Open-AVS) are reported apart, as ``test_novel``.
        weights: a checkpoint; None is what ships.
        preset: the network whose shipped weights are scored.
        split: which clips; open ``test`` once per released version.
        json_path: where to write all numbers, or None.
        pictures: folder for a sheet of masks a subset and split, the worst first, or None.
        console: where to print, or None for standard output.

    Returns:
        `score.report` by the name of the subset and split.

    Raises:
        TrainError: the data set has no such clips.
        DatasetError: a file is missing or cannot be decoded.
        WeightsError: the weights cannot be read.
    """
    network = _network(weights, preset)
    table = _table(f"{network.preset.name} {network.version} on {data}", "split")
    for column in ("clips", "J", "J object", "silent", "other's", "F", "swaps", "quiet"):
        table.add_column(column, justify="right", no_wrap=True)
    results: dict[str, dict[str, Any]] = {}
    for name, entries in _groups(data, split).items():
        results[name] = dict(report(network, entries))
        table.add_row(name, str(len(entries)), *_cells(results[name]))
        if pictures is not None:
            pictures.mkdir(parents=True, exist_ok=True)
            mask_sheet(network, entries).save(pictures / f"{name.replace(' ', '-')}.png")
    table.caption = (
        "J object: of frames with an object, with its own sound, without one, with another clip's"
    )
    (console or Console()).print(table)
    _write(json_path, {"version": network.version, "data": str(data), "results": results})
    return results


def score_sounds(
    *,
    weights: Path | None = None,
    preset: str = "atlas-lite",
    packages: Path | None = None,
    split: Split = "val",
    leave_one_out: bool = False,
    json_path: Path | None = None,
    console: Console | None = None,
) -> dict[str, probe.Told]:
    """Probe the audio encoder: a linear classifier of Open-AVS's 23 categories.

    Args:
        weights: a checkpoint; None is what ships.
        preset: the network whose shipped weights are probed.
        packages: folder with the Debian packages; None asks apt.
        split: whose recordings are asked about; those of ``train`` teach. Open ``test`` once per
            released version.
        leave_one_out: also ask about each recording of ``train`` and ``val`` what the others teach.
        json_path: where to write all numbers, or None.
        console: where to print, or None for standard output.

    Raises:
        PackageError: a package cannot be had.
        WeightsError: the weights cannot be read.
    """
    console = console or Console()
    network = _network(weights, preset)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("recordings", total=None)
        splits = list(dict.fromkeys(("train", "val", split) if leave_one_out else ("train", split)))
        heard = probe.hear(network, packages, splits, lambda: bar.advance(task))
        learned = [h for h in heard if h.split == "train"]
        asked = [h for h in heard if h.split == split]
        told: dict[str, probe.Told] = {}
        for name, played in (("recordings", False), ("melodies", True)):
            chosen = [h for h in asked if h.played == played]
            if chosen:
                told[f"{split} {name}"] = probe.unseen(learned, chosen)
        if leave_one_out:
            both = [h for h in heard if h.split != "test"]
            task = bar.add_task("leaving one out", total=len(both))
            told["leave one out"] = probe.leave_one_out(both, lambda: bar.advance(task))
    table = _table(f"{network.preset.name} {network.version}: linear probe", "asked about")
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("accuracy", justify="right", no_wrap=True)
    table.add_column("weakest")
    for name, one in told.items():
        weakest = sorted(one.by_category.items(), key=lambda item: item[1])[:5]
        told_of = ", ".join(f"{category} {share:.2f}" for category, share in weakest)
        accuracy = _with_interval(one.accuracy, (one.low, one.high))
        table.add_row(name, str(one.recordings), accuracy, told_of)
    console.print(table)
    named = {name: asdict(one) for name, one in told.items()}
    _write(json_path, {"version": network.version, "results": named})
    return told


def _network(weights: Path | None, preset: str) -> Network:
    return build(preset) if weights is None else load(weights)


def _groups(data: Path, split: Split) -> dict[str, list[Entry]]:
    """Clips by subset and split; of ``test`` those with unseen cut-outs apart, where there are."""
    splits: list[Split] = ["test", "test_novel"] if split == "test" else [split]
    groups: dict[str, list[Entry]] = {}
    for subset in ("s4", "ms3"):
        if find_subset(data, subset) is None:
            continue
        found = AVSBench(data, subset, labels="all")
        groups |= {f"{subset} {name}": clips for name in splits if (clips := found.clips(name))}
    if not groups:
        raise TrainError(f"no {split} clips in {data}")
    return groups


def _table(title: str, first: str) -> Table:
    """A table that fits 80 columns."""
    table = Table(title=title, box=None, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    return table


def _cells(result: Mapping[str, Any]) -> list[str]:
    own, spread = result["own"], result["intervals"]
    J, J_object, swaps = (
        _with_interval(own[key], spread.get(f"{key} by recording"))
        for key in ("J", "J_object", "swaps")
    )
    controls = [f"{result[sound]['J_object']:.3f}" for sound in ("none", "other")]
    return [J, J_object, *controls, f"{own['F']:.3f}", swaps, f"{own['quiet']:.2f}"]


def _with_interval(value: float, interval: tuple[float, float] | None) -> str:
    if interval is None:
        return ""
    return f"{value:.3f}\n{interval[0]:.2f}-{interval[1]:.2f}"


def _write(path: Path | None, content: Mapping[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(nulls(content), indent=2) + "\n", encoding="utf-8")

"""The stream experiment: a daemon gets better on the new. Does it lose the old, and do masks wait?

A base that knows half of the classes is deployed; the other half streams in as labeled clips with
blurry boundaries, while masks are made of a video. Beside ATLAS the same without base importance,
without anchoring, and fine-tuning of all parts. Real processes throughout: what is measured is what
a user gets.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ..streams.toyworld import write_dataset
from .countbar import count_bar
from .film import write_film
from .machine import machine
from .reportdrawing import png
from .runfolder import write_bytes, write_json
from .studybase import train_base
from .studyfigures import draw_latencies, draw_scores
from .studyplan import StudyOptions, plan_of
from .studyrun import System, SystemResult, run_system

SYSTEMS: tuple[System, ...] = (
    System("atlas", "ATLAS", ("method=atlas",)),
    System("atlas-zero", "LRA, no base importance", ("method=atlas", "base=zero")),
    System("no-lra", "no LRA", ("method=finetune",)),
    System("finetune", "Finetune", ("method=finetune", "parts=all")),
)

_TOY_CLIPS = {"train": 12, "val": 2, "test": 6}


def study(
    options: StudyOptions,
    *,
    systems: Sequence[str] = (),
    console: Console | None = None,
) -> list[SystemResult]:
    """Run the experiment, or what is left of it, and draw it.

    Args:
        options: what is repeated.
        systems: names of `SYSTEMS`; none: all.
        console: where to report; None is the terminal.

    Returns:
        A result a system and seed. ``results.json``, ``scores.png`` and ``latency.png`` lie in the
        folder.

    Raises:
        DaemonError: a daemon did not do what it must.
        DatasetError, ProtocolError: the data set.
    """
    console = console or Console()
    chosen = [system for system in SYSTEMS if not systems or system.name in systems]
    results: list[SystemResult] = []
    video = _video(options)
    with count_bar(console) as bar:
        for seed in options.seeds:
            plan = plan_of(options, seed)
            folder = options.out / f"seed{seed}"
            base = train_base(options, plan, seed, folder, bar)
            for system in chosen:
                results.append(
                    run_system(options, plan, system, seed, base, video, folder / system.name, bar)
                )
                _write(options.out, results)
    console.print(_table(results))
    console.print(f"figures and results.json in {options.out}", soft_wrap=True)
    return results


def toy_data(folder: Path) -> Path:
    """The toy world as the experiment's data: a small one, in half a minute."""
    root = folder / "toy"
    return root if (root / "dataset.json").exists() else write_dataset(root, _TOY_CLIPS)


def _video(options: StudyOptions) -> Path:
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"film-{options.fps}.mkv"
    return path if path.exists() else write_film(path, fps=options.fps)


def _write(out: Path, results: Sequence[SystemResult]) -> None:
    titles = {system.name: system.title for system in SYSTEMS}
    told = {"machine": machine(), "results": [asdict(result) for result in results]}
    write_json(out / "results.json", told)
    write_bytes(out / "scores.png", png(draw_scores(results, titles)))
    write_bytes(out / "latency.png", png(draw_latencies(results, titles)))


def summary(results: Sequence[SystemResult], system: str) -> dict[str, list[float]]:
    """Numbers of a system, one of each seed, by name.

    ``old_lost`` and ``new_gained`` are points of mean J from the base to the last version.
    """
    mine = [result for result in results if result.system == system]
    latencies = {
        phase: [float(np.percentile(r.latency_ms[phase], 99)) for r in mine]
        for phase in ("before", "during", "after")
    }
    return {
        "old_before": [100 * r.points[0].old for r in mine],
        "old_lost": [100 * (r.points[0].old - r.points[-1].old) for r in mine],
        "new_before": [100 * r.points[0].new for r in mine],
        "new_gained": [100 * (r.points[-1].new - r.points[0].new) for r in mine],
        "a_auc": [100 * r.prequential[-1][2] for r in mine],
        "p99_before_ms": latencies["before"],
        "p99_during_ms": latencies["during"],
        "p99_after_ms": latencies["after"],
        "stall_max_ms": [max(r.stalls_ms, default=0.0) for r in mine],
        "refused": [float(r.refused) for r in mine],
        "learn_s": [r.learn_s for r in mine],
    }


def _table(results: Sequence[SystemResult]) -> Table:
    table = Table(title="Half of the classes deployed, the other half as a stream: mean J, points")
    heads = ("old before", "old lost", "new before", "new gained", "A_AUC")
    for head in ("system", *heads, "mask p99 before/during/after, ms", "longest stall, ms"):
        table.add_column(head, justify="left" if head == "system" else "right")
    for system in SYSTEMS:
        if not any(result.system == system.name for result in results):
            continue
        told = summary(results, system.name)
        keys = ("old_before", "old_lost", "new_before", "new_gained", "a_auc")
        p99 = "/".join(
            f"{statistics.mean(told[f'p99_{phase}_ms']):.0f}"
            for phase in ("before", "during", "after")
        )
        stall = f"{max(told['stall_max_ms']):.1f}"
        table.add_row(system.title, *(_spread(told[key]) for key in keys), p99, stall)
    return table


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.1f}"

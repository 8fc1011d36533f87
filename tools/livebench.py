"""Measure what learning costs the masks: latency with the learner off and on, swaps, memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from ..daemon.config import Config, load_config
from ..daemon.labelclient import LabelClient
from ..daemon.labelclips import write_clip
from ..daemon.latency import PERCENTILES
from ..daemon.memory import resident_mb
from ..daemon.orders import Order, OrderName
from ..streams.toyworld import make_clip
from .countbar import count_bar
from .film import write_film
from .labeler import Labeler
from .livedaemon import LiveDaemon
from .machine import machine
from .turns import SIDES, Turns

LATENCY_BAR = 1.2
"""Most that p99 of mask latency with the learner on may be of p99 with it off."""

_CLIPS = 64
_SETTLE_S, _BETWEEN_S = 5.0, 1.0
_PATIENCE_S = 120.0
_WAITING = 24
"""Clips that are kept waiting, so that the learner never rests."""


@dataclass(frozen=True, slots=True)
class LiveReport:
    """What `bench_live` measured.

    Attributes:
        machine: that it was measured on.
        preset: the network.
        device: of masks and of the learner.
        fps: frames a second of the source.
        frames: masks of each phase.
        rounds: phases with the learner on; one more is without.
        latency_ms: p50, p95 and p99, capture to publication, of all phases ``off`` and ``on``.
        p99_ms: of each phase, in order: off, on, off, ..., off.
        ratio: p99 ``on`` over p99 ``off``.
        interval: 95 % of the ratio; see `Turns.interval`.
        learned: clips learned while it was on.
        swaps: weights swapped in meanwhile.
        stall_ms: the longest time in which a swap held up frames.
        frame_ms: the time between two frames, which a stall must not reach.
        memory_mb: resident set of the daemon's process after warming up, and at the end.
        passed: whether latency and stalls keep to their bars, over a swap a round at least.
    """

    machine: str
    preset: str
    device: str
    fps: int
    frames: int
    rounds: int
    latency_ms: dict[str, dict[str, float]]
    p99_ms: tuple[float, ...]
    ratio: float
    interval: tuple[float, float]
    learned: int
    swaps: int
    stall_ms: float
    frame_ms: float
    memory_mb: tuple[float, float]
    passed: bool


def bench_live(
    preset: str = "atlas-lite",
    *,
    frames: int = 200,
    rounds: int = 5,
    fps: int = 5,
    threads: int = 0,
    device: str = "cpu",
    json_path: Path | None = None,
    console: Console | None = None,
) -> LiveReport:
    """Serve a video in real time, with the learner in turn paused and learning without rest.

    Args:
        preset: the network, with its shipped weights.
        frames: of each phase.
        rounds: phases with the learner on; each lies between two without.
        fps: of the video.
        threads: of the learner; 0: all cores.
        device: of both, as ``cuda:0``: where it is no CPU, they take turns by a token.
        json_path: where to write the report, or None.
        console: where to print, or None for standard output.

    Raises:
        DaemonError: the daemon did not do what it must.
    """
    console = console or Console()
    with tempfile.TemporaryDirectory(prefix="atlasd-bench-") as folder, count_bar(console) as bar:
        here = Path(folder)
        config = _config(here, preset, fps, threads, device)
        report = _measured(config, here, frames, rounds, fps, bar)
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(report), indent=2) + "\n")
    console.print(_table(report))
    return report


def _config(here: Path, preset: str, fps: int, threads: int, device: str) -> Config:
    return load_config(
        overrides=[
            f"source.uri={write_film(here / 'film.mkv', fps=fps)}",
            "source.policy=live",
            f"model.preset={preset}",
            f"model.device={device}",
            f"learner.device={device}",
            f"publish.endpoint=ipc://{here}/bus",
            "publish.wait_for_subscriber_s=60",
            "intake.enabled=true",
            f"intake.endpoint=ipc://{here}/labels",
            f"intake.spool={here / 'spool'}",
            "learner.enabled=true",
            f"learner.threads={threads}",
            "learner.checkpoint_s=10",
        ]
    )


def _measured(
    config: Config, here: Path, frames: int, rounds: int, fps: int, bar: Progress
) -> LiveReport:
    clips = [write_clip(make_clip(seed).labeled_clip()) for seed in range(_CLIPS)]
    phases: list[list[float]] = []
    frame_ms = 1000 / fps
    with LiveDaemon(config, here, (2 * rounds + 1) * frames / fps + _PATIENCE_S) as daemon:

        def is_full() -> bool:
            return daemon.clips is None or daemon.clips.get("pending", 0) >= _WAITING

        daemon.until(lambda: daemon.learner.state == "waiting", "ready to learn")
        _order(config, "pause")
        with Labeler(config.intake.endpoint, clips, is_full) as labeler:
            daemon.listen(_SETTLE_S)
            at_first_mb = resident_mb(daemon.pid) or 0.0
            for number in range(2 * rounds + 1):
                side = SIDES[number % 2]
                _order(config, "resume" if side == "on" else "pause")
                daemon.phase = "between"
                daemon.listen(_BETWEEN_S)
                daemon.phase = f"{number}"
                task = bar.add_task(f"learner {side}", total=frames)
                enough = _enough(daemon, frames, bar, task)
                daemon.until(enough, f"through with phase {number}")
                phases.append(daemon.masks[daemon.phase].latency_ms[:frames])
            labeler.finish()
        memory_mb = at_first_mb, resident_mb(daemon.pid) or 0.0
        learned, stalls_ms = daemon.learner.clips, daemon.stalls_ms
        daemon.leave()
    turns = Turns(phases)
    ratio, stall_ms = turns.ratio(), max(stalls_ms, default=0.0)
    return LiveReport(
        machine=machine(config.learner.device),
        preset=config.model.preset,
        device=config.learner.device,
        fps=fps,
        frames=frames,
        rounds=rounds,
        latency_ms=turns.percentiles(),
        p99_ms=turns.p99(),
        ratio=ratio,
        interval=turns.interval(),
        learned=learned,
        swaps=len(stalls_ms),
        stall_ms=stall_ms,
        frame_ms=frame_ms,
        memory_mb=memory_mb,
        passed=ratio <= LATENCY_BAR and stall_ms < frame_ms and len(stalls_ms) >= rounds,
    )


def _enough(daemon: LiveDaemon, frames: int, bar: Progress, task: TaskID) -> Callable[[], bool]:
    def done() -> bool:
        come = len(daemon.masks[daemon.phase].latency_ms) if daemon.phase in daemon.masks else 0
        bar.update(task, completed=min(come, frames))
        return come >= frames

    return done


def _order(config: Config, name: OrderName) -> None:
    with LabelClient(config.intake.endpoint, timeout_s=_PATIENCE_S) as client:
        client.order(Order(order=name))


def _table(report: LiveReport) -> Table:
    title = f"{report.preset} on {report.device} at {report.fps:g} fps beside its learner"
    title += f", {report.machine}"
    table = Table(title=title)
    for column in ("mask latency, ms", "p50", "p95", "p99"):
        table.add_column(column, justify="left" if column == "mask latency, ms" else "right")
    for side, phases in (("off", report.rounds + 1), ("on", report.rounds)):
        values = (f"{report.latency_ms[side][f'p{p}']:.1f}" for p in PERCENTILES)
        table.add_row(f"learner {side}, {phases} × {report.frames} frames", *values)
    table.add_row("p99 on ÷ off", "", "", f"{report.ratio:.2f} (≤ {LATENCY_BAR})")
    low, high = report.interval
    table.add_row("  95 % of it, phases drawn", "", "", f"{low:.2f} to {high:.2f}")
    table.add_row("p99 of each phase", "", "", " ".join(f"{ms:.0f}" for ms in report.p99_ms))
    stall = f"{report.stall_ms:.1f} (< {report.frame_ms:g})"
    swaps = f"{report.swaps} swaps (≥ {report.rounds})"
    table.add_row(f"longest stall of {swaps}", "", "", stall)
    table.add_row(f"{report.learned} clips learned; memory, MB", "", "", _memory(report))
    table.caption = "all bars held" if report.passed else "a bar was missed"
    return table


def _memory(report: LiveReport) -> str:
    return f"{report.memory_mb[0]:.0f} then {report.memory_mb[1]:.0f}"

"""Measure what learning costs the masks: latency with the learner off and on, swaps, memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from ..daemon.config import Config, load_config
from ..daemon.labelclient import LabelClient
from ..daemon.labelclips import write_clip
from ..daemon.memory import resident_mb
from ..daemon.orders import Order, OrderName
from ..streams.toyworld import make_clip
from .countbar import count_bar
from .film import write_film
from .labeler import Labeler
from .livedaemon import LiveDaemon
from .machine import machine

LATENCY_BAR = 1.2
"""Most that p99 of mask latency with the learner on may be of p99 with it off."""

PHASES = ("off", "on", "off again")

_CLIPS = 64
_SETTLE_S = 5.0
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
        latency_ms: p50, p95 and p99 of each phase, capture to publication.
        ratio: p99 with the learner on over p99 of both phases without.
        learned: clips learned while it was on.
        swaps: weights swapped in meanwhile.
        stall_ms: the longest time in which a swap held up frames.
        frame_ms: the time between two frames, which a stall must not reach.
        memory_mb: resident set of the daemon's process after warming up, and at the end.
        passed: whether latency and stalls keep to their bars.
    """

    machine: str
    preset: str
    device: str
    fps: int
    frames: int
    latency_ms: dict[str, dict[str, float]]
    ratio: float
    learned: int
    swaps: int
    stall_ms: float
    frame_ms: float
    memory_mb: tuple[float, float]
    passed: bool


def bench_live(
    preset: str = "atlas-lite",
    *,
    frames: int = 1000,
    fps: int = 5,
    threads: int = 0,
    device: str = "cpu",
    json_path: Path | None = None,
    console: Console | None = None,
) -> LiveReport:
    """Serve a video in real time, with the learner paused, learning without rest, and paused again.

    Args:
        preset: the network, with its shipped weights.
        frames: of each phase.
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
        report = _measured(config, here, preset, frames, fps, bar)
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
    config: Config, here: Path, preset: str, frames: int, fps: int, bar: Progress
) -> LiveReport:
    clips = [write_clip(make_clip(seed).labeled_clip()) for seed in range(_CLIPS)]
    learned = 0
    with LiveDaemon(config, here, 3 * frames / fps + _PATIENCE_S) as daemon:

        def is_full() -> bool:
            return daemon.clips is None or daemon.clips.get("pending", 0) >= _WAITING

        def see_through(phase: str) -> None:
            daemon.phase = phase
            task = bar.add_task(f"learner {phase}", total=frames)
            daemon.until(_enough(daemon, phase, frames, bar, task), f"through with {phase}")

        daemon.until(lambda: daemon.learner.state == "waiting", "ready to learn")
        _order(config, "pause")
        daemon.listen(_SETTLE_S)
        memory_mb = [resident_mb(daemon.pid) or 0.0]
        for phase in PHASES:
            if phase != "on":
                see_through(phase)
                continue
            with Labeler(config.intake.endpoint, clips, is_full) as labeler:
                _order(config, "resume")
                see_through(phase)
                labeler.finish()
            learned = daemon.learner.clips
            _order(config, "pause")
        memory_mb.append(resident_mb(daemon.pid) or 0.0)
        daemon.leave()
    latencies = {
        phase: {
            f"p{p}": float(np.percentile(daemon.masks[phase].latency_ms[:frames], p))
            for p in (50, 95, 99)
        }
        for phase in PHASES
    }
    without = np.concatenate([daemon.masks[phase].latency_ms[:frames] for phase in PHASES[::2]])
    ratio = latencies["on"]["p99"] / float(np.percentile(without, 99))
    stall_ms = max(daemon.stalls_ms, default=0.0)
    frame_ms = 1000 / fps
    return LiveReport(
        machine=machine(),
        preset=preset,
        device=config.learner.device,
        fps=fps,
        frames=frames,
        latency_ms=latencies,
        ratio=ratio,
        learned=learned,
        swaps=len(daemon.stalls_ms),
        stall_ms=stall_ms,
        frame_ms=frame_ms,
        memory_mb=(memory_mb[0], memory_mb[1]),
        passed=ratio <= LATENCY_BAR and stall_ms < frame_ms and len(daemon.stalls_ms) > 0,
    )


def _enough(
    daemon: LiveDaemon, phase: str, frames: int, bar: Progress, task: TaskID
) -> Callable[[], bool]:
    def done() -> bool:
        come = len(daemon.masks[phase].latency_ms) if phase in daemon.masks else 0
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
    for phase in PHASES:
        values = (f"{report.latency_ms[phase][p]:.1f}" for p in ("p50", "p95", "p99"))
        table.add_row(f"learner {phase}, {report.frames} frames", *values)
    table.add_row("p99 on ÷ off", "", "", f"{report.ratio:.2f} (≤ {LATENCY_BAR})")
    stall = f"{report.stall_ms:.1f} (< {report.frame_ms:g})"
    table.add_row(f"longest stall of {report.swaps} swaps", "", "", stall)
    table.add_row(f"{report.learned} clips learned; memory, MB", "", "", _memory(report))
    table.caption = "all bars held" if report.passed else "a bar was missed"
    return table


def _memory(report: LiveReport) -> str:
    return f"{report.memory_mb[0]:.0f} then {report.memory_mb[1]:.0f}"

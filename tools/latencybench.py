"""Measure capture to publication on a live stream, beside the bare network in the same run."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from ..daemon.config import Config, load_config
from ..daemon.cores import available_cores
from ..daemon.latency import PERCENTILES, Latencies
from ..daemon.parts import build_engine
from ..daemon.pipeline import STAGES, WAITING
from .bareforward import BenchError, bare_pass, last_sample
from .bench import CLIP_FPS, clip_pictures, write_clip
from .countbar import count_bar
from .livecast import Container, LiveCast, record_cast
from .livedaemon import LiveDaemon, Timed
from .machine import machine

FRAME_MS = 1000 / CLIP_FPS
"""Time between two frames of the source."""

_SPARE_FRAMES = 150
_SETTLE_S = 2.0
_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class LatencyReport:
    """What `bench_latency` measured.

    Attributes:
        machine: that it was measured on.
        preset: the network.
        container: that the stream was sent in.
        threads: of torch, in the daemon and for the bare network.
        capacity: of the daemon's queue before the network.
        cores: that a process may use.
        frames: of each round, live and bare.
        rounds: of bare network and daemon in turn.
        bare_ms: p50, p95 and p99 of the bare forward, run at the pace of the stream.
        total_ms: the same of a mask's time from capture to publication.
        stages_ms: the same by stage.
        frame_ms: the time between two frames.
        bar_ms: most that p95 of the total may be: `frame_ms` and p95 of the daemon's ``infer``,
            beside which sender, reader and subscriber take the same cores.
        bare_bar_ms: `frame_ms` and p95 of the bare forward, which has all cores to itself.
        fps: masks a second, the least of the rounds.
        passed: whether p95 keeps to `bar_ms`.
        passed_bare: whether p95 keeps to `bare_bar_ms`.
    """

    machine: str
    preset: str
    container: str
    threads: int
    capacity: int
    cores: int
    frames: int
    rounds: int
    bare_ms: dict[str, float]
    total_ms: dict[str, float]
    stages_ms: dict[str, dict[str, float]]
    frame_ms: float
    bar_ms: float
    bare_bar_ms: float
    fps: float
    passed: bool
    passed_bare: bool


def bench_latency(
    preset: str = "atlas-lite",
    *,
    frames: int = 500,
    rounds: int = 3,
    threads: int = 0,
    capacity: int | None = None,
    container: Container = "flv",
    weights: Path | None = None,
    json_path: Path | None = None,
    console: Console | None = None,
) -> LatencyReport:
    """Time a daemon on a live stream of 640 x 360 pictures with sound, 25 a second.

    In turn, the bare network (log-mel and picture ready) at the same pace and with as many
    threads, and a daemon whose masks a subscriber in this process receives. The stream is sent over
    a loopback socket as a camera would (see `livecast`): so reading it in another process,
    decoding, waiting for sound, queue, network and publication are all in it. Capture is the moment
    that the daemon has by its map of the sender's clock.

    Args:
        preset: the network.
        frames: of each round, live and bare.
        rounds: how many.
        threads: of torch; 0 is the engine's choice.
        capacity: `queue.capacity`; None: the configuration's default.
        container: that the stream is sent in.
        weights: a checkpoint; None: the shipped one.
        json_path: where to write the report, or None.
        console: where to print, or None for standard output.

    Raises:
        BenchError: fewer than one round or two frames.
        DaemonError: the daemon did not do what it must.
    """
    if rounds < 1 or frames < 2:
        raise BenchError(f"{rounds} rounds of {frames} frames; at least 1 round of 2 is needed")
    console = console or Console()
    bare, total, stages = Latencies(), Latencies(), Latencies()
    fps: list[float] = []
    with ExitStack() as opened:
        here = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="atlasd-bench-")))
        bar = opened.enter_context(count_bar(console))
        parts = record_cast(clip_pictures(2 * frames + _SPARE_FRAMES), CLIP_FPS, container)
        cast = opened.enter_context(LiveCast(parts, container))
        config = _config(here, cast.url, preset, threads, capacity, weights)
        engine = build_engine(config)
        engine.warm()
        sample = last_sample(write_clip(here / "clip.mp4", 2 * CLIP_FPS), engine)
        forward = bare_pass(engine, sample, 1)
        task = bar.add_task("bare network, then daemon", total=2 * rounds * frames)
        for _ in range(rounds):
            _time_bare(forward, frames, bare, bar, task)
            fps.append(_time_daemon(config, here, frames, total, stages))
            bar.advance(task, frames)
        engine.close()
        used = engine.threads
    bare_ms, total_ms = bare.percentiles()["bare"], total.percentiles()["total"]
    stages_ms = stages.percentiles()
    bar_ms, bare_bar_ms = FRAME_MS + stages_ms["infer"]["p95"], FRAME_MS + bare_ms["p95"]
    report = LatencyReport(
        machine=machine(),
        preset=preset,
        container=container,
        threads=used,
        capacity=config.queue.capacity or WAITING["live"],
        cores=available_cores(),
        frames=frames,
        rounds=rounds,
        bare_ms=bare_ms,
        total_ms=total_ms,
        stages_ms=stages_ms,
        frame_ms=FRAME_MS,
        bar_ms=bar_ms,
        bare_bar_ms=bare_bar_ms,
        fps=min(fps),
        passed=total_ms["p95"] <= bar_ms,
        passed_bare=total_ms["p95"] <= bare_bar_ms,
    )
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(report), indent=2) + "\n")
    console.print(_table(report))
    return report


def _config(
    here: Path,
    url: str,
    preset: str,
    threads: int,
    capacity: int | None,
    weights: Path | None,
) -> Config:
    return load_config(
        overrides=[
            f"source.uri={url}",
            "source.kind=live",
            f"model.preset={preset}",
            f"model.threads={threads}",
            *([f"queue.capacity={capacity}"] if capacity else ()),
            *([f"model.weights={weights}"] if weights else ()),
            f"publish.endpoint=ipc://{here}/bus",
        ]
    )


def _time_bare(
    forward: Callable[[], None], frames: int, bare: Latencies, bar: Progress, task: TaskID
) -> None:
    """One forward pass for each frame when it is due, as the daemon has it."""
    began = time.monotonic()
    for number in range(frames):
        time.sleep(max(0.0, began + number * FRAME_MS / 1e3 - time.monotonic()))
        then = time.perf_counter()
        forward()
        bare.add({"bare": (time.perf_counter() - then) * 1e3})
        bar.advance(task)


def _time_daemon(
    config: Config, here: Path, frames: int, total: Latencies, stages: Latencies
) -> float:
    """A daemon's life; masks a second."""
    with LiveDaemon(config, here, frames * FRAME_MS / 1e3 + _PATIENCE_S) as daemon:
        daemon.until(lambda: daemon.first_mask_s is not None, "serving")
        daemon.listen(_SETTLE_S)
        daemon.phase = "timed"
        timed = daemon.masks.setdefault("timed", Timed())
        daemon.until(lambda: len(timed.latency_ms) >= frames, f"through with {frames} frames")
        daemon.leave()
    for ms in timed.latency_ms[:frames]:
        total.add({"total": ms})
    for stage in timed.stages:
        stages.add(stage)
    return timed.fps


def _table(report: LatencyReport) -> Table:
    title = (
        f"{report.preset}, {report.threads} threads, {report.cores} cores, {report.machine}: "
        f"{report.rounds} × {report.frames} frames in {report.container}, "
        f"queue of {report.capacity}"
    )
    table = Table(title=title)
    for column in ("ms", "p50", "p95", "p99"):
        table.add_column(column, justify="left" if column == "ms" else "right")
    rows = {"bare forward": report.bare_ms, "capture to publication": report.total_ms}
    rows |= {f"  {name}": report.stages_ms[name] for name in (*STAGES, "pack")}
    for name, values in rows.items():
        table.add_row(name, *(f"{values[f'p{p}']:.1f}" for p in PERCENTILES))
    for name, bar_ms in (("infer", report.bar_ms), ("the bare forward", report.bare_bar_ms)):
        sum_of = f"{report.frame_ms:g} + {bar_ms - report.frame_ms:.1f} = {bar_ms:.1f}"
        table.add_row(f"a frame's time and {name}", "", sum_of, "")
    held = {True: "held", False: "missed"}
    verdicts = (
        f"the bar (infer) is {held[report.passed]}, by the bare forward {held[report.passed_bare]}"
    )
    table.caption = f"{report.fps:.1f} masks a second; {verdicts}"
    return table

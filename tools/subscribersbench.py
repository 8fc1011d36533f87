"""Measure what subscribers that come and go cost a daemon: its latency without and with them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..daemon.config import Config, load_config
from ..daemon.latency import PERCENTILES
from .bareforward import BenchError
from .countbar import count_bar
from .film import write_film
from .livedaemon import LiveDaemon, Timed
from .machine import machine
from .turns import Turns

LATENCY_BAR = 1.1
"""Most that p99 of mask latency with subscribers passing may be of p99 without."""

_SETTLE_S = 2.0
_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class SubscribersReport:
    """What `bench_subscribers` measured.

    Attributes:
        machine: that it was measured on.
        preset: the network.
        fps: frames a second of the source.
        frames: masks of each phase.
        rounds: phases with subscribers; one more is without.
        came: subscribers that came and went.
        at_once: most of them at one time.
        seen: most subscriptions to masks that the daemon told of, the bench's own included.
        latency_ms: p50, p95 and p99, capture to publication, of all phases ``off`` and ``on``.
        p99_ms: of each phase, in order: off, on, off, ..., off.
        ratio: p99 ``on`` over p99 ``off``.
        interval: 95 % of the ratio; see `Turns.interval`.
        lost: masks that a reader of all missed meanwhile.
        passed: whether the ratio keeps to its bar, all came and nothing was lost.
    """

    machine: str
    preset: str
    fps: int
    frames: int
    rounds: int
    came: int
    at_once: int
    seen: int
    latency_ms: dict[str, dict[str, float]]
    p99_ms: tuple[float, ...]
    ratio: float
    interval: tuple[float, float]
    lost: int
    passed: bool


def bench_subscribers(
    preset: str = "atlas-lite",
    *,
    subscribers: int = 1000,
    at_once: int = 20,
    rounds: int = 10,
    frames: int = 200,
    fps: int = 10,
    weights: Path | None = None,
    json_path: Path | None = None,
    console: Console | None = None,
) -> SubscribersReport:
    """Serve a video in real time, in turn alone and while subscribers come and go.

    Args:
        preset: the network.
        subscribers: that come and go, over all rounds.
        at_once: most of them at one time.
        rounds: phases with them; each lies between two without.
        frames: masks of each phase.
        fps: of the video.
        weights: a checkpoint; None: the shipped one.
        json_path: where to write the report, or None.
        console: where to print, or None for standard output.

    Raises:
        BenchError: fewer subscribers than rounds, or they could not come.
        DaemonError: the daemon did not do what it must.
    """
    if rounds < 1 or subscribers < rounds:
        raise BenchError(
            f"{subscribers} subscribers in {rounds} rounds; each round needs at least one"
        )
    console = console or Console()
    with tempfile.TemporaryDirectory(prefix="atlasd-bench-") as folder, count_bar(console) as bar:
        here = Path(folder)
        config = _config(here, preset, fps, weights)
        shares = [
            subscribers * (n + 1) // rounds - subscribers * n // rounds for n in range(rounds)
        ]
        trial = _Trial(config, here, shares, at_once, frames / fps)
        trial.run(frames, bar)
    report = _report(trial, preset, fps, frames, subscribers)
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(report), indent=2) + "\n")
    console.print(_table(report))
    return report


def _config(here: Path, preset: str, fps: int, weights: Path | None) -> Config:
    return load_config(
        overrides=[
            f"source.uri={write_film(here / 'film.mkv', fps=fps)}",
            "source.policy=live",
            "source.repeat=true",
            f"model.preset={preset}",
            *([f"model.weights={weights}"] if weights else ()),
            f"publish.endpoint=ipc://{here}/bus",
        ]
    )


class _Trial:
    """One daemon, heard in phases."""

    def __init__(
        self, config: Config, here: Path, shares: Sequence[int], at_once: int, phase_s: float
    ) -> None:
        self._config, self._here, self._shares = config, here, shares
        self._phase_s = phase_s
        self.at_once = at_once
        self.came = self.seen = self.lost = 0
        self.latency_ms: list[list[float]] = []

    def run(self, frames: int, bar: Progress) -> None:
        phases = 2 * len(self._shares) + 1
        patience_s = phases * self._phase_s + _PATIENCE_S
        with LiveDaemon(self._config, self._here, patience_s) as daemon:
            daemon.until(lambda: daemon.first_mask_s is not None, "serving")
            for number in range(phases):
                daemon.phase = "between"
                daemon.listen(_SETTLE_S)
                daemon.phase = f"{number}"
                timed = daemon.masks.setdefault(daemon.phase, Timed())
                enough = _enough(timed, frames, bar, "passers-by" if number % 2 else "alone")
                if number % 2:
                    self._with_passers(daemon, enough, self._shares[number // 2])
                else:
                    daemon.until(enough, f"through with phase {number}")
                self.latency_ms.append(timed.latency_ms[:frames])
            self.seen, self.lost = daemon.subscribers, daemon.lost
            daemon.leave()

    def _with_passers(self, daemon: LiveDaemon, enough: Callable[[], bool], count: int) -> None:
        words = [self._config.publish.endpoint, count, self.at_once, self._phase_s]
        with subprocess.Popen(
            [sys.executable, "-m", "atlasd.tools.passersby", *map(str, words)],
            stdout=subprocess.PIPE,
            text=True,
        ) as passers:
            try:
                daemon.until(enough, "through with a phase of passers-by")
                told, _ = passers.communicate(timeout=_PATIENCE_S)
            finally:
                passers.kill()
        if passers.returncode != 0:
            raise BenchError(f"the passers-by ended with exit code {passers.returncode}")
        self.came += int(told)


def _enough(timed: Timed, frames: int, bar: Progress, what: str) -> Callable[[], bool]:
    task = bar.add_task(what, total=frames)

    def enough() -> bool:
        bar.update(task, completed=min(len(timed.latency_ms), frames))
        return len(timed.latency_ms) >= frames

    return enough


def _report(
    trial: _Trial, preset: str, fps: int, frames: int, subscribers: int
) -> SubscribersReport:
    turns = Turns(trial.latency_ms)
    ratio = turns.ratio()
    return SubscribersReport(
        machine=machine(),
        preset=preset,
        fps=fps,
        frames=frames,
        rounds=len(trial.latency_ms) // 2,
        came=trial.came,
        at_once=trial.at_once,
        seen=trial.seen,
        latency_ms=turns.percentiles(),
        p99_ms=turns.p99(),
        ratio=ratio,
        interval=turns.interval(),
        lost=trial.lost,
        passed=ratio <= LATENCY_BAR and trial.came >= subscribers and trial.lost == 0,
    )


def _table(report: SubscribersReport) -> Table:
    title = f"{report.preset} at {report.fps} fps, subscribers come and go, {report.machine}"
    table = Table(title=title)
    for column in ("mask latency, ms", "p50", "p95", "p99"):
        table.add_column(column, justify="left" if column == "mask latency, ms" else "right")
    came = f"{report.came} came and went, at most {report.at_once} at once"
    for name, phases, words in (("off", report.rounds + 1, "alone"), ("on", report.rounds, came)):
        values = (f"{report.latency_ms[name][f'p{p}']:.1f}" for p in PERCENTILES)
        table.add_row(f"{words}, {phases} × {report.frames} frames", *values)
    table.add_row("p99 on ÷ off", "", "", f"{report.ratio:.2f} (≤ {LATENCY_BAR})")
    low, high = report.interval
    table.add_row("  95 % of it, phases drawn", "", "", f"{low:.2f} to {high:.2f}")
    table.add_row("p99 of each phase", "", "", " ".join(f"{ms:.0f}" for ms in report.p99_ms))
    table.add_row("masks lost by a reader of all", "", "", f"{report.lost} (0)")
    table.caption = "all bars held" if report.passed else "a bar was missed"
    return table

"""Measure whether memory is flat: a daemon and its learner over many frames and swaps."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..daemon.config import Config
from ..daemon.labelclips import write_clip
from ..daemon.memory import resident_mb
from ..streams.toyworld import make_clip
from .countbar import count_bar
from .faultstrial import trial_config
from .film import write_film
from .labeler import Labeler
from .livedaemon import LiveDaemon
from .machine import machine

SWAPS_BAR = 100
"""Fewest swaps of weights meanwhile."""

_WARM = 0.4
"""Share of the frames that fill buffers and caches, and do not count: some 8,000 are needed."""
_FILM_S, _REPLAY_MB = 20, 8
_CLIPS, _CLIP_PX, _BACKLOG = 24, 64, 8
_SAMPLE_S, _SAMPLES = 1.0, 100
"""Time between two samples, and how many are taken at least."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Of the resident set of a process, after warming up.

    Attributes:
        first_mb: mean of the first tenth of the samples.
        last_mb: mean of the last tenth.
        rise_mb: of a line through all, over 10,000 frames.
        noise_mb: standard deviation about the line.
    """

    first_mb: float
    last_mb: float
    rise_mb: float
    noise_mb: float

    @property
    def is_flat(self) -> bool:
        """Whether what it grows by in 10,000 frames is lost in the noise."""
        return self.rise_mb <= self.noise_mb

    @classmethod
    def of(cls, frames: Sequence[int], resident: Sequence[float]) -> Growth:
        """Of samples: frames so far, and megabytes.

        Raises:
            ValueError: fewer than ten.
        """
        if len(frames) < 10:
            raise ValueError(f"got {len(frames)} samples; a line needs at least 10")
        x, y = np.asarray(frames, float) / 10_000, np.asarray(resident, float)
        rise, start = np.polyfit(x, y, 1)
        tenth = max(1, len(y) // 10)
        noise = float(np.std(y - start - rise * x))
        return cls(float(y[:tenth].mean()), float(y[-tenth:].mean()), float(rise), noise)


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What `bench_memory` measured.

    Attributes:
        machine: that it was measured on.
        preset: the network.
        frames: masks that were published.
        swaps: of weights meanwhile.
        clips: learned meanwhile.
        daemon: growth of its process.
        learner: growth of its process.
        passed: whether both are flat, over enough swaps.
    """

    machine: str
    preset: str
    frames: int
    swaps: int
    clips: int
    daemon: Growth
    learner: Growth
    passed: bool


def bench_memory(
    preset: str = "tiny",
    *,
    frames: int = 20_000,
    fps: int = 60,
    json_path: Path | None = None,
    console: Console | None = None,
) -> MemoryReport:
    """Serve a film again and again while clips are learned without rest, and watch memory.

    The replay ring is kept small, so that it is full before anything counts. Memory still rises
    over the first 8,000 frames: with far fewer than 20,000 the bar is missed. A learner that dies
    would begin anew, small: it counts as missed.

    Args:
        preset: the network; one without shipped weights gets random ones.
        frames: masks to wait for.
        fps: of the film.
        json_path: where to write the report, or None.
        console: where to print, or None for standard output.

    Raises:
        DaemonError: the daemon did not do what it must.
    """
    console = console or Console()
    with tempfile.TemporaryDirectory(prefix="atlasd-bench-") as folder, count_bar(console) as bar:
        here = Path(folder)
        config = _config(preset, fps, here)
        report = _watched(config, here, frames, fps, bar)
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(report), indent=2) + "\n")
    console.print(_table(report))
    return report


def _config(preset: str, fps: int, here: Path) -> Config:
    config = trial_config(preset, 1, here)
    film = write_film(here / "round.mkv", _FILM_S, fps)
    changes = {
        "source": {"uri": str(film), "repeat": True, "policy": "live"},
        "intake": {"replay_mb": _REPLAY_MB},
        "learner": {"canary_drop": 1.0},  # every batch makes a version
    }
    sections = config.model_dump()
    for section, values in changes.items():
        sections[section] |= values
    return Config.model_validate(sections)


def _watched(config: Config, here: Path, frames: int, fps: int, bar: Progress) -> MemoryReport:
    clips = [
        write_clip(make_clip(k, size_px=_CLIP_PX, kind="plain").labeled_clip())
        for k in range(_CLIPS)
    ]
    samples: list[tuple[int, float, float]] = []
    with LiveDaemon(config, here, 4 * frames / fps + 600) as daemon:
        daemon.until(lambda: daemon.learner.state == "waiting", "ready to learn")

        def is_full() -> bool:
            return daemon.clips is None or daemon.clips.get("pending", 0) >= _BACKLOG

        def served() -> int:
            return sum(len(timed.latency_ms) for timed in daemon.masks.values())

        before = served()  # while the learner was loaded

        def shown() -> int:
            return served() - before

        task = bar.add_task("frames", total=frames)
        with Labeler(config.intake.endpoint, clips, is_full) as labeler:
            while shown() < frames:
                daemon.listen(min(_SAMPLE_S, frames / fps / _SAMPLES))
                sizes = (resident_mb(daemon.pid), resident_mb(daemon.learner.pid))
                samples.append((shown(), sizes[0] or 0.0, sizes[1] or 0.0))
                bar.update(task, completed=min(frames, shown()))
            labeler.finish()
        report = _report(config, samples, daemon)
        daemon.leave()
    return report


def _report(
    config: Config, samples: Sequence[tuple[int, float, float]], daemon: LiveDaemon
) -> MemoryReport:
    warm = [sample for sample in samples if sample[0] >= _WARM * samples[-1][0]]
    frames, served, learned = zip(*warm, strict=True)
    growths = Growth.of(frames, served), Growth.of(frames, learned)
    return MemoryReport(
        machine=machine(),
        preset=config.model.preset,
        frames=samples[-1][0],
        swaps=len(daemon.stalls_ms),
        clips=daemon.learner.clips,
        daemon=growths[0],
        learner=growths[1],
        passed=all(growth.is_flat for growth in growths)
        and not daemon.learner.restarts
        and len(daemon.stalls_ms) >= SWAPS_BAR,
    )


def _table(report: MemoryReport) -> Table:
    swaps = f"{report.swaps} swaps (≥ {SWAPS_BAR})"
    title = f"{report.preset}: {report.frames} frames, {swaps}, {report.clips} clips"
    table = Table(title=f"{title} learned, {report.machine}")
    for column in ("resident set", "first, MB", "last, MB", "MB in 10,000 frames", "noise, MB"):
        table.add_column(column, justify="left" if column == "resident set" else "right")
    for name, growth in (("daemon", report.daemon), ("learner", report.learner)):
        rise = f"{growth.rise_mb:.2f} (≤ {growth.noise_mb:.2f})"
        first, last = f"{growth.first_mb:.1f}", f"{growth.last_mb:.1f}"
        table.add_row(name, first, last, rise, f"{growth.noise_mb:.2f}")
    table.caption = "the bar held" if report.passed else "the bar was missed"
    return table

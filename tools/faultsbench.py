"""Kill a daemon that learns, and its learner, again and again, and count what was lost."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from ..daemon.config import Config
from ..daemon.journal import Journal, read_journal, replay
from ..daemon.labels import PutClip, pack_stored
from ..daemon.learnermain import learn_settings
from ..daemon.learnstore import Kept, Learned, LearnStore
from ..daemon.onlinelearner import LearnState
from ..daemon.parts import base_importance, build_network
from ..daemon.places import learned_folder, spool_folder
from .bareforward import BenchError
from .faultstrial import Trial, Victim, trial_config
from .livedaemon import DaemonError


@dataclass(frozen=True, slots=True)
class Durations:
    """Of something that happened several times, in seconds; None where it never did."""

    count: int
    median_s: float | None
    p95_s: float | None

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Durations:
        """Of these."""
        if not seconds:
            return cls(0, None, None)
        return cls(len(seconds), statistics.median(seconds), float(np.percentile(seconds, 95)))


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of the clips that were granted.

    Attributes:
        granted: clips that the daemon acknowledged.
        consumed: of them, those that the newest checkpoint holds.
        aside: of them, those that wait in quarantine for a person.
        unjudged: of them, those of the last batch, which is learned and waits to be judged.
        lost: of them, all others, and those that no batch has.
        twice: clips in more than one batch that was not released.
        counted: clips that the newest checkpoint counts.
        learned: clips of the batches up to its cursor that were not set aside.
        batches: in the journal.
        refused: of them, those that were set aside.
        leavings: pieces of checkpoints that lie about.
    """

    granted: int
    consumed: int
    aside: int
    unjudged: int
    lost: int
    twice: int
    counted: int
    learned: int
    batches: int
    refused: int
    leavings: int

    @property
    def is_exact(self) -> bool:
        """Whether each clip was learned or set aside, once, and nothing lies about."""
        return not (self.lost or self.twice or self.leavings) and self.counted == self.learned


@dataclass(frozen=True, slots=True)
class FaultsReport:
    """What `bench_faults` found.

    Attributes:
        preset: of the network.
        threads: of the learner.
        seed: of the kills.
        kills: by `SIGKILL`, by victim.
        fate: what became of the clips.
        refusals: of clips, by code; each was granted later.
        deaths: of the learner that nobody ordered.
        first_mask: from the start of a daemon after a kill to its first mask, received.
        learner_back: from the learner's kill until it waits or learns again.
        differing: tensors in which a replay of the journal differs from the newest checkpoint, and
            ``manifest`` where what is no tensor does.
        seconds: that all took.
        passed: nothing was lost, learned twice or otherwise, and nothing died by itself.
    """

    preset: str
    threads: int
    seed: int
    kills: Mapping[Victim, int]
    fate: Fate
    refusals: Mapping[str, int]
    deaths: int
    first_mask: Durations
    learner_back: Durations
    differing: tuple[str, ...]
    seconds: float
    passed: bool


def bench_faults(
    preset: str = "atlas-lite",
    *,
    kills: int = 50,
    seed: int = 0,
    threads: int = 1,
    folder: Path | None = None,
    json_path: Path | None = None,
    console: Console | None = None,
) -> FaultsReport:
    """Kill the learner and the daemon at random moments under load, and count what was lost.

    A daemon serves a film in real time and learns clips of the toy world, which a labeler puts
    without a pause, each until it is granted. `SIGKILL` goes now to the learner, now to the daemon,
    up to four seconds after all is at work again, and at times before that. At the end all is
    learned, and the daemon ends by `SIGTERM`. Then the spool must hold every granted clip as
    learned or set aside, each in one batch; the checkpoint must count the clips of its batches; and
    a process of its own that learns the journal's batches from the beginning must come to the same
    state, bit by bit.

    Args:
        preset: the network; one without shipped weights gets random ones.
        kills: of the learner, and as many of the daemon.
        seed: of the order and the moments of kills.
        threads: of the learner and of the replay.
        folder: where spool, checkpoints and log stay, with a short path; None: nothing stays.
        json_path: where to write the report, or None.
        console: where to print, or None for standard output.

    Raises:
        BenchError: the folder is not empty, the daemon ended by itself, or the learner was given up
            or does not come back.
    """
    console = console or Console()
    began = time.monotonic()
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = trial_config(preset, threads, _empty(folder))
        trial = Trial(config, folder, seed)
        progress = stack.enter_context(Progress(console=console, transient=True))
        task = progress.add_task(f"{preset}: kills", total=2 * kills)
        try:
            trial.run(kills, lambda _: progress.advance(task))
        except DaemonError as error:
            raise BenchError(f"after {dict(trial.kills)} kills: {error}") from error
        progress.update(task, description=f"{preset}: replay of the journal")
        kept, state = _newest(config)
        fate = fate_of(
            trial.granted,
            read_journal(spool_folder(config)),
            kept.learned,
            leavings=sum(1 for _ in learned_folder(config).glob(".*")),
        )
        differing = _replayed(config, kept, state, trial)
    report = FaultsReport(
        preset=preset,
        threads=threads,
        seed=seed,
        kills=dict(trial.kills),
        fate=fate,
        refusals=dict(trial.refused),
        deaths=trial.deaths,
        first_mask=Durations.of(trial.first_mask_s),
        learner_back=Durations.of(trial.learner_back_s),
        differing=differing,
        seconds=time.monotonic() - began,
        passed=fate.is_exact and not differing and not trial.deaths,
    )
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(report), indent=2) + "\n")
    console.print(_table(report))
    return report


def _empty(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise BenchError(f"{folder} is not empty; choose a new folder")
    return folder


def _newest(config: Config) -> tuple[Kept, LearnState]:
    found = LearnStore(learned_folder(config)).newest()
    if found is None:
        raise BenchError(f"{learned_folder(config)} holds no checkpoint")
    return found


def fate_of(granted: Collection[str], journal: Journal, learned: Learned, leavings: int) -> Fate:
    """What became of clips.

    Args:
        granted: ids that the daemon acknowledged.
        journal: of its spool, once it has ended.
        learned: what its newest checkpoint says.
        leavings: pieces of checkpoints that lie about.
    """
    held = [batch for batch in journal.batches if batch.state != "released"]
    last = journal.unjudged()
    batches_of = Counter(clip_id for batch in held for clip_id in batch.ids)
    states = {clip_id: journal.clips.get(clip_id) for clip_id in granted if batches_of[clip_id]}
    consumed = sum(state == "consumed" for state in states.values())
    aside = sum(state == "quarantined" for state in states.values())
    unjudged = sum(clip_id in states for clip_id in last)
    batches = journal.learned(learned.cursor)
    return Fate(
        granted=len(granted),
        consumed=consumed,
        aside=aside,
        unjudged=unjudged,
        lost=len(granted) - consumed - aside - unjudged,
        twice=sum(count > 1 for count in batches_of.values()),
        counted=learned.tally.clips,
        learned=sum(len(batch.ids) for batch in batches),
        batches=len(journal.batches),
        refused=sum(batch.state != "journaled" for batch in journal.batches),
        leavings=leavings,
    )


def _replayed(config: Config, kept: Kept, state: LearnState, trial: Trial) -> tuple[str, ...]:
    """Learn the journal again in a new process; what differs from the newest checkpoint."""
    spawn = multiprocessing.get_context("spawn")
    threads = config.learner.threads
    with ProcessPoolExecutor(1, spawn, torch.set_num_threads, (threads,)) as pool:
        again = pool.submit(
            _learned_again, config, kept.learned.cursor, trial.clips, trial.granted
        ).result()
    names = [*state.tensors, *(name for name in again.tensors if name not in state.tensors)]
    differing = [n for n in names if not _equal(again.tensors.get(n), state.tensors.get(n))]
    return (*differing, *(["manifest"] if again.manifest != state.manifest else []))


def _learned_again(
    config: Config, cursor: int, clips: Sequence[PutClip], granted: Mapping[str, int]
) -> LearnState:
    def payload(clip_id: str) -> bytes:
        return pack_stored(replace(clips[granted[clip_id]], id=clip_id))

    batches = read_journal(spool_folder(config)).learned(cursor)
    base = build_network(config)
    importance = base_importance(config, base)
    return replay(base, learn_settings(config), batches, payload, importance).state()


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def _table(report: FaultsReport) -> Table:
    fate = report.fate
    killed = ", ".join(f"{name} {count}" for name, count in sorted(report.kills.items()))
    table = Table(title=f"{report.preset}, {report.threads} threads: kill -9 ({killed})")
    for column in ("what", "measured", "bar"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for what, measured, bar in (
        ("clips granted", fate.granted, ""),
        ("of them learned", fate.consumed, ""),
        ("of them set aside", fate.aside, ""),
        ("of them learned last, not judged yet", fate.unjudged, ""),
        ("of them lost", fate.lost, "0"),
        ("in two batches", fate.twice, "0"),
        ("clips that the checkpoint counts", fate.counted, str(fate.learned)),
        ("batches, of them refused", f"{fate.batches}, {fate.refused}", ""),
        ("pieces of checkpoints that lie about", fate.leavings, "0"),
        ("clips refused for a while", sum(report.refusals.values()), ""),
        ("deaths of the learner by itself", report.deaths, "0"),
        ("start of the daemon to first mask", _told(report.first_mask), ""),
        ("kill of the learner to its return", _told(report.learner_back), ""),
        ("tensors other than the replay's", len(report.differing), "0"),
    ):
        table.add_row(what, str(measured), bar)
    verdict = "[green]passed[/]" if report.passed else "[red]failed[/]"
    table.caption = f"{report.seconds / 60:.1f} minutes: {verdict}"
    return table


def _told(times: Durations) -> str:
    if times.median_s is None or times.p95_s is None:
        return "never"
    return f"{times.median_s:.1f} s, p95 {times.p95_s:.1f} s, of {times.count}"

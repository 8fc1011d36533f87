"""One system of the stream experiment: a real daemon that learns a stream while it makes masks."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.progress import Progress

from ..daemon.clipbatch import batches_of
from ..daemon.config import Config, load_config
from ..daemon.labelclient import LabelClient
from ..daemon.learnstore import LearnStore
from ..daemon.onlinelearner import frame_scores
from ..daemon.orders import Order
from ..model.method import Batch
from ..model.presets import load
from ..streams.clips import Clip, LabeledClip
from .label import LabelFacts, label_of_entry
from .livedaemon import LiveDaemon
from .runfolder import write_json
from .studyplan import StudyOptions, StudyPlan

PHASES = ("before", "during", "after")
"""Masks alone, beside the learner, and alone again."""

_LEARN_S = 3600.0
_ORDER_S = 300.0
_VERSIONS = 64
_SCORED = 12
_LABEL_PX = 224


@dataclass(frozen=True, slots=True)
class System:
    """A way to learn that is compared.

    Attributes:
        name: of its folder.
        title: what figures call it.
        settings: ``learner.KEY=VALUE`` of the daemon's configuration.
    """

    name: str
    title: str
    settings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """A version's scores: mean J on the test clips of old and new classes, after so many clips."""

    version: str
    clips: int
    old: float
    new: float


@dataclass(slots=True)
class SystemResult:
    """What came of one system with one seed.

    Attributes:
        system: its name.
        seed: its seed.
        points: scores of versions, from the base to the last.
        prequential: (clips, mean J of the latest frames before they were learned, A_AUC).
        latency_ms: of masks, capture to publication, by phase.
        stalls_ms: of the swaps.
        refused: batches that the canary set aside.
        learn_s: seconds from the first clip put to the last one learned.
        fps: masks a second, by phase.
    """

    system: str
    seed: int
    points: list[Point] = field(default_factory=list[Point])
    prequential: list[tuple[int, float, float]] = field(
        default_factory=list[tuple[int, float, float]]
    )
    latency_ms: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    stalls_ms: list[float] = field(default_factory=list[float])
    refused: int = 0
    learn_s: float = 0.0
    fps: dict[str, float] = field(default_factory=dict[str, float])

    def write(self, path: Path) -> None:
        """As JSON."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> SystemResult:
        """What `write` wrote."""
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        points = [Point(**point) for point in told.pop("points")]
        curve = [tuple(each) for each in told.pop("prequential")]
        return cls(**told, points=points, prequential=curve)


def run_system(
    options: StudyOptions,
    plan: StudyPlan,
    system: System,
    seed: int,
    base: Path,
    video: Path,
    folder: Path,
    bar: Progress,
) -> SystemResult:
    """Stream the new classes into a daemon, and score the versions that it served.

    Args:
        options: of the experiment.
        plan: the clips.
        system: how to learn.
        seed: of the learner.
        base: the checkpoint to begin with.
        video: what masks are made of meanwhile; it must outlast the stream.
        folder: of this system and seed; a result that is there is taken as it is.
        bar: shows how far it is.

    Raises:
        DaemonError: the daemon ended, or did not learn all in time.
        DatasetError: a clip of the stream cannot be read.
        LabelRefusedError, NoAnswerError: the daemon does not take a clip.
    """
    path = folder / "result.json"
    if path.exists():
        return SystemResult.read(path)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="atlasd-study-") as sockets:
        config = _config(options, system, seed, base, video, folder, Path(sockets))
        result = SystemResult(system.name, seed)
        watch = _Watch(result, len(plan.stream), bar, f"seed {seed}: {system.title}")
        _live(config, plan, options.quiet_s, folder, Path(sockets), watch, result)
    store = LearnStore(Path(str(config.learner.state)), _VERSIONS)
    result.points = _scored(plan, base, store)
    result.write(path)
    return result


def _config(
    options: StudyOptions,
    system: System,
    seed: int,
    base: Path,
    video: Path,
    folder: Path,
    sockets: Path,
) -> Config:
    return load_config(
        overrides=[
            f"source.uri={video}",
            "source.pace=real",
            "source.policy=live",
            f"model.preset={options.preset}",
            f"model.weights={base}",
            "model.device=cpu",
            f"publish.endpoint=ipc://{sockets}/bus",
            "publish.wait_for_subscriber_s=60",
            "publish.status_interval_s=0.5",
            "intake.enabled=true",
            f"intake.endpoint=ipc://{sockets}/labels",
            f"intake.spool={folder / 'spool'}",
            "learner.enabled=true",
            f"learner.state={folder / 'learned'}",
            f"learner.seed={seed}",
            f"learner.lr={options.lr}",
            f"learner.keep={_VERSIONS}",
            "learner.checkpoint_s=0",
            "learner.threads=1",
            "learner.wait_s=2",
            *(f"learner.{setting}" for setting in system.settings),
        ]
    )


class _Watch:
    """What is noted of a daemon while it learns."""

    def __init__(self, result: SystemResult, clips: int, bar: Progress, title: str) -> None:
        self._result, self._bar = result, bar
        self._clips = clips
        self._learned = 0
        self._task = bar.add_task(title, total=clips)

    def has_learned_all(self, daemon: LiveDaemon) -> bool:
        """Note how far it is; whether all clips are learned, or set aside."""
        learner = daemon.learner
        if learner.clips > self._learned and learner.score is not None:
            self._learned = learner.clips
            score, a_auc = learner.score, learner.a_auc or 0.0
            self._result.prequential.append((learner.clips, score, a_auc))
            self._bar.update(self._task, completed=self._learned)
        self._result.refused = learner.refused
        aside = (daemon.clips or {}).get("quarantined", 0)
        return self._learned + aside >= self._clips


def _live(
    config: Config,
    plan: StudyPlan,
    quiet_s: float,
    folder: Path,
    sockets: Path,
    watch: _Watch,
    result: SystemResult,
) -> None:
    """Masks alone, masks while the stream is learned, masks alone again."""
    with (
        LiveDaemon(config, folder, _LEARN_S, sockets) as daemon,
        _Labeling(config, plan) as labeling,
    ):
        daemon.until(lambda: daemon.learner.state == "waiting", "ready to learn")
        daemon.phase = "before"
        daemon.listen(quiet_s)
        daemon.phase = "during"
        began = time.monotonic()
        labeling.begin()
        daemon.until(
            lambda: labeling.is_well() and watch.has_learned_all(daemon), "through with the stream"
        )
        result.learn_s = time.monotonic() - began
        with LabelClient(config.intake.endpoint, timeout_s=_ORDER_S) as client:
            client.order(Order(order="checkpoint"))
        daemon.phase = "after"
        daemon.listen(quiet_s)
        daemon.leave()
    for phase in PHASES:
        result.latency_ms[phase] = daemon.masks[phase].latency_ms
        result.fps[phase] = daemon.masks[phase].fps
    result.stalls_ms = daemon.stalls_ms


class _Labeling:
    """Puts the stream's clips from a thread of its own."""

    def __init__(self, config: Config, plan: StudyPlan) -> None:
        self._endpoint, self._plan = config.intake.endpoint, plan
        self._gone = threading.Event()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="labeling")
        self._work: Future[None] | None = None

    def begin(self) -> None:
        """Put the first clip, and the others after it."""
        self._work = self._threads.submit(self._put_all)

    def is_well(self) -> bool:
        """True, or what went wrong is raised."""
        if self._work is not None and self._work.done():
            self._work.result()
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._gone.set()
        self._threads.shutdown()

    def _put_all(self) -> None:
        facts = LabelFacts(provenance="atlasd study")
        with LabelClient(self._endpoint, attempts=10) as client:
            for clip in self._plan.stream:
                if self._gone.is_set():
                    return
                entry = self._plan.entries[clip]
                client.put(label_of_entry(entry, facts, size_px=_LABEL_PX))


def _scored(plan: StudyPlan, base: Path, store: LearnStore) -> list[Point]:
    """The base, the last version, and some between them, on the test clips.

    The base comes from its own file: the store goes without its oldest versions in a long stream.
    """
    kept = [each for each in store.all() if each.learned.cursor]
    most = min(_SCORED - 1, len(kept))
    chosen = sorted({round(k) for k in np.linspace(0, len(kept) - 1, most)}) if kept else []
    network = load(base)
    tests: Mapping[str, Sequence[Batch]] = {
        name: batches_of(
            [
                _one_frame(plan.entries[clip].labeled_clip(network.preset.image_px), k % 5)
                for k, clip in enumerate(clips)
            ],
            network,
            20,
        )
        for name, clips in plan.tests.items()
    }
    versions = [(network.version, 0, base)]
    for k in chosen:
        learned = kept[k].learned
        versions.append((learned.version, learned.tally.clips, kept[k].weights))
    points: list[Point] = []
    for name, clips, weights in versions:
        version = load(weights)
        scores = {half: float(frame_scores(version, b).mean()) for half, b in tests.items()}
        points.append(Point(name, clips, scores["old"], scores["new"]))
    return points


def _one_frame(clip: LabeledClip, k: int) -> LabeledClip:
    return replace(clip, clip=Clip(clip.clip.samples[k : k + 1]), masks=clip.masks[k : k + 1])

"""One system of the stream experiment: a real daemon that learns a stream while it makes masks."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.progress import Progress

from ..daemon.client import Subscription, subscribe
from ..daemon.clipbatch import batches_of
from ..daemon.config import Config, load_config
from ..daemon.labelclient import LabelClient
from ..daemon.learnstore import LearnStore
from ..daemon.messages import Event, Mask, Status
from ..daemon.onlinelearner import frame_scores
from ..daemon.orders import Order
from ..model.method import Batch
from ..model.presets import load
from ..streams.clips import Clip, LabeledClip
from .label import LabelFacts, label_of_entry
from .runfolder import write_json
from .studyplan import StudyOptions, StudyPlan

Phase = Literal["before", "during", "after"]

_PATIENCE_S = 600.0
_VERSIONS = 64
_SCORED = 12
_LABEL_PX = 224


class StudyError(Exception):
    """The experiment cannot go on: what happened, where to look."""


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
        StudyError: the daemon ended, or did not learn all in time.
    """
    path = folder / "result.json"
    if path.exists():
        return SystemResult.read(path)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="atlasd-study-") as sockets:
        config = _config(options, system, seed, base, video, folder, Path(sockets))
        result = _Watch(config, folder, plan, options, system, seed, bar).through()
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
            f"learner.keep={_VERSIONS}",
            "learner.checkpoint_s=0",
            "learner.wait_s=2",
            *(f"learner.{setting}" for setting in system.settings),
        ]
    )


class _Watch:
    """A daemon's process from its first mask to its last, and what its bus says."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        plan: StudyPlan,
        options: StudyOptions,
        system: System,
        seed: int,
        bar: Progress,
    ) -> None:
        self._config, self._folder, self._plan = config, folder, plan
        self._options, self._bar = options, bar
        self._result = SystemResult(system.name, seed)
        self._phase: Phase = "before"
        self._times: dict[Phase, list[int]] = {"before": [], "during": [], "after": []}
        self._latencies: dict[Phase, list[float]] = {"before": [], "during": [], "after": []}
        self._learned = 0
        self._aside = 0
        self._task = bar.add_task(
            f"seed {seed}: {system.title}", total=len(plan.stream), completed=0
        )

    def through(self) -> SystemResult:
        """Run it."""
        settings = self._folder / "config.json"  # YAML reads JSON
        settings.write_text(self._config.model_dump_json())
        command = [sys.executable, "-m", "atlasd.tools.cli", "run", "--config", str(settings)]
        kinds = (Mask, Event, Status)
        log = self._folder / "daemon.log"
        with (
            log.open("wb") as sink,
            subscribe(
                self._config.publish.endpoint, kinds=kinds, mode="all", timeout_s=_PATIENCE_S
            ) as bus,
        ):
            daemon = subprocess.Popen(command, stdout=sink, stderr=sink)
            try:
                self._read(bus, log)
            finally:
                daemon.terminate()
                daemon.wait()
        return self._result

    def _read(self, bus: Subscription, log: Path) -> None:
        self._until(
            bus,
            log,
            lambda status: status.learner is not None and status.learner.state == "waiting",
        )
        self._pass(bus, log, self._options.quiet_s)
        self._phase = "during"
        began = time.monotonic()
        labeler = threading.Thread(target=self._label, daemon=True)
        labeler.start()
        self._until(bus, log, lambda _: self._learned + self._aside >= len(self._plan.stream))
        self._result.learn_s = time.monotonic() - began
        labeler.join()
        with LabelClient(self._config.intake.endpoint, timeout_s=_PATIENCE_S) as client:
            client.order(Order(order="checkpoint"))
        self._phase = "after"
        self._pass(bus, log, self._options.quiet_s)
        for phase, times in self._times.items():
            self._result.latency_ms[phase] = self._latencies[phase]
            span_s = (times[-1] - times[0]) / 1e9 if len(times) > 1 else 0.0
            self._result.fps[phase] = (len(times) - 1) / span_s if span_s else 0.0

    def _label(self) -> None:
        facts = LabelFacts(provenance="atlasd study")
        with LabelClient(self._config.intake.endpoint, attempts=10) as client:
            for clip in self._plan.stream:
                entry = self._plan.entries[clip]
                client.put(label_of_entry(entry, facts, size_px=_LABEL_PX))

    def _pass(self, bus: Subscription, log: Path, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self._until(bus, log, lambda _: time.monotonic() >= deadline)

    def _until(self, bus: Subscription, log: Path, done: Callable[[Status], bool]) -> None:
        """Read the bus until a status is as wanted."""
        deadline = time.monotonic() + _PATIENCE_S
        for message in bus:
            match message:
                case Mask():
                    self._latencies[self._phase].append(
                        (message.publish_ns - message.capture_ns) / 1e6
                    )
                    self._times[self._phase].append(message.publish_ns)
                case Status():
                    self._note(message)
                    if done(message):
                        return
                case Event(kind="model_swap"):
                    self._result.stalls_ms.append(float(message.data["stall_ms"]))
                case Event(kind="learner_died" | "failed" | "goodbye" | "eos"):
                    raise StudyError(f"{message.kind}: {message.detail}; see {log}")
                case _:
                    pass
            if time.monotonic() > deadline:
                raise StudyError(f"nothing new was learned in {_PATIENCE_S:g} s; see {log}")
        raise StudyError(f"the bus has ended; see {log}")

    def _note(self, status: Status) -> None:
        learner, intake = status.learner, status.intake
        if learner is None or intake is None:
            return
        self._aside = intake.clips.get("quarantined", 0)
        if learner.clips > self._learned and learner.score is not None:
            self._learned = learner.clips
            score, a_auc = learner.score, learner.a_auc or 0.0
            self._result.prequential.append((learner.clips, score, a_auc))
            self._bar.update(self._task, completed=self._learned)
        self._result.refused = learner.refused


def _scored(plan: StudyPlan, base: Path, store: LearnStore) -> list[Point]:
    """The base, the last version, and some between them, on the test clips."""
    kept = store.all()
    chosen = sorted({round(k) for k in np.linspace(0, len(kept) - 1, min(_SCORED, len(kept)))})
    network = load(base)
    tests: Mapping[str, Sequence[Batch]] = {
        name: batches_of(
            [
                _one_frame(plan.entries[clip].labeled_clip(network.preset.image_px), k % 5)
                for k, clip in enumerate(clips)
            ],
            network,
            {},
            20,
        )
        for name, clips in plan.tests.items()
    }
    points: list[Point] = []
    for each in (kept[k] for k in chosen):
        version = load(each.weights)
        scores = {name: float(frame_scores(version, b).mean()) for name, b in tests.items()}
        learned = each.learned
        points.append(Point(learned.version, learned.tally.clips, scores["old"], scores["new"]))
    return points


def _one_frame(clip: LabeledClip, k: int) -> LabeledClip:
    return replace(clip, clip=Clip(clip.clip.samples[k : k + 1]), masks=clip.masks[k : k + 1])

"""The daemon: one stream in, its masks on the bus, until it ends or a signal comes."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version as installed_version
from pathlib import Path
from types import TracebackType
from typing import Self

from ..model.presets import WeightsError
from ..streams.addresses import without_accounts
from ..streams.sources import OPENINGS, Discontinuity, MediaError, Source, Trouble
from .config import Config, dump_config
from .endpoints import EndpointError
from .engine import Engine, EngineError, Weights
from .fields import to_map
from .infos import LadderInfo
from .intake import Intake
from .latency import Latencies
from .memory import resident_mb
from .messages import Event, Hello, Mask, ModelInfo
from .openfiles import allow_many
from .parts import build_engine, open_intake, open_stream, pipeline_options
from .pipeline import Ended, Item, Pipeline, Result
from .publisher import Publisher, PublisherError
from .replayring import ReplayRing
from .results import mask_message
from .signals import Signals
from .spoolfile import SpoolError
from .supervisor import Supervisor

OK, FAILED, REFUSED = 0, 1, 2
"""Exit codes: ended or drained; failed while running; could not start."""

_TICK_S = 0.2
_RECENT = 1024
_DETAIL_CHARACTERS = 2000
_REFUSALS = (MediaError, WeightsError, EngineError, EndpointError, SpoolError, OSError)
_log = logging.getLogger(__name__)


def run(config: Config, *, clock: Callable[[], int] = time.monotonic_ns) -> int:
    """Serve the configured source until its end, SIGTERM or SIGINT.

    The first signal drains: capture stops, what is in flight is finished and published. The
    second kills at once. Everything that goes wrong is one line of the log.

    Args:
        config: all that the daemon is told.
        clock: monotonic nanoseconds.

    Returns:
        0 after the end or a drain, 1 where it failed while running, 2 where it could not start: no
        such medium, weights missing or wrong, an address in use.
    """
    allow_many()
    with Signals() as signals:
        try:
            service = Service.start(config, signals, clock)
        except _REFUSALS as error:
            _log.error("cannot start: %s", error)
            return REFUSED
        try:
            with service:
                return service.serve()
        except (PublisherError, OSError) as error:
            _log.error("failed: %s", error)
            return FAILED


@dataclass(slots=True)
class _Counts:
    """What a run did, for its summary."""

    masks: int = 0
    epochs: int = 0
    troubles: dict[str, int] = field(default_factory=dict[str, int])
    audio: dict[str, int] = field(default_factory=dict[str, int])
    first_ns: int | None = None
    last_ns: int = 0

    @property
    def fps(self) -> float | None:
        """Masks a second from the first to the last."""
        if self.first_ns is None or self.last_ns <= self.first_ns:
            return None
        return (self.masks - 1) * 1e9 / (self.last_ns - self.first_ns)


class Service:
    """A source, an engine, a pipeline and a bus at work; use `run`."""

    def __init__(
        self,
        config: Config,
        source: Source,
        engine: Engine,
        signals: Signals,
        clock: Callable[[], int],
    ) -> None:
        self._config = config
        self._source = source
        self._engine = engine
        self._signals = signals
        self._clock = clock
        self._stream = config.source.stream
        self._model = ModelInfo(preset=engine.preset, version=engine.version)
        self._pipeline = Pipeline(source, engine, pipeline_options(config), clock=clock)
        self._latencies = Latencies()
        self._counts = _Counts()
        self._report_due_ns = 0
        self._size_px = source.source_size_px
        self._has_audio = source.has_audio
        self._lost = ""
        publish = config.publish
        self._bus = Publisher(
            publish.endpoint,
            self._pipeline.policy,
            insecure=publish.insecure,
            stall_timeout_s=publish.send_timeout_s,
            hello_s=publish.hello_interval_s,
            status_s=publish.status_interval_s,
            clock=clock,
        )
        self._ring: ReplayRing | None = None
        self._intake: Intake | None = None
        self._learner: Supervisor | None = None
        try:
            if config.intake.enabled:
                self._open_intake()
        except BaseException:
            if self._learner is not None:
                self._learner.close()
            self._bus.close(drain=False)
            raise

    def _open_intake(self) -> None:
        config, engine = self._config, self._engine
        self._ring = ReplayRing(config.intake.replay_s, config.intake.replay_mb * 1_000_000)
        orders = None
        if config.learner.enabled:
            self._learner = Supervisor(config, engine.layout, self._announce)
            orders = self._learner.order
        self._intake = open_intake(config, engine, self._ring, self._bus.instance, orders)

    @classmethod
    def start(cls, config: Config, signals: Signals, clock: Callable[[], int]) -> Service:
        """Build, open and bind everything, or nothing."""
        if config.run.out is not None:
            _write(config.run.out / "config.yaml", dump_config(config))
        engine = build_engine(config)
        source = None
        try:
            source = open_stream(config, engine, repeat=config.source.repeat, clock=clock)
            engine.warm()
            return cls(config, source, engine, signals, clock)
        except BaseException:
            if source is not None:
                source.close()
            engine.close()
            raise

    def serve(self) -> int:
        """Publish until the stream ends; see `run` for what is returned."""
        self._report()
        self._bus.publish(self._hello())
        self._say_started()
        if self._pipeline.policy == "wait":
            self._wait_for_subscriber()
        self._signals.call(self._pipeline.stop)
        code, ending = OK, "the stream has ended"
        try:
            with self._pipeline:
                self._pump()
        except (MediaError, EngineError) as error:
            code, ending = FAILED, str(error)
            self._bus.publish(self._event("failed", detail=ending))
            _log.error("the stream failed: %s", error)
        if self._signals.received:
            ending = f"stopped by {self._signals.received}"
        self._finish(ending)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pipeline.close()
        self._engine.close()
        if self._learner is not None:
            self._learner.close()
        if self._intake is not None:
            self._intake.close()
        self._bus.close(drain=error is None)

    def _pump(self) -> None:
        """Publish items until the last."""
        ended = False
        while not ended:
            item = self._pipeline.take(_TICK_S)
            if item is not None:
                self._publish(item)
            self._swap()
            ended = isinstance(item, Ended)
            if self._clock() >= self._report_due_ns or ended:
                self._report()

    def _swap(self) -> None:
        """Between two frames, serve what the learner offered last."""
        offered = self._learner.take() if self._learner is not None else None
        if offered is None or offered.offer.version == self._engine.version:
            return
        offer, before = offered.offer, self._engine.version
        stall_ms = self._engine.swap(Weights(offer.version, offer.categories, offered.tensors))
        self._model = ModelInfo(preset=self._engine.preset, version=offer.version)
        self._bus.publish(self._hello())
        data = {
            "from": before,
            "to": offer.version,
            "reason": offer.reason,
            "batch": offer.batch,
            "stall_ms": stall_ms,
        }
        detail = f"{offer.version} is served after {before}: {offer.reason}"
        self._bus.publish(self._event("model_swap", detail=detail, data=data))
        _log.info("%s, in %.2f ms", detail, stall_ms)

    def _announce(
        self, kind: str, detail: str, data: Mapping[str, bool | int | float | str]
    ) -> None:
        """Tell the bus what happened to the learner, from the learner's thread."""
        with suppress(PublisherError):  # the bus is closed, or its failure is told elsewhere
            self._bus.publish(self._event(kind, detail=detail, data=data))

    def _publish(self, item: Item) -> None:
        match item:
            case Result():
                self._publish_mask(item)
            case Discontinuity():
                self._counts.epochs += 1
                _log.warning("epoch %d begins: %s", item.epoch, item.reason)
                self._bus.publish(self._event("epoch", epoch=item.epoch, detail=item.reason))
                if item.has_audio is not None:
                    self._lost = ""
                    self._introduce(self._size_px, has_audio=item.has_audio)
            case Trouble(kind="reconnect"):
                _log.warning("%s", item.detail)
                self._lost = f"lost: {item.detail[:_DETAIL_CHARACTERS]}; "
                self._counts.troubles[item.kind] = item.count
                data = {"count": item.count}
                self._bus.publish(self._event("reconnect", detail=item.detail, data=data))
            case Trouble(kind=kind) if kind in OPENINGS:
                _log.info("%s", item.detail)
                data = {"kind": kind, "count": item.count}
                self._bus.publish(self._event("opened", detail=item.detail, data=data))
            case Trouble():
                if item.kind not in self._counts.troubles:
                    _log.warning(
                        "%s: %s; more of this kind is counted only", item.kind, item.detail
                    )
                self._counts.troubles[item.kind] = item.count
                data = {"kind": item.kind, "count": item.count}
                self._bus.publish(self._event("trouble", detail=item.detail, data=data))
            case Ended(stopped=False):
                data = {"masks": item.results, "dropped": sum(item.drops.values())}
                self._bus.publish(self._event("eos", detail="the stream has ended", data=data))
            case Ended():
                pass

    def _introduce(self, size_px: tuple[int, int], *, has_audio: bool) -> None:
        """Say hello again where the stream is another than it was."""
        if (size_px, has_audio) != (self._size_px, self._has_audio):
            self._size_px, self._has_audio = size_px, has_audio
            self._bus.publish(self._hello())

    def _publish_mask(self, result: Result) -> None:
        publish = self._config.publish
        self._introduce(result.sample.frame.source_size_px, has_audio=self._has_audio)
        if self._ring is not None:
            self._ring.add(result.sample)
        message = mask_message(result, publish.encoding, publish.threshold)
        self._bus.publish(message)
        self._note(result, message, self._clock())

    def _note(self, result: Result, message: Mask, now_ns: int) -> None:
        counts, state = self._counts, result.sample.window.state
        total_ms = (now_ns - result.sample.frame.capture_ns) / 1e6
        self._latencies.add({**message.lat_ms, "total": total_ms})
        counts.audio[state] = counts.audio.get(state, 0) + 1
        counts.masks += 1
        counts.first_ns = now_ns if counts.first_ns is None else counts.first_ns
        counts.last_ns = now_ns

    def _report(self) -> None:
        """Tell the bus what its next status messages say."""
        interval_ns = round(self._config.publish.status_interval_s * 1e9)
        self._report_due_ns = self._clock() + interval_ns
        recent = self._latencies.percentiles(last=_RECENT)
        memory = resident_mb()
        told = "unknown" if memory is None else f"{memory:.0f} MB"
        self._bus.report(
            self._stream,
            detail=f"{self._lost}queue {self._pipeline.queued}/{self._pipeline.capacity}, "
            f"memory {told}",
            drops=self._pipeline.drops,
            lat_ms={f"{s}_{p}": ms for s, values in recent.items() for p, ms in values.items()},
            intake=None if self._intake is None else self._intake.info(),
            learner=None if self._learner is None else self._learner.info(),
            ladder=self._ladder_info(),
        )

    def _ladder_info(self) -> LadderInfo | None:
        ladder = self._engine.ladder
        return None if ladder is None else ladder.info()

    def _wait_for_subscriber(self) -> None:
        deadline = self._clock() + round(self._config.publish.wait_for_subscriber_s * 1e9)
        while self._clock() < deadline and not self._signals.received:
            if self._bus.wait_for_subscriber(_TICK_S):
                return
            if self._clock() >= self._report_due_ns:
                self._report()
        _log.warning("nobody subscribed in time; publishing anyway")

    def _hello(self) -> Hello:
        source, engine, publish = self._source, self._engine, self._config.publish
        return Hello(
            stream=self._stream,
            source=source.kind,
            frame_size=self._size_px if all(self._size_px) else None,
            fps=source.fps,
            has_audio=self._has_audio,
            mask_shape=(engine.image_px, engine.image_px),
            enc=publish.encoding,
            threshold=publish.threshold,
            classes=engine.categories,
            window_s=engine.window_s,
            sample_rate_hz=engine.sample_rate_hz,
            model=self._model,
        )

    def _event(
        self,
        kind: str,
        *,
        epoch: int | None = None,
        detail: str = "",
        data: Mapping[str, bool | int | float | str] | None = None,
    ) -> Event:
        return Event(
            stream=self._stream,
            kind=kind,
            epoch=self._counts.epochs if epoch is None else epoch,
            detail=without_accounts(detail)[:_DETAIL_CHARACTERS],
            data=data or {},
        )

    def _say_started(self) -> None:
        source, engine = self._source, self._engine
        width, height = self._size_px
        sound = "with sound" if self._has_audio else "without sound"
        fps = f"{source.fps:.2f}" if source.fps else "unknown"
        _log.info(
            "%s: %s; %s %s; masks at %s, policy %s",
            self._config.source.label,
            f"{width} x {height}, {fps} fps, {sound}" if width else "not reached yet",
            engine.preset,
            engine.version,
            self._bus.endpoint,
            self._pipeline.policy,
        )
        if (ladder := self._ladder_info()) is not None:
            self._say_ladder(ladder)

    def _say_ladder(self, ladder: LadderInfo) -> None:
        rungs = ", ".join(f"{rung.px} px {rung.p95_ms:.1f} ms" for rung in ladder.rungs)
        _log.info("deadline %g ms, p95 by rung: %s", ladder.deadline_ms, rungs)
        if ladder.rungs[-1].p95_ms > ladder.deadline_ms:
            _log.warning(
                "no rung keeps the deadline: the smallest is used; raise model.deadline_ms or add"
                " a smaller rung to model.ladder"
            )

    def _finish(self, ending: str) -> None:
        """The last line of the log, and the summary beside the configuration."""
        counts, drops = self._counts, self._pipeline.drops
        stats, ladder = self._bus.stats(), self._ladder_info()
        summary = {
            "version": installed_version("atlasd"),
            "source": self._config.source.label,
            "ending": without_accounts(ending),
            "model": {"preset": self._engine.preset, "version": self._engine.version},
            "masks": counts.masks,
            "fps": None if counts.fps is None else round(counts.fps, 2),
            "epochs": counts.epochs,
            "audio": counts.audio,
            "troubles": counts.troubles,
            "drops": {**drops, **stats.drops},
            "latency_ms": self._latencies.percentiles(),
            "ladder": None if ladder is None else to_map(ladder),
        }
        if self._config.run.out is not None:
            _write(self._config.run.out / "summary.json", json.dumps(summary, indent=2) + "\n")
        _log.info(
            "%s: %d masks, %s fps, %d dropped, %d troubles",
            ending,
            counts.masks,
            summary["fps"],
            sum(drops.values()),
            sum(counts.troubles.values()),
        )


def _write(path: Path, text: str) -> None:
    """Write a file whole, for its owner alone: it appears only when all of it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    part.replace(path)

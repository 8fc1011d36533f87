"""The daemon: one stream in, its masks on the bus, until it ends or a signal comes."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

from ..model.presets import WeightsError
from ..streams.addresses import without_accounts
from ..streams.sources import (
    OPENINGS,
    AbandonedError,
    Discontinuity,
    MediaError,
    OtherKindError,
    Source,
    Trouble,
)
from .config import Config, dump_config
from .endpoints import EndpointError
from .engine import Engine, EngineError, Weights
from .fields import FieldError, to_map
from .infos import LadderInfo
from .intake import Intake
from .introduction import Shape, hello_of, say_started
from .lateintake import LateIntake
from .memory import loaded_for_good, resident_mb
from .messages import Event, Hello, ModelInfo
from .openfiles import allow_many
from .parts import (
    build_engine,
    note_pause,
    open_bus,
    open_intake,
    open_stream,
    pipeline_options,
)
from .pipeline import Ended, Item, Pipeline, Result
from .places import write_whole
from .publisher import Publisher, PublisherError
from .replayring import ReplayRing
from .results import mask_message
from .signals import Signals
from .spoolfile import SpoolError, passes
from .supervisor import Supervisor
from .tally import Tally
from .troubles import Troubles

OK, FAILED, REFUSED = 0, 1, 2
"""Exit codes: ended or drained; failed while running; could not start."""

_TICK_S = 0.2
_RECENT = 1024
_DETAIL_CHARACTERS = 2000
_REFUSALS = (
    MediaError,
    WeightsError,
    EngineError,
    EndpointError,
    PublisherError,
    SpoolError,
    OSError,
)
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
        such medium, weights missing or wrong, an address in use, a spool that is damaged. One that
        is locked, or on a full disk, is waited for while masks are made.
    """
    allow_many()
    with Signals() as signals:
        try:
            service = Service.start(config, signals, clock)
        except AbandonedError:
            _log.info("stopped by %s before the source was open", signals.received)
            return OK
        except _REFUSALS as error:
            _log.error("cannot start: %s", error)
            return REFUSED
        try:
            with service:
                return service.serve()
        except (PublisherError, OSError) as error:
            _log.error("failed: %s", error)
            return FAILED


class Service:
    """A source, an engine, a pipeline and a bus at work; use `run`."""

    def __init__(
        self,
        config: Config,
        bus: Publisher,
        engine: Engine,
        source: Source,
        signals: Signals,
        clock: Callable[[], int],
    ) -> None:
        self._config = config
        self._bus = bus
        self._engine = engine
        self._signals = signals
        self._clock = clock
        self._stream = config.source.stream
        self._tally = Tally(clock)
        self._troubles = Troubles(clock)
        self._report_due_ns = 0
        self._watch(source)
        self._ring: ReplayRing | None = None
        self._intake: Intake | LateIntake | None = None
        self._learner: Supervisor | None = None
        try:
            if config.intake.enabled:
                self._open_intake()
        except BaseException:
            if self._learner is not None:
                self._learner.close()
            raise

    def _watch(self, source: Source) -> None:
        """Make masks of this source from now on."""
        self._source = source
        self._pipeline = Pipeline(
            source, self._engine, pipeline_options(self._config), clock=self._clock
        )
        self._bus.go_by(self._pipeline.policy)
        self._shape = Shape(source.source_size_px, source.fps, source.has_audio)

    def _open_intake(self) -> None:
        """Take labels; where what stands in the way may go by itself, later."""
        config, engine = self._config, self._engine
        ring = self._ring = ReplayRing(config.intake.replay_s, config.intake.replay_mb * 1_000_000)
        orders = None
        if config.learner.enabled:
            self._learner = Supervisor(
                config, engine.layout, self._announce, partial(note_pause, config)
            )
            orders = self._learner.order

        def opened() -> Intake:
            return open_intake(config, engine, ring, self._bus.instance, orders)

        try:
            self._intake = opened()
        except (SpoolError, OSError) as error:
            if not passes(error):
                raise
            self._intake = LateIntake(opened, config.intake.endpoint, error, self._announce)

    @classmethod
    def start(cls, config: Config, signals: Signals, clock: Callable[[], int]) -> Service:
        """Bind, build and open everything, or nothing.

        The bus comes first: an address in use is told at once, and who asks hears what is waited
        for. A signal ends the waiting.

        Raises:
            AbandonedError: a signal came.
        """
        if config.run.out is not None:
            write_whole(config.run.out / "config.yaml", dump_config(config))
        stream = config.source.stream
        with ExitStack() as opened:
            bus = opened.enter_context(open_bus(config, clock))
            bus.report(stream, detail="loading the network")
            engine = build_engine(config)
            opened.callback(engine.close)
            bus.report(stream, detail=f"opening {config.source.label}")
            source = _open_source(config, engine, signals, clock)
            opened.callback(source.close)
            engine.warm()
            service = cls(config, bus, engine, source, signals, clock)
            opened.pop_all()
            return service

    def serve(self) -> int:
        """Publish until the stream ends; see `run` for what is returned."""
        self._signals.call(self._stop)
        code, ending = OK, "the stream has ended"
        try:
            with loaded_for_good():
                while not self._publish_all():
                    source = _open_source(self._config, self._engine, self._signals, self._clock)
                    self._watch(source)
        except AbandonedError:
            pass  # a signal came, which is told below
        except (MediaError, EngineError) as error:
            code, ending = FAILED, str(error)
            self._bus.publish(self._event("failed", detail=ending))
            _log.error("the stream failed: %s", error)
        if self._signals.received:
            ending = f"stopped by {self._signals.received}"
        self._finish(ending)
        return code

    def _stop(self) -> None:
        """Let the pipeline of the moment of the signal finish; see `_publish_all` for the next."""
        self._pipeline.stop()

    def _publish_all(self) -> bool:
        """Publish until the stream ends; False where it is to be opened anew, as another kind."""
        self._report()
        self._bus.publish(self._hello())
        say_started(
            self._config, self._engine, self._shape, self._bus.endpoint, self._pipeline.policy
        )
        if self._signals.received:
            self._pipeline.stop()
        if self._pipeline.policy == "wait":
            self._wait_for_subscriber()
        try:
            with self._pipeline:
                self._pump()
        except OtherKindError as error:
            _log.warning("%s: it is opened anew", error)
            self._troubles.found_again()
            return False
        return True

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
                self._tally.epochs += 1
                _log.warning("epoch %d begins: %s", item.epoch, item.reason)
                self._bus.publish(self._event("epoch", epoch=item.epoch, detail=item.reason))
                if item.has_audio is not None:
                    self._troubles.found_again()
                    source = self._source
                    self._introduce(Shape(source.source_size_px, source.fps, item.has_audio))
            case Trouble(kind=kind) if kind in OPENINGS:
                _log.info("%s", item.detail)
                data = {"kind": kind, "count": item.count}
                self._bus.publish(self._event("opened", detail=item.detail, data=data))
            case Trouble():
                count = self._troubles.note(item)
                is_lost = item.kind == "reconnect"
                data = {"count": count} if is_lost else {"kind": item.kind, "count": count}
                kind = "reconnect" if is_lost else "trouble"
                self._bus.publish(self._event(kind, detail=item.detail, data=data))
            case Ended(stopped=False):
                data = {"masks": item.results, "dropped": sum(item.drops.values())}
                self._bus.publish(self._event("eos", detail="the stream has ended", data=data))
            case Ended():
                pass

    def _introduce(self, shape: Shape) -> None:
        """Say hello again where the stream is another than it was."""
        if shape != self._shape:
            self._shape = shape
            self._bus.publish(self._hello())

    def _publish_mask(self, result: Result) -> None:
        publish = self._config.publish
        self._introduce(replace(self._shape, size_px=result.sample.frame.source_size_px))
        if self._ring is not None:
            self._ring.add(result.sample)
        message = mask_message(result, publish.encoding, publish.threshold)
        self._bus.publish(message)
        self._tally.note(result, message)

    def _report(self) -> None:
        """Tell the bus what its next status messages say."""
        interval_ns = round(self._config.publish.status_interval_s * 1e9)
        self._report_due_ns = self._clock() + interval_ns
        self._troubles.catch_up()
        recent = self._tally.latencies.percentiles(last=_RECENT)
        memory = resident_mb()
        told = "unknown" if memory is None else f"{memory:.0f} MB"
        queued = f"queue {self._pipeline.queued}/{self._pipeline.capacity}, memory {told}"
        try:
            self._bus.report(
                self._stream,
                detail="; ".join(filter(None, (self._troubles.present, queued))),
                drops=self._pipeline.drops,
                lat_ms={f"{s}_{p}": ms for s, values in recent.items() for p, ms in values.items()},
                intake=None if self._intake is None else self._intake.info(),
                learner=None if self._learner is None else self._learner.info(),
                ladder=self._ladder_info(),
            )
        except FieldError:  # a fault of this program, and no reason to stop the masks
            _log.exception("the status stays as it was")

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
        return hello_of(self._config, self._engine, self._source, self._shape)

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
            epoch=self._tally.epochs if epoch is None else epoch,
            detail=without_accounts(detail)[:_DETAIL_CHARACTERS],
            data=data or {},
        )

    def _finish(self, ending: str) -> None:
        """The last line of the log, and the summary beside the configuration."""
        drops, ladder = self._pipeline.drops, self._ladder_info()
        summary = self._tally.summary(
            self._config.source.label,
            without_accounts(ending),
            ModelInfo(preset=self._engine.preset, version=self._engine.version),
            troubles=self._troubles.counts,
            drops={**drops, **self._bus.stats().drops},
        )
        summary["ladder"] = None if ladder is None else to_map(ladder)
        if self._config.run.out is not None:
            write_whole(self._config.run.out / "summary.json", json.dumps(summary, indent=2) + "\n")
        _log.info(
            "%s: %d masks, %s fps, %d dropped, %d troubles",
            ending,
            self._tally.masks,
            self._tally.fps,
            sum(drops.values()),
            sum(self._troubles.counts.values()),
        )


def _open_source(
    config: Config, engine: Engine, signals: Signals, clock: Callable[[], int]
) -> Source:
    """Open the source, unless a signal has come or comes while it is awaited."""
    if signals.received:
        raise AbandonedError(f"{config.source.label} is not wanted: {signals.received} came")
    return open_stream(
        config,
        engine,
        repeat=config.source.repeat,
        clock=clock,
        is_wanted=lambda: not signals.received,
    )

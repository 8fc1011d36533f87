"""A daemon's process for experiments and benches: started, listened to, its masks timed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from ..daemon.client import Subscription, subscribe
from ..daemon.config import Config
from ..daemon.messages import Event, Mask, Status

PATIENCE_S = 600.0
_FATAL = {"learner_died", "failed", "goodbye", "eos"}


class LiveError(Exception):
    """The daemon did not do what it must: what happened, where its log lies."""


@dataclass(slots=True)
class Timed:
    """Masks of one phase.

    Attributes:
        latency_ms: from capture to publication, of each.
        published_ns: when.
    """

    latency_ms: list[float] = field(default_factory=list[float])
    published_ns: list[int] = field(default_factory=list[int])

    @property
    def fps(self) -> float:
        """Masks a second; 0 for fewer than two."""
        times = self.published_ns
        return (len(times) - 1) * 1e9 / (times[-1] - times[0]) if len(times) > 1 else 0.0


class LiveDaemon:
    """`atlasd run` as a user starts it, from its first mask until this is left.

    Args:
        config: what it is told; ``run.out`` or the like stays as it is.
        folder: for its configuration and its log.

    Attributes:
        phase: masks that come are timed under this name.
        masks: of each phase.
        swaps: the events ``model_swap`` so far.
        status: the latest.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self.phase = "before"
        self.masks: dict[str, Timed] = {}
        self.swaps: list[Event] = []
        self.status: Status | None = None
        self._log = folder / "daemon.log"
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "config.json"  # YAML reads JSON
        settings.write_text(config.model_dump_json())
        self._command = [sys.executable, "-m", "atlasd.tools.cli", "run", "--config", str(settings)]
        self._endpoint = config.publish.endpoint
        self._sink: IO[Any] | None = None

    def __enter__(self) -> Self:
        self._sink = self._log.open("wb")
        self._bus: Subscription = subscribe(
            self._endpoint, kinds=(Mask, Event, Status), mode="all", timeout_s=PATIENCE_S
        )
        self.process = subprocess.Popen(self._command, stdout=self._sink, stderr=self._sink)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bus.close()
        self.process.terminate()
        self.process.wait()
        if self._sink is not None:
            self._sink.close()

    def until(self, done: Callable[[Status], bool], patience_s: float = PATIENCE_S) -> Status:
        """Read the bus until a status is as wanted.

        Raises:
            LiveError: the stream has ended, the learner has died, or it took too long.
        """
        deadline = time.monotonic() + patience_s
        for message in self._bus:
            match message:
                case Mask():
                    timed = self.masks.setdefault(self.phase, Timed())
                    timed.latency_ms.append((message.publish_ns - message.capture_ns) / 1e6)
                    timed.published_ns.append(message.publish_ns)
                case Status():
                    self.status = message
                    if done(message):
                        return message
                case Event(kind="model_swap"):
                    self.swaps.append(message)
                case Event() if message.kind in _FATAL:
                    raise LiveError(f"{message.kind}: {message.detail}; see {self._log}")
                case _:
                    pass
            if time.monotonic() > deadline:
                raise LiveError(f"it took longer than {patience_s:g} s; see {self._log}")
        raise LiveError(f"the bus has ended; see {self._log}")

    def pass_by(self, seconds: float) -> None:
        """Read the bus for so long."""
        deadline = time.monotonic() + seconds
        self.until(lambda _: time.monotonic() >= deadline)

    def learner_waits(self) -> None:
        """Read the bus until the learner is there and has nothing to do."""
        self.until(lambda s: s.learner is not None and s.learner.state == "waiting")

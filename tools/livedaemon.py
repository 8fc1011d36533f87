"""A daemon as a real process under watch: started, listened to, killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ..daemon.client import SilenceError, subscribe
from ..daemon.config import Config
from ..daemon.infos import LearnerInfo
from ..daemon.messages import Event, Mask, Status

_TICK_S = 0.2
_AT_WORK: Final = frozenset({"waiting", "learning"})
_LOG_CHARACTERS = 3000
_LEAVE_S = 60.0


class DaemonError(Exception):
    """The daemon ended by itself, its learner was given up, or nothing came for too long."""


@dataclass(slots=True)
class Timed:
    """Masks of one phase.

    Attributes:
        latency_ms: from capture to publication, of each.
        published_ns: when, monotonic.
        stages: milliseconds by stage, of each.
    """

    latency_ms: list[float] = field(default_factory=list[float])
    published_ns: list[int] = field(default_factory=list[int])
    stages: list[Mapping[str, float]] = field(default_factory=list[Mapping[str, float]])

    @property
    def fps(self) -> float:
        """Masks a second; 0 for fewer than two."""
        times = self.published_ns
        return (len(times) - 1) * 1e9 / (times[-1] - times[0]) if len(times) > 1 else 0.0


class LiveDaemon:
    """One life of a daemon that learns, from its start to its end. It belongs to one thread.

    Args:
        config: all that it is told.
        folder: gets its configuration, and its log, to which lives append.
        patience_s: how long to wait for anything.
        temporary: for its temporary files, a short path; None: `folder`.

    Attributes:
        first_mask_s: seconds from its start until a mask was received, None before.
        learner: how its learner does, as its latest status says.
        clips: in its spool by state, likewise; None before the first status.
        phase: masks that come are timed under this name.
        masks: of each phase.
        stalls_ms: of each swap of weights.
        subscribers: most subscriptions to its masks that a status told.
        deaths: of its learner, other than by `kill_learner`: also by a `SIGKILL` of the system,
            which has no memory left, or of its supervisor.
        learner_back_s: for each kill of its learner, seconds until it was at work again; a kill
            that another one followed too soon has none.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        patience_s: float = 600.0,
        temporary: Path | None = None,
    ) -> None:
        self._log = folder / "log.txt"
        self._patience_s = patience_s
        settings = folder / "config.json"
        settings.write_text(config.model_dump_json())
        self.first_mask_s: float | None = None
        self.learner = LearnerInfo(state="starting")
        self.clips: Mapping[str, int] | None = None
        self.deaths = 0
        self.learner_back_s: list[float] = []
        self.phase = "start"
        self.masks: dict[str, Timed] = {}
        self.stalls_ms: list[float] = []
        self.subscribers = 0
        self._killed = (0, 0.0)
        self._is_back, self._is_ordered = True, False
        self._bus = subscribe(
            config.publish.endpoint, kinds=(Mask, Event, Status), mode="all", timeout_s=_TICK_S
        )
        self._began = time.monotonic()
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "atlasd.tools.cli", "run", "--config", str(settings)],
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(temporary or folder)},
            )

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    @property
    def lost(self) -> int:
        """Masks that it published and that did not arrive here."""
        return self._bus.stats.lost

    @property
    def learner_is_up(self) -> bool:
        """Whether its learner has a process that was not yet killed, and that says something."""
        return self.learner.pid not in {0, self._killed[0]}

    @property
    def is_at_work(self) -> bool:
        """Whether masks come and its learner learns or waits for clips."""
        return (
            self.first_mask_s is not None and self.learner_is_up and self.learner.state in _AT_WORK
        )

    def listen(self, seconds: float) -> None:
        """Hear what it says for some time.

        Raises:
            DaemonError: it has ended, or its learner was given up.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._hear()

    def until(self, wanted: Callable[[], bool], what: str) -> None:
        """Hear what it says until something is so; ``what`` names that in an error.

        Raises:
            DaemonError: that took too long, it has ended, or its learner was given up.
        """
        until = time.monotonic() + self._patience_s
        while not wanted():
            self._hear()
            if time.monotonic() > until:
                raise DaemonError(
                    f"not {what} within {self._patience_s:g} s; the learner is "
                    f"{self.learner.state}: {self.learner.detail}\n{self._last_words()}"
                )

    def kill_learner(self) -> None:
        """Kill its learner's process.

        Raises:
            DaemonError: it had died by itself.
        """
        self._killed = (self.learner.pid, time.monotonic())
        self._is_back, self._is_ordered = False, True
        try:
            os.kill(self.learner.pid, signal.SIGKILL)
        except ProcessLookupError as error:
            raise DaemonError(f"the learner died by itself\n{self._last_words()}") from error

    def kill(self) -> None:
        """Kill it, and wait until it is gone; killing what has ended is harmless."""
        self._process.kill()
        self._process.wait()
        self._bus.close()

    def leave(self) -> None:
        """Ask it to end, and wait until it has.

        Raises:
            DaemonError: it does not end, or says that it failed.
        """
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired as error:
            raise DaemonError(f"it does not end\n{self._last_words()}") from error
        if code != 0:
            raise DaemonError(f"it ended with exit code {code}\n{self._last_words()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def _hear(self) -> None:
        """Take one message, or find that none came for a moment."""
        try:
            said = next(self._bus, None)
        except SilenceError:
            said = None
        match said:
            case Mask():
                self._time(said)
            case Event(kind="model_swap"):
                self.stalls_ms.append(float(said.data["stall_ms"]))
            case Status():
                self._note(said)
            case Event(kind="learner_died"):
                self.deaths += not (self._is_ordered and "SIGKILL" in said.detail)
                self._is_ordered = False
            case _:
                pass
        code = self._process.poll()
        if code is not None:
            raise DaemonError(f"the daemon ended with exit code {code}\n{self._last_words()}")

    def _time(self, mask: Mask) -> None:
        if self.first_mask_s is None:
            self.first_mask_s = time.monotonic() - self._began
        timed = self.masks.setdefault(self.phase, Timed())
        timed.latency_ms.append((mask.publish_ns - mask.capture_ns) / 1e6)
        timed.published_ns.append(mask.publish_ns)
        timed.stages.append(mask.lat_ms)

    def _note(self, status: Status) -> None:
        self.subscribers = max(self.subscribers, status.subscribers)
        if status.intake is not None:
            self.clips = status.intake.clips
        if status.learner is None:
            return
        self.learner = status.learner
        if self.learner.state == "failed":
            raise DaemonError(f"{self.learner.detail}\n{self._last_words()}")
        if not self._is_back and self.learner_is_up and self.learner.state in _AT_WORK:
            self._is_back = True
            self.learner_back_s.append(time.monotonic() - self._killed[1])

    def _last_words(self) -> str:
        return self._log.read_text(errors="replace")[-_LOG_CHARACTERS:]

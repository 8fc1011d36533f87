"""One process of the learner: started, listened to, known to be hung, ended.

On Linux it runs under SCHED_IDLE, with all threads: it takes what masks leave of the processor and
nothing else (`atlasd bench live` tells what they feel of it). It has a process group of its own, so
that a terminal's signals pass it by, but the daemon's session: where the kernel shares the
processor by sessions (autogroup, the default of most desktops), a policy counts within one only. So
the learner may stand still for long without being hung, and its deadline counts the time that it
computed.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from .config import Config
from .infos import LearnerInfo
from .learnline import DaemonEnd, FromLearner
from .wire import WireError

TICK_MS: Final = 50
"""How long the learner is listened to at once."""
_START_S: Final = 900.0
_STARVED: Final = 10
"""The learner may stand still for so many times its deadline, as long as it computes nothing."""
_DUMP_S: Final = 1.0
_LEAVE_S, _ABANDON_S = 30.0, 10.0
"""How long a learner that is to leave may take for its batch; then, for a step of it."""
_PATIENT: Final = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait for each other sleep, after the moment that `cores.wait_asleep` leaves them:
spinning, they would use up what little they get."""


class LearnerLife:
    """One process of the learner, and the line to it.

    Args:
        config: all that the daemon is told; the learner reads it from its stdin.
        command: what starts a learner; the endpoint and this process's id are added.
        socket: of the line, in a folder that is the owner's alone.
        clock: monotonic seconds.

    Attributes:
        line: to the learner.
        process: the learner.

    Raises:
        OSError: the system gives no process, pipe or memory.
        endpoints.EndpointError: the line cannot be laid.
    """

    def __init__(
        self, config: Config, command: tuple[str, ...], socket: Path, clock: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._hang_s = config.learner.hang_s
        self._is_up = False
        self.line = DaemonEnd(f"ipc://{socket}")
        try:
            self.process = _started(config, [*command, self.line.endpoint, str(os.getpid())])
        except BaseException:
            self.line.close()
            raise
        self._heard_at, self._computed_s = clock(), 0.0

    def progressed(self, said: FromLearner) -> None:
        """It said something."""
        self._is_up = self._is_up or not (
            isinstance(said, LearnerInfo) and said.state == "starting"
        )
        self._heard_at, self._computed_s = self._clock(), _computed_s(self.process.pid)

    def is_hung(self) -> bool:
        """Whether it computed, or stood still, for too long without a word."""
        silent_s = self._clock() - self._heard_at
        if not self._is_up:
            return silent_s > _START_S
        computed_s = _computed_s(self.process.pid) - self._computed_s
        return computed_s > self._hang_s or silent_s > _STARVED * self._hang_s

    def dump_and_kill(self) -> None:
        """Let it write where it stands to the log, then kill it."""
        self.process.send_signal(signal.SIGUSR1)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_DUMP_S)
        self.process.kill()
        self.process.wait()

    def end(self, hear: Callable[[FromLearner], None]) -> None:
        """Ask it to leave, after a while in the middle of its batch; listen to its last words."""
        self.line.stop()
        if not self._has_left(hear, _LEAVE_S):
            self.process.terminate()
            self._has_left(hear, _ABANDON_S)

    def _has_left(self, hear: Callable[[FromLearner], None], within_s: float) -> bool:
        deadline = self._clock() + within_s
        with suppress(WireError):
            while self.process.poll() is None and self._clock() < deadline:
                for said in self.line.received(TICK_MS):
                    hear(said)
        return self.process.poll() is not None

    def close(self) -> None:
        """Kill what is left, and free the line."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.line.close()


def _started(config: Config, command: list[str]) -> subprocess.Popen[bytes]:
    """The learner's process, told its configuration.

    Raises:
        OSError: the system gives no process, pipe or memory.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, process_group=0, env={**_PATIENT, **os.environ}
    )
    _give_way(process.pid)
    try:
        with suppress(BrokenPipeError):
            assert process.stdin is not None  # noqa: S101  as asked for
            process.stdin.write(config.model_dump_json().encode())
            process.stdin.close()
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


def _give_way(pid: int) -> None:
    """Let a process run only where nothing else wants the processor; its threads inherit it."""
    with suppress(OSError):
        if hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
        else:
            os.setpriority(os.PRIO_PROCESS, pid, 19)


def _computed_s(pid: int) -> float:
    """Processor seconds of a process, all threads; 0 where nobody tells."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

"""The device token: on a device that daemon and learner share, only one of them computes at a time.

The token is a lock (`flock`) on a small file that both map. The daemon holds it for each forward
pass and swap of weights, the learner for each part of a step: forward, backward, update. So a frame
waits for one part at most. In the file the daemon says that it wants the token, which holds the
learner back, and when the next frame is expected: the learner begins a part only if the 95th
percentile of the times that it took before fits in between. A kernel frees the lock of a process
that dies; of one that stands still while it holds it, the daemon waits for a moment once, and goes
on without.

The parts are those that a step has anyway, so the arithmetic is the same with the token and
without. Measured on CPUs only: it never ran on a GPU, for which it is made.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import struct
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Final

PATIENCE_NS: Final = 100_000_000
"""How long a frame waits for a learner that stands still with the token, once."""

LONGEST_WAIT_NS: Final = 1_000_000_000
"""A part that fits between no two frames begins after so long all the same, behind a frame."""

_NUMBERS: Final = struct.Struct("=qq")
_FRAME_TICK_S, _STEP_TICK_S = 0.0002, 0.001
_INTERVALS, _TIMES = 8, 100
_log = logging.getLogger(__name__)


class _Board:
    """The file: its lock is the token; ``wanted`` and ``due_ns`` (monotonic; 0: unknown) in it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._file, _NUMBERS.size)
        self._map = mmap.mmap(self._file, _NUMBERS.size)

    def read(self) -> tuple[bool, int]:
        wanted, due_ns = _NUMBERS.unpack_from(self._map)
        return bool(wanted), due_ns

    def write(self, wanted: bool, due_ns: int) -> None:
        _NUMBERS.pack_into(self._map, 0, int(wanted), due_ns)

    def take(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def try_to_take(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def free(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        self._map.close()
        os.close(self._file)


class FrameToken:
    """The daemon's side. It belongs to one thread.

    Args:
        path: of the file, in a folder that is the owner's alone; made where it is not there.
        clock: monotonic nanoseconds.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._board = _Board(path)
        self._clock = clock
        self._begun: deque[int] = deque(maxlen=_INTERVALS + 1)
        self._is_lost = self._is_told = False
        self._board.write(wanted=False, due_ns=0)

    @contextmanager
    def held(self, *, for_frame: bool = True) -> Generator[None]:
        """Compute; the learner does not, but for one that stands still.

        Args:
            for_frame: whether it is a frame, by whose pace the next one is expected.
        """
        if for_frame:
            self._begun.append(self._clock())
        self._board.write(wanted=True, due_ns=0)
        has = self._taken()
        try:
            yield
        finally:
            self._board.write(wanted=False, due_ns=self._due_ns())
            if has:
                self._board.free()

    def close(self) -> None:
        """Free the file."""
        self._board.close()

    def _taken(self) -> bool:
        until = self._clock() + (0 if self._is_lost else PATIENCE_NS)
        while not self._board.try_to_take():
            if self._clock() >= until:
                if not self._is_told:
                    _log.warning("the learner stands still with the device; masks go on beside it")
                self._is_lost = self._is_told = True
                return False
            time.sleep(_FRAME_TICK_S)
        self._is_lost = False
        return True

    def _due_ns(self) -> int:
        """When the next frame is expected: as soon as the closest of the latest came, if any."""
        gaps = [later - sooner for sooner, later in pairwise(self._begun)]
        return self._begun[-1] + min(gaps) if gaps else 0


class StepToken:
    """The learner's side. It belongs to one thread.

    Args:
        path: as the daemon's.
        synchronise: waits until the device has done what was asked of it.
        clock: monotonic nanoseconds, the daemon's.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(
        self,
        path: Path,
        synchronise: Callable[[], object] = lambda: None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._board = _Board(path)
        self._synchronise, self._clock = synchronise, clock
        self._times_ns: defaultdict[str, deque[int]] = defaultdict(lambda: deque(maxlen=_TIMES))

    @contextmanager
    def held(self, part: str) -> Generator[None]:
        """Compute a part of a step, once it fits before the next frame.

        Args:
            part: its name; parts of one name take about as long.
        """
        self._await_slack(self.p95_ns(part))
        self._board.take()
        began = self._clock()
        try:
            yield
            self._synchronise()
        finally:
            self._times_ns[part].append(self._clock() - began)
            self._board.free()

    def p95_ns(self, part: str) -> int:
        """What 95 % of the latest parts of this name took at most; 0 before the first."""
        times = sorted(self._times_ns[part])
        return times[max(0, len(times) - 1 - len(times) // 20)] if times else 0

    def close(self) -> None:
        """Free the file."""
        self._board.close()

    def _await_slack(self, needed_ns: int) -> None:
        began = now = self._clock()
        _, seen_ns = self._board.read()
        while now - began < 2 * LONGEST_WAIT_NS:
            wanted, due_ns = self._board.read()
            is_quiet = due_ns == 0 or now - due_ns > LONGEST_WAIT_NS
            is_behind_a_frame = due_ns != seen_ns and now - began > LONGEST_WAIT_NS
            if not wanted and (is_quiet or due_ns - now >= needed_ns or is_behind_a_frame):
                return
            seen_ns = due_ns
            time.sleep(_STEP_TICK_S)
            now = self._clock()

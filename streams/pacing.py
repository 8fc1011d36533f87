"""Real-time pacing of a file: each picture comes when it is due."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

from .clips import NS_PER_S

Pace = Literal["real", "free"]


class Pacer:
    """Holds pictures back until they are due.

    The first picture of each epoch is due at once and ties the timeline to the clock; the others
    follow by their times. What is behind its time is not held; time lost is caught up.

    Args:
        mode: ``real`` paces, ``free`` never waits.
        clock: host monotonic clock in nanoseconds.
        sleep: waits for seconds, or less where the pacer was stopped; None waits for `stop`.
    """

    def __init__(
        self,
        mode: Pace = "real",
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self._mode: Pace = mode
        self._clock = clock
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._epoch: int | None = None
        self._zero_ns = 0

    def wait_until_due(self, pts_ns: int, epoch: int = 0) -> bool:
        """Wait for a picture's time.

        Args:
            pts_ns: its time on the stream's timeline.
            epoch: its epoch.

        Returns:
            False where the pacer was stopped, else True.
        """
        if self._mode == "free":
            return not self._stopped.is_set()
        if epoch != self._epoch:
            self._epoch, self._zero_ns = epoch, self._clock() - pts_ns
        while not self._stopped.is_set():
            wait_ns = self._zero_ns + pts_ns - self._clock()
            if wait_ns <= 0:
                return True
            self._sleep(wait_ns / NS_PER_S)
        return False

    def stop(self) -> None:
        """End all waiting, now and later, from any thread."""
        self._stopped.set()

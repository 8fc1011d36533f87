"""SIGTERM and SIGINT: the first asks for a drain, the second kills."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self


class Signals:
    """SIGTERM and SIGINT: the first asks for a drain, the second kills at once.

    Handlers are set in the main thread alone (elsewhere Python has none), and put back after.

    Attributes:
        received: name of the first signal, or empty.
    """

    def __init__(self) -> None:
        self.received = ""
        self._action: Callable[[], None] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def call(self, action: Callable[[], None]) -> None:
        """Call ``action`` at the first signal, which may have come already."""
        self._action = action
        if self.received:
            action()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        for known in self._before:
            signal.signal(known, signal.SIG_DFL)
        self.received = signal.Signals(number).name
        if self._action is not None:
            self._action()

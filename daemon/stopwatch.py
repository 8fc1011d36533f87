"""What the stages of a forward pass take."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Stopwatch:
    """Laps on the host's clock, or by events on a CUDA stream, which do not hold it up.

    Args:
        device: whose work is timed.
        clock: seconds on the host.
        begin: when on this clock the first lap began; None: now.
    """

    def __init__(
        self, device: torch.device, clock: Callable[[], float], begin: float | None
    ) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._clock = clock
        now = clock()
        self._before_ms = 0.0 if begin is None else 1e3 * (now - begin)
        self._marks: list[float] = []
        self._events: list[torch.cuda.Event] = []
        self.lap()

    def lap(self) -> None:
        """End a lap and begin the next."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._events.append(event)
        else:
            self._marks.append(self._clock())

    def laps_ms(self) -> list[float]:
        """Durations so far, the last lap ended now, the first with what came before."""
        self.lap()
        if self._cuda:
            self._events[-1].synchronize()
            pairs = zip(self._events, self._events[1:], strict=False)
            laps = [first.elapsed_time(second) for first, second in pairs]
        else:
            marks = zip(self._marks, self._marks[1:], strict=False)
            laps = [1e3 * (second - first) for first, second in marks]
        laps[0] += self._before_ms
        return laps

"""What a run did: counted as it goes, and told at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import version as installed_version

from .latency import Latencies
from .messages import Mask, ModelInfo
from .pipeline import Result


class Tally:
    """Masks, their sound and their latencies.

    Args:
        clock: monotonic nanoseconds.

    Attributes:
        masks: published so far.
        epochs: discontinuities so far.
        latencies: of the masks, by stage.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self.masks = self.epochs = 0
        self.latencies = Latencies()
        self._audio: Counter[str] = Counter()
        self._first_ns: int | None = None
        self._last_ns = 0

    def note(self, result: Result, message: Mask) -> None:
        """Count a mask that was handed to the bus just now."""
        now_ns = self._clock()
        total_ms = max(0.0, (now_ns - result.sample.frame.capture_ns) / 1e6)
        self.latencies.add({**message.lat_ms, "total": total_ms})
        self._audio[result.sample.window.state] += 1
        self.masks += 1
        self._first_ns = now_ns if self._first_ns is None else self._first_ns
        self._last_ns = now_ns

    @property
    def fps(self) -> float | None:
        """Masks a second from the first to the last."""
        if self._first_ns is None or self._last_ns <= self._first_ns:
            return None
        return round((self.masks - 1) * 1e9 / (self._last_ns - self._first_ns), 2)

    def summary(
        self,
        source: str,
        ending: str,
        model: ModelInfo,
        *,
        troubles: Mapping[str, int],
        drops: Mapping[str, int],
    ) -> dict[str, object]:
        """What ``summary.json`` holds, but for the ladder."""
        return {
            "version": installed_version("atlasd"),
            "source": source,
            "ending": ending,
            "model": {"preset": model.preset, "version": model.version},
            "masks": self.masks,
            "fps": self.fps,
            "epochs": self.epochs,
            "audio": dict(self._audio),
            "troubles": dict(troubles),
            "drops": dict(drops),
            "latency_ms": self.latencies.percentiles(),
        }

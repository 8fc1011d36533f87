"""A live source that comes back: lost, it is opened again for as long as it takes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Final, Protocol, Self

from .clips import NS_PER_S
from .numbering import Numbering
from .sources import (
    AbandonedError,
    AccessError,
    Discontinuity,
    MediaError,
    OtherKindError,
    Quiet,
    Source,
    SourceEvent,
    SourceKind,
    Trouble,
    UnsupportedError,
)

TICK_S: Final = 0.03
"""How long nothing happens, at most, before the reader hears `Quiet`."""
HEALTHY_S: Final = 10.0
"""A source that was open for so long was well: the next pause is the shortest again."""


class PendingSource(Source, Protocol):
    """A source that is being opened; see `captureprocess.ProcessSource`."""

    def wait(self, timeout_s: float) -> bool:
        """Whether it is open, within a time; raises `MediaError` where it cannot be."""
        ...


class ReconnectingSource:
    """One stream out of a source that may be lost and found again.

    The first opening is tried at once. Where it fails, and each time the source is lost after
    (by an error, a stall, or because the sender ended it), there is a `Trouble` of kind
    ``reconnect`` with the reason, a pause, and another attempt. Pauses double up to
    ``longest_s``, each shortened at random by up to a half, so that a hundred clients of one
    server don't come at once; where access was refused they are the longest at once, since many
    attempts lock accounts. When the source is back, a `Discontinuity` opens an epoch and says
    whether there is sound.

    A source whose kind is ``file`` has an end and is not opened again. What was live once is live:
    a camera that answers with a single picture while it starts up has not become a file.

    Args:
        start: begins an opening; raises `MediaError` where it cannot now.
        start_live: begins one of what is known to be live; None: as ``start``.
        label: names the source in errors; it holds no secret.
        stream: name that every event carries.
        longest_s: longest pause between attempts.
        limit: attempts in a row after which it is given up; None: never; 0: the first loss is
            final.
        first_s: the first pause.
        clock: host monotonic clock in nanoseconds.
        sleep: waits for seconds; None waits for `close`.
        rng: shortens pauses.
        is_wanted: asked while the first opening is awaited, at least each `TICK_S`.

    Attributes:
        stream, kind, has_audio, source_size_px, fps, duration_ns: of the source as it is now;
            see `sources.Source`.

    Raises:
        MediaError: the first opening failed and ``limit`` is 0.
        UnsupportedError: no attempt will ever open it.
        AbandonedError: the first opening was not wanted any more.
    """

    def __init__(
        self,
        start: Callable[[], PendingSource],
        *,
        start_live: Callable[[], PendingSource] | None = None,
        label: str,
        stream: str = "main",
        longest_s: float = 30.0,
        limit: int | None = None,
        first_s: float = 1.0,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], object] | None = None,
        rng: random.Random | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._start, self._start_live, self._label = start, start_live or start, label
        self._longest_s, self._first_s, self._limit = longest_s, first_s, limit
        self._clock = clock
        self._closed = threading.Event()
        self._sleep = sleep or self._closed.wait
        self._rng = rng or random.Random()
        self._troubles = self._failures = 0
        self._opened_ns = 0
        self._was_live = False
        self._error: MediaError | None = None
        self._source: PendingSource | None = None
        self.stream: Final = stream
        self.kind: SourceKind = "live"
        self.has_audio, self.source_size_px = False, (0, 0)
        self.fps: float | None = None
        self.duration_ns: int | None = None
        try:
            self._source = start()
            while not self._source.wait(TICK_S):
                if not is_wanted():
                    raise AbandonedError(f"{label} was not awaited any longer")
        except MediaError as error:
            if limit == 0 or isinstance(error, UnsupportedError | AbandonedError):
                self.close()
                raise
            self._error = error
        else:
            self._adopt(self._source)

    def __iter__(self) -> Iterator[SourceEvent]:
        """Events, until a file's end or the last attempt.

        Raises:
            MediaError: it was given up, or a file failed.
            OtherKindError: nothing was open until now, and it is a file.
            UnsupportedError: no attempt will ever open it.
        """
        numbering = Numbering()
        while not self._closed.is_set():
            error = self._error
            if error is None and self._source is not None:
                error = yield from self._read(self._source, numbering)
            if error is None or self._closed.is_set():
                return
            lost_ns = self._clock()
            yield from self._regain(error)
            if self._closed.is_set():
                return
            away_s = (self._clock() - lost_ns) / NS_PER_S
            yield Discontinuity(
                numbering.begin(),
                f"{self._label} is there after {away_s:.1f} s. Before: {error}",
                self.has_audio,
            )

    def close(self) -> None:
        """Free the source and end all waiting; closing twice is harmless."""
        self._closed.set()
        if self._source is not None:
            self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _read(
        self, source: PendingSource, numbering: Numbering
    ) -> Generator[SourceEvent, None, MediaError | None]:
        """Give the source's events; what ended it, or None where it was meant to end."""
        try:
            for event in source:
                yield numbering.renumbered(event)
        except MediaError as error:
            if self.kind == "file":
                raise
            return error
        finally:
            source.close()
        return None if self.kind == "file" else MediaError(f"{self._label} ended the stream")

    def _regain(self, error: MediaError) -> Generator[SourceEvent, None, None]:
        """Try until it is open again."""
        if self._clock() - self._opened_ns >= HEALTHY_S * NS_PER_S:
            self._failures = 0
        attempts = 0
        while not self._closed.is_set():
            if self._limit is not None and attempts >= self._limit:
                raise MediaError(f"{error}; given up after {attempts} attempts") from error
            pause_s = self._pause_s(error)
            self._troubles += 1
            detail = f"{error}; attempt {attempts + 1} in {pause_s:.1f} s"
            yield Trouble("reconnect", detail, self._troubles)
            yield from self._rest(pause_s)
            attempts += 1
            try:
                yield from self._reopen()
            except (UnsupportedError, OtherKindError):
                raise
            except MediaError as again:
                error = again
            else:
                return

    def _reopen(self) -> Generator[SourceEvent, None, None]:
        if self._closed.is_set():
            return
        self._source = source = self._start_live() if self._was_live else self._start()
        while not source.wait(TICK_S):
            yield Quiet()
        if source.kind == "file":
            source.close()
            kind = MediaError if self._was_live else OtherKindError
            raise kind(f"{self._label} is a file now, and was taken for a live stream")
        self._error = None
        self._adopt(source)

    def _rest(self, pause_s: float) -> Iterator[Quiet]:
        until_ns = self._clock() + round(pause_s * NS_PER_S)
        while (left_ns := until_ns - self._clock()) > 0 and not self._closed.is_set():
            self._sleep(min(TICK_S, left_ns / NS_PER_S))
            yield Quiet()

    def _pause_s(self, error: MediaError) -> float:
        longest = isinstance(error, AccessError)
        doubled_s = self._first_s * 2.0 ** min(self._failures, 32)
        self._failures += 1
        most_s = self._longest_s if longest else min(self._longest_s, doubled_s)
        return most_s * self._rng.uniform(0.5, 1.0)

    def _adopt(self, source: PendingSource) -> None:
        """Be what the source is now."""
        self._opened_ns = self._clock()
        self.kind, self._was_live = source.kind, source.kind == "live"
        self.has_audio, self.source_size_px = source.has_audio, source.source_size_px
        self.fps, self.duration_ns = source.fps, source.duration_ns

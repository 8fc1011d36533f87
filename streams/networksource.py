"""A live stream from the network as a source: its times on the host's clock.

What a sender stamps is in its own time. So times of decoded frames pass the timeline, which finds
holes and breaks, and then one map to the host's clock for both tracks: the offset between picture
and sound stays the container's own. What cannot be known before some of the stream has come is how
long it took on its way, and openers read ahead; so the first moments are held until they no longer
get younger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Final, Protocol, Self

from av.container import InputContainer
from av.stream import Stream

from .addresses import redacted
from .clips import NS_PER_S
from .clockmap import STEP_NS, ClockMap
from .containers import Damage, Decoded
from .networkoptions import NetworkOptions
from .packetline import Line, PacketLine
from .playoutclock import PlayoutClock
from .presenter import Frame, Presenter
from .sources import Discontinuity, MediaError, SourceEvent, SourceKind
from .timeline import Break, Odd, Placed, Timeline
from .tracks import LiveReading, Tracks

NO_TIMES: Final = 0x80
"""FFmpeg's flag (AVFMT_NOTIMESTAMPS) of formats that know none: arrivals are their times."""
SEGMENTED: Final = ("hls", "dash")
"""Formats that come in pieces of seconds: what arrives together was not seen together."""
SETTLE_NS: Final = NS_PER_S // 5
"""The stream has begun when for so long nothing came that was younger."""
YOUNGER_NS: Final = 10_000_000
EARLY_NS: Final = STEP_NS
"""By the map, nothing comes so long before it was taken."""
EARLY_FOR_NS: Final = NS_PER_S // 5
"""Where all of so long a part of the stream does, what the map went by was late."""
MAX_SETTLE_NS: Final = 3 * NS_PER_S
HELD_PICTURES: Final = 8
"""Pictures of before the beginning that are kept: older ones are stale by then."""
MAX_BEHIND_NS: Final = 5 * NS_PER_S
"""A segmented stream whose pictures are shown so late is given up, to be opened again."""


class HostClock(Protocol):
    """Maps a sender's time to the host's; `ClockMap` is one."""

    def observe(self, device_ns: int, host_ns: int) -> bool:
        """Take an observation; True where the map was begun anew."""
        ...

    def host_ns(self, device_ns: int) -> int:
        """Host time of a sender's time."""
        ...


OpenLine = Callable[[InputContainer, Sequence[Stream], tuple[type[Exception], ...]], Line]


class NetworkSource:
    """A live stream. Iterating blocks while nothing comes; see `captureprocess`.

    ``capture_ns`` of a picture is when it would have come with the least delay seen, and never
    after it came: what is late on its way is older than it looks. Packets are read and stamped by
    a thread of their own (see `packetline`), so what is late because it was decoded late is older
    too; where decoding takes longer than the stream, pictures are passed over (see `freshdecoder`).
    ``pts_ns`` is that moment on the stream's timeline. A segmented stream (HLS) is played out at
    the sender's pace instead, and is as old as that makes it.

    Troubles are those of files, and ``backlog``: pictures of before the beginning, not given; and
    ``behind``: pictures that there was no time to decode.

    Args:
        container: the opened stream; closed by this.
        options: see there.
        clock: host monotonic clock in nanoseconds.
        sleep: waits for seconds, for segmented streams.
        open_line: see `tracks.LiveReading`; default: a `PacketLine`.

    Attributes:
        kind: ``live``.
        stream, has_audio, source_size_px, fps, duration_ns: see `sources.Source`.

    Raises:
        MediaError: no picture of it decoded.
    """

    kind: SourceKind = "live"
    duration_ns: int | None = None

    def __init__(
        self,
        container: InputContainer,
        options: NetworkOptions,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], object] = time.sleep,
        open_line: OpenLine | None = None,
    ) -> None:
        self.stream = options.stream
        self._clock, self._sleep = clock, sleep
        self._name = redacted(options.address)
        self._is_untimed = bool(container.format.flags & NO_TIMES)
        self._is_played = container.format.name in SEGMENTED
        reading = LiveReading(open_line or self._open_line, clock, passes=not self._is_played)
        self._tracks = Tracks(container, self._name, is_remote=True, live=reading)
        self.has_audio, self.fps = self._tracks.has_audio, self._tracks.fps
        self._origin_ns = clock() if options.origin_ns is None else options.origin_ns
        self._shown_ns: int | None = None
        self._presenter = Presenter(
            options.stream,
            options.image_size_px,
            keep_full=options.keep_full,
            sample_rate_hz=options.sample_rate_hz,
            fps=self.fps,
            place=self._place,
        )
        self.source_size_px = self._presenter.upright_size_px(self._tracks.first_picture)
        self._begin()

    def _open_line(
        self,
        container: InputContainer,
        streams: Sequence[Stream],
        ended_by: tuple[type[Exception], ...],
    ) -> Line:
        return PacketLine(
            container, streams, ended_by=ended_by, clock=self._clock, waits=self._is_played
        )

    def _begin(self) -> None:
        self._map: HostClock = PlayoutClock() if self._is_played else ClockMap()
        self._beginning: _Beginning | None = None if self._is_played else _Beginning()
        self._early_from_ns: int | None = None

    def __iter__(self) -> Iterator[SourceEvent]:
        """Events until the sender ends the stream.

        Raises:
            MediaError: the connection was lost.
        """
        timeline = Timeline[Frame](("video", "audio") if self.has_audio else ("video",))
        lost: MediaError | None = None
        try:
            for decoded in self._tracks:
                yield from self._take(decoded, timeline)
        except MediaError as error:
            lost = error
        for placed in timeline.finish():
            yield from self._events(placed)
        yield from self._release()
        yield from self._presenter.flush()
        if lost is not None:
            raise lost

    def close(self) -> None:
        """Free the connection; closing twice is harmless."""
        self._tracks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self, decoded: Decoded, timeline: Timeline[Frame]) -> Iterator[SourceEvent]:
        arrival_ns = self._tracks.arrival_ns or self._clock()
        for passed_ns, came_ns in self._tracks.take_passed():
            timeline.pass_over("video", passed_ns, came_ns)
        if isinstance(decoded, Damage):
            yield self._presenter.trouble(decoded.kind, decoded.detail, decoded.times)
            return
        if decoded.pts is None and not self._is_untimed and not self._presenter.ends_ns:
            yield self._presenter.trouble("no_pts", "nothing has a time yet; passed over")
            return
        item, trouble = self._presenter.item(
            decoded, start_ns=arrival_ns if self._is_untimed else None, arrival_ns=arrival_ns
        )
        if trouble is not None:
            yield trouble
        for placed in timeline.add(item):
            yield from self._events(placed)

    def _events(self, placed: Placed[Frame] | Break | Odd) -> Iterator[SourceEvent]:
        match placed:
            case Odd():
                yield self._presenter.trouble(placed.kind, placed.detail)
            case Break():
                yield from self._break(placed.reason)
                self._begin()
            case Placed():
                arrival_ns = placed.item.arrival_ns or self._clock()
                if self._is_early(placed, arrival_ns):
                    self._presenter.forget()
                    yield from self._break("what was late is late no more")
                    self._begin()
                if self._map.observe(placed.start_ns, arrival_ns):
                    self._presenter.forget()
                    yield from self._break("the sender's clock and the host's parted")
                yield from self._held(placed, arrival_ns)

    def _is_early(self, placed: Placed[Frame], arrival_ns: int) -> bool:
        """Whether all has long come before it was taken, by the map: what that went by was late.

        A stray time is early by itself, and sound that is sent ahead has pictures between.
        """
        if self._is_played or self._beginning is not None:
            return False
        start_ns = placed.start_ns
        if self._map.host_ns(start_ns) - arrival_ns <= EARLY_NS:
            self._early_from_ns = None
            return False
        if self._early_from_ns is None:
            self._early_from_ns = start_ns
        return placed.item.track == "video" and start_ns - self._early_from_ns >= EARLY_FOR_NS

    def _break(self, reason: str) -> Iterator[SourceEvent]:
        yield from self._release()
        yield from self._presenter.flush()
        self._presenter.epoch += 1
        self._shown_ns = self._presenter.latest_ns
        yield Discontinuity(self._presenter.epoch, reason)

    def _held(self, placed: Placed[Frame], arrival_ns: int) -> Iterator[SourceEvent]:
        """Hold what comes at the beginning, and give it once the beginning is over."""
        if self._beginning is None and self._is_past(placed):
            yield self._presenter.trouble("backlog", "a picture of before the last is not shown")
            return
        if self._beginning is None:
            yield from self._given(placed)
            return
        self._beginning.add(placed, arrival_ns)
        if self._beginning.is_over(arrival_ns):
            yield from self._release()

    def _release(self) -> Iterator[SourceEvent]:
        beginning, self._beginning = self._beginning, None
        if beginning is None:
            return
        held = [placed for placed in beginning.held if not self._is_past(placed)]
        passed_over = beginning.passed_over + len(beginning.held) - len(held)
        if passed_over:
            yield self._presenter.trouble(
                "backlog", f"{passed_over} pictures of before the beginning are not shown"
            )
        for placed in held:
            yield from self._given(placed)

    def _is_past(self, placed: Placed[Frame]) -> bool:
        """Whether it is a picture of before the last that was shown in the epoch before."""
        if self._shown_ns is None or placed.item.track != "video":
            return False
        return self._place(placed.start_ns) <= self._shown_ns

    def _given(self, placed: Placed[Frame]) -> Iterator[SourceEvent]:
        start_ns, came_ns = placed.start_ns, placed.item.arrival_ns
        if self._is_played:
            self._wait_until_due(start_ns)
            came_ns = None  # long before it is due
        yield from self._presenter.events(
            placed.item.payload, start_ns, lambda: self._captured_ns(start_ns, came_ns)
        )

    def _wait_until_due(self, start_ns: int) -> None:
        while (wait_ns := self._map.host_ns(start_ns) - self._clock()) > 0:
            self._sleep(wait_ns / NS_PER_S)
        if -wait_ns > MAX_BEHIND_NS:
            raise MediaError(
                f"{self._name} fell behind by {-wait_ns / NS_PER_S:.1f} s: decoding takes "
                "longer than the stream; choose a smaller variant of it, or free this machine"
            )

    def _captured_ns(self, start_ns: int, came_ns: int | None) -> int:
        """When it was taken; what comes earlier than ever moves the map slowly, but it has come."""
        host_ns = self._map.host_ns(start_ns)
        return host_ns if came_ns is None else min(host_ns, came_ns)

    def _place(self, device_ns: int) -> int:
        return self._map.host_ns(device_ns) - self._origin_ns


class _Beginning:
    """What came before it was known how old it is.

    Attributes:
        held: it, in order.
        passed_over: pictures that were let go, the oldest first.
    """

    def __init__(self) -> None:
        self.held: list[Placed[Frame]] = []
        self.passed_over = 0
        self._began_ns: int | None = None
        self._least_ns: int | None = None
        self._younger_ns = 0

    def add(self, placed: Placed[Frame], arrival_ns: int) -> None:
        """Hold one more."""
        delay_ns = arrival_ns - placed.start_ns
        if self._began_ns is None:
            self._began_ns = self._younger_ns = arrival_ns
        if self._least_ns is None or delay_ns < self._least_ns - YOUNGER_NS:
            self._least_ns, self._younger_ns = delay_ns, arrival_ns
        self.held.append(placed)
        pictures = [one for one in self.held if one.item.track == "video"]
        if len(pictures) > HELD_PICTURES:
            self.held.remove(pictures[0])
            self.passed_over += 1

    def is_over(self, now_ns: int) -> bool:
        """Whether what comes no longer gets younger."""
        return (
            now_ns - self._younger_ns >= SETTLE_NS
            or now_ns - (self._began_ns or now_ns) >= MAX_SETTLE_NS
        )

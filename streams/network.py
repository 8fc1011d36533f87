"""Cameras and servers on the network: one container with pictures and sound, as it comes.

What a sender stamps is in its own time. So times of decoded frames pass the timeline, which finds
holes and breaks, and then one map to the host's clock for both tracks: the offset between picture
and sound stays the container's own. What cannot be known before some of the stream has come is how
long it took on its way, and openers read ahead; so the first moments are held until they no longer
get younger.

All of this may block as long as a library likes, so it runs in a process of its own
(`captureprocess`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self

import av
import av.error
from av.container import InputContainer
from av.stream import Stream

from .addresses import WEB_SCHEMES, check, redacted
from .clips import NS_PER_S
from .clockmap import ClockMap
from .containers import Damage, Decoded
from .files import FileSource
from .packetline import Line, PacketLine
from .playoutclock import PlayoutClock
from .presenter import Frame, Presenter
from .sources import (
    AccessError,
    Discontinuity,
    MediaError,
    Source,
    SourceEvent,
    SourceKind,
    UnsupportedError,
)
from .timeline import Break, Odd, Placed, Timeline
from .tracks import LiveReading, Tracks, reason_of

Mode = Literal["auto", "live", "file"]
Transport = Literal["tcp", "udp"]

NO_TIMES: Final = 0x80
"""FFmpeg's flag (AVFMT_NOTIMESTAMPS) of formats that know none: arrivals are their times."""
SEGMENTED: Final = ("hls", "dash")
"""Formats that come in pieces of seconds: what arrives together was not seen together."""
ANALYSE_US: Final = 2_000_000
"""How long FFmpeg may look for tracks that were announced and never come."""
AUTHORITIES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)
"""Where Debian, Red Hat and the BSDs keep whom they trust; $SSL_CERT_FILE is asked first."""
DATAGRAM_BYTES: Final = 4_000_000
"""Wanted of the system for datagrams that wait: a large picture comes in a burst of hundreds."""
SETTLE_NS: Final = NS_PER_S // 5
"""The stream has begun when for so long nothing came that was younger."""
YOUNGER_NS: Final = 10_000_000
MAX_SETTLE_NS: Final = 3 * NS_PER_S
HELD_PICTURES: Final = 8
"""Pictures of before the beginning that are kept: older ones are stale by then."""
MAX_BEHIND_NS: Final = 5 * NS_PER_S
"""A segmented stream whose pictures are shown so late is given up, to be opened again."""
_REACHED_BY: Final = (
    "http,https,httpproxy,rtsp,rtsps,rtp,srtp,rtmp,rtmps,rtmpt,ffrtmphttp,srt,udp,tcp,tls,crypto,"
    "data"
)
"""All protocols but those that read files: no stream may name a file of this machine."""


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """What is read from the network, and how.

    Attributes:
        address: of the stream, with all that is secret in it.
        stream: name that every event carries.
        image_size_px: (width, height) that pictures are scaled to; None keeps their size.
        keep_full: also keep the unscaled upright picture.
        sample_rate_hz: rate of the sound that comes out.
        mode: ``file`` is read to its end without loss, ``live`` is taken as it comes; ``auto``
            takes for a file what a web server knows the length of.
        transport: of RTSP: ``tcp`` loses nothing, ``udp`` waits for nothing.
        open_timeout_s: of FFmpeg's own waiting while it opens.
        stall_timeout_s: and while it reads.
        tls_verify: whether the certificate of an ``https`` server is checked.
        origin_ns: host monotonic clock at 0 of the stream's timeline; None: the moment of opening.
    """

    address: str
    stream: str = "main"
    image_size_px: tuple[int, int] | None = None
    keep_full: bool = False
    sample_rate_hz: int = 32000
    mode: Mode = "auto"
    transport: Transport = "tcp"
    open_timeout_s: float = 10.0
    stall_timeout_s: float = 10.0
    tls_verify: bool = True
    origin_ns: int | None = None

    def to_map(self) -> dict[str, Any]:
        """Plain values, for another process, with the kind that `live.open_live` reads."""
        return {"kind": "network", **asdict(self)}

    @classmethod
    def from_map(cls, options: Mapping[str, Any]) -> NetworkOptions:
        """Read what `to_map` gave, less the kind."""
        values = dict(options)
        size_px = values.pop("image_size_px")
        return cls(**values, image_size_px=None if size_px is None else (size_px[0], size_px[1]))


def open_network(
    options: NetworkOptions, *, clock: Callable[[], int] = time.monotonic_ns
) -> Source:
    """Open a stream or a file on the network.

    Args:
        options: see there.
        clock: host monotonic clock in nanoseconds.

    Returns:
        A `NetworkSource`, or a `FileSource` of a file on a web server.

    Raises:
        MediaError: it cannot be opened now.
        UnsupportedError: it never will.
    """
    check(options.address)
    container = _open_container(options)
    mode = options.mode
    if mode == "auto":
        mode = "file" if _has_end(container, options.address) else "live"
    if mode == "file":
        return FileSource(
            redacted(options.address),
            stream=options.stream,
            image_size_px=options.image_size_px,
            keep_full=options.keep_full,
            sample_rate_hz=options.sample_rate_hz,
            clock=clock,
            container=container,
        )
    return NetworkSource(container, options, clock=clock)


def _open_container(options: NetworkOptions) -> InputContainer:
    shown = redacted(options.address)
    wait_us = str(round(options.stall_timeout_s * 1e6))
    settings = {
        "analyzeduration": str(ANALYSE_US),
        "protocol_whitelist": _REACHED_BY,
    }
    scheme = options.address.partition("://")[0].lower()
    if options.tls_verify and (authorities := _authorities()) is not None:
        settings |= {"tls_verify": "1", "ca_file": authorities}
    elif options.tls_verify and scheme == "https":
        raise UnsupportedError(
            f"{shown} cannot be checked: this system has no list of authorities; install "
            "ca-certificates, or set source.tls_verify to false"
        )
    if scheme in {"rtsp", "rtsps"}:
        settings |= {"rtsp_transport": options.transport, "timeout": wait_us}
        settings |= {"buffer_size": str(DATAGRAM_BYTES)} if options.transport == "udp" else {}
    elif scheme in {"udp", "rtp"}:
        settings |= {"timeout": wait_us, "overrun_nonfatal": "1"}
        settings |= {"buffer_size": str(DATAGRAM_BYTES)}
    else:
        settings |= {"rw_timeout": wait_us}
    began_s = time.monotonic()
    try:
        return av.open(
            options.address,
            options=settings,
            metadata_errors="replace",
            timeout=(options.open_timeout_s, options.stall_timeout_s),
        )
    except av.error.ProtocolNotFoundError:
        raise UnsupportedError(
            f"{shown} cannot be read: this build of FFmpeg (PyAV {av.__version__}) has no "
            f"{scheme}; serve the stream by RTSP or HTTP instead"
        ) from None
    except (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError) as error:
        raise AccessError(
            f"{shown} cannot be opened: {error.strerror}; give user and password in the address "
            "(source.uri, better by ATLASD_SOURCE__URI than on the command line)"
        ) from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        is_late = time.monotonic() - began_s >= options.open_timeout_s
        why = "it did not answer in time" if is_late else reason_of(error)
        if scheme == "https" and options.tls_verify and isinstance(error, OSError):
            why += "; if its certificate is its own, set source.tls_verify to false"
        raise MediaError(f"{shown} cannot be opened: {why}") from None


def _authorities() -> str | None:
    """The system's list of certificate authorities."""
    told = os.environ.get("SSL_CERT_FILE")
    return next((path for path in (told, *AUTHORITIES) if path and Path(path).is_file()), None)


def _has_end(container: InputContainer, address: str) -> bool:
    """Whether a web server knows where it ends: a recording, not a camera."""
    if address.partition("://")[0].lower() not in WEB_SCHEMES:
        return False
    if container.format.name in SEGMENTED:
        return bool(container.duration and container.duration > 0)
    return container.size > 0


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

    ``capture_ns`` of a picture is when it would have come with the least delay seen: what is late
    on its way is older than it looks. Packets are read and stamped by a thread of their own (see
    `packetline`), so what is late because it was decoded late is older too; where decoding takes
    longer than the stream, pictures are passed over (see `freshdecoder`). ``pts_ns`` is that
    moment on the stream's timeline. A segmented stream (HLS) is played out at the sender's pace
    instead, and is as old as that makes it.

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
                if self._map.observe(placed.start_ns, arrival_ns):
                    self._presenter.forget()
                    yield from self._break("the sender's clock and the host's parted")
                yield from self._held(placed, arrival_ns)

    def _break(self, reason: str) -> Iterator[SourceEvent]:
        yield from self._release()
        yield from self._presenter.flush()
        self._presenter.epoch += 1
        yield Discontinuity(self._presenter.epoch, reason)

    def _held(self, placed: Placed[Frame], arrival_ns: int) -> Iterator[SourceEvent]:
        """Hold what comes at the beginning, and give it once the beginning is over."""
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
        if beginning.passed_over:
            yield self._presenter.trouble(
                "backlog", f"{beginning.passed_over} pictures of before the beginning are not shown"
            )
        for placed in beginning.held:
            yield from self._given(placed)

    def _given(self, placed: Placed[Frame]) -> Iterator[SourceEvent]:
        start_ns = placed.start_ns
        if self._is_played:
            while (wait_ns := self._map.host_ns(start_ns) - self._clock()) > 0:
                self._sleep(wait_ns / NS_PER_S)
            if -wait_ns > MAX_BEHIND_NS:
                raise MediaError(
                    f"{self._name} fell behind by {-wait_ns / NS_PER_S:.1f} s: decoding takes "
                    "longer than the stream; choose a smaller variant of it, or free this machine"
                )
        yield from self._presenter.events(
            placed.item.payload, start_ns, lambda: self._map.host_ns(start_ns)
        )

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

"""A proxy between daemons and many subscribers: several buses joined to one.

A daemon pays for each subscriber; the proxy takes that over in a process of its own, and a daemon
then has one subscriber. It reads topics, never what a message holds, and passes on bytes as they
came. Daemons send it masks, previews and events only while somebody behind it wants them.

Each daemon brings streams of its own. Two that use one name would mix: the first keeps it, and the
other's messages are refused until the first is gone, or silent for `SILENCE_S`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Final, Self

import zmq
from zmq.utils.monitor import recv_monitor_message

from . import endpoints
from .client import CUT_OFF_BYTES, RECEIVE_HIGH_WATER_MARK
from .messages import LONGEST_TOPIC, MAX_MESSAGE_BYTES, TOPIC
from .openfiles import allow_many
from .outlet import Outlet, Subscriptions, end_context, keep_alive
from .signals import Signals

SILENCE_S: Final = 10.0
"""A stream of which nothing came for so long is forgotten: its daemon hangs."""

MAX_STREAMS: Final = 1024
"""Most streams that are passed on; others are refused."""

_KEPT = (b"h/", b"s/")
_TURN = 64
_POLL_MS, _GREETING_MS = 100, 50
_log = logging.getLogger(__name__)


class ProxyError(ValueError):
    """Addresses that cannot be joined: what came, what is allowed, what to do."""


def run(sources: Sequence[str], endpoint: str, *, insecure: bool = False) -> ProxyStats:
    """Serve until SIGTERM or SIGINT; arguments and errors are those of `Proxy`."""
    allow_many()
    with Signals() as signals, Proxy(sources, endpoint, insecure=insecure) as proxy:
        signals.call(proxy.stop)
        _log.info("subscribers connect to %s; sources: %s", proxy.endpoint, ", ".join(sources))
        proxy.serve()
        stats = proxy.stats()
        _log.info(
            "stopped by %s: %d messages passed on, %d overtaken, %d malformed, %d contested",
            signals.received,
            stats.forwarded,
            stats.overtaken,
            stats.malformed,
            stats.contested,
        )
    return stats


@dataclass(slots=True)
class ProxyStats:
    """What a proxy did.

    Attributes:
        forwarded: messages passed on.
        overtaken: of them, those that at least one subscriber missed, as it reads too slowly.
        malformed: messages that were none, and were not passed on.
        contested: messages of a stream whose name another daemon has.
        streams: that are heard of now.
    """

    forwarded: int = 0
    overtaken: int = 0
    malformed: int = 0
    contested: int = 0
    streams: int = 0


@dataclass(slots=True)
class _Stream:
    """Where a stream comes from, and what is repeated of it to late joiners."""

    source: _Source
    heard_ns: int
    kept: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])


class _Source:
    """One daemon's bus: an XSUB socket, told what is wanted while it is connected.

    ZeroMQ keeps what was subscribed and says it again after a reconnect. Changes go out only while
    there is a connection: they would pile up before a daemon that does not come.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.endpoint: Final = endpoint
        self.socket: Final = context.socket(zmq.XSUB)
        self._is_connected = False
        self._told = set(_KEPT)
        self._monitor = self.socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        self.socket.setsockopt(zmq.RCVHWM, RECEIVE_HIGH_WATER_MARK)
        self.socket.setsockopt(zmq.MAXMSGSIZE, CUT_OFF_BYTES)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 5000)
        self.socket.setsockopt(zmq.LINGER, 0)
        keep_alive(self.socket)
        if endpoint.startswith("tcp://["):
            self.socket.setsockopt(zmq.IPV6, 1)
        self.socket.connect(endpoint)
        for prefix in _KEPT:
            self.socket.send(b"\1" + prefix)

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], ...]:
        """What to wait for."""
        return self.socket, self._monitor

    def follow(self, wanted: frozenset[bytes]) -> bool:
        """Notice connections, and tell a new one what is wanted; True if one was lost."""
        is_lost = False
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            self._is_connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            is_lost |= not self._is_connected
            self.tell(wanted)
        return is_lost

    def tell(self, wanted: frozenset[bytes]) -> None:
        """Subscribe to what is wanted, and to nothing else but what is kept."""
        if not self._is_connected:
            return
        wanted = wanted.union(_KEPT)
        for prefix in sorted(wanted - self._told):  # events before masks, as readers do
            self.socket.send(b"\1" + prefix)
        for prefix in self._told - wanted:
            self.socket.send(b"\0" + prefix)
        self._told = set(wanted)

    def close(self) -> None:
        """Leave the daemon; closing twice is harmless."""
        if not self.socket.closed:
            self.socket.disable_monitor()
        self._monitor.close(linger=0)
        self.socket.close(linger=0)

    def messages(self) -> list[list[bytes]]:
        """What came, at most a turn's worth, so that no daemon keeps others waiting."""
        came: list[list[bytes]] = []
        while len(came) < _TURN:
            try:
                came.append(self.socket.recv_multipart(zmq.DONTWAIT))
            except zmq.Again:
                break
        return came


class Proxy:
    """Joins the buses of daemons to one; `serve` does the work, in the thread that calls it.

    Args:
        sources: the daemons' buses; they need not be there yet, and may come and go.
        endpoint: where subscribers connect, see `Publisher`.
        insecure: allow an `endpoint` that other machines can reach.
        clock: nanoseconds of the host's monotonic clock.

    Attributes:
        endpoint: the address as bound.

    Raises:
        endpoints.EndpointError: an address is malformed, or `endpoint` public, in use or not
            permitted.
        ProxyError: no source, one that is named twice, or the proxy itself as its source.
    """

    def __init__(
        self,
        sources: Sequence[str],
        endpoint: str,
        *,
        insecure: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        _check(sources, endpoint, insecure=insecure)
        self._clock = clock
        self._stats = ProxyStats()
        self._streams: dict[str, _Stream] = {}
        self._subscriptions = Subscriptions()
        self._greetings: set[tuple[str, bytes]] = set()
        self._greeted_ns = 0
        self._contests: set[tuple[str, str]] = set()
        self._stopping = threading.Event()
        self._context = zmq.Context[zmq.Socket[bytes]]()
        try:
            self._outlet = Outlet(endpoint, self._context, heartbeats=True)
        except endpoints.EndpointError:
            self._context.term()
            raise
        self.endpoint: Final = self._outlet.endpoint
        self._sources = [_Source(self._context, source) for source in sources]

    def serve(self) -> None:
        """Pass messages on until `stop`."""
        poller = zmq.Poller()
        poller.register(self._outlet.socket, zmq.POLLIN)
        for source in self._sources:
            for socket in source.sockets:
                poller.register(socket, zmq.POLLIN)
        while not self._stopping.is_set():
            poller.poll(_GREETING_MS if self._greetings else _POLL_MS)
            self._read_subscriptions()
            for source in self._sources:
                is_lost = source.follow(self._subscriptions.prefixes)
                for frames in source.messages():
                    self._take(source, frames)
                if is_lost:
                    self._forget(
                        (n for n, s in self._streams.items() if s.source is source), "gone"
                    )
            self._greet()
            oldest_ns = self._clock() - round(SILENCE_S * 1e9)
            silent = (n for n, s in self._streams.items() if s.heard_ns < oldest_ns)
            self._forget(silent, "silent")

    def stop(self) -> None:
        """Let `serve` return within a moment; from any thread, and from signal handlers."""
        self._stopping.set()

    def stats(self) -> ProxyStats:
        """Counters since the start."""
        return replace(self._stats, streams=len(self._streams))

    def close(self) -> None:
        """Free the address; closing twice is harmless."""
        self._outlet.close(linger_ms=0)
        for source in self._sources:
            source.close()
        if not self._context.closed:
            end_context(self._context, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _read_subscriptions(self) -> None:
        """Tell the daemons what is wanted; note who joined what is kept."""
        changed = False
        for joins, prefix in self._outlet.requests():
            changed |= self._subscriptions.change(joins, prefix)
            if joins:
                self._greetings.update(
                    (name, kind)
                    for name in self._streams
                    for kind in _KEPT
                    if (kind + name.encode() + b"\0").startswith(prefix)
                )
        if changed:
            for source in self._sources:
                source.tell(self._subscriptions.prefixes)

    def _take(self, source: _Source, frames: list[bytes]) -> None:
        """Pass a message on, if it is one and its stream is this daemon's."""
        frame = frames[0]
        match = TOPIC.fullmatch(frame[:LONGEST_TOPIC].partition(b"\0")[0])
        if match is None or len(frames) > 1 or len(frame) > MAX_MESSAGE_BYTES:
            self._stats.malformed += 1
            return
        now = self._clock()
        stream = self._stream(match[2].decode(), source, now)
        if stream is None:
            self._stats.contested += 1
            return
        stream.heard_ns = now
        kind = match[1] + b"/"
        if kind in _KEPT:
            stream.kept[kind] = frame
            self._greetings.discard((match[2].decode(), kind))
        self._send(frame)
        self._stats.forwarded += 1

    def _stream(self, name: str, source: _Source, now_ns: int) -> _Stream | None:
        """The stream of that name if it is this daemon's; None if another one has the name."""
        known = self._streams.get(name)
        if known is None and len(self._streams) < MAX_STREAMS:
            known = self._streams[name] = _Stream(source, now_ns)
            _log.info("stream %s comes from %s", name, source.endpoint)
        if known is not None and known.source is source:
            return known
        if (name, source.endpoint) not in self._contests and len(self._contests) < MAX_STREAMS:
            self._contests.add((name, source.endpoint))
            _log.error(
                "stream %s of %s is refused: %s; give each daemon another source.stream",
                name,
                source.endpoint,
                f"{known.source.endpoint} has that name" if known else f"{MAX_STREAMS} are there",
            )
        return None

    def _send(self, frame: bytes) -> None:
        if not self._outlet.send(frame):
            self._outlet.send_past_full(frame)
            self._stats.overtaken += 1

    def _greet(self) -> None:
        """Repeat hello and status for those who joined; seldom, as all hear it."""
        now = self._clock()
        if not self._greetings or now - self._greeted_ns < _GREETING_MS * 1_000_000:
            return
        for name, kind in self._greetings:
            stream = self._streams.get(name)
            if stream is not None and kind in stream.kept:
                self._send(stream.kept[kind])
        self._greetings.clear()
        self._greeted_ns = now

    def _forget(self, names: Iterable[str], why: str) -> None:
        """A dead daemon's status is not repeated, and its streams' names are free."""
        for name in tuple(names):
            source = self._streams.pop(name).source
            self._contests = {each for each in self._contests if each[0] != name}
            _log.warning("stream %s of %s is %s", name, source.endpoint, why)


def _check(sources: Sequence[str], endpoint: str, *, insecure: bool) -> None:
    if not sources:
        raise ProxyError("there is no source; name at least one daemon's bus")
    for each in (*sources, endpoint):
        endpoints.check(each)
    if not insecure:
        endpoints.check_private(endpoint)
    for each in sources:
        if sources.count(each) > 1:
            raise ProxyError(f"the source {each} is named twice; name it once")
    if endpoint in sources:
        raise ProxyError(f"{endpoint} is both source and destination; choose another address")

"""The publishing socket: XPUB, which sees who subscribes and says when a subscriber is full.

How ZeroMQ treats a full pipe carries the bus's policies. With XPUB_NODROP a send fails while any
subscriber's pipe is full. One lossy send then takes that pipe off the list of those written to,
until its subscriber has read half of it; so later sends no longer fail for its sake, and only that
subscriber has missed anything.

Heartbeats cut off subscribers that no longer answer: stopped processes, hosts that vanished. They
also cut off one that reads, but so slowly that its queues are full up to the wire, as its answers
wait behind them (measured: the first 4 s after its queue was full). So they are for publishers that
never wait; one that must lose nothing finds vanished hosts by TCP's keepalive alone.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Final

import zmq

from . import endpoints
from .messages import LONGEST_TOPIC, TopicKind, topic

SEND_HIGH_WATER_MARK: Final = 64
"""Messages that ZeroMQ keeps for each subscriber."""

SEND_SLICE_MS: Final = 50
"""Longest time that one waiting send takes."""

HEARTBEAT_MS: Final = 2000
"""Time between two heartbeats, where there are any."""

HEARTBEAT_TIMEOUT_MS: Final = 6000
"""Silence after which a peer is cut off, by the publisher, and the publisher by its readers."""

_SEND_BUFFER_BYTES = 1 << 18
_MAX_INBOUND_BYTES = 4096
_HANDSHAKE_MS = 5000
_KEEPALIVE = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 15,  # seconds, as the next
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 3,
}
_TERM_GRACE_S = 2.0
_logger = logging.getLogger(__name__)


class Outlet:
    """A bound XPUB socket. It belongs to one thread at a time.

    Args:
        endpoint: where to bind.
        context: a context to share; None makes one.
        heartbeats: cut off subscribers that do not answer; see the module.

    Attributes:
        endpoint: the address as bound.
        socket: for polling.

    Raises:
        endpoints.EndpointError: the address is malformed, in use or not permitted.
    """

    def __init__(
        self,
        endpoint: str,
        context: zmq.Context[zmq.Socket[bytes]] | None,
        *,
        heartbeats: bool = False,
    ) -> None:
        self._own_context = context is None
        self._context = context or zmq.Context[zmq.Socket[bytes]]()
        self.socket: Final = _open(self._context, heartbeats=heartbeats)
        try:
            self.endpoint: Final = endpoints.bind(self.socket, endpoint)
        except endpoints.EndpointError:
            self.close(linger_ms=0)
            raise

    def send(self, data: bytes, *, wait: bool = False) -> bool:
        """Send if every subscriber has room, within `SEND_SLICE_MS` or at once; else False."""
        try:
            self.socket.send(data, 0 if wait else zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def send_past_full(self, data: bytes) -> None:
        """Send to those who have room; the others are left alone until they read."""
        self.socket.setsockopt(zmq.XPUB_NODROP, 0)
        self.socket.send(data, zmq.DONTWAIT)
        self.socket.setsockopt(zmq.XPUB_NODROP, 1)

    def requests(self) -> Iterator[tuple[bool, bytes]]:
        """What came since the last call: (True, prefix) a subscription, (False, prefix) its end."""
        while True:
            try:
                request = self.socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            if request[:1] in {b"\0", b"\1"}:
                yield request[0] == 1, request[1:]

    def close(self, linger_ms: int) -> None:
        """Free the address; what is on its way has `linger_ms` to arrive."""
        self.socket.close(linger=linger_ms)
        if self._own_context:
            end_context(self._context, linger_ms)


def end_context(context: zmq.Context[zmq.Socket[bytes]], linger_ms: int) -> None:
    """End a context whose sockets are closed.

    libzmq has been seen never to come back from this, long after the time to linger, where a peer
    had sent nonsense; so the end is awaited for a while only.
    """
    end = threading.Thread(target=context.term, name="atlasd-bus-end", daemon=True)
    end.start()
    end.join(linger_ms / 1000 + _TERM_GRACE_S)
    if end.is_alive():
        _logger.warning("ZeroMQ does not end its context; it is left behind")


class Subscriptions:
    """How many subscribers each prefix has."""

    def __init__(self) -> None:
        self._counts: Counter[bytes] = Counter()

    def change(self, joins: bool, prefix: bytes) -> bool:
        """Count one more, or one fewer; True if `prefixes` changed by it.

        A prefix longer than any topic matches nothing and is not counted.
        """
        if len(prefix) > LONGEST_TOPIC:
            return False
        was = prefix in self._counts
        self._counts[prefix] += 1 if joins else -1
        if self._counts[prefix] <= 0:
            del self._counts[prefix]
        return was != (prefix in self._counts)

    @property
    def prefixes(self) -> frozenset[bytes]:
        """All that somebody subscribes to."""
        return frozenset(self._counts)

    def matching(self, kind: TopicKind, stream: str | None = None) -> int:
        """Subscriptions to a kind of message, of one stream or of any."""
        if stream is not None:
            whole = topic(kind, stream)
            return sum(n for prefix, n in self._counts.items() if whole.startswith(prefix))
        start = f"{kind}/".encode()
        return sum(
            n
            for prefix, n in self._counts.items()
            if prefix.startswith(start) or start.startswith(prefix)
        )


def keep_alive(socket: zmq.Socket[bytes]) -> None:
    """Let TCP find out within half a minute that the other host is gone."""
    for option, value in _KEEPALIVE.items():
        socket.setsockopt(option, value)


def _open(context: zmq.Context[zmq.Socket[bytes]], *, heartbeats: bool) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.XPUB)
    socket.setsockopt(zmq.XPUB_VERBOSER, 1)
    socket.setsockopt(zmq.XPUB_NODROP, 1)
    socket.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER_MARK)
    socket.setsockopt(zmq.SNDTIMEO, SEND_SLICE_MS)
    socket.setsockopt(zmq.SNDBUF, _SEND_BUFFER_BYTES)
    socket.setsockopt(zmq.MAXMSGSIZE, _MAX_INBOUND_BYTES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    keep_alive(socket)
    if heartbeats:
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
    return socket

"""The publishing socket: XPUB, which sees who subscribes and says when a subscriber is full.

How ZeroMQ treats a full pipe carries the bus's policies. With XPUB_NODROP a send fails while any
subscriber's pipe is full. One lossy send then takes that pipe off the list of those written to,
until its subscriber has read half of it; so later sends no longer fail for its sake, and only that
subscriber has missed anything.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Final

import zmq

from . import endpoints
from .messages import TopicKind, topic

SEND_HIGH_WATER_MARK: Final = 64
"""Messages that ZeroMQ keeps for each subscriber."""

SEND_SLICE_MS: Final = 50
"""Longest time that one waiting send takes."""

_SEND_BUFFER_BYTES = 1 << 18
_MAX_INBOUND_BYTES = 4096
_HANDSHAKE_MS = 5000
_TERM_GRACE_S = 2.0
_logger = logging.getLogger(__name__)


class Outlet:
    """A bound XPUB socket. It belongs to one thread at a time.

    Args:
        endpoint: where to bind.
        context: a context to share; None makes one.

    Attributes:
        endpoint: the address as bound.
        socket: for polling.

    Raises:
        endpoints.EndpointError: the address is malformed, in use or not permitted.
    """

    def __init__(self, endpoint: str, context: zmq.Context[zmq.Socket[bytes]] | None) -> None:
        self._own_context = context is None
        self._context = context or zmq.Context[zmq.Socket[bytes]]()
        self.socket: Final = _open(self._context)
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

    def change(self, joins: bool, prefix: bytes) -> None:
        """Count one more, or one fewer."""
        self._counts[prefix] += 1 if joins else -1
        if self._counts[prefix] <= 0:
            del self._counts[prefix]

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


def _open(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.XPUB)
    socket.setsockopt(zmq.XPUB_VERBOSER, 1)
    socket.setsockopt(zmq.XPUB_NODROP, 1)
    socket.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER_MARK)
    socket.setsockopt(zmq.SNDTIMEO, SEND_SLICE_MS)
    socket.setsockopt(zmq.SNDBUF, _SEND_BUFFER_BYTES)
    socket.setsockopt(zmq.MAXMSGSIZE, _MAX_INBOUND_BYTES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    return socket

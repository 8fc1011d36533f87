"""Receive masks: ``for mask in subscribe("tcp://127.0.0.1:5556", "main"): ...``.

Two ways of reading. ``latest`` is for those who act on what is seen now: whatever has arrived is
taken off the socket, and only the newest mask of each stream is given, so a slow reader stays
fresh (a short queue would not do that: it keeps the oldest messages). ``all`` is for recorders:
every mask, in order.

A mask says how many were lost on the bus just before it (`Mask.gap`), how old it is
(`Mask.age_ms`) and whether that is older than allowed (`Mask.stale`). Ages are exact on the
publisher's machine. From elsewhere they are counted from the fastest message so far, since the
clocks of two machines have no common origin.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeVar, cast, overload

import zmq

from . import endpoints
from .messages import (
    MAX_MESSAGE_BYTES,
    Event,
    Hello,
    Mask,
    Message,
    Preview,
    Status,
    TopicKind,
    topic,
    unpack,
)
from .outlet import keep_alive
from .wire import VersionError, WireError, clock_name

Mode = Literal["latest", "all"]
WhenStale = Literal["flag", "drop", "raise"]
M = TypeVar("M", bound=Message)

RECEIVE_HIGH_WATER_MARK: Final = 1000
"""Messages that ZeroMQ keeps for a reader; large, as draining needs it (measured)."""

CUT_OFF_BYTES: Final = 4 * MAX_MESSAGE_BYTES
"""A publisher that sends a larger message is cut off by ZeroMQ for good, which `timeout_s` tells;
between `MAX_MESSAGE_BYTES` and this a message is counted as malformed and the rest goes on."""

_DRAIN_LIMIT = 10 * RECEIVE_HIGH_WATER_MARK
_MALFORMED_TOLD = 10
_NEEDED: tuple[TopicKind, ...] = ("h", "s", "e")
_log = logging.getLogger(__name__)


class StaleError(Exception):
    """A mask is older than the reader allows."""


class SilenceError(TimeoutError):
    """Nothing came for as long as the reader was willing to wait."""


@dataclass(slots=True)
class ClientStats:
    """What a subscription saw.

    Attributes:
        received: messages that came, of all kinds.
        malformed: of them, those that were no message; each is ignored.
        masks: masks given to the reader.
        skipped: masks that newer ones replaced before the reader asked (``latest``).
        lost: masks that never came: their numbers are missing.
        stale: masks that were older than allowed.
        restarts: how often a publisher was seen to begin anew.
    """

    received: int = 0
    malformed: int = 0
    masks: int = 0
    skipped: int = 0
    lost: int = 0
    stale: int = 0
    restarts: int = 0


@dataclass(slots=True)
class _Stream:
    """What is known of one stream."""

    instance: str = ""
    clock: str = ""
    offset_ns: int | None = None
    seq: int | None = None
    ended: bool = False

    def is_other_run(self, instance: str) -> bool:
        """Note which run of the daemon speaks; True if it replaced the one before."""
        before, self.instance = self.instance, instance
        if before in {"", instance}:
            return False
        self.seq, self.ended, self.offset_ns = None, False, None
        return True

    def note_delay(self, publish_ns: int, now_ns: int) -> None:
        """Keep the smallest difference of the two clocks: that of the fastest message."""
        difference = now_ns - publish_ns
        if self.offset_ns is None or difference < self.offset_ns:
            self.offset_ns = difference

    def age_ms(self, mask: Mask, now_ns: int) -> float:
        """Milliseconds since the capture, as well as the clocks allow."""
        here = self.clock == clock_name()
        return (now_ns - mask.capture_ns - (0 if here else self.offset_ns or 0)) / 1e6


class Subscription(Generic[M]):
    """An open subscription: an iterator over messages, and a context manager.

    It belongs to one thread. `subscribe` describes the arguments.

    Attributes:
        endpoint: the publisher's address.
        stats: counters, see `ClientStats`.
        hello: the latest hello of each stream.
        status: the latest status of each stream.
    """

    def __init__(
        self,
        endpoint: str,
        stream: str | None,
        kinds: Sequence[type[Message]],
        *,
        mode: Mode,
        timeout_s: float | None,
        max_age_ms: float | None,
        when_stale: WhenStale,
        follow: bool,
        clock: Callable[[], int],
        context: zmq.Context[zmq.Socket[bytes]] | None,
    ) -> None:
        endpoints.check(endpoint)
        self.endpoint: Final = endpoint
        self.stats: Final = ClientStats()
        self.hello: Final[dict[str, Hello]] = {}
        self.status: Final[dict[str, Status]] = {}
        self._mode: Final[Mode] = mode
        self._kinds = tuple(kinds)
        self._timeout_s = timeout_s
        self._max_age_ms = float("inf") if max_age_ms is None else max_age_ms
        self._when_stale: Final[WhenStale] = when_stale
        self._follow = follow
        self._clock = clock
        self._pending: deque[Message] = deque()
        self._streams: dict[str, _Stream] = {}
        topics = _topics(stream, self._kinds)
        self._own_context = context is None
        self._context = context or zmq.Context[zmq.Socket[bytes]]()
        self._socket = _open(self._context, endpoint, topics)

    def __iter__(self) -> Iterator[M]:
        return self

    def __next__(self) -> M:
        """The next message of the kinds that were asked for.

        Raises:
            SilenceError: none came within `timeout_s`.
            StaleError: a mask is too old and `when_stale` is ``raise``.
            VersionError: the publisher speaks another major version.
        """
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        while not self._socket.closed:
            self._take_what_came()
            while self._pending:
                message = self._judge(self._pending.popleft())
                if message is not None:
                    return cast("M", message)
            if self._has_ended():
                self.close()
            else:
                self._wait(deadline)
        raise StopIteration

    def close(self) -> None:
        """Leave the bus; closing twice is harmless."""
        self._socket.close(linger=0)
        if self._own_context:
            self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _has_ended(self) -> bool:
        known = self._streams.values()
        return not self._follow and bool(known) and all(stream.ended for stream in known)

    def _wait(self, deadline: float | None) -> None:
        """Wait for a message, at most until the deadline."""
        remaining_ms = None if deadline is None else (deadline - time.monotonic()) * 1000
        if remaining_ms is None or remaining_ms > 0:
            self._socket.poll(None if remaining_ms is None else math.ceil(remaining_ms))
            return
        kinds = ", ".join(kind.__name__.lower() for kind in self._kinds)
        states = [f"{name} is {status.state}" for name, status in self.status.items()]
        alive = f"the daemon is there ({'; '.join(states)})" if states else "is the daemon running?"
        raise SilenceError(
            f"no {kinds} came from {self.endpoint} within {self._timeout_s} s; {alive}"
        )

    def _take_what_came(self) -> None:
        """Receive: one message in mode ``all``, everything that is there in mode ``latest``."""
        for _ in range(1 if self._mode == "all" else _DRAIN_LIMIT):
            try:
                data = self._socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            self.stats.received += 1
            try:
                self._digest(unpack(data))
            except VersionError:
                raise
            except WireError as error:
                self._count_malformed(error)

    def _count_malformed(self, error: WireError) -> None:
        """Say the first ones and then every thousandth, as a flood would fill the log."""
        self.stats.malformed += 1
        if self.stats.malformed <= _MALFORMED_TOLD or self.stats.malformed % 1000 == 0:
            _log.warning(
                "ignored malformed message %d from %s: %s",
                self.stats.malformed,
                self.endpoint,
                error,
            )

    def _digest(self, message: Message) -> None:
        """Note what a message says of its stream, and keep it if the reader asked for its kind."""
        stream = self._streams.setdefault(message.stream, _Stream())
        match message:
            case Hello():
                self.hello[message.stream] = message
                stream.clock = message.clock
                self.stats.restarts += stream.is_other_run(message.instance)
            case Status():
                self.status[message.stream] = message
                self.stats.restarts += stream.is_other_run(message.instance)
                if message.state == "ended":
                    self._end(stream, message.mask)
            case Event(kind="eos" | "goodbye"):
                stream.ended = True
            case Mask():
                stream.note_delay(message.publish_ns, self._clock())
                self._digest_mask(stream, message)
                return
            case _:
                pass
        if isinstance(message, self._kinds):
            self._keep(message)

    def _end(self, stream: _Stream, last: Mask | None) -> None:
        """The stream ended; its last mask is given if it had not come by itself."""
        stream.ended = True
        if last is not None and (stream.seq is None or last.seq > stream.seq):
            self._digest_mask(stream, last)

    def _digest_mask(self, stream: _Stream, mask: Mask) -> None:
        last, stream.seq = stream.seq, mask.seq
        if last is not None and mask.seq <= last:
            self.stats.restarts += 1
            stream.ended = False
        elif last is not None:
            mask = replace(mask, gap=mask.seq - last - 1)
            self.stats.lost += mask.gap
        if Mask in self._kinds:
            self._keep(mask)

    def _keep(self, message: Message) -> None:
        """Queue for the reader; in mode ``latest`` a mask or preview replaces an older one."""
        if self._mode == "latest" and isinstance(message, Mask | Preview):
            for old in self._pending:
                if type(old) is type(message) and old.stream == message.stream:
                    self._pending.remove(old)
                    message = self._replace(old, message)
                    break
        self._pending.append(message)

    def _replace(self, old: Message, new: Message) -> Message:
        if isinstance(old, Mask) and isinstance(new, Mask):
            self.stats.skipped += 1
            return replace(new, gap=old.gap + new.gap)
        return new

    def _judge(self, message: Message) -> Message | None:
        """Say a mask's age; None for one that is dropped because of it."""
        if not isinstance(message, Mask):
            return message
        age_ms = self._streams[message.stream].age_ms(message, self._clock())
        stale = age_ms > self._max_age_ms
        self.stats.stale += stale
        if stale and self._when_stale == "raise":
            raise StaleError(
                f"mask {message.seq} of {message.stream} is {age_ms:.0f} ms old; "
                f"{self._max_age_ms:.0f} ms are allowed: the publisher or this reader is too slow"
            )
        if stale and self._when_stale == "drop":
            return None
        self.stats.masks += 1
        return replace(message, age_ms=age_ms, stale=stale)


@overload
def subscribe(
    endpoint: str,
    stream: str | None = None,
    *,
    mode: Mode = "latest",
    timeout_s: float | None = None,
    max_age_ms: float | None = None,
    when_stale: WhenStale = "flag",
    follow: bool = False,
    clock: Callable[[], int] = time.monotonic_ns,
    context: zmq.Context[zmq.Socket[bytes]] | None = None,
) -> Subscription[Mask]: ...


@overload
def subscribe(
    endpoint: str,
    stream: str | None = None,
    *,
    kinds: Sequence[type[M]],
    mode: Mode = "latest",
    timeout_s: float | None = None,
    max_age_ms: float | None = None,
    when_stale: WhenStale = "flag",
    follow: bool = False,
    clock: Callable[[], int] = time.monotonic_ns,
    context: zmq.Context[zmq.Socket[bytes]] | None = None,
) -> Subscription[M]: ...


def subscribe(
    endpoint: str,
    stream: str | None = None,
    *,
    kinds: Sequence[type[Message]] = (Mask,),
    mode: Mode = "latest",
    timeout_s: float | None = None,
    max_age_ms: float | None = None,
    when_stale: WhenStale = "flag",
    follow: bool = False,
    clock: Callable[[], int] = time.monotonic_ns,
    context: zmq.Context[zmq.Socket[bytes]] | None = None,
) -> Subscription[Any]:
    """Subscribe to the masks of a stream, or of all streams.

    The subscription stands when this returns, whether or not a publisher is there yet; messages
    are kept from the moment on at which the publisher saw it. The iteration ends when the stream
    ends or the daemon says goodbye; with several streams, when every one heard of has ended.

    Args:
        endpoint: ``tcp://HOST:PORT`` or ``ipc:///PATH``.
        stream: name of the stream; None for all.
        kinds: the types of the messages wanted, such as ``(Mask, Event)``.
        mode: ``latest`` gives the newest mask of each stream, ``all`` every mask in order.
        timeout_s: longest time without a message of `kinds`; None waits for ever.
        max_age_ms: a mask older than this, from capture to now, is stale.
        when_stale: ``flag`` sets `Mask.stale`, ``drop`` passes over it, ``raise`` raises.
        follow: go on after the end of a stream, for a daemon that will be started again.
        clock: nanoseconds of this host's monotonic clock.
        context: for ``inproc`` endpoints, the context that both sides share.

    Raises:
        endpoints.EndpointError: the address is malformed.
        WireError: the stream's name is malformed.
    """
    return Subscription[Any](
        endpoint,
        stream,
        kinds,
        mode=mode,
        timeout_s=timeout_s,
        max_age_ms=max_age_ms,
        when_stale=when_stale,
        follow=follow,
        clock=clock,
        context=context,
    )


def _topics(stream: str | None, kinds: Sequence[type[Message]]) -> list[bytes]:
    """What to subscribe to: what the client itself needs first, so that nothing of it is missed."""
    wanted: list[TopicKind] = [*_NEEDED, *(kind.topic_kind for kind in kinds)]
    order = dict.fromkeys(wanted)
    return [f"{kind}/".encode() if stream is None else topic(kind, stream) for kind in order]


def _open(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, topics: Sequence[bytes]
) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, RECEIVE_HIGH_WATER_MARK)
    socket.setsockopt(zmq.MAXMSGSIZE, CUT_OFF_BYTES)
    socket.setsockopt(zmq.RECONNECT_IVL, 100)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 5000)
    keep_alive(socket)
    if endpoint.startswith("tcp://["):
        socket.setsockopt(zmq.IPV6, 1)
    socket.connect(endpoint)
    for each in topics:
        socket.setsockopt(zmq.SUBSCRIBE, each)
    return socket

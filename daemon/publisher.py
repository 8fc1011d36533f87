"""The bus: an XPUB socket in a thread of its own, fed by a bounded queue.

Sockets belong to one thread, so a single loop sends, reads subscriptions and keeps time. What it
does about a subscriber that reads too slowly is the policy:

- ``live``: it never waits. A subscriber whose queue is full misses messages; the others do not. One
  that does not answer for six seconds is cut off; its queue is freed.
- ``wait``: it waits for the slowest, so that every mask of a file arrives. One that reads nothing
  for `stall_timeout_s` is passed over until it reads again, which an event and a counter say.
"""

from __future__ import annotations

import socket as system
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Literal, Self

import zmq

from . import endpoints
from .infos import IntakeInfo, LadderInfo, LearnerInfo
from .messages import Event, Hello, Mask, Message, Preview, Status, TopicKind, pack, topic
from .outlet import Outlet, Subscriptions
from .records import StreamRecord
from .wire import clock_name

Policy = Literal["wait", "live"]

_IDLE_MS = 100
_NS = 1_000_000_000


class PublisherError(RuntimeError):
    """The bus is closed, or its thread has failed."""


@dataclass(frozen=True, slots=True)
class PublisherStats:
    """What the bus did.

    Attributes:
        sent: messages by kind of topic.
        drops: losses by reason: ``bus_queue_full`` masks that the bus never took;
            ``subscriber_stalled`` how often subscribers were found full and passed over (each of
            them counts by `Mask.seq` what it missed); ``preview_skipped`` previews.
        subscribers: subscriptions that match masks.
    """

    sent: Mapping[str, int]
    drops: Mapping[str, int]
    subscribers: int


class Publisher:
    """Publishes messages to whoever subscribes.

    Args:
        endpoint: ``tcp://127.0.0.1:PORT`` (0 or ``*`` finds a free port) or ``ipc:///PATH``.
        policy: see the module; `go_by` changes it.
        insecure: allow addresses that other machines can reach.
        queue_capacity: messages that wait for the bus's thread. When it is full, `publish` waits
            under ``wait`` and drops the oldest mask under ``live``.
        stall_timeout_s: under ``wait``, how long one subscriber may hold up the others.
        hello_s: seconds between repeated hellos.
        status_s: seconds between status messages.
        linger_s: at the end, seconds for what is on its way to reach its subscribers.
        clock: nanoseconds of the host's monotonic clock.
        context: for ``inproc`` endpoints, the context that both sides share.

    Attributes:
        endpoint: the address as bound.
        instance: names this run of the bus.
        policy: at present.

    Raises:
        endpoints.EndpointError: the address is malformed, public, in use or not permitted.
    """

    def __init__(
        self,
        endpoint: str,
        policy: Policy = "live",
        *,
        insecure: bool = False,
        queue_capacity: int = 16,
        stall_timeout_s: float = 10.0,
        hello_s: float = 2.0,
        status_s: float = 1.0,
        linger_s: float = 2.0,
        clock: Callable[[], int] = time.monotonic_ns,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        endpoints.check(endpoint)
        if not insecure:
            endpoints.check_private(endpoint)
        self.policy: Policy = policy
        self.instance: Final = uuid.uuid4().hex
        self._clock = clock
        self._capacity = queue_capacity
        self._stall_ns = round(stall_timeout_s * _NS)
        self._hello_ns, self._status_ns = round(hello_s * _NS), round(status_s * _NS)
        self._linger_ms = round(linger_s * 1000)
        self._changed = threading.Condition()
        self._queue: deque[Message] = deque()
        self._streams: dict[str, StreamRecord] = {}
        self._subscriptions = Subscriptions()
        self._sent: Counter[str] = Counter()
        self._drops: Counter[str] = Counter()
        self._closing = False
        self._failure: Exception | None = None
        self._blocked_since_ns: int | None = None
        self._outlet = Outlet(endpoint, context, heartbeats=policy == "live")
        self.endpoint: Final = self._outlet.endpoint
        self._bell, self._ear = system.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="atlasd-bus", daemon=True)
        self._thread.start()

    def go_by(self, policy: Policy) -> None:
        """Follow another policy from the next message on.

        Whether subscribers that do not answer are cut off stays as it was at the beginning.
        """
        with self._changed:
            self.policy = policy
            self._changed.notify_all()

    def publish(self, message: Message) -> None:
        """Hand a message to the bus.

        Under ``wait`` this blocks while the queue is full; under ``live`` never.

        Raises:
            PublisherError: the bus is closed or its thread failed.
        """
        with self._changed:
            if self.policy == "wait" and not isinstance(message, Preview):
                self._changed.wait_for(lambda: len(self._queue) < self._capacity or self._over())
            self._refuse_when_over()
            if len(self._queue) >= self._capacity and not self._make_room(message):
                return
            self._queue.append(message)
        self._wake()

    def report(
        self,
        stream: str,
        *,
        detail: str | None = None,
        drops: Mapping[str, int] | None = None,
        lat_ms: Mapping[str, float] | None = None,
        intake: IntakeInfo | None = None,
        learner: LearnerInfo | None = None,
        ladder: LadderInfo | None = None,
    ) -> None:
        """Set what the next status messages of a stream say; None leaves a value as it was.

        Raises:
            FieldError: a value that no status may hold.
        """
        said = Status(
            stream=stream,
            state="running",
            detail=detail or "",
            drops=drops or {},
            lat_ms=lat_ms or {},
        )
        with self._changed:
            known = self._stream(stream)
            known.detail = known.detail if detail is None else said.detail
            known.drops = known.drops if drops is None else said.drops
            known.lat_ms = known.lat_ms if lat_ms is None else said.lat_ms
            known.intake = known.intake if intake is None else intake
            known.learner = known.learner if learner is None else learner
            known.ladder = known.ladder if ladder is None else ladder

    def wants(self, kind: TopicKind, stream: str | None = None) -> bool:
        """Whether anybody subscribes to a kind of message, of one stream or of any."""
        with self._changed:
            return self._subscriptions.matching(kind, stream) > 0

    def wait_for_subscriber(self, timeout_s: float | None = None) -> bool:
        """Wait until somebody subscribes to masks; False if nobody did in time."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._subscriptions.matching("m") > 0 or self._over(), timeout_s
            )
            return self._subscriptions.matching("m") > 0

    def stats(self) -> PublisherStats:
        """Counters since the start."""
        with self._changed:
            return PublisherStats(
                dict(self._sent), dict(self._drops), self._subscriptions.matching("m")
            )

    def close(self, *, drain: bool = True) -> None:
        """Send what is queued, say goodbye, and free the address; closing twice is harmless.

        Args:
            drain: False drops what is queued and does not linger.

        Raises:
            PublisherError: the bus's thread had failed.
        """
        with self._changed:
            self._closing = True
            if not drain:
                self._queue.clear()
                self._linger_ms = self._stall_ns = 0
            self._changed.notify_all()
        self._wake()
        self._thread.join()
        if self._failure is not None:
            raise PublisherError(f"the bus has failed: {self._failure}") from self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # What callers' threads share with the bus's, under self._changed.

    def _over(self) -> bool:
        return self._closing or self._failure is not None

    def _refuse_when_over(self) -> None:
        if self._failure is not None:
            raise PublisherError(f"the bus has failed: {self._failure}") from self._failure
        if self._closing:
            raise PublisherError("the bus is closed; nothing can be published any more")

    def _make_room(self, message: Message) -> bool:
        """Drop the oldest mask or preview of the full queue; False drops the message itself."""
        if isinstance(message, Preview):
            self._drops["preview_skipped"] += 1
            return False
        index = next((i for i, m in enumerate(self._queue) if isinstance(m, Mask | Preview)), 0)
        del self._queue[index]
        self._drops["bus_queue_full"] += 1
        return True

    def _stream(self, name: str) -> StreamRecord:
        if name not in self._streams:
            self._streams[name] = StreamRecord(name, self._clock())
        return self._streams[name]

    def _wake(self) -> None:
        try:
            self._bell.send(b"\0")
        except OSError:
            return  # the buffer is full of earlier calls, or the thread is gone

    # The bus's thread.

    def _run(self) -> None:
        try:
            poller = zmq.Poller()
            poller.register(self._outlet.socket, zmq.POLLIN)
            poller.register(self._ear, zmq.POLLIN)
            while not self._finished():
                ready = dict(poller.poll(0 if self._queue else _IDLE_MS))
                if self._ear.fileno() in ready:
                    self._ear.recv(4096)
                self._read_subscriptions()
                self._send_due()
                self._send_next()
            self._say_goodbye()
        except Exception as error:  # noqa: BLE001 - a thread's errors are raised in its callers
            self._failure = error
        finally:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            self._outlet.close(self._linger_ms)
            self._bell.close()
            self._ear.close()

    def _finished(self) -> bool:
        with self._changed:
            return self._closing and not self._queue

    def _read_subscriptions(self) -> None:
        """Count who subscribes to what; a new subscription gets its hello and status soon."""
        for joins, prefix in self._outlet.requests():
            with self._changed:
                self._subscriptions.change(joins, prefix)
                if joins:
                    self._greet(prefix)
                self._changed.notify_all()

    def _greet(self, prefix: bytes) -> None:
        for stream in self._streams.values():
            if topic("h", stream.name).startswith(prefix):
                stream.hello_due_ns = 0
            if topic("s", stream.name).startswith(prefix):
                stream.status_due_ns = 0

    def _send_due(self) -> None:
        """Repeat hello and status; under ``wait`` they go out once there is room for all."""
        now = self._clock()
        with self._changed:
            streams = list(self._streams.values())
        for stream in streams:
            if (
                stream.hello is not None
                and now >= stream.hello_due_ns
                and self._offer(stream.hello)
            ):
                stream.hello_due_ns = now + self._hello_ns
            if now >= stream.status_due_ns and self._offer(self._status(stream, now)):
                stream.status_sent(now, now + self._status_ns)

    def _status(self, stream: StreamRecord, now: int) -> Status:
        with self._changed:
            return stream.status(
                now,
                stopping=self._closing,
                subscribers=self._subscriptions.matching("m", stream.name),
                bus_drops=self._drops,
            )

    def _send_next(self) -> None:
        with self._changed:
            if not self._queue:
                return
            message = self._stamp(self._queue.popleft())
            stream = self._stream(message.stream)
            stream.note(message)
            self._changed.notify_all()
        self._deliver(message)
        if isinstance(message, Hello):
            stream.hello_due_ns = self._clock() + self._hello_ns

    def _deliver(self, message: Message) -> None:
        """Send a message to every subscriber that the policy allows to wait for."""
        data = pack(message)
        if isinstance(message, Preview):
            if not self._try(message, data):
                self._count_drop("preview_skipped")
        elif self.policy == "live":
            if not self._try(message, data):
                self._pass_over(message, data, waited_ns=0)
        else:
            self._deliver_waiting(message, data)

    def _deliver_waiting(self, message: Message, data: bytes) -> None:
        began = self._clock()
        while not self._try(message, data, wait=True):
            self._read_subscriptions()
            waited = self._clock() - began
            if waited >= self._stall_ns:
                self._pass_over(message, data, waited)
                return

    def _offer(self, message: Message) -> bool:
        """Send a repeated message, without making anybody miss another; False to try again."""
        message = self._stamp(message)
        data = pack(message)
        if self._try(message, data):
            self._blocked_since_ns = None
            return True
        now = self._clock()
        if self._blocked_since_ns is None:
            self._blocked_since_ns = now
        waited = now - self._blocked_since_ns
        if self.policy == "wait" and waited < self._stall_ns:
            return False
        self._pass_over(message, data, waited)
        self._blocked_since_ns = None
        return True

    def _try(self, message: Message, data: bytes, *, wait: bool = False) -> bool:
        """Send if every subscriber has room, soon or at once; else False."""
        if not self._outlet.send(data, wait=wait):
            return False
        self._count_sent(message)
        return True

    def _stamp(self, message: Message) -> Message:
        now = self._clock()
        if isinstance(message, Hello):
            return replace(message, publish_ns=now, instance=self.instance, clock=clock_name())
        if isinstance(message, Status):
            return replace(message, publish_ns=now, instance=self.instance)
        return replace(message, publish_ns=now)

    def _pass_over(self, message: Message, data: bytes, waited_ns: int) -> None:
        """Send to those who have room; the others miss it, and are left alone until they read."""
        self._outlet.send_past_full(data)
        self._count_sent(message)
        times = self._count_drop("subscriber_stalled")
        waited = f" (waited {waited_ns / _NS:.1f} s)" if waited_ns else ""
        event = Event(
            stream=message.stream,
            publish_ns=self._clock(),
            kind="subscriber_stalled",
            detail=f"a subscriber reads too slowly{waited}; it misses messages until it reads on",
            data={"waited_ms": waited_ns / 1e6, "times": times},
        )
        self._try(event, pack(event))

    def _count_sent(self, message: Message) -> None:
        with self._changed:
            self._sent[message.topic_kind] += 1

    def _count_drop(self, reason: str) -> int:
        with self._changed:
            self._drops[reason] += 1
            return self._drops[reason]

    def _say_goodbye(self) -> None:
        for stream in list(self._streams.values()):
            self._deliver(self._stamp(stream.farewell()))

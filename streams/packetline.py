"""Packets of a live container in the order in which they came, read the moment they come."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream

from .containers import Damage, demux

MAX_BYTES: Final = 48_000_000
MAX_PACKETS: Final = 20_000
"""Most that waits: a minute of a camera's best, two of a television's."""
CLOSE_S: Final = 0.5
"""How long closing waits for a server that says nothing."""


@dataclass(frozen=True, slots=True)
class Overrun:
    """So many pictures were let go since nobody took them."""

    pictures: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """What came, and when by the host's monotonic clock; ``is_key``: pictures can begin with it."""

    item: Packet | Damage | Overrun
    arrival_ns: int
    is_key: bool = False


class Line(Protocol):
    """Where a live decoder takes packets from; `PacketLine` is one."""

    @property
    def keys(self) -> int:
        """Pictures that wait and can be begun with."""
        ...

    def take(self) -> Arrived | None:
        """The oldest that waits, or the next that comes; None at the end."""
        ...

    def close(self) -> None:
        """Read no more, and free the container."""
        ...


class PacketLine:
    """Reads a container in a thread of its own, so that slow decoding holds up no packet.

    Who reads only between two pictures cannot tell what came late from what was fetched late, and
    what is not fetched queues up at the sender, unseen. Here each packet is stamped when it comes,
    and how long it has waited is how far behind the decoder is.

    Args:
        container: an open container; it is this one's alone, and closed by it.
        streams: those of it that are wanted.
        ended_by: errors that end it.
        clock: host monotonic clock in nanoseconds.
        waits: a full line holds the container up; else all of it is let go, for it is old.
    """

    def __init__(
        self,
        container: InputContainer,
        streams: Sequence[Stream],
        *,
        ended_by: tuple[type[Exception], ...],
        clock: Callable[[], int],
        waits: bool = False,
    ) -> None:
        self._container, self._streams, self._ended_by = container, streams, ended_by
        self._clock, self._waits = clock, waits
        self._line: deque[Arrived] = deque()
        self._bytes = self._keys = 0
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._is_closed = self._is_over = self._is_left = False
        self._thread = threading.Thread(target=self._run, name="atlasd-demux", daemon=True)
        self._thread.start()

    @property
    def keys(self) -> int:
        """Pictures that wait and can be begun with."""
        return self._keys

    def take(self) -> Arrived | None:
        """The oldest that waits, or the next that comes; None at the end.

        Raises:
            Exception: one of ``ended_by``, after all that came before it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._line or self._is_over)
            if not self._line:
                if self._error is not None:
                    raise self._error
                return None
            arrived = self._line.popleft()
            self._bytes -= _bytes_of(arrived)
            self._keys -= arrived.is_key
            self._changed.notify_all()
            return arrived

    def close(self) -> None:
        """Free the container; a server that says nothing keeps it a while. Twice is harmless."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(CLOSE_S)
        with self._changed:
            self._is_left = not self._is_over
            is_over = self._is_over
        if is_over:
            self._container.close()

    # The thread that reads.

    def _run(self) -> None:
        try:
            for item in demux(self._container, self._streams, ended_by=self._ended_by):
                is_key = (
                    isinstance(item, Packet) and item.stream.type == "video" and item.is_keyframe
                )
                self._put(Arrived(item, self._clock(), is_key))
                if self._is_closed:
                    break
        except Exception as error:  # noqa: BLE001 (the reader raises it)
            self._error = error
        with self._changed:
            self._is_over = True
            is_left = self._is_left
            self._changed.notify_all()
        if is_left:
            self._container.close()

    def _put(self, arrived: Arrived) -> None:
        with self._changed:
            if self._waits:
                self._changed.wait_for(lambda: self._is_closed or not self._is_full)
            elif self._is_full:
                self._let_go(arrived.arrival_ns)
            self._line.append(arrived)
            self._bytes += _bytes_of(arrived)
            self._keys += arrived.is_key
            self._changed.notify_all()

    @property
    def _is_full(self) -> bool:
        return self._bytes > MAX_BYTES or len(self._line) >= MAX_PACKETS

    def _let_go(self, now_ns: int) -> None:
        pictures = sum(_pictures_of(arrived) for arrived in self._line)
        self._line.clear()
        self._line.append(Arrived(Overrun(pictures), now_ns))
        self._bytes = self._keys = 0


def _bytes_of(arrived: Arrived) -> int:
    return arrived.item.size if isinstance(arrived.item, Packet) else 0


def _pictures_of(arrived: Arrived) -> int:
    match arrived.item:
        case Overrun(pictures):
            return pictures
        case Packet():
            return int(arrived.item.stream.type == "video")
        case _:
            return 0

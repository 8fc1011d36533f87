"""Decodes what a live stream brings, and passes over what it has no time for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from av.codec.context import CodecContext
from av.packet import Packet

from .clips import NS_PER_S
from .containers import Damage, Decoded, decode_packet
from .packetline import MAX_PACKETS, Arrived, Line, Overrun
from .sources import MediaError

BEHIND_NS: Final = NS_PER_S // 10
"""A picture that has waited for so long gives way to a newer one that can be begun with."""
FAR_BEHIND_NS: Final = NS_PER_S // 2
"""Where pictures have waited for so long, and that for `PATIENCE_NS`, none is decoded until one
comes that can be begun with: masks of such pictures would be dropped."""
PATIENCE_NS: Final = NS_PER_S
"""What came in a burst is decoded in less, and then there is no hurry."""
BLIND_NS: Final = 10 * NS_PER_S
"""A stream that brings no picture to begin with for so long is given up, to be opened again."""
TOLD_NS: Final = NS_PER_S
"""Pictures that were passed over are told of so often, at most."""


class FreshDecoder:
    """Decoded pictures and sound of a live stream, each with when its packet came.

    How far it is behind is measured: how long the packet at hand has waited in line. Sound is
    always decoded. Pictures that are behind are passed over up to the newest that can be begun
    with: any of a format whose pictures stand alone (MJPEG), else a keyframe. Between keyframes
    nothing can be left out, so it goes on until it is hopeless, and then waits for the next one.
    Who decodes only a little too slowly is so never much later than that.

    What was passed over is told once a second as a `Damage` of kind ``behind``, with ``times``.

    Args:
        line: where packets come from.
        clock: host monotonic clock in nanoseconds, the line's.
        name: of the stream, for errors.
        passes: whether anything may be passed over; else all is decoded.

    Attributes:
        passed: (time in the container in ns, arrival) of pictures that were passed over, oldest
            first; whoever reads this empties it.
    """

    def __init__(
        self, line: Line, *, clock: Callable[[], int], name: str, passes: bool = True
    ) -> None:
        self._line, self._clock, self._name, self._passes = line, clock, name, passes
        self._late_since_ns: int | None = None
        self._blind_since_ns: int | None = None
        self.passed: deque[tuple[int, int]] = deque(maxlen=MAX_PACKETS)
        self._passed = 0
        self._most_ns = 0
        self._told_ns: int | None = None

    def __iter__(self) -> Iterator[tuple[Decoded, int]]:
        """Decoded pictures and sound with their arrivals, to the end of the line.

        Raises:
            MediaError: it is behind, and nothing comes that pictures could begin with.
            Exception: what the line raises.
        """
        while (arrived := self._line.take()) is not None:
            for decoded in self._decoded(arrived):
                yield decoded, arrived.arrival_ns
        if self._passed:
            yield self._told(), self._clock()

    def _decoded(self, arrived: Arrived) -> Iterator[Decoded]:
        item = arrived.item
        if isinstance(item, Damage):
            yield item
        elif isinstance(item, Overrun):
            self._passed += item.pictures
            self._blind_since_ns = self._blind_since_ns or self._clock()
        elif item.stream.type != "video" or not item.size or self._has_time(item, arrived):
            yield from decode_packet(item)
        if self._passed and self._is_told_next():
            yield self._told()

    def _has_time(self, packet: Packet, arrived: Arrived) -> bool:
        """Whether a picture's packet is decoded; else it is passed over, and counted."""
        if not self._passes:
            return True
        now_ns = self._clock()
        waited_ns = now_ns - arrived.arrival_ns
        is_overtaken = waited_ns > BEHIND_NS and self._line.keys > 0
        if waited_ns <= BEHIND_NS:
            self._late_since_ns = None
        elif self._late_since_ns is None:
            self._late_since_ns = now_ns
        if arrived.is_key and not is_overtaken:
            self._see_again(packet.stream.codec_context)
        elif is_overtaken or self._is_hopeless(waited_ns, now_ns):
            self._blind_since_ns = self._blind_since_ns or now_ns
        if self._blind_since_ns is None:
            return True
        if packet.pts is not None:
            start_ns = round(packet.pts * packet.time_base * NS_PER_S)
            self.passed.append((start_ns, arrived.arrival_ns))
        self._pass(waited_ns, now_ns)
        return False

    def _see_again(self, codec: CodecContext) -> None:
        """Begin with this picture, and forget those that it would else be mixed with."""
        if self._blind_since_ns is not None:
            self._blind_since_ns = self._late_since_ns = None
            codec.flush_buffers()

    def _is_hopeless(self, waited_ns: int, now_ns: int) -> bool:
        since_ns = now_ns if self._late_since_ns is None else self._late_since_ns
        return waited_ns > FAR_BEHIND_NS and now_ns - since_ns > PATIENCE_NS

    def _pass(self, waited_ns: int, now_ns: int) -> None:
        self._passed += 1
        self._most_ns = max(self._most_ns, waited_ns)
        if now_ns - (self._blind_since_ns or now_ns) > BLIND_NS:
            raise MediaError(
                f"{self._name} fell behind by {self._most_ns / NS_PER_S:.1f} s: decoding takes "
                f"longer than the stream, and no keyframe has come for {BLIND_NS // NS_PER_S} s; "
                "let the camera send smaller or fewer pictures or more keyframes, or free this "
                "machine"
            )

    def _is_told_next(self) -> bool:
        return self._told_ns is None or self._clock() - self._told_ns >= TOLD_NS

    def _told(self) -> Damage:
        behind_s = self._most_ns / NS_PER_S
        told = Damage(
            "behind",
            f"{self._passed} pictures were passed over: decoding was {behind_s:.2f} s behind the "
            "stream",
            self._passed,
        )
        self._told_ns, self._passed, self._most_ns = self._clock(), 0, 0
        return told

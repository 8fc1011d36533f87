"""One timeline out of the timestamps of two tracks: its origin, and where it breaks into epochs.

Pictures and sound of one container break together but arrive interleaved, often a second apart. So
a jump of one track is held until the other shows what it was:

- both jump: the timeline broke. A new epoch begins, and what the slower track still delivers of
  the old one comes before it.
- the jump lands nearer to the other track: no break but a hole (sound lost, the camera stalled).
- the track returns at once: stray timestamps. The items keep their order, and are counted.
- nothing until a bound: the pictures decide, and sound that still follows the old timeline is lost.

A new epoch continues where the last one ended: times grow over the whole stream, and the offset
between picture and sound is the container's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from .clips import NS_PER_S
from .sources import TroubleKind

Track = Literal["video", "audio"]
T = TypeVar("T")

FORWARD_NS = NS_PER_S
"""A jump forward beyond this (for slow videos: beyond four frame periods) may be a break."""
AUDIO_BACK_NS = NS_PER_S // 10
"""A jump of sound backwards beyond this may be a break; pictures: beyond two frame periods."""
HOLD_NS, HOLD_ITEMS, HOLD_BYTES = NS_PER_S, 64, 64_000_000
"""How much of one track is held, at most, while the other has not shown what happened."""
WAITED_NS = NS_PER_S // 2
"""A live track that jumps forward by as much as it was silent, give or take this, has a hole."""
TOGETHER_NS = 2 * NS_PER_S
"""Interleaved tracks of one timeline are this near to each other."""


@dataclass(frozen=True, slots=True)
class Item(Generic[T]):
    """One decoded picture or piece of sound, timed by its container.

    Attributes:
        track: whose it is.
        start_ns: when it begins.
        end_ns: when it ends; a picture's nominal period after its beginning.
        size: bytes that holding it costs.
        payload: what it is; never looked at.
        arrival_ns: host monotonic clock when it came, for live streams: a jump forward during
            which so much time went by is a hole.
    """

    track: Track
    start_ns: int
    end_ns: int
    size: int
    payload: T
    arrival_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Placed(Generic[T]):
    """An item with its place: ``start_ns`` on the stream's timeline, and its epoch."""

    item: Item[T]
    start_ns: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Break:
    """``epoch`` begins here."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Odd:
    """Something about the timestamps was repaired: a short stable name, and words."""

    kind: TroubleKind
    detail: str


@dataclass(slots=True)
class _Position:
    """Where a track is, in its container's time."""

    last_ns: int | None = None
    end_ns: int = 0
    arrival_ns: int | None = None
    astray: bool = False

    def take(self, start_ns: int, end_ns: int, arrival_ns: int | None) -> None:
        """An item is the newest of the track."""
        self.last_ns, self.end_ns, self.arrival_ns = start_ns, end_ns, arrival_ns

    def has_waited(self, start_ns: int, arrival_ns: int | None) -> bool:
        """Whether the host's clock went on as far as an item's time did."""
        if self.last_ns is None or self.arrival_ns is None or arrival_ns is None:
            return False
        moved_ns, waited_ns = start_ns - self.last_ns, arrival_ns - self.arrival_ns
        return moved_ns > 0 and abs(moved_ns - waited_ns) <= WAITED_NS


@dataclass(slots=True)
class Timeline(Generic[T]):
    """Places items of one or two tracks, in order of arrival.

    Args:
        tracks: the tracks that exist.
    """

    tracks: tuple[Track, ...]
    epoch: int = field(default=0, init=False)
    _at: dict[Track, _Position] = field(init=False)
    _held: list[Item[T]] = field(default_factory=list[Item[T]], init=False)
    _ahead: Track | None = field(default=None, init=False)
    _offset_ns: int | None = field(default=None, init=False)
    _placed_end_ns: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._at = {track: _Position() for track in self.tracks}

    def add(self, item: Item[T]) -> Iterator[Placed[T] | Break | Odd]:
        """Take the next item; gives what is decided by now, in order."""
        if self._offset_ns is None:
            self._held.append(item)
            seen = {held.track for held in self._held}
            if len(seen) == len(self.tracks) or self._is_full():
                yield from self._begin()
        elif self._ahead is None:
            yield from self._follow(item)
        elif item.track == self._ahead:
            yield from self._hold(item)
        elif self._jump_ns(item):
            yield from self._open(item)
        else:
            yield from self._place(item)

    def pass_over(self, track: Track, start_ns: int, arrival_ns: int) -> None:
        """An item came and is not given: that the track went on over it is no jump."""
        position = self._at[track]
        length_ns = position.end_ns - (position.last_ns or 0)
        item = Item(track, start_ns, start_ns + length_ns, 0, None, arrival_ns)
        if position.last_ns is not None and self._ahead is None and not self._jump_ns(item):
            position.take(item.start_ns, item.end_ns, arrival_ns)

    def finish(self) -> Iterator[Placed[T] | Break | Odd]:
        """The container has ended: gives all that is still held."""
        if self._offset_ns is None:
            if self._held:
                yield from self._begin()
        elif self._ahead is not None:
            yield from self._give_up()

    def _begin(self) -> Iterator[Placed[T] | Break | Odd]:
        """The origin is the earliest picture or sound; what was held starts the stream."""
        self._offset_ns = min(item.start_ns for item in self._held)
        held, self._held = self._held, []
        for item in held:
            yield from self.add(item)

    def _follow(self, item: Item[T]) -> Iterator[Placed[T] | Break | Odd]:
        jump_ns = self._jump_ns(item)
        if self._at[item.track].astray:
            yield from self._rejoin(item, jumped=jump_ns != 0)
        elif not jump_ns or self._mends(item, jump_ns):
            yield from self._place(item)
        else:
            self._ahead = item.track
            self._held.append(item)
            if len(self.tracks) == 1 or self._is_full():
                yield from self._give_up()

    def _hold(self, item: Item[T]) -> Iterator[Placed[T] | Break | Odd]:
        """Take one more item of the track that has jumped."""
        if not self._jump_ns(item):
            strays, self._held, self._ahead = self._held, [], None
            yield Odd(
                "stray_pts",
                f"{len(strays)} timestamps of the {item.track} left its timeline and came back",
            )
            for stray in strays:
                yield self._placed(stray, self._at[stray.track].end_ns)
            yield from self._place(item)
            return
        self._held.append(item)
        if self._is_full():
            yield from self._give_up()

    def _open(self, item: Item[T] | None) -> Iterator[Placed[T] | Break | Odd]:
        """Begin an epoch with what is held and, where it has jumped too, the other track's item."""
        held = [*self._held, item] if item is not None else self._held
        first = self._held[0]
        was_ns = self._at[first.track].end_ns
        self._held, self._ahead = [], None
        self.epoch += 1
        self._offset_ns = min(i.start_ns for i in held) - self._placed_end_ns
        yield Break(
            self.epoch,
            f"timestamps of the {first.track} went from {was_ns / NS_PER_S:.3f} s "
            f"to {first.start_ns / NS_PER_S:.3f} s",
        )
        for one in held:
            yield from self._place(one)

    def _give_up(self) -> Iterator[Placed[T] | Break | Odd]:
        """Decide by the track that has jumped alone."""
        if self._ahead == "video" or len(self.tracks) == 1:
            yield from self._open(None)
            sound = self._at.get("audio")
            if sound is not None and sound.last_ns is not None:
                sound.astray = not self._is_near("audio")
            return
        held, self._held, self._ahead = self._held, [], None
        for item in held:
            yield from self._place(item)

    def _rejoin(self, item: Item[T], *, jumped: bool) -> Iterator[Placed[T] | Break | Odd]:
        """Sound that stayed behind on the old timeline comes back by a jump, or is lost."""
        position = self._at[item.track]
        position.take(item.start_ns, item.end_ns, item.arrival_ns)
        if jumped or self._is_near(item.track):
            position.astray = False
            yield from self._place(item)
        else:
            yield Odd("stale_audio", f"{item.track} of the timeline before epoch {self.epoch}")

    def _place(self, item: Item[T]) -> Iterator[Placed[T]]:
        position = self._at[item.track]
        position.take(item.start_ns, item.end_ns, item.arrival_ns)
        yield self._placed(item, item.start_ns)

    def _placed(self, item: Item[T], start_ns: int) -> Placed[T]:
        place_ns = start_ns - (self._offset_ns or 0)
        length_ns = item.end_ns - item.start_ns
        self._placed_end_ns = max(self._placed_end_ns, place_ns + length_ns)
        return Placed(item, place_ns, self.epoch)

    def _jump_ns(self, item: Item[T] | Item[None]) -> int:
        """How far an item leaves its track's timeline; 0 where it goes on."""
        position = self._at[item.track]
        if position.last_ns is None:
            return 0
        if item.track == "video":
            period_ns = item.end_ns - item.start_ns
            jump_ns = item.start_ns - position.last_ns
            goes_on = -2 * period_ns <= jump_ns <= max(FORWARD_NS, 4 * period_ns)
        else:
            jump_ns = item.start_ns - position.end_ns
            goes_on = -AUDIO_BACK_NS <= jump_ns <= FORWARD_NS
        if goes_on or position.has_waited(item.start_ns, item.arrival_ns):
            return 0
        return jump_ns

    def _mends(self, item: Item[T], jump_ns: int) -> bool:
        """Whether a jump brings its track nearer to the other: then it is a hole, not a break."""
        other = self._other(item.track)
        if other is None or other.last_ns is None:
            return False
        before_ns = abs(self._at[item.track].end_ns - other.end_ns)
        after_ns = abs(item.start_ns - other.end_ns)
        if jump_ns < 0 and (item.track == "video" or before_ns <= TOGETHER_NS):
            return False
        return after_ns < before_ns

    def _other(self, track: Track) -> _Position | None:
        return next((self._at[other] for other in self.tracks if other != track), None)

    def _is_near(self, track: Track) -> bool:
        other = self._other(track)
        return other is None or abs(self._at[track].end_ns - other.end_ns) <= TOGETHER_NS

    def _is_full(self) -> bool:
        span_ns = self._held[-1].end_ns - self._held[0].start_ns
        size = sum(item.size for item in self._held)
        return span_ns > HOLD_NS or len(self._held) >= HOLD_ITEMS or size > HOLD_BYTES

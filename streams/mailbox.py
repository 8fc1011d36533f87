"""A bounded queue between the thread that captures and the one that consumes."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
Policy = Literal["wait", "live"]

MAX_EVENTS = 256
"""Events that may wait in a live mailbox; further ones push the oldest out."""
_NEARLY_DUE, _IN_STEP = 0.75, 0.5
"""Shares of a period: after the first an item's successor is awaited, as the mean age falls by more
than the idle time costs (docs/log.md, 2026-11-29), unless it came off the beat by the second."""


class MailboxClosedError(Exception):
    """Something was put into a mailbox after it was closed: nobody will take it."""


@dataclass(frozen=True, slots=True)
class _Letter(Generic[T]):
    item: T
    captured_ns: int | None
    put_ns: int
    gap_ns: int
    """Since the picture before was put."""


class Mailbox(Generic[T]):
    """Hands items from one thread to another.

    With policy ``wait`` nothing is lost: `put` blocks while the mailbox is full. With ``live``
    `put` never blocks: the oldest item that may be dropped gives way, and `get` passes over items
    older than ``max_age_ms``, and over those that have waited ``max_wait_ms`` in here while a newer
    one came: what arrives together is all taken, what queues up is not. One whose successor is due
    within a quarter of ``period_ms`` waits so long for it, to be passed over, where items come one
    by one at that pace and ``max_wait_ms`` is less than a period. Every drop is counted with its
    reason. Items put without a capture time (events) take no other's place: `MAX_EVENTS` of them
    fit beside, and age does not matter.

    Args:
        capacity: items that fit; under ``live`` events do not count.
        policy: see above.
        max_age_ms: age since capture above which a live item is stale; None is no limit.
        max_wait_ms: time in here above which one is stale where a newer one waits; None: no limit.
        period_ms: time between two items; None: no successor is awaited.
        clock: host monotonic clock in nanoseconds.

    Attributes:
        max_wait_ms: as above; it may be changed.
        period_ms: likewise.
        drops: items dropped so far, by reason: ``queue_full``, ``stale`` (too old, or overtaken).

    Raises:
        ValueError: a capacity below one, or a negative age.
    """

    def __init__(
        self,
        capacity: int,
        policy: Policy = "wait",
        max_age_ms: float | None = None,
        max_wait_ms: float | None = None,
        period_ms: float | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if capacity < 1 or min(max_age_ms or 0, max_wait_ms or 0, period_ms or 0) < 0:
            raise ValueError(
                f"capacity {capacity}, max_age_ms {max_age_ms}, max_wait_ms {max_wait_ms}, "
                f"period_ms {period_ms}: a mailbox holds at least one item, and times are not "
                "negative"
            )
        self.drops = {"queue_full": 0, "stale": 0}
        self._capacity = capacity
        self._policy: Policy = policy
        self._max_age_ns = None if max_age_ms is None else round(max_age_ms * 1e6)
        self.max_wait_ms = max_wait_ms
        self.period_ms = period_ms
        self._clock = clock
        self._letters: deque[_Letter[T]] = deque()
        self._last_ns: int | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None

    def __len__(self) -> int:
        return len(self._letters)

    @property
    def closed(self) -> bool:
        """Whether nothing more will be put; items may still wait."""
        return self._closed

    def put(self, item: T, captured_ns: int | None = None) -> None:
        """Put an item in.

        Args:
            item: anything.
            captured_ns: when it was captured, by the mailbox's clock; None for what must not be
                dropped for its age.

        Raises:
            MailboxClosedError: the mailbox was closed, before or while this waited.
        """
        with self._changed:
            if self._policy == "wait":
                self._changed.wait_for(lambda: self._closed or len(self) < self._capacity)
            if self._closed:
                raise MailboxClosedError("put into a closed mailbox; stop capturing")
            if self._policy == "live":
                self._make_room(is_event=captured_ns is None)
            self._letters.append(self._letter(item, captured_ns))
            self._changed.notify_all()

    def get(self, timeout_s: float | None = None) -> T | None:
        """Take the oldest item that is not stale.

        Args:
            timeout_s: how long to wait for one; None waits until the mailbox is closed.

        Returns:
            The item, or None at the timeout or when the mailbox is closed and empty.

        Raises:
            BaseException: what `fail` was given, once everything put before it was taken.
        """
        began = time.monotonic()
        with self._changed:
            self._changed.wait_for(self._has_answer, timeout_s)
            left_s = math.inf if timeout_s is None else began + timeout_s - time.monotonic()
            self._await_successor(left_s)
            if self._letters:
                letter = self._letters.popleft()
                self._changed.notify_all()
                return letter.item
            if self._error is not None:
                raise self._error
            return None

    def __iter__(self) -> Iterator[T]:
        """Items until the mailbox is closed and empty."""
        while True:
            item = self.get()
            if item is None:
                return
            yield item

    def close(self) -> None:
        """Nothing more will be put; what waits can still be taken. Closing twice is harmless."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Close, and raise ``error`` in the consumer after the last item."""
        with self._changed:
            if self._error is None and not self._closed:
                self._error = error
            self._closed = True
            self._changed.notify_all()

    def _has_answer(self) -> bool:
        self._drop_stale()
        return self._closed or bool(self._letters)

    def _letter(self, item: T, captured_ns: int | None) -> _Letter[T]:
        now_ns = self._clock()
        gap_ns = 0 if self._last_ns is None else now_ns - self._last_ns
        if captured_ns is not None:
            self._last_ns = now_ns
        return _Letter(item, captured_ns, now_ns, gap_ns)

    def _await_successor(self, left_s: float) -> None:
        """Pass over the only picture for the next one, where that is all but there."""
        if not self._letters or self._closed:
            return
        head = self._letters[0]
        rest_s = min(self._worth_waiting_s(head), left_s)
        if rest_s <= 0 or self._has_newer(head):
            return
        self._changed.wait_for(lambda: self._closed or self._has_newer(head), rest_s)
        if self._letters[0] is head and self._has_newer(head):
            self._letters.popleft()
            self.drops["stale"] += 1

    def _worth_waiting_s(self, head: _Letter[T]) -> float:
        """How long a picture may wait for its successor; 0: it is taken as it is."""
        period_ms, max_wait_ms = self.period_ms, self.max_wait_ms
        if head.captured_ns is None or period_ms is None or max_wait_ms is None:
            return 0.0
        now_ns = self._clock()
        waited_ms = (now_ns - head.put_ns) / 1e6
        is_in_step = abs(head.gap_ns / 1e6 - period_ms) <= _IN_STEP * period_ms
        if self._policy != "live" or not is_in_step:
            return 0.0
        if not max(_NEARLY_DUE * period_ms, max_wait_ms) < waited_ms < period_ms:
            return 0.0
        rest_ns = (1 - _NEARLY_DUE) * period_ms * 1e6
        if self._max_age_ns is not None:
            rest_ns = min(rest_ns, self._max_age_ns - (now_ns - head.captured_ns))
        return rest_ns / 1e9

    def _has_newer(self, letter: _Letter[T]) -> bool:
        return any(x is not letter and x.captured_ns is not None for x in self._letters)

    def _make_room(self, *, is_event: bool) -> None:
        kin = [letter for letter in self._letters if (letter.captured_ns is None) == is_event]
        if len(kin) >= (MAX_EVENTS if is_event else self._capacity):
            self._letters.remove(kin[0])
            self.drops["queue_full"] += 1

    def _drop_stale(self) -> None:
        if self._policy != "live":
            return
        now_ns = self._clock()
        newest = next((x for x in reversed(self._letters) if x.captured_ns is not None), None)
        fresh = [x for x in self._letters if not self._is_stale(x, now_ns, x is newest)]
        self.drops["stale"] += len(self._letters) - len(fresh)
        self._letters = deque(fresh)

    def _is_stale(self, letter: _Letter[T], now_ns: int, is_newest: bool) -> bool:
        if letter.captured_ns is None:
            return False
        if self._max_age_ns is not None and now_ns - letter.captured_ns > self._max_age_ns:
            return True
        if is_newest or self.max_wait_ms is None:
            return False
        return now_ns - letter.put_ns > self.max_wait_ms * 1e6

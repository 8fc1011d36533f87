"""The orders that a learner was given: each is carried out once, however often it is asked for."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Final

from .labels import Answer, Refused
from .orders import Order, OrderName

KEPT: Final = 256
"""So many of the latest orders are known by their ids."""


@dataclass(slots=True)
class _Asker:
    """Who waits for an answer."""

    request: int
    answer: Future[Answer]
    deadline_s: float


@dataclass(slots=True)
class _Entry:
    """An order, its answer once there is one, and who waits for it."""

    order: Order
    answer: Answer | None = None
    askers: list[_Asker] = field(default_factory=list["_Asker"])


class OrderBook:
    """Who asked for what, and what the learner answered; it belongs to one thread."""

    def __init__(self) -> None:
        self._number = 0
        self._open: dict[int, _Entry] = {}
        self._known: OrderedDict[str, _Entry] = OrderedDict()

    def enter(self, order: Order, answer: Future[Answer], deadline_s: float) -> Order | None:
        """Note that somebody asks for an order.

        Args:
            order: what came.
            answer: is set once the learner has answered.
            deadline_s: when he is told to come back, see `tell_late`.

        Returns:
            The order to pass on, under a number of the book's; None: one with its id came before,
            and he gets that one's answer.
        """
        known = None if order.id is None else self._known.get(order.id)
        if known is not None:
            self._join(known, order, _Asker(order.request, answer, deadline_s))
            return None
        self._number += 1
        entry = _Entry(order, askers=[_Asker(order.request, answer, deadline_s)])
        self._open[self._number] = entry
        if order.id is not None:
            self._known[order.id] = entry
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return replace(order, request=self._number)

    def waiting(self, name: OrderName) -> list[int]:
        """Numbers of the orders of a name that are not answered yet."""
        return [number for number, entry in self._open.items() if entry.order.order == name]

    def settle(self, number: int, answer: Answer) -> None:
        """Note the answer to an order, and give it to all who wait for it."""
        entry = self._open.pop(number, None)
        if entry is not None:
            entry.answer = answer
            _give(entry, answer)

    def dismiss(self, number: int, answer: Answer) -> None:
        """Answer an order that was never passed on: asked for again, it is a new one."""
        entry = self._open.get(number)
        if entry is not None and entry.order.id is not None:
            self._known.pop(entry.order.id, None)
        self.settle(number, answer)

    def settle_all(self, why: str) -> None:
        """Answer all that is open, for a learner that will not."""
        for number in list(self._open):
            self.settle(number, Refused(request=0, code="no_learner", detail=why[:4000]))

    def tell_late(self, now_s: float, why: str) -> None:
        """Tell those who have waited for long that their orders stand, without an answer yet."""
        for entry in self._open.values():
            late = [asker for asker in entry.askers if now_s >= asker.deadline_s]
            entry.askers = [asker for asker in entry.askers if now_s < asker.deadline_s]
            for asker in late:
                said = Refused(request=asker.request, code="not_yet", detail=why[:4000])
                asker.answer.set_result(said)

    def _join(self, entry: _Entry, order: Order, asker: _Asker) -> None:
        if replace(order, request=0, v=entry.order.v) != replace(entry.order, request=0):
            detail = f"the id {order.id!r} names an order to {entry.order.order}; take another id"
            asker.answer.set_result(Refused(request=asker.request, code="conflict", detail=detail))
            return
        entry.askers.append(asker)
        if entry.answer is not None:
            _give(entry, entry.answer)


def _give(entry: _Entry, answer: Answer) -> None:
    for asker in entry.askers:
        asker.answer.set_result(replace(answer, request=asker.request))
    entry.askers.clear()

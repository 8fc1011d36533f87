"""The learner's process, watched: started, listened to, started again when it dies or hangs.

Nothing that the learner does, its death included, stops the masks.
"""

from __future__ import annotations

import logging
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

from .config import Config
from .endpoints import EndpointError
from .infos import LearnerInfo
from .labels import Answer, Refused
from .learnerlife import TICK_MS, LearnerLife
from .learnline import (
    FromLearner,
    Offer,
    OfferedWeights,
    Shape,
    Told,
    WeightsRefusedError,
    looked_at,
)
from .linefolder import LineFolder
from .orderbook import OrderBook
from .orders import Carried, Order
from .spoolfile import SpoolError
from .wire import WireError

Announce = Callable[[str, str, Mapping[str, bool | int | float | str]], None]
"""Called as (kind, detail, data) from the supervisor's thread; see `messages.Event`."""

_WINDOW_S: Final = 600.0
_ORDER_S: Final = 60.0
_REFUSED: Final = 2
"""`learnermain.REFUSED`, which this process does not load."""
_log = logging.getLogger(__name__)


class Supervisor:
    """Keeps one learner alive until it is closed.

    Args:
        config: all that the daemon is told.
        layout: of the serving form, see `learnline.looked_at`.
        announce: tells the bus what happens.
        note_pause: notes on disk that nothing is to be learned, or takes that back, for learners
            to come; called from the supervisor's thread, may raise `SpoolError`.
        command: what starts a learner; the endpoint and the daemon's process id are added,
            the configuration comes on stdin.
        clock: monotonic seconds.

    Raises:
        OSError: there is no place for the line to the learner; see `linefolder`.
    """

    def __init__(
        self,
        config: Config,
        layout: Mapping[str, tuple[Shape, str]],
        announce: Announce,
        note_pause: Callable[[bool], None],
        *,
        command: tuple[str, ...] = (sys.executable, "-m", "atlasd.daemon.learnermain"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._layout, self._announce = config, layout, announce
        self._note_pause, self._command, self._clock = note_pause, command, clock
        self._folder = LineFolder()
        self._lock = threading.Lock()
        self._info = LearnerInfo(state="starting", method=config.learner.method)
        self._offered: OfferedWeights | None = None
        self._orders: queue.SimpleQueue[tuple[Order, Future[Answer]]] = queue.SimpleQueue()
        self._book = OrderBook()
        self._gone = ""
        self._deaths: deque[float] = deque()
        self._restarts = 0
        self._life: LearnerLife | None = None
        self._start_at: float | None = clock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="atlasd-supervisor", daemon=True)
        self._thread.start()

    def info(self) -> LearnerInfo:
        """How the learner does."""
        with self._lock:
            return self._info

    def take(self) -> OfferedWeights | None:
        """The newest weights that were offered since the last call, None where none were."""
        with self._lock:
            offered, self._offered = self._offered, None
            return offered

    def order(self, order: Order) -> Future[Answer]:
        """Pass an order on; the answer comes when the learner has carried it out.

        An order whose id came before is not carried out again; see `orders.Order`.
        """
        answer: Future[Answer] = Future()
        with self._lock:
            gone = self._gone or ("the daemon leaves" if self._closing.is_set() else "")
            if not gone:
                self._orders.put((order, answer))
        if gone:
            answer.set_result(_cannot(order, gone))
        return answer

    def close(self) -> None:
        """Let the learner keep what it has, and end it; closing twice is harmless."""
        self._closing.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # The supervisor's thread.

    def _run(self) -> None:
        fault = ""
        try:
            while not self._closing.is_set():
                self._turn()
        except Exception as error:  # noqa: BLE001 - whatever it is, masks go on
            _log.exception("the learner is not watched any more; masks go on")
            fault = f"the learner is not watched any more ({type(error).__name__}: {error})"
            fault = f"{fault[:3900]}; masks go on, start the daemon again to learn"
        finally:
            try:
                self._leave(fault)
            finally:
                self._refuse_rest(fault or "the daemon leaves")

    def _turn(self) -> None:
        life = self._life
        if life is None:
            if self._start_at is not None and self._clock() >= self._start_at:
                self._begin()
            else:
                self._closing.wait(TICK_MS / 1000)
        else:
            self._listen(life)
            code = life.process.poll()
            if code is not None:
                self._listen(life)
                self._bury(_cause(code), final=code == _REFUSED)
            elif life.is_hung():
                life.dump_and_kill()
                self._bury(f"made no progress in {self._config.learner.hang_s:g} s", final=False)
        self._pass_on()

    def _begin(self) -> None:
        self._start_at = None
        try:
            self._life = LearnerLife(
                self._config, self._command, self._folder.socket(self._restarts), self._clock
            )
        except (OSError, EndpointError) as error:
            self._bury(f"could not be started ({error})", final=False)

    def _listen(self, life: LearnerLife) -> None:
        try:
            for said in life.line.received(TICK_MS):
                life.progressed(said)
                self._hear(said)
        except WireError as error:
            _log.error("%s", error)
            life.process.kill()

    def _hear(self, said: FromLearner) -> None:
        match said:
            case LearnerInfo():
                with self._lock:
                    self._info = replace(said, restarts=self._restarts)
            case Told():
                self._announce(said.kind, said.detail, said.data)
            case (offer, blob):
                self._look_at(offer, blob)
            case _:
                if isinstance(said, Refused) and said.request in self._book.waiting("pause"):
                    self._hold(said.request, said.detail)
                elif said.request is not None:
                    self._book.settle(said.request, said)

    def _look_at(self, offer: Offer, blob: bytes) -> None:
        try:
            offered = looked_at(offer, blob, self._layout)
        except WeightsRefusedError as error:
            _log.error("%s", error)
            self._announce("weights_refused", str(error), {"version": offer.version})
            return
        with self._lock:
            self._offered = offered

    def _bury(self, cause: str, *, final: bool) -> None:
        """Note a death, or that there was no life, and decide when the next one begins."""
        life, self._life = self._life, None
        if life is not None:
            life.close()
        now = self._clock()
        self._deaths.append(now)
        while now - self._deaths[0] > _WINDOW_S:
            self._deaths.popleft()
        said = self.info()
        if final and said.state == "failed":
            detail = said.detail
        elif final or len(self._deaths) > self._config.learner.max_restarts:
            final = True
            detail = f"the learner {cause}, {len(self._deaths)} times in ten minutes"
        else:
            detail = f"the learner {cause}; it is started again soon"
            self._restarts += 1
            self._start_at = now + min(30.0, 2.0 ** (len(self._deaths) - 1))
        if final:
            detail += "; nothing is learned until `atlasd resume`, masks go on"
        _log.error("%s", detail)
        self._announce("learner_died", detail, {"restarts": self._restarts, "final": final})
        self._set(
            state="failed" if final else "restarting",
            detail=detail[:4000],
            pid=0,
            restarts=self._restarts,
        )
        self._settle_all(
            f"the learner {cause} before it answered; whether the order was carried out is not "
            "known: see atlasd status and atlasd versions before you give it again"
        )

    # Orders.

    def _pass_on(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._pass(*self._orders.get_nowait())
        self._book.tell_late(
            self._clock(),
            f"the learner did not answer within {_ORDER_S:g} s; the order stands, and is carried "
            "out when it comes to it: atlasd status shows when",
        )

    def _pass(self, order: Order, answer: Future[Answer]) -> None:
        numbered = self._book.enter(order, answer, self._clock() + _ORDER_S)
        if numbered is None:
            return
        try:
            if order.order == "pause":
                self._note_pause(True)
            if self._life is None or not self._life.line.order(numbered):
                self._do_without(numbered)
        except SpoolError as error:
            self._book.dismiss(numbered.request, _not_noted(order.request, error))

    def _do_without(self, order: Order) -> None:
        """Do what an order asks without a learner that listens, or refuse it."""
        info = self.info()
        why = f"the learner is {info.state}: {info.detail}"
        if order.order == "pause":
            self._book.settle(order.request, _paused(order.request, why))
        elif order.order == "resume" and self._life is None and self._start_at is None:
            self._note_pause(False)
            self._deaths.clear()
            self._restarts += 1
            self._start_at = self._clock()
            self._set(state="starting", detail="")
            detail = "the learner is started again"
            done = Carried(request=order.request, order="resume", detail=detail)
            self._book.settle(order.request, done)
        else:
            self._book.dismiss(order.request, _cannot(order, why))

    def _hold(self, number: int, why: str) -> None:
        """Grant a pause that the learner did not confirm, or may have resumed from."""
        try:
            self._note_pause(True)
        except SpoolError as error:
            self._book.dismiss(number, _not_noted(number, error))
        else:
            self._book.settle(number, _paused(number, why))

    def _settle_all(self, why: str) -> None:
        """Answer all that is open, for a learner that will not; a pause holds without it."""
        for number in self._book.waiting("pause"):
            self._hold(number, why)
        self._book.settle_all(why)

    # The end.

    def _leave(self, fault: str) -> None:
        """End the learner; a failure, its own or of this thread, is what is told from now on."""
        if self._life is not None:
            self._life.end(self._hear)
            self._life.close()
        if fault:
            self._set(state="failed", detail=fault)
            self._announce("learner_died", fault, {"restarts": self._restarts, "final": True})
        elif self.info().state != "failed":
            self._set(state="stopped", detail="")
        self._set(pid=0)
        self._folder.clear()

    def _refuse_rest(self, why: str) -> None:
        """Answer all who wait; from now on nobody is let in."""
        with self._lock:
            self._gone = why
        self._settle_all(why)
        with suppress(queue.Empty):
            while True:
                order, answer = self._orders.get_nowait()
                answer.set_result(_cannot(order, why))

    def _set(self, **changes: object) -> None:
        with self._lock:
            self._info = replace(self._info, **changes)


def _cause(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _cannot(order: Order, why: str) -> Refused:
    return Refused(request=order.request, code="no_learner", detail=why[:4000])


def _not_noted(number: int, error: SpoolError) -> Refused:
    return Refused(request=number, code=error.code, detail=str(error)[:4000])


def _paused(number: int, why: str) -> Carried:
    detail = "nothing is learned until resume, by whatever learner is started; labels are taken"
    return Carried(request=number, order="pause", detail=f"{detail} ({why[:3900]})")

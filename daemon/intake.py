"""The intake: a ROUTER socket in a thread of its own, where labeled clips are put.

A request is answered once what it asks for is on disk. Whatever comes, and whatever fails here,
masks go on: no torch call is made, nothing is shared with the pipeline but the replay ring, and a
failure of the thread is told in the log and in every status.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

import zmq

from . import endpoints
from .infos import IntakeInfo
from .labeldesk import LabelDesk
from .labels import MAX_REQUEST_BYTES, Answer, pack_answer
from .outlet import end_context

CUT_OFF_BYTES: Final = 2 * MAX_REQUEST_BYTES
"""A larger frame is not received: ZeroMQ cuts its sender off. Between `MAX_REQUEST_BYTES` and this
it is refused by an answer. The number of frames in a message ZeroMQ bounds by nothing (4.3.5): it
holds all of them until the last has come. So who may connect can use memory up, for as long as he
sends; here they are let go one by one, and refused."""

MAX_ROUTE_FRAMES: Final = 8
MAX_ROUTE_BYTES: Final = 256
"""What may come before the frame of a request: the names of those that passed it on, and the empty
frame of a REQ socket."""

RECEIVE_HIGH_WATER_MARK: Final = 4
"""Requests that ZeroMQ keeps for each labeler; few, as they may be large."""

_IDLE_MS = 100
_LINGER_MS = 1000
_INFO_NS = 500_000_000
_HANDSHAKE_MS = 5000
_DETAIL_CHARACTERS = 2000
_log = logging.getLogger(__name__)


class Intake:
    """Takes labels until it is closed; the desk and its spool are its thread's from now on.

    Args:
        endpoint: ``tcp://127.0.0.1:PORT`` (0 or ``*`` finds a free port) or ``ipc:///PATH``.
        desk: what answers; its spool is closed with the intake.
        insecure: allow addresses that other machines can reach.
        clock: monotonic nanoseconds.
        context: for ``inproc`` endpoints, the context that both sides share.

    Attributes:
        endpoint: the address as bound.

    Raises:
        endpoints.EndpointError: the address is malformed, public, in use or not permitted.
    """

    def __init__(
        self,
        endpoint: str,
        desk: LabelDesk,
        *,
        insecure: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        endpoints.check(endpoint)
        if not insecure:
            endpoints.check_private(endpoint)
        self._desk = desk
        self._clock = clock
        self._own_context = context is None
        self._context = context or zmq.Context[zmq.Socket[bytes]]()
        self._socket = _open(self._context)
        try:
            self.endpoint: Final = endpoints.bind(self._socket, endpoint)
        except endpoints.EndpointError:
            self._free(linger_ms=0)
            raise
        self._closing = threading.Event()
        self._later: list[tuple[list[bytes], Future[Answer]]] = []
        self._info = desk.info(self.endpoint)
        self._info_due_ns = 0
        self._thread = threading.Thread(target=self._run, name="atlasd-intake", daemon=True)
        self._thread.start()

    def info(self) -> IntakeInfo:
        """What status says, at most a second old."""
        return self._info

    def close(self) -> None:
        """Answer the request at hand, and free the address; closing twice is harmless."""
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

    # The intake's thread.

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                if self._socket.poll(_IDLE_MS):
                    self._serve()
                self._send_later_ones()
                if self._clock() >= self._info_due_ns:
                    self._info = self._desk.info(self.endpoint)
                    self._info_due_ns = self._clock() + _INFO_NS
        except Exception as error:  # noqa: BLE001 - whatever it is, masks go on
            _log.exception("the intake has failed; masks go on, labels are taken no more")
            detail = f"{type(error).__name__}: {error}"[:_DETAIL_CHARACTERS]
            self._info = replace(self._info, state="failed", detail=detail)
        finally:
            self._send_later_ones()
            self._free(_LINGER_MS)
            self._desk.spool.close()

    def _serve(self) -> None:
        """Answer one message; a plain REQ socket's empty frame goes back as it came."""
        route, data, dropped = self._received()
        if dropped:
            answer = self._desk.refuse(
                None,
                "malformed",
                f"the request came in {dropped + 1} frames or more; it must be one",
            )
        else:
            answer = self._desk.answer(data)
        if isinstance(answer, Future):
            self._later.append((route, answer))
        else:
            self._send(route, answer)

    def _received(self) -> tuple[list[bytes], bytes, int]:
        """A message's route, its last frame, and how many frames before that were let go."""
        route: list[bytes] = []
        dropped = 0
        frame = self._socket.recv(copy=False)
        while frame.more:
            if len(route) < MAX_ROUTE_FRAMES and len(frame) <= MAX_ROUTE_BYTES and not dropped:
                route.append(frame.bytes)
            else:
                dropped += 1
            frame = self._socket.recv(copy=False)
        return route, b"" if dropped else frame.bytes, dropped

    def _send_later_ones(self) -> None:
        """Send the answers of the learner that have come."""
        come = [each for each in self._later if each[1].done()]
        self._later = [each for each in self._later if each not in come]
        for route, answer in come:
            self._send(route, answer.result())

    def _send(self, route: list[bytes], said: Answer) -> None:
        answer = pack_answer(said)
        try:
            self._socket.send_multipart([*route, answer], zmq.DONTWAIT)
        except zmq.ZMQError as error:
            _log.warning("an answer did not reach its labeler, which may ask again: %s", error)

    def _free(self, linger_ms: int) -> None:
        self._socket.close(linger=linger_ms)
        if self._own_context:
            end_context(self._context, linger_ms)


def _open(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.RCVHWM, RECEIVE_HIGH_WATER_MARK)
    socket.setsockopt(zmq.MAXMSGSIZE, CUT_OFF_BYTES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    return socket

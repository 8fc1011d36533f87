"""Put labels: ``with LabelClient("tcp://127.0.0.1:5558") as client: client.put(label)``.

A label that was granted is on disk. One whose answer does not come is sent again: ids make that
harmless, as the daemon takes the same clip once.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Final, Self, cast

import zmq

from . import endpoints
from .labels import (
    MAX_REQUEST_BYTES,
    Answer,
    Delete,
    Granted,
    Label,
    Refused,
    Request,
    pack_request,
    unpack_answer,
)
from .orders import Carried, Order
from .spooled import Outcome

_SEND_HIGH_WATER_MARK = 4


class LabelRefusedError(Exception):
    """The daemon refused a request; nothing was changed.

    Attributes:
        code: a short stable name, see docs/protocol.md.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code: Final = code


class NoAnswerError(Exception):
    """The daemon did not answer; what was asked may have been done or not: ask again."""


class LabelClient:
    """A labeler's end of the intake. It belongs to one thread.

    Args:
        endpoint: ``tcp://HOST:PORT`` or ``ipc:///PATH``.
        timeout_s: how long to wait for an answer before the request is sent again.
        attempts: how often it is sent at most.
        clock: monotonic seconds.
        context: for ``inproc`` endpoints, the context that both sides share.

    Raises:
        endpoints.EndpointError: the address is malformed.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        timeout_s: float = 5.0,
        attempts: int = 3,
        clock: Callable[[], float] = time.monotonic,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        endpoints.check(endpoint)
        self.endpoint: Final = endpoint
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._clock = clock
        self._own_context = context is None
        self._context = context or zmq.Context[zmq.Socket[bytes]]()
        self._number = 0
        self._socket = self._opened()

    def put(self, label: Label) -> Outcome:
        """Put a label; what became of it, see `labels.Granted`.

        Raises:
            LabelRefusedError: it was refused.
            NoAnswerError: no answer came.
            WireError: the answer was none, or of another major version.
        """
        return cast("Outcome", cast("Granted", self._ask(label)).state)

    def delete(self, clip_id: str) -> None:
        """Take back a clip that is not yet learned.

        Raises:
            LabelRefusedError: there is none with this id, or it is being learned or was.
            NoAnswerError: no answer came.
            WireError: the answer was none, or of another major version.
        """
        self._ask(Delete(id=clip_id))

    def order(self, order: Order) -> Carried:
        """Order the learner to do something, and wait until it is done.

        However often it is sent, it is carried out once: it gets an id where it has none.

        Raises:
            LabelRefusedError: it cannot be done, or nothing learns; ``not_yet``: it stands, and
                `order` with the same id asks for its answer.
            NoAnswerError: no answer came; with the same id it may be asked again.
            WireError: the answer was none, or of another major version.
        """
        named = order if order.id is not None else replace(order, id=uuid.uuid4().hex)
        return cast("Carried", self._ask(named))

    def close(self) -> None:
        """Leave; closing twice is harmless."""
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

    def _ask(self, request: Request) -> Granted | Carried:
        self._number += 1
        data = pack_request(replace(request, request=self._number))
        if len(data) > MAX_REQUEST_BYTES:
            raise LabelRefusedError(
                "too_large",
                f"the request has {len(data)} bytes; {MAX_REQUEST_BYTES} are allowed: put fewer or "
                "smaller pictures",
            )
        for _ in range(self._attempts):
            answer = self._exchange(data)
            if isinstance(answer, Refused):
                raise LabelRefusedError(answer.code, answer.detail)
            if answer is not None:
                return answer
            self._socket.close(linger=0)  # what is on its way there is given up with it
            self._socket = self._opened()
        unknown = "; whether the order was carried out is not known: see atlasd status"
        raise NoAnswerError(
            f"{self.endpoint} did not answer {self._attempts} times within {self._timeout_s:g} s: "
            "does the daemon run, with intake.enabled?"
            + (unknown if isinstance(request, Order) else "")
        )

    def _exchange(self, data: bytes) -> Answer | None:
        """Send a request and wait for its answer; None where it does not come in time."""
        deadline = self._clock() + self._timeout_s
        try:
            self._socket.send(data)
        except zmq.Again:
            return None
        while (left_s := deadline - self._clock()) > 0:
            if self._socket.poll(math.ceil(left_s * 1000)):
                answer = unpack_answer(self._socket.recv())
                if answer.request in {None, self._number}:
                    return answer
        return None

    def _opened(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.SNDHWM, _SEND_HIGH_WATER_MARK)
        socket.setsockopt(zmq.SNDTIMEO, math.ceil(self._timeout_s * 1000))
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        socket.setsockopt(zmq.LINGER, 0)
        if self.endpoint.startswith("tcp://["):
            socket.setsockopt(zmq.IPV6, 1)
        socket.connect(self.endpoint)
        return socket

"""The line between the daemon and its learner: one ipc socket, msgpack maps, safetensors.

Each message is a kind, a map and, with weights, a third frame of safetensors. Neither side trusts
the other's memory: the learner may be killed in the middle of a message, and the daemon looks at
weights before it serves them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from types import TracebackType
from typing import Annotated, Final, Literal, Self, cast

import msgpack
import numpy as np
import zmq
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse
from safetensors.torch import save as serialise

from . import endpoints
from .fields import FieldError, Octets, Text, from_map, to_map
from .infos import LearnerInfo
from .labels import Answer, LabelError, pack_answer, pack_request, unpack_answer, unpack_request
from .notices import Happening, Publication, Reason
from .orders import Order
from .wire import Checked, Count, Facts, Name, Names, Prose, WireError, read_map

MAX_WEIGHTS_BYTES: Final = 1 << 31
"""Longest message on the line."""

_LINGER_MS = 2000
_HEAD = "head."

Shape = tuple[int, ...]


class WeightsRefusedError(Exception):
    """Weights that cannot be served: what came, what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer(Checked):
    """Weights to be served, without the weights; see `notices.Publication`.

    Attributes:
        digest: SHA-256 of the safetensors.
    """

    version: Name
    parent: Name
    batch: Count
    reason: Reason
    categories: Names
    digest: Annotated[bytes, Octets(32)]


@dataclass(frozen=True, slots=True)
class OfferedWeights:
    """An offer whose weights were looked at.

    Attributes:
        offer: what they are.
        tensors: float32 by name, of the serving form; every one finite and of the shape there.
    """

    offer: Offer
    tensors: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told(Checked):
    """Something happened to the learner; see `messages.Event`."""

    kind: Annotated[str, Text(64, "[a-z][a-z0-9_]*")]
    detail: Prose
    data: Facts


FromLearner = LearnerInfo | Told | tuple[Offer, bytes] | Answer
FromDaemon = Order | Literal["stop"]


class LearnerEnd:
    """The learner's end. It belongs to one thread.

    Args:
        endpoint: where the daemon listens.
    """

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context[zmq.Socket[bytes]]()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.connect(endpoint)

    def say(self, info: LearnerInfo) -> None:
        """How learning goes; also the sign that it goes on."""
        self._socket.send_multipart([b"info", _packed(info)])

    def tell(self, notice: Publication | Happening) -> None:
        """Offer weights, or tell what happened."""
        if isinstance(notice, Happening):
            told = Told(kind=notice.kind, detail=notice.detail[:4000], data=notice.data)
            self._socket.send_multipart([b"told", _packed(told)])
            return
        blob = serialise({name: t.contiguous() for name, t in notice.tensors.items()})
        offer = Offer(
            version=notice.version,
            parent=notice.parent,
            batch=notice.batch,
            reason=notice.reason,
            categories=notice.categories,
            digest=sha256(blob).digest(),
        )
        self._socket.send_multipart([b"offer", _packed(offer), blob])

    def answer(self, answer: Answer) -> None:
        """Answer an order."""
        self._socket.send_multipart([b"answer", pack_answer(answer)])

    def orders(self, wait_ms: int) -> Iterator[FromDaemon]:
        """What the daemon says, once it says something or the time is over."""
        while self._socket.poll(wait_ms):
            wait_ms = 0
            kind, data = self._socket.recv_multipart()
            if kind == b"stop":
                yield "stop"
            else:
                request = unpack_request(data)
                if isinstance(request, Order):
                    yield request

    def close(self) -> None:
        """Leave; what is on its way gets two seconds."""
        self._socket.close()
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


class DaemonEnd:
    """The daemon's end, for one life of the learner's process. It belongs to one thread.

    Args:
        endpoint: an ipc address in a folder that is the owner's alone.

    Raises:
        endpoints.EndpointError: it cannot be bound.
    """

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context[zmq.Socket[bytes]]()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_WEIGHTS_BYTES)
        try:
            self.endpoint: Final = endpoints.bind(self._socket, endpoint)
        except endpoints.EndpointError:
            self.close()
            raise

    def order(self, order: Order) -> bool:
        """Pass an order on; False where the learner does not listen."""
        return self._sent([b"order", pack_request(order)])

    def stop(self) -> None:
        """Ask the learner to keep what it has and to leave."""
        self._sent([b"stop", b""])

    def received(self, wait_ms: int) -> Iterator[FromLearner]:
        """What the learner says, once it says something or the time is over.

        Raises:
            WireError: it says something else than it may.
        """
        while self._socket.poll(wait_ms):
            wait_ms = 0
            yield _read(self._socket.recv_multipart())

    def close(self) -> None:
        """Free the address; closing twice is harmless."""
        self._socket.close()
        self._context.term()

    def _sent(self, frames: list[bytes]) -> bool:
        try:
            self._socket.send_multipart(frames, zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        return True


def looked_at(offer: Offer, blob: bytes, layout: Mapping[str, tuple[Shape, str]]) -> OfferedWeights:
    """Check weights before they are served; no torch call is made.

    Args:
        offer: what they are said to be.
        blob: safetensors.
        layout: shape and type of each tensor of the serving form that weights may replace. Those
            of the class head must come with any classes, a row for each, whatever rows are here.

    Raises:
        WeightsRefusedError: they are damaged, not finite, or of another network.
    """
    if sha256(blob).digest() != offer.digest:
        raise WeightsRefusedError(f"version {offer.version} arrived damaged; it is not served")
    try:
        arrays = parse(blob)
    except SafetensorError as error:
        raise WeightsRefusedError(f"version {offer.version} is no safetensors: {error}") from error
    n_classes = len(offer.categories)
    if len(set(offer.categories)) < n_classes:
        raise WeightsRefusedError(f"version {offer.version} names a class more than once")
    shapes = _shapes(layout, n_classes)
    missing = [name for name in shapes if name.startswith(_HEAD) and name not in arrays]
    if missing:
        raise WeightsRefusedError(
            f"version {offer.version} has {n_classes} classes and no {', '.join(missing)}"
        )
    for name, array in arrays.items():
        shape = shapes.get(name)
        if shape is None:
            raise WeightsRefusedError(
                f"version {offer.version} has {name}, which is not served with {n_classes} classes"
            )
        if array.shape != shape or str(array.dtype) != "float32":
            raise WeightsRefusedError(
                f"version {offer.version}: {name} is {array.dtype} {array.shape}; float32 {shape} "
                f"is served with {n_classes} classes"
            )
        if not np.isfinite(array).all():
            raise WeightsRefusedError(f"version {offer.version}: {name} is not finite")
    return OfferedWeights(offer, {name: np.array(array) for name, array in arrays.items()})


def _shapes(layout: Mapping[str, tuple[Shape, str]], n_classes: int) -> dict[str, Shape]:
    """Of the serving form with so many classes; none: without a class head."""
    return {
        name: (n_classes, *shape[1:]) if name.startswith(_HEAD) else shape
        for name, (shape, _) in layout.items()
        if n_classes or not name.startswith(_HEAD)
    }


def _packed(message: object) -> bytes:
    return cast("bytes", msgpack.packb(to_map(message)))


def _read(frames: list[bytes]) -> FromLearner:
    kind, *rest = frames
    try:
        match kind, rest:
            case b"info", [data]:
                return from_map(LearnerInfo, read_map(data))
            case b"told", [data]:
                return from_map(Told, read_map(data))
            case b"offer", [data, blob]:
                return from_map(Offer, read_map(data)), blob
            case b"answer", [data]:
                return unpack_answer(data)
            case _:
                raise WireError(f"the learner sent {kind[:40]!r} with {len(rest)} frames")
    except (FieldError, LabelError) as error:
        raise WireError(f"the learner: {error}") from error

"""Subscribers that come and go: `python -m atlasd.tools.passersby ENDPOINT COUNT AT_ONCE SECONDS`.

Of ten, eight read all that comes, one never reads, and one connects and says nothing that ZeroMQ
understands. All are in one process of low priority: they stand for programs on other machines.
"""

from __future__ import annotations

import os
import socket as system
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import zmq

_LOWEST_PRIORITY = 19
_PATIENCE_S = 5.0
_GARBAGE = b"GET / HTTP/1.1\r\n\r\n"


class _Passer(Protocol):
    def read(self) -> None: ...
    def leave(self) -> None: ...


@dataclass(slots=True)
class _Subscriber:
    """A SUB socket; one that is not keen never reads."""

    socket: zmq.Socket[bytes]
    is_keen: bool

    def read(self) -> None:
        while self.is_keen:
            try:
                self.socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return

    def leave(self) -> None:
        self.socket.close(linger=0)


@dataclass(slots=True)
class _Stranger:
    """A connection that speaks another language."""

    socket: system.socket

    def read(self) -> None:
        return

    def leave(self) -> None:
        self.socket.close()


def pass_by(endpoint: str, count: int, at_once: int, seconds: float) -> int:
    """Let subscribers come and go, evenly spread over a time.

    Args:
        endpoint: a bus, ``tcp://127.0.0.1:PORT`` or ``ipc:///PATH``.
        count: how many.
        at_once: most at one time; the oldest leaves when one more would come.
        seconds: how long all of it takes.

    Returns:
        How many came.
    """
    began, came = time.monotonic(), 0
    present: deque[_Passer] = deque()
    with zmq.Context[zmq.Socket[bytes]]() as context:
        while came < count:
            if time.monotonic() < began + seconds * came / count:
                time.sleep(min(0.05, seconds / count))
            else:
                if len(present) >= at_once:
                    present.popleft().leave()
                present.append(_arrive(context, endpoint, came))
                came += 1
            for each in present:
                each.read()
        for each in present:
            each.leave()
    return came


def _arrive(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, number: int) -> _Passer:
    if number % 10 == 9:
        return _Stranger(_speak_nonsense(endpoint))
    socket = context.socket(zmq.SUB)
    is_keen = number % 10 != 8
    if not is_keen:
        socket.setsockopt(zmq.RCVHWM, 2)
    socket.connect(endpoint)
    for prefix in (b"h/", b"s/", b"e/", b"m/"):
        socket.setsockopt(zmq.SUBSCRIBE, prefix)
    return _Subscriber(socket, is_keen)


def _speak_nonsense(endpoint: str) -> system.socket:
    if endpoint.startswith("ipc://"):
        socket = system.socket(system.AF_UNIX)
        address: str | tuple[str, int] = endpoint.removeprefix("ipc://")
    else:
        socket = system.socket()
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        address = (host, int(port))
    socket.settimeout(_PATIENCE_S)
    socket.connect(address)
    socket.sendall(_GARBAGE)
    return socket


if __name__ == "__main__":
    os.nice(_LOWEST_PRIORITY)
    words = sys.argv[1:]
    sys.stdout.write(f"{pass_by(words[0], int(words[1]), int(words[2]), float(words[3]))}\n")

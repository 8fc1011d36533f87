"""Servers for tests: raw HTTP on loopback, whose answers a test writes byte by byte."""

from __future__ import annotations

import contextlib
import io
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image

Answer = Callable[["Visit"], None]
BOUNDARY = "pictures"


class Visit:
    """One connection: what was asked, and a way to answer until the server or the client ends."""

    def __init__(self, connection: socket.socket, request: str, ending: threading.Event) -> None:
        self.request = request
        self.path = request.split(" ")[1] if request.count(" ") >= 2 else ""
        self.ending = ending
        self._connection = connection

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def head(self, kind: str, **fields: object) -> None:
        lines = ["HTTP/1.1 200 OK", f"Content-Type: {kind}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode())

    def hold(self, seconds: float = 60.0) -> bool:
        """Say nothing more for so long; False once the server ends."""
        return not self.ending.wait(seconds)


class WebServer:
    """Answers each connection by `answer`, in a thread of its own; closes all at its end."""

    def __init__(
        self, answer: Answer, *, reads: bool = True, tls: ssl.SSLContext | None = None
    ) -> None:
        self.answer = answer
        self.visits = 0
        self._ending = threading.Event()
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                outer.visits += 1
                connections.add(self.request)
                request = b""
                with contextlib.suppress(OSError):
                    while reads and b"\r\n\r\n" not in request:
                        piece = self.request.recv(4096)
                        if not piece:
                            return
                        request += piece
                    outer.answer(Visit(self.request, request.decode("latin1"), outer._ending))
                connections.discard(self.request)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False

            def get_request(self) -> tuple[socket.socket, object]:
                connection, address = super().get_request()
                if tls is not None:
                    connection.settimeout(5.0)
                    connection = tls.wrap_socket(connection, server_side=True)
                return connection, address

            def handle_error(self, request: object, client_address: object) -> None:
                pass

        connections: set[socket.socket] = set()
        self._connections = connections
        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def url(self, path: str = "/", account: str = "", scheme: str = "http") -> str:
        return f"{scheme}://{account + '@' if account else ''}127.0.0.1:{self.port}{path}"

    def cut(self) -> None:
        """Close all connections as a cable that falls out would."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> WebServer:
        self._thread.start()
        return self

    def close(self) -> None:
        """Be gone: nobody listens any more. Twice is harmless."""
        self._ending.set()
        self.cut()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __exit__(self, *_: object) -> None:
        self.close()


def jpeg(shade: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """A picture of one shade of grey."""
    data = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), shade, np.uint8)).save(data, "JPEG")
    return data.getvalue()


def part(picture: bytes) -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
    return head.encode() + picture + b"\r\n"


def mjpeg(fps: float = 25.0, count: int | None = None, size: tuple[int, int] = (64, 48)) -> Answer:
    """A camera of so many pictures, or for ever; each is by 3 lighter than the one before."""

    def answer(visit: Visit) -> None:
        visit.head(f"multipart/x-mixed-replace; boundary={BOUNDARY}")
        began = time.monotonic()
        index = 0
        while count is None or index < count:
            visit.send(part(jpeg(index * 3 % 256, size)))
            index += 1
            if not visit.hold(max(0.0, began + index / fps - time.monotonic())):
                return

    return answer


def file_answer(path: Path) -> Answer:
    """A web server's file, with its length and without ranges."""

    def answer(visit: Visit) -> None:
        data = path.read_bytes()
        visit.head("application/octet-stream", Content_Length=len(data))
        visit.send(data)

    return answer


def paced_ts(
    path: Path, *, ahead_s: float = 0.0, pause_s: tuple[float, float] | None = None
) -> Answer:
    """A live MPEG-TS: the bytes of a file as they are due by the times in its packets.

    Args:
        path: the file.
        ahead_s: so much of it is sent at once at the beginning.
        pause_s: (at, for): the sender stands still, and its times with it.
    """
    schedule = _schedule(path)
    data = path.read_bytes()

    def answer(visit: Visit) -> None:
        visit.head("video/mp2t")
        began, sent = time.monotonic(), 0
        at_s, for_s = pause_s or (0.0, 0.0)
        for due_s, end in schedule:
            late_s = for_s if due_s >= at_s else 0.0
            if not visit.hold(max(0.0, began + due_s + late_s - ahead_s - time.monotonic())):
                return
            visit.send(data[sent:end])
            sent = end
        visit.send(data[sent:])

    return answer


def _schedule(path: Path) -> list[tuple[float, int]]:
    """(when, up to which byte): packets are due at the sum of the steps between their times."""
    found, due_s, last_s = [], 0.0, None
    with av.open(str(path)) as container:
        for packet in container.demux():
            if packet.dts is None or packet.pos is None or packet.stream.type != "video":
                continue
            time_s = float(packet.dts * packet.time_base)
            if last_s is not None:
                due_s += min(max(0.0, time_s - last_s), 0.2)
            last_s = time_s
            found.append((due_s, packet.pos))
    return found

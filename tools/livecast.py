"""A film sent over a loopback socket as it is due, as a camera on the network sends."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import av


class LiveCast:
    """Serves one MPEG-TS at the pace of its pictures, from its beginning to each who asks.

    Args:
        film: the file.

    Attributes:
        url: where it is to be had, on this machine only.
    """

    def __init__(self, film: Path) -> None:
        data, due = film.read_bytes(), _due(film)
        ending = self._ending = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "video/mp2t")
                self.end_headers()
                began, sent = time.monotonic(), 0
                for due_s, end in [*due, (due[-1][0], len(data))]:
                    if ending.wait(max(0.0, began + due_s - time.monotonic())):
                        return
                    try:
                        self.wfile.write(data[sent:end])
                    except OSError:
                        return  # who asked has gone
                    sent = end

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its base's)
                """Each connection is the daemon's business, and it tells."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url: Final = f"http://127.0.0.1:{self._server.server_port}/film.ts"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _due(film: Path) -> list[tuple[float, int]]:
    """(seconds, up to which byte) of each picture: what comes before it is due with it."""
    found: list[tuple[float, int]] = []
    with av.open(str(film)) as container:
        video = container.streams.video[0]
        tick_s = float(video.time_base or 1)
        first = None
        for packet in container.demux(video):
            if packet.dts is not None and packet.pos is not None:
                first = packet.dts if first is None else first
                found.append(((packet.dts - first) * tick_s, packet.pos))
    return found

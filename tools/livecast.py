"""A stream with sound, sent over a loopback socket as it is due: as a camera sends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from itertools import pairwise
from types import TracebackType
from typing import Final, Literal, Self

import av
import numpy as np
from numpy.typing import NDArray

Container = Literal["flv", "mpegts"]


@dataclass(frozen=True, slots=True)
class _Form:
    """How a container is sent.

    Attributes:
        mime: what its server calls it.
        codec: of its sound.
        rate_hz: of its sound.
        piece: samples of a packet of its sound.
        given_after: packets from the beginning of one until its encoder gives it.
        settings: of its writer.
    """

    mime: str
    codec: Literal["pcm_s16le", "aac"]
    rate_hz: int
    piece: int
    given_after: int
    settings: dict[str, str]


_FORMS: Final[dict[Container, _Form]] = {
    "flv": _Form("video/x-flv", "pcm_s16le", 44_100, 1024, 1, {}),
    # Each piece of sound in a packet of its own, as small as it came.
    "mpegts": _Form("video/mp2t", "aac", 32_000, 1024, 3, {"pes_payload_size": "1"}),
}


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes that are sent together, ``due_s`` seconds after the first."""

    due_s: float
    data: bytes


def record_cast(
    pictures: Iterator[NDArray[np.uint8]], fps: int, container: Container = "flv"
) -> tuple[Part, ...]:
    """What a camera would send of some pictures and a swept tone, and when.

    A picture is sent when it is taken: H.264 of which none waits for a later one. A piece of sound
    is sent when it is over and encoded: in FLV 23 ms that are not compressed, as the G.711 of many
    cameras, in MPEG-TS AAC, whose encoder looks two pieces ahead.

    Args:
        pictures: uint8 (h, w, 3), of one size, with even sides.
        fps: so many a second.
        container: ``flv`` says how long each packet is, as RTP does. Of ``mpegts`` FFmpeg gives a
            picture only when it has seen the beginning of the next but one.

    Returns:
        The whole, in order.
    """
    form = _FORMS[container]
    file = BytesIO()
    with av.open(file, "w", format=container, options=form.settings) as writer:
        video = writer.add_stream(
            "libx264", rate=fps, options={"preset": "veryfast", "tune": "zerolatency"}
        )
        audio = writer.add_stream(form.codec, rate=form.rate_hz, layout="mono")
        written = 0
        for number, picture in enumerate(pictures):
            while (written + form.piece) * fps <= number * form.rate_hz:
                writer.mux(audio.encode(_tone(written, form)))
                written += form.piece
            if not number:
                video.height, video.width, video.pix_fmt = *picture.shape[:2], "yuv420p"
            writer.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        writer.mux(video.encode(None))
        writer.mux(audio.encode(None))
    return tuple(_parts(file.getvalue(), form))


def _tone(begin: int, form: _Form) -> av.AudioFrame:
    seconds = (begin + np.arange(form.piece)) / form.rate_hz
    tone = 0.3 * np.sin(2 * np.pi * (220 + 40 * seconds) * seconds)
    if form.codec == "aac":
        frame = av.AudioFrame.from_ndarray(tone[None].astype(np.float32), "fltp", "mono")
    else:
        frame = av.AudioFrame.from_ndarray((32767 * tone[None]).astype(np.int16), "s16", "mono")
    frame.sample_rate, frame.pts = form.rate_hz, begin
    frame.time_base = Fraction(1, form.rate_hz)
    return frame


def _parts(data: bytes, form: _Form) -> list[Part]:
    """Cut between packets, and put them in the order in which they are due.

    A writer puts them in the order of their times, but sound is sent when it is over.
    """
    with av.open(BytesIO(data), "r") as reader:
        packets = sorted(
            (packet.pos, packet.stream.type, float(packet.pts * packet.time_base))
            for packet in reader.demux()
            if packet.pts is not None and packet.pos is not None
        )
    start_s = min(time_s for _, kind, time_s in packets if kind == "video")
    after_s = {"video": 0.0, "audio": form.given_after * form.piece / form.rate_hz}
    cuts = pairwise([*(place for place, _, _ in packets), len(data)])
    parts = [
        Part(max(0.0, time_s - start_s + after_s[kind]), data[begin:end])
        for (_, kind, time_s), (begin, end) in zip(packets, cuts, strict=True)
    ]
    head = Part(0.0, data[: packets[0][0]])
    return [head, *sorted(parts, key=lambda part: part.due_s)]


class LiveCast:
    """Sends a recorded cast at its pace, from its beginning to each who asks.

    Args:
        parts: what is sent, and when.
        container: that it is in.

    Attributes:
        url: where it is to be had, on this machine only.
    """

    def __init__(self, parts: tuple[Part, ...], container: Container = "flv") -> None:
        ending = self._ending = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            disable_nagle_algorithm = True  # else what is sent waits for what was, 40 ms

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", _FORMS[container].mime)
                self.end_headers()
                began = time.monotonic()
                for part in parts:
                    if ending.wait(max(0.0, began + part.due_s - time.monotonic())):
                        return
                    try:
                        self.wfile.write(part.data)
                    except OSError:
                        return  # who asked has gone

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its base's)
                """Each connection is the daemon's business, and it tells."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url: Final = f"http://127.0.0.1:{self._server.server_port}/live.{container}"

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

"""Messages and sockets for the tests of the wire."""

import threading
import time
from contextlib import contextmanager

import numpy as np
import zmq
from atlasd.daemon import masks
from atlasd.daemon.client import subscribe
from atlasd.daemon.messages import (
    AudioInfo,
    Event,
    FrameInfo,
    Hello,
    Mask,
    MaskData,
    ModelInfo,
    Preview,
    Status,
)
from atlasd.daemon.proxy import Proxy

MODEL = ModelInfo(preset="tiny", version="tiny-3")
PATIENCE_S = 60.0


@contextmanager
def proxied(*sources, **options):
    """A proxy on a port of its own that serves in a thread."""
    with Proxy(sources, "tcp://127.0.0.1:0", **options) as proxy:
        thread = threading.Thread(target=proxy.serve)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.stop()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def picture(height=6, width=10):
    """A block of foreground, off the middle so that flips and transposes show."""
    mask = np.zeros((height, width), bool)
    mask[1 : height // 2 + 1, 2 : width - 1] = True
    return mask


def a_mask(seq=0, *, stream="main", enc="bits", mask=None, **fields):
    """A mask message, `seq` its number and its frame's."""
    mask = picture() if mask is None else mask
    data = MaskData(enc=enc, shape=mask.shape, data=masks.encode(mask, enc))
    values = {
        "stream": stream,
        "epoch": 0,
        "seq": seq,
        "pts_ns": seq * 40_000_000,
        "capture_ns": time.monotonic_ns(),
        "frame": FrameInfo(w=40, h=24, index=seq),
        "mask": data,
        "audio": AudioInfo(state="ok", t0_ns=seq * 40_000_000 - 10**9, t1_ns=seq * 40_000_000),
        "model": MODEL,
    }
    return Mask(**{**values, **fields})


def a_hello(stream="main", **fields):
    values = {
        "source": "file",
        "has_audio": True,
        "mask_shape": (6, 10),
        "enc": "bits",
        "window_s": 1.0,
        "sample_rate_hz": 32000,
        "model": MODEL,
    }
    return Hello(stream=stream, **{**values, **fields})


def full_messages():
    """One message of each kind with every field of 1.0 set: what the golden bytes hold."""
    mask = Mask(
        v="1.0",
        stream="porch",
        epoch=1,
        seq=74,
        pts_ns=2_960_000_000,
        capture_ns=81_000_000_000,
        publish_ns=81_021_500_000,
        frame=FrameInfo(w=640, h=360, index=75),
        mask=MaskData(
            enc="bits",
            shape=(6, 10),
            threshold=0.5,
            transform=(64.0, 60.0, 0.0, 0.0),
            data=masks.encode(picture(), "bits"),
        ),
        classes=("dog", "guitar"),
        scores=(0.75, 0.125),
        audio=AudioInfo(
            state="gap", t0_ns=1_960_000_000, t1_ns=2_960_000_000, gap_ms=46.5, rms=0.0625
        ),
        rung=1,
        deadline_ms=40.0,
        model=ModelInfo(preset="atlas-lite", version="lite-7"),
        lat_ms={"decode": 1.5, "infer": 16.25},
        drops={"stale": 1},
    )
    return {
        "mask": mask,
        "preview": Preview(
            v="1.0",
            stream="porch",
            epoch=1,
            pts_ns=2_960_000_000,
            capture_ns=81_000_000_000,
            publish_ns=81_021_500_000,
            frame=mask.frame,
            jpeg=b"\xff\xd8\xff\xd9",
        ),
        "status": Status(
            v="1.0",
            stream="porch",
            publish_ns=82_000_000_000,
            instance="5f0c",
            state="ended",
            detail="end of file",
            epoch=1,
            masks=75,
            fps=24.5,
            subscribers=2,
            drops={"stale": 1, "subscriber_stalled": 3},
            lat_ms={"infer_p50": 16.25},
            mask=mask,
        ),
        "event": Event(
            v="1.0",
            stream="porch",
            publish_ns=81_500_000_000,
            kind="epoch",
            epoch=1,
            pts_ns=2_000_000_000,
            detail="timestamps jumped by 3.2 s",
            data={"jump_ms": 3200.5, "count": 2, "repaired": True, "codec": "h264"},
        ),
        "hello": Hello(
            v="1.0",
            stream="porch",
            publish_ns=80_000_000_000,
            instance="5f0c",
            clock="boot-1",
            source="live",
            frame_size=(640, 360),
            fps=25.0,
            has_audio=True,
            mask_shape=(6, 10),
            enc="bits",
            threshold=0.5,
            classes=("dog", "guitar"),
            window_s=1.0,
            sample_rate_hz=32000,
            model=mask.model,
        ),
    }


class Reader(threading.Thread):
    """Reads a subscription to its end in a thread; `result` joins and gives what came."""

    def __init__(self, endpoint, stream="main", **options):
        super().__init__(daemon=True)
        self.subscription = subscribe(endpoint, stream, **{"timeout_s": PATIENCE_S, **options})
        self._got = []
        self._error = None
        self.start()

    def run(self):
        try:
            with self.subscription:
                self._got.extend(self.subscription)
        except Exception as error:  # noqa: BLE001 - raised again by result()
            self._error = error

    def result(self):
        self.join(PATIENCE_S + 5)
        assert not self.is_alive(), "the reader did not end"
        if self._error is not None:
            raise self._error
        return self._got


def raw_subscriber(context, endpoint, *prefixes, **options):
    """A plain SUB socket, as any ZeroMQ program has one."""
    socket = context.socket(zmq.SUB)
    socket.linger = 0
    socket.rcvtimeo = int(PATIENCE_S * 1000)
    for name, value in options.items():
        setattr(socket, name, value)
    socket.connect(endpoint)
    for prefix in prefixes or (b"",):
        socket.subscribe(prefix)
    return socket


def await_subscribers(publisher, count):
    """Block until the publisher counts so many subscriptions to masks."""
    deadline = time.monotonic() + PATIENCE_S
    while publisher.stats().subscribers != count:
        assert time.monotonic() < deadline, publisher.stats()
        time.sleep(0.002)


def await_masks(publisher, count):
    """Wait until the bus has handled so many masks; it takes one from its queue at a time."""
    deadline = time.monotonic() + PATIENCE_S
    while publisher.stats().sent.get("m", 0) < count:
        assert time.monotonic() < deadline, publisher.stats()
        time.sleep(0.001)

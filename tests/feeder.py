"""A publisher in a process of its own: masks at a rate, until its input closes."""

import subprocess
import sys
import threading
import time

import numpy as np

COMMAND = [sys.executable, __file__]


class Feeder:
    """A real bus beside the test, stopped by leaving.

    Args:
        endpoint: where it binds.
        rate_hz: masks a second.
        policy: of its publisher.
        side: a mask's sides; it travels as `prob8`, so that it has side x side bytes.
        stream: name of its stream.
    """

    def __init__(self, endpoint, rate_hz, *, policy="live", side=84, stream="main"):
        words = [endpoint, str(rate_hz), policy, str(side), stream]
        self._process = subprocess.Popen(
            [*COMMAND, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.endpoint = self._process.stdout.readline().strip()
        assert self.endpoint, "the publisher's process did not come up"
        self.pid = self._process.pid

    def kill(self):
        self._process.kill()
        self._process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        try:
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.stdout.close()


def feed(endpoint, rate_hz, policy, side, stream):
    from atlasd.daemon.publisher import Publisher
    from wire import a_hello, a_mask

    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    picture = np.random.default_rng(0).random((side, side)) > 0.5
    with Publisher(endpoint, policy, linger_s=0.1) as publisher:
        publisher.publish(a_hello(stream))
        sys.stdout.write(f"{publisher.endpoint}\n")
        sys.stdout.flush()
        due, seq = time.monotonic(), 0
        while not over.wait(max(0.0, due - time.monotonic())):
            publisher.publish(a_mask(seq, stream=stream, mask=picture, enc="prob8"))
            due = max(due + 1 / rate_hz, time.monotonic())  # time lost is not caught up in a burst
            seq += 1


if __name__ == "__main__":
    endpoint, rate_hz, policy, side, stream = sys.argv[1:]
    feed(endpoint, float(rate_hz), policy, int(side), stream)

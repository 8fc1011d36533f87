"""A camera and a microphone in a world with a clock of its own, where each clap is known."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
from atlasd.streams.camera import Picture
from atlasd.streams.capturering import Block
from atlasd.streams.listener import Lost, Opened, Told
from atlasd.streams.sources import MediaError, Trouble

NS_PER_S = 1_000_000_000
START_NS = 5_000 * NS_PER_S
"""The host has been up for a while when the devices are opened."""
Jitter = Callable[[random.Random], float]


def exponential_ms(mean: float) -> Jitter:
    return lambda rng: rng.expovariate(1 / mean)


def uniform_ms(most: float) -> Jitter:
    return lambda rng: rng.uniform(0, most)


class World:
    """Host time, which passes only while somebody waits for a camera."""

    def __init__(self) -> None:
        self.now_ns = START_NS

    def clock(self) -> int:
        return self.now_ns


class FakeCamera:
    """Gives a picture each period, white at whole seconds, stamped by a clock with a skew.

    Args:
        stamp: from the true time (ns since the opening) to the camera's stamp.
        until_s: it dies then.
    """

    name = "fake camera"
    size_px = (8, 8)

    def __init__(
        self,
        world: World,
        *,
        fps: int = 10,
        skew_ppm: float = 0.0,
        jitter: Jitter = lambda _: 0.0,
        delay_ms: float = 0.0,
        until_s: float = 1e9,
        stamp: Callable[[int], int] | None = None,
        seed: int = 1,
    ) -> None:
        self.fps = float(fps)
        self._world, self._until_ns = world, round(until_s * NS_PER_S)
        self._stamp = stamp or (lambda true_ns: round(true_ns * (1 - skew_ppm * 1e-6)) + 777)
        self._coming = self._all(random.Random(seed), fps, jitter, delay_ms)
        self._next = next(self._coming)
        self._white = np.full((8, 8, 3), 255, np.uint8)
        self._grey = np.full((8, 8, 3), 60, np.uint8)
        self.is_closed = False

    def _all(self, rng: random.Random, fps: int, jitter: Jitter, delay_ms: float) -> Iterator:
        arrival_ns = 0
        for i in count():
            true_ns = round(i * NS_PER_S / fps)
            late_ns = round((delay_ms + jitter(rng)) * 1e6)
            arrival_ns = max(arrival_ns, true_ns + late_ns)
            yield START_NS + arrival_ns, true_ns, i % fps == 0

    def take(self, timeout_s: float) -> tuple[list[Picture], list[Trouble]]:
        deadline_ns = self._world.now_ns + round(timeout_s * NS_PER_S)
        arrival_ns, true_ns, is_flash = self._next
        if true_ns >= self._until_ns:
            raise MediaError("the fake camera was unplugged")
        if arrival_ns > deadline_ns:
            self._world.now_ns = deadline_ns
            return [], []
        self._next = next(self._coming)
        self._world.now_ns = max(self._world.now_ns, arrival_ns)
        bgr = self._white if is_flash else self._grey
        return [Picture(bgr, self._stamp(true_ns), arrival_ns)], []

    def close(self) -> None:
        self.is_closed = True


class FakeListener:
    """Gives a block each 20 ms by a sample clock with a skew; a click at whole seconds.

    Args:
        gone: it has vanished from the first to the second of these, in seconds.
        lost: at this time (s) so much sound (s) is lost, and told as an overflow.
        hop: at this time (s) its clock steps by so much (s), and nobody tells.
    """

    def __init__(
        self,
        world: World,
        *,
        rate_hz: int = 8000,
        skew_ppm: float = 0.0,
        jitter: Jitter = lambda _: 0.0,
        delay_ms: float = 0.0,
        gone: tuple[float, float] | None = None,
        lost: tuple[float, float] | None = None,
        hop: tuple[float, float] | None = None,
        seed: int = 2,
    ) -> None:
        self._world, self._rate_hz, self._skew = world, rate_hz, skew_ppm * 1e-6
        self._jitter, self._delay_ms = jitter, delay_ms
        self._gone, self._lost, self._hop = gone, lost, hop
        self._rng = random.Random(seed)
        self._queue: list[tuple[int, int, Told]] = []
        self._coming = self._all()
        self._order = count()
        self._push()
        self.is_closed = False

    def _push(self) -> None:
        arrival_ns, told = next(self._coming)
        heapq.heappush(self._queue, (arrival_ns, next(self._order), told))

    def _true_ns(self, position: int) -> int:
        return round(position * NS_PER_S / self._rate_hz * (1 + self._skew))

    def _all(self) -> Iterator[tuple[int, Told]]:
        n, position, overflows, arrival_ns = self._rate_hz // 50, 0, 0, START_NS
        begin_ns = 0  # of position 0, after it came back
        yield START_NS, Opened("fake microphone", self._rate_hz)
        while True:
            lost = 0
            true_ns = begin_ns + self._true_ns(position)
            if self._gone and true_ns >= self._gone[0] * NS_PER_S:
                begin_ns, position = round(self._gone[1] * NS_PER_S), 0
                yield arrival_ns + NS_PER_S, Lost("the fake microphone has vanished")
                yield START_NS + begin_ns, Opened("fake microphone", self._rate_hz)
                self._gone = None
                continue
            if self._lost and true_ns >= self._lost[0] * NS_PER_S:
                lost = round(self._lost[1] * self._rate_hz)
                position, overflows, self._lost = position + lost, overflows + 1, None
                true_ns = begin_ns + self._true_ns(position)
            if self._hop and true_ns >= self._hop[0] * NS_PER_S:
                begin_ns, self._hop = begin_ns + round(self._hop[1] * NS_PER_S), None
                true_ns = begin_ns + self._true_ns(position)
            end_ns = begin_ns + self._true_ns(position + n)
            late_ns = round((self._delay_ms + self._jitter(self._rng)) * 1e6)
            arrival_ns = max(arrival_ns, START_NS + end_ns + late_ns)
            samples = self._samples(true_ns, n)
            yield (
                arrival_ns,
                Block(samples, position, START_NS + true_ns + late_ns, arrival_ns, lost, overflows),
            )
            position += n

    def _samples(self, true_ns: int, n: int) -> np.ndarray:
        samples = np.full(n, 0.01, np.float32)
        half_ns = NS_PER_S / self._rate_hz * (1 + self._skew) / 2
        to_click_ns = math.ceil((true_ns - half_ns) / NS_PER_S) * NS_PER_S - true_ns
        at = math.floor((to_click_ns + half_ns) / (2 * half_ns))
        if at < n:
            samples[at] = 0.9
        return samples

    def take(self) -> list[Told]:
        told = []
        while self._queue[0][0] <= self._world.now_ns:
            told.append(heapq.heappop(self._queue)[2])
            self._push()
        return told

    def close(self) -> None:
        self.is_closed = True

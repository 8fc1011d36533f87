"""A device's clock on the host's: when something happened that arrived later."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .clips import NS_PER_S

STEP_NS = 100_000_000
"""An observation that leaves the map by more than this is not believed at once."""
STEP_AFTER_NS = NS_PER_S
"""Where all leave it for longer than this, the device's clock has stepped."""
DRAINS_NS = 50_000_000
"""Lateness that has fallen by so much is no step but a backlog that gets shorter."""
MAX_SKEW = 500e-6
"""No crystal is worse than this; a steeper fit is delay, not skew."""
SLEW = 0.5e-3
"""Change of the mapped time while it approaches a better fit: half a millisecond a second."""
SETTLING_NS = 5 * NS_PER_S
SETTLING_SLEW = 20e-3
"""The first seconds know the delay badly, so they correct it faster: 20 ms a second."""
BUCKETS = 60
"""Seconds of device time that are looked at, each by its least delayed observation."""
SKEW_AFTER_NS = 10 * NS_PER_S
"""A slope is believed from so long a stretch on; until then the clocks run alike."""
CROWD = 8
"""Of so many observations in a second the second best counts: one false stamp moves nothing."""
SEGMENTS = 64
"""Pieces of the map that are kept, to answer for device times just before the newest."""


@dataclass(slots=True)
class _Bucket:
    """The two least delayed observations of one second of device time, as (dev, delay)."""

    second: int
    best: tuple[int, float]
    next_best: tuple[int, float] | None = None
    count: int = 1

    def add(self, dev: int, delay: float) -> None:
        self.count += 1
        if delay < self.best[1]:
            self.best, self.next_best = (dev, delay), self.best
        elif self.next_best is None or delay < self.next_best[1]:
            self.next_best = (dev, delay)

    @property
    def point(self) -> tuple[int, float]:
        crowded = self.count >= CROWD and self.next_best is not None
        return self.next_best if crowded and self.next_best else self.best


@dataclass(frozen=True, slots=True)
class _Line:
    """Delay that no observation of the window undercuts: ``offset + slope * dev``."""

    offset: float
    slope: float

    def at(self, dev: int) -> float:
        return self.offset + self.slope * dev


@dataclass(frozen=True, slots=True)
class _Segment:
    """From device time ``begin`` on the map is ``line`` plus what is left of ``error``."""

    begin: int
    line: _Line
    error: float
    slew: float

    def at(self, dev: int) -> float:
        left = max(0.0, abs(self.error) - self.slew * max(0, dev - self.begin))
        return self.line.at(dev) + (left if self.error > 0 else -left)


class ClockMap:
    """Maps one device's time to the host's monotonic clock by the least delayed observations.

    What a device stamps reaches the host late, by a delay that varies but never goes below some
    least value. So the map is the line ``host = a * device + b`` under all observations of the
    last 60 seconds that lies nearest to them (an edge of their convex hull), with ``|a - 1|`` at
    most 500 ppm. The least delay stays in the map: it is the constant part, which calibration
    finds.

    Mapped time is continuous and does not fall as device time grows: a better fit is approached
    by 0.5 ms a second (20 ms a second in the first five seconds). Nothing is promised before the
    first `host_ns`, so observations before it move the map freely. Memory is fixed, an observation
    costs microseconds.

    All times are integer nanoseconds; the device's may have any origin.
    """

    def __init__(self) -> None:
        self._is_empty = True
        self._is_asked = False

    @property
    def skew_ppm(self) -> float:
        """Parts per million by which the host's clock is faster than the device's."""
        return 0.0 if self._is_empty else self._line.slope * 1e6

    def observe(self, device_ns: int, host_ns: int) -> bool:
        """Take an observation.

        Args:
            device_ns: the device's stamp. One that repeats or goes back teaches nothing.
            host_ns: host monotonic clock when it arrived.

        Returns:
            True where the device's clock has stepped: for more than a second every stamp was more
            than 100 ms off, and what was late did not catch up. The map was begun anew with this
            one; the caller opens an epoch.
        """
        if self._is_empty:
            self._begin(device_ns, host_ns)
            return False
        dev = device_ns - self._device0_ns
        delay = float(host_ns - self._host0_ns - dev)
        off = delay - self._line.at(dev)
        if abs(off) > STEP_NS and (self._is_asked or off > 0):
            if self._off_since_ns is None or 0 < off < self._off_by - DRAINS_NS:
                self._off_since_ns, self._off_by = host_ns, off
            if host_ns - self._off_since_ns <= STEP_AFTER_NS:
                return False
            self._begin(device_ns, host_ns)
            return True
        self._off_since_ns = None
        if dev > self._newest:
            self._newest = dev
            self._learn(dev, delay, is_lowest=off < 0)
        return False

    def host_ns(self, device_ns: int) -> int:
        """Host time of a device time; best for those near the newest observed.

        Raises:
            ValueError: nothing was observed yet.
        """
        if self._is_empty:
            raise ValueError("this clock map has observed nothing: call observe() first")
        self._is_asked = True
        dev = device_ns - self._device0_ns
        return self._host0_ns + dev + round(self._delay_at(dev))

    def _begin(self, device_ns: int, host_ns: int) -> None:
        self._is_empty = self._is_asked = False
        self._device0_ns, self._host0_ns = device_ns, host_ns
        self._newest = 0
        self._off_since_ns: int | None = None
        self._off_by = 0.0
        self._buckets = deque([_Bucket(0, (0, 0.0))], maxlen=BUCKETS)
        self._line = _Line(0.0, 0.0)
        self._segments = deque([_Segment(0, self._line, 0.0, SLEW)], maxlen=SEGMENTS)

    def _learn(self, dev: int, delay: float, *, is_lowest: bool) -> None:
        newest = self._buckets[-1]
        is_new = dev // NS_PER_S != newest.second
        if is_new:
            self._buckets.append(_Bucket(dev // NS_PER_S, (dev, delay)))
        else:
            newest.add(dev, delay)
        if is_new or (is_lowest and dev < SETTLING_NS):
            self._follow(self._fit())

    def _fit(self) -> _Line:
        """The line under all points that lies nearest to them, within the slope allowed."""
        points = [bucket.point for bucket in self._buckets]
        slope = 0.0
        if points[-1][0] - points[0][0] >= SKEW_AFTER_NS:
            slope = min(MAX_SKEW, max(-MAX_SKEW, _slope_below(points)))
        return _Line(min(delay - slope * dev for dev, delay in points), slope)

    def _follow(self, line: _Line) -> None:
        """From the newest device time on, approach ``line``."""
        here = self._delay_at(self._newest)
        self._line = line
        if not self._is_asked:
            self._segments.clear()
            self._segments.append(_Segment(0, line, 0.0, SLEW))
            return
        slew = SETTLING_SLEW if self._newest < SETTLING_NS else SLEW
        self._segments.append(_Segment(self._newest, line, here - line.at(self._newest), slew))

    def _delay_at(self, dev: int) -> float:
        for segment in reversed(self._segments):
            if segment.begin <= dev:
                return segment.at(dev)
        return self._segments[0].at(dev)


def _slope_below(points: list[tuple[int, float]]) -> float:
    """Slope of the lower convex hull's edge over the mean of the abscissae.

    Among all lines that no point undercuts, that edge's has the least mean distance to the points.
    """
    hull: list[tuple[int, float]] = []
    for x, y in points:
        while len(hull) > 1:
            (ax, ay), (bx, by) = hull[-2:]
            if (by - ay) * (x - ax) < (y - ay) * (bx - ax):
                break
            hull.pop()
        hull.append((x, y))
    middle = sum(x for x, _ in points) / len(points)
    right = next(i for i, (x, _) in enumerate(hull) if x >= middle)
    (ax, ay), (bx, by) = hull[max(right, 1) - 1], hull[max(right, 1)]
    return (by - ay) / (bx - ax)

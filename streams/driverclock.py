"""Whether a camera driver's timestamps can be believed."""

from __future__ import annotations

from .clips import NS_PER_S

DEFAULT_FPS = 15.0
"""Where a driver does not say its rate, its period is taken to be that of a slow webcam's."""
OLDEST_NS = NS_PER_S // 2
"""A picture that says to be older than this on arrival does not say the truth."""
FUTURE_NS = 2_000_000
"""Rounding of a driver that stamps in milliseconds."""
CHANCES = 10
"""After so many stamps that cannot be, the driver is asked no more."""


class DriverClock:
    """Chooses between a driver's timestamp and the time of the grab.

    V4L2 stamps a picture on the host's monotonic clock when it was complete, which is better than
    the time at which a busy thread grabs it. But drivers stamp 0, repeat themselves, or count
    media time from the opening at a rate that is not the real one; OpenCV's meaning of
    ``CAP_PROP_POS_MSEC`` has also changed between versions. So a stamp counts where it advances,
    is not from the future, is at most half a second old, and where the freshest so far was within
    one frame period of its grab: only then is it the same clock.

    Args:
        fps: the rate that the driver declares; 0 or nonsense: it does not.
    """

    def __init__(self, fps: float) -> None:
        self._period_ns = round(NS_PER_S / (fps if 1 <= fps <= 1000 else DEFAULT_FPS))
        self._last_ns: int | None = None
        self._freshest_ns = OLDEST_NS + 1
        self._refused = 0

    def stamp(self, driver_ns: int, grabbed_ns: int) -> int:
        """When a picture was captured.

        Args:
            driver_ns: the driver's stamp.
            grabbed_ns: host monotonic clock right after the grab.
        """
        if self._refused >= CHANCES:
            return grabbed_ns
        age_ns = grabbed_ns - driver_ns
        advances = self._last_ns is None or driver_ns > self._last_ns
        if not advances or not -FUTURE_NS <= age_ns <= OLDEST_NS:
            self._refused += 1
            return grabbed_ns
        self._last_ns = driver_ns
        self._freshest_ns = min(self._freshest_ns, age_ns)
        if self._freshest_ns > self._period_ns:
            return grabbed_ns
        return min(driver_ns, grabbed_ns)

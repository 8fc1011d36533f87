"""Whether a camera driver's timestamps can be believed."""

from __future__ import annotations

from .clips import NS_PER_S
from .trust import Trust

DEFAULT_FPS = 15.0
"""Where a driver does not say its rate, its period is taken to be that of a slow webcam's."""
OLDEST_NS = NS_PER_S // 2
"""A picture that says to be older than this on arrival does not say the truth."""
FUTURE_NS = 2_000_000
"""Rounding of a driver that stamps in milliseconds."""
FOLLOWS_NS = 1_000_000
"""A picture moves by at most so much what age is usual: one that waited says little of others."""


class DriverClock:
    """Chooses between a driver's timestamp and the time of the grab.

    V4L2 stamps a picture on the host's monotonic clock when it was complete, which is better than
    the time at which a busy thread grabs it. But drivers stamp 0, repeat themselves, or count
    media time from the opening at a rate that is not the real one; OpenCV's meaning of
    ``CAP_PROP_POS_MSEC`` has also changed between versions. So a stamp counts where it advances,
    is not from the future, is at most half a second old, and where the freshest so far was within
    one frame period of its grab: only then is it the same clock.

    A picture whose stamp does not count was captured as long before its grab as is usual: what is
    constant in the delay must not move, for calibration has found it. A driver that errs for a
    while is not believed until it has told the truth for ten seconds (see `Trust`).

    Args:
        fps: the rate that the driver declares; 0 or nonsense: it does not.
    """

    def __init__(self, fps: float) -> None:
        self._period_ns = round(NS_PER_S / (fps if 1 <= fps <= 1000 else DEFAULT_FPS))
        self._last_ns: int | None = None
        self._freshest_ns = OLDEST_NS + 1
        self._trust = Trust()
        self._usual_ns: int | None = None

    @property
    def usual_ns(self) -> int:
        """How old pictures were at their grab by the driver's word; 0 where it never counted."""
        return self._usual_ns or 0

    @property
    def is_given_up(self) -> bool:
        """Whether the driver was believed and is no more."""
        return self._usual_ns is not None and self._trust.is_lost

    def stamp(self, driver_ns: int, grabbed_ns: int) -> int:
        """When a picture was captured.

        Args:
            driver_ns: the driver's stamp.
            grabbed_ns: host monotonic clock right after the grab.
        """
        age_ns = grabbed_ns - driver_ns
        advances = self._last_ns is None or driver_ns > self._last_ns
        can_be = advances and -FUTURE_NS <= age_ns <= OLDEST_NS
        self._trust.judge(can_be)
        if can_be:
            self._last_ns = driver_ns
            self._freshest_ns = min(self._freshest_ns, age_ns)
        if not can_be or self._trust.is_lost or self._freshest_ns > self._period_ns:
            return grabbed_ns - self.usual_ns
        self._follow(max(0, age_ns))
        return min(driver_ns, grabbed_ns)

    def _follow(self, age_ns: int) -> None:
        if self._usual_ns is None:
            self._usual_ns = max(0, self._freshest_ns)
        self._usual_ns += min(FOLLOWS_NS, max(-FOLLOWS_NS, age_ns - self._usual_ns))

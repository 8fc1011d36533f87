"""When what comes in pieces of seconds is due."""

from __future__ import annotations

from typing import Final

from .clips import NS_PER_S

LATE_NS: Final = NS_PER_S // 2
"""A segmented stream that is so late has run dry and begins anew."""


class PlayoutClock:
    """The sender's time from its first arrival on: what comes in pieces is played from there."""

    def __init__(self) -> None:
        self._ahead_ns: int | None = None

    def observe(self, device_ns: int, host_ns: int) -> bool:
        """True where it came so late that playing begins anew."""
        if self._ahead_ns is None:
            self._ahead_ns = host_ns - device_ns
        is_late = host_ns - self.host_ns(device_ns) > LATE_NS
        if is_late:
            self._ahead_ns = host_ns - device_ns
        return is_late

    def host_ns(self, device_ns: int) -> int:
        """When it is due."""
        return device_ns + (self._ahead_ns or 0)

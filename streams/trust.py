"""Whether a device's word counts: by its latest words, never by all that were ever wrong."""

from __future__ import annotations

DISBELIEF = 2
"""What one word that cannot be weighs, against one that can."""
LOST_AT = 20
"""Ten words in a row that cannot be, or a while in which every second one cannot."""
REGAINED_AFTER = 300
"""After so many words in a row that can be, the device is believed again."""


class Trust:
    """Believes a device until it errs for a while, and again once it has not for longer.

    A machine that stands still now and then makes words wrong for days without end, and none of
    them says anything about the next.

    Attributes:
        is_lost: whether its word counts no more.
    """

    __slots__ = ("_debt", "is_lost")

    def __init__(self) -> None:
        self.is_lost = False
        self._debt = 0

    def judge(self, can_be: bool) -> None:
        """Take a word: whether it can be true."""
        most = REGAINED_AFTER if self.is_lost else LOST_AT
        self._debt = max(0, self._debt - 1) if can_be else min(most, self._debt + DISBELIEF)
        if not self.is_lost and self._debt >= LOST_AT:
            self.is_lost, self._debt = True, REGAINED_AFTER
        elif self._debt == 0:
            self.is_lost = False

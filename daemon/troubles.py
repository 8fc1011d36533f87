"""What is wrong with a stream: counted, named while it lasts, and logged without a flood."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..streams.sources import Trouble

LOG_AGAIN_NS = 60_000_000_000
"""A kind of trouble is a line of the log at most so often; what lies between is counted in it."""
RECENT_NS = 10_000_000_000
"""So long a trouble that is over as soon as it is told counts as present."""
MAX_CHARACTERS = 500
"""Of each trouble in a status."""
_LASTING = {"reconnect": "lost", "microphone_lost": "no sound"}
_ENDED_BY = {"microphone_back": "microphone_lost"}
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Kind:
    """The troubles of one kind."""

    newest: Trouble
    at_ns: int = 0
    logged_ns: int | None = None
    unlogged: int = 0
    before: int = 0
    """Counted by sources that have been opened again since, and count from one."""

    @property
    def count(self) -> int:
        return self.before + self.newest.count


class Troubles:
    """The troubles of one stream.

    Attempts to reach a source are logged each, since they have pauses of their own.

    Args:
        clock: monotonic nanoseconds.
    """

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}
        self._lasting: dict[str, Trouble] = {}

    def note(self, trouble: Trouble) -> int:
        """Take the next trouble; how many of its kind the stream has had."""
        known = self._kinds.setdefault(trouble.kind, _Kind(trouble))
        if trouble.count < known.newest.count:
            known.before += known.newest.count
        known.newest, known.at_ns = trouble, self._clock()
        known.unlogged += 1
        if trouble.kind in _LASTING:
            self._lasting[trouble.kind] = trouble
        self._lasting.pop(_ENDED_BY.get(trouble.kind, ""), None)
        self._log_if_due(known)
        return known.count

    def found_again(self) -> None:
        """The source is there again: what troubled the one before is over."""
        self._lasting.clear()

    def catch_up(self) -> None:
        """Log what was passed over, where it is time; to be called now and then."""
        for known in self._kinds.values():
            if known.unlogged:
                self._log_if_due(known)

    @property
    def present(self) -> str:
        """What is wrong now, in words; empty where nothing is."""
        lasting = [f"{_LASTING[kind]}: {t.detail}" for kind, t in self._lasting.items()]
        since_ns = self._clock() - RECENT_NS
        passing = [
            f"{kind}: {known.newest.detail}"
            for kind, known in self._kinds.items()
            if known.at_ns >= since_ns and kind not in {*_LASTING, *_ENDED_BY}
        ]
        return "; ".join(told[:MAX_CHARACTERS] for told in [*lasting, *passing])

    @property
    def counts(self) -> dict[str, int]:
        """Troubles so far, by kind."""
        return {kind: known.count for kind, known in self._kinds.items()}

    def _log_if_due(self, known: _Kind) -> None:
        kind, now_ns = known.newest.kind, self._clock()
        if kind == "reconnect":
            _log.warning("%s", known.newest.detail)
        elif known.logged_ns is None or now_ns - known.logged_ns >= LOG_AGAIN_NS:
            more = f" ({known.unlogged} since the last line)" if known.unlogged > 1 else ""
            _log.warning("%s: %s%s", kind, known.newest.detail, more)
        else:
            return
        known.logged_ns, known.unlogged = now_ns, 0

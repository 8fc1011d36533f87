"""An intake whose spool cannot be had yet, as it is locked or the disk is full: it comes later.

Masks go on meanwhile. Opening a locked spool takes as long as SQLite waits, so it is tried in a
thread of its own.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Final

from .endpoints import EndpointError
from .infos import IntakeInfo
from .intake import Intake
from .spoolfile import SpoolError

_RETRIES_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0)
"""Between two trials; the last one for ever."""
_DETAIL_CHARACTERS: Final = 2000
_log = logging.getLogger(__name__)


class LateIntake:
    """Opens an intake as soon as it can be had, until it is closed.

    Args:
        opened: makes the intake.
        endpoint: where labels will be put.
        why: what stood in the way at first.
        announce: called as (kind, detail, data), from this object's thread too: `intake_failed`
            now, `intake_opened` once labels are taken.
    """

    def __init__(
        self,
        opened: Callable[[], Intake],
        endpoint: str,
        why: Exception,
        announce: Callable[[str, str, Mapping[str, bool | int | float | str]], None],
    ) -> None:
        self._opened, self._endpoint, self._announce = opened, endpoint, announce
        self._intake: Intake | None = None
        self._closing = threading.Event()
        self._missing = self._failed(why, _RETRIES_S[0])
        announce("intake_failed", self._missing.detail, {})
        self._thread = threading.Thread(target=self._run, name="atlasd-late-intake", daemon=True)
        self._thread.start()

    def info(self) -> IntakeInfo:
        """What status says: ``failed`` and why, until labels are taken."""
        return self._missing if self._intake is None else self._intake.info()

    def close(self) -> None:
        """Try no more, and close what was opened; closing twice is harmless."""
        self._closing.set()
        self._thread.join()
        if self._intake is not None:
            self._intake.close()

    def _run(self) -> None:
        """Try again, ever later."""
        later = itertools.chain(_RETRIES_S, itertools.repeat(_RETRIES_S[-1]))
        for wait_s, next_wait_s in itertools.pairwise(later):
            if self._closing.wait(wait_s):
                return
            try:
                self._intake = self._opened()
            except (SpoolError, EndpointError, OSError) as error:
                self._missing = self._failed(error, next_wait_s)
            else:
                self._announce("intake_opened", f"labels are taken at {self._endpoint}", {})
                return

    def _failed(self, error: Exception, wait_s: float) -> IntakeInfo:
        detail = f"no labels are taken: {error}; masks go on, tried again in {wait_s:g} s"
        _log.warning("%s", detail)
        return IntakeInfo(
            endpoint=self._endpoint, state="failed", detail=detail[:_DETAIL_CHARACTERS]
        )

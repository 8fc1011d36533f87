"""What a learner tells: the weights to serve, and what happened."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from .notices import Happening, Notice, Publication

_log = logging.getLogger(__name__)


class Teller:
    """Tells, and knows what is served.

    Args:
        tell: receives what is to be served and told.
        served: the version that is served before anything is told.

    Attributes:
        served: the version that was to be served by the newest word.
    """

    def __init__(self, tell: Callable[[Notice], None], served: str) -> None:
        self._tell = tell
        self.served = served

    def serve(self, publication: Publication) -> None:
        """Let weights be served from now on."""
        self._tell(publication)
        self.served = publication.version

    def say(self, kind: str, detail: str, data: Mapping[str, bool | int | float | str]) -> None:
        """Tell what happened, whoever watches, and the log."""
        _log.info("%s: %s", kind, detail)
        self._tell(Happening(kind, detail, data))

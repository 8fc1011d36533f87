"""A medium that begins again at its end, for ever: each round is an epoch of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, Self

from .numbering import Numbering
from .sources import Discontinuity, MediaError, Source, SourceEvent, SourceKind


class RepeatedSource:
    """What a source gives, again and again, with growing epochs and picture numbers.

    Args:
        open_again: opens the medium from its beginning; called once here, and at each end.

    Attributes:
        stream, kind, has_audio, source_size_px, fps: the medium's.
        duration_ns: None: there is no end.

    Raises:
        MediaError: it cannot be opened, now or again, or a round of it held no picture.
    """

    duration_ns: int | None = None

    def __init__(self, open_again: Callable[[], Source]) -> None:
        self._open_again = open_again
        self._source = open_again()
        self.stream: Final = self._source.stream
        self.kind: SourceKind = self._source.kind
        self.has_audio = self._source.has_audio
        self.source_size_px = self._source.source_size_px
        self.fps = self._source.fps
        self._is_closed = False

    def __iter__(self) -> Iterator[SourceEvent]:
        numbering = Numbering()
        while True:
            for event in self._source:
                yield numbering.renumbered(event)
            if numbering.is_barren:
                raise MediaError("a round of the medium held no picture; it cannot be repeated")
            self._source.close()
            if self._is_closed:
                return
            self._source = self._open_again()
            yield Discontinuity(numbering.begin(), "the medium begins again")

    def close(self) -> None:
        """Free the medium; closing twice is harmless."""
        self._is_closed = True
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

"""Epochs and numbers of pictures over several sources that follow each other as one stream."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .clips import VideoFrame
from .sources import Quiet, SourceEvent, Trouble


@dataclass(slots=True)
class Numbering:
    """Renumbers what sources give one after the other, each beginning at 0.

    Attributes:
        epoch: the newest.
        index: pictures so far.
    """

    epoch: int = 0
    index: int = 0
    _first_epoch: int = 0
    _first_index: int = 0

    def begin(self) -> int:
        """The next source begins: the epoch in which it does."""
        self.epoch += 1
        self._first_epoch, self._first_index = self.epoch, self.index
        return self.epoch

    def renumbered(self, event: SourceEvent) -> SourceEvent:
        """The event as one of the whole stream."""
        if isinstance(event, Trouble | Quiet):
            return event
        self.epoch = self._first_epoch + event.epoch
        if isinstance(event, VideoFrame):
            self.index = self._first_index + event.index + 1
            return replace(event, epoch=self.epoch, index=self.index - 1)
        return replace(event, epoch=self.epoch)

    @property
    def is_barren(self) -> bool:
        """Whether the source has given no picture."""
        return self.index == self._first_index

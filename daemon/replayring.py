"""The replay ring: what the network was shown a moment ago, so that labels can refer to it.

It holds references to the samples as they passed, and copies nothing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final, NamedTuple

from ..streams.clips import NS_PER_S, Sample
from .labels import LabelError


class _Key(NamedTuple):
    stream: str
    epoch: int
    pts_ns: int


class ReplayRing:
    """The latest samples of all streams; any thread may add and find.

    Args:
        seconds: a sample is kept this long, by the capture of later ones.
        max_bytes: of pictures and sound together.
    """

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self.seconds: Final = seconds
        self.max_bytes: Final = max_bytes
        self._lock = threading.Lock()
        self._samples: OrderedDict[_Key, Sample] = OrderedDict()
        self._newest: dict[str, _Key] = {}
        self._bytes = 0

    @property
    def size(self) -> tuple[int, int]:
        """Samples that are kept, and their bytes."""
        with self._lock:
            return len(self._samples), self._bytes

    def add(self, sample: Sample) -> None:
        """Keep a sample that the network was shown, and let go of what is too old or too much."""
        frame = sample.frame
        key = _Key(frame.stream, frame.epoch, frame.pts_ns)
        oldest_ns = frame.capture_ns - round(self.seconds * NS_PER_S)
        with self._lock:
            replaced = self._samples.pop(key, None)
            self._bytes += _bytes_of(sample) - (0 if replaced is None else _bytes_of(replaced))
            self._samples[key] = sample
            self._newest[frame.stream] = key
            while self._samples and (
                self._bytes > self.max_bytes or self._oldest().frame.capture_ns < oldest_ns
            ):
                _, dropped = self._samples.popitem(last=False)
                self._bytes -= _bytes_of(dropped)

    def find(self, stream: str, epoch: int, pts_ns: int) -> Sample:
        """The sample with this picture.

        Raises:
            LabelError: ``unknown_stream``, ``unknown_epoch`` or ``future`` where it has not been
                shown, ``expired`` where it is no longer kept, ``no_frame`` where there was no
                picture at this time, or it was dropped before the network.
        """
        with self._lock:
            found = self._samples.get(_Key(stream, epoch, pts_ns))
            if found is not None:
                return found
            newest = self._newest.get(stream)
            if newest is None:
                raise LabelError("unknown_stream", self._no_stream(stream))
            of_stream = [k for k in self._samples if k.stream == stream]
        raise self._missing(_Key(stream, epoch, pts_ns), newest, of_stream)

    def _oldest(self) -> Sample:
        return next(iter(self._samples.values()))

    def _no_stream(self, stream: str) -> str:
        shown = ", ".join(sorted(self._newest)) or "none yet"
        return f"the stream is {stream!r}; streams shown here are: {shown}"

    def _missing(self, key: _Key, newest: _Key, of_stream: list[_Key]) -> LabelError:
        kept = [k.pts_ns for k in of_stream if k.epoch == key.epoch]
        elsewhere = [str(k.epoch) for k in of_stream if k.pts_ns == key.pts_ns]
        hint = f"; a picture of this time is kept of epoch {', '.join(elsewhere)}"
        hint = hint if elsewhere else ""
        if key.epoch > newest.epoch:
            return LabelError(
                "unknown_epoch",
                f"the epoch is {key.epoch}; {key.stream} is in epoch {newest.epoch}: take the one "
                "of the picture's mask",
            )
        if key.epoch == newest.epoch and key.pts_ns > newest.pts_ns:
            return LabelError(
                "future",
                f"pts_ns is {key.pts_ns}; the newest picture shown of epoch {newest.epoch}, the "
                f"present one, has {newest.pts_ns}: label what has a mask{hint}",
            )
        if not kept or key.pts_ns < min(kept):
            since = f"pictures are kept from {min(kept)} on" if kept else "none of it is kept"
            return LabelError(
                "expired",
                f"the picture at {key.pts_ns} of epoch {key.epoch} is no longer here: {since} "
                f"({self.seconds:g} s, {self.max_bytes} bytes), and {key.stream} is in epoch "
                f"{newest.epoch} now: put the whole clip, or raise intake.replay_s and "
                f"intake.replay_mb{hint}",
            )
        nearest = min(kept, key=lambda pts_ns: abs(pts_ns - key.pts_ns))
        return LabelError(
            "no_frame",
            f"no picture was shown at {key.pts_ns}; the nearest has {nearest}: take the pts_ns of "
            f"its mask{hint}",
        )


def _bytes_of(sample: Sample) -> int:
    frame = sample.frame
    full = 0 if frame.full is None else frame.full.nbytes
    return frame.image.nbytes + full + sample.window.samples.nbytes

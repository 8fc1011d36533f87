"""Decoded pictures and sound of one stream become its events."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from statistics import median

import av
from av.audio.frame import AudioFrame

from .clips import NS_PER_S, AudioChunk, VideoFrame
from .pixels import Pixels
from .resampler import MonoResampler, Piece
from .sources import MediaError, Trouble, TroubleKind
from .timeline import Item, Track

Frame = av.VideoFrame | AudioFrame

MAX_SIDE_PX = 32_768
"""Longest side of a picture; the wire carries none that is longer."""
FALLBACK_FPS = 25.0
"""Spacing of pictures without times in a container that knows no frame rate either."""


class Presenter:
    """Times, converts and numbers what a container's tracks decode to.

    Args:
        stream: name that every event carries.
        image_size_px: (width, height) that pictures are scaled to; None keeps their size.
        keep_full: also keep the unscaled upright picture.
        sample_rate_hz: rate of the sound that comes out.
        fps: nominal frames a second, or None where the container does not say.
        place: from the time of the tracks to the stream's timeline; it must not fall.

    Attributes:
        epoch: that events belong to; the source sets it.
        ends_ns: where each track ends so far, in its container's time.
        latest_ns: place of the latest picture; None before the first.
    """

    def __init__(
        self,
        stream: str,
        image_size_px: tuple[int, int] | None,
        *,
        keep_full: bool,
        sample_rate_hz: int,
        fps: float | None,
        place: Callable[[int], int] = int,
    ) -> None:
        self.epoch = 0
        self.ends_ns: dict[Track, int] = {}
        self._stream = stream
        self._pixels = Pixels(image_size_px, keep_full=keep_full)
        self._rate_hz = sample_rate_hz
        self._resampler = MonoResampler(sample_rate_hz)
        self._place = place
        self._troubles: Counter[str] = Counter()
        self._periods_ns = deque([round(NS_PER_S / (fps or FALLBACK_FPS))], maxlen=9)
        self._raw_ns: int | None = None
        self._index = 0
        self.latest_ns: int | None = None

    def upright_size_px(self, frame: av.VideoFrame) -> tuple[int, int]:
        """(width, height) of a picture after it was turned upright, before scaling.

        Raises:
            MediaError: it is too large.
        """
        size_px = self._pixels.upright_size_px(frame)
        if max(size_px) > MAX_SIDE_PX:
            raise MediaError(_too_large(size_px))
        return size_px

    def item(
        self, frame: Frame, *, start_ns: int | None = None, arrival_ns: int | None = None
    ) -> tuple[Item[Frame], Trouble | None]:
        """An item for the timeline.

        Args:
            frame: a decoded picture or piece of sound.
            start_ns: its time; None: its container's, and without one it follows its track's last.
            arrival_ns: host monotonic clock when it came, for live streams.
        """
        trouble = None
        track: Track = "video" if isinstance(frame, av.VideoFrame) else "audio"
        if isinstance(frame, AudioFrame):
            length_ns = round(frame.samples * NS_PER_S / frame.sample_rate)
            size = frame.samples * frame.layout.nb_channels * frame.format.bytes
        else:
            length_ns = int(median(self._periods_ns))
            size = sum(plane.buffer_size for plane in frame.planes)
        if start_ns is not None:
            pass
        elif frame.pts is None or not frame.time_base:
            start_ns = self.ends_ns.get(track, 0)
            trouble = self.trouble("no_pts", f"{track} without a time follows the last one")
        else:
            start_ns = round(frame.pts * frame.time_base * NS_PER_S)
        if track == "video":
            self._learn_period(start_ns)
        self.ends_ns[track] = start_ns + length_ns
        return Item(track, start_ns, start_ns + length_ns, size, frame, arrival_ns), trouble

    def events(
        self, frame: Frame, start_ns: int, capture_ns: Callable[[], int]
    ) -> Iterator[Trouble | VideoFrame | AudioChunk]:
        """Events of a picture or a piece of sound.

        Args:
            frame: it.
            start_ns: its place on its tracks' common timeline.
            capture_ns: host monotonic clock of a picture; asked before it is converted.
        """
        if isinstance(frame, AudioFrame):
            not_finite = self._resampler.not_finite
            yield from self._chunks(self._resampler.push(frame, start_ns))
            if self._resampler.not_finite > not_finite:
                yield self.trouble("not_finite", "sound held NaN or infinity, now zeros")
        else:
            yield from self._picture(frame, self._place(start_ns), capture_ns())

    def flush(self) -> Iterator[AudioChunk]:
        """The rest of the sound, before a break or the end."""
        yield from self._chunks(self._resampler.flush())

    def forget(self) -> None:
        """Let the rest of the sound go: its place is not known any more."""
        self._resampler.flush()

    def trouble(self, kind: TroubleKind, detail: str, times: int = 1) -> Trouble:
        """A trouble with its count, which ``times`` is added to."""
        self._troubles[kind] += times
        return Trouble(kind, detail, self._troubles[kind])

    def _learn_period(self, start_ns: int) -> None:
        """Follow the spacing of pictures: a nominal rate says little where it varies."""
        if self._raw_ns is not None and start_ns > self._raw_ns:
            self._periods_ns.append(start_ns - self._raw_ns)
        self._raw_ns = start_ns

    def _picture(
        self, frame: av.VideoFrame, pts_ns: int, capture_ns: int
    ) -> Iterator[Trouble | VideoFrame]:
        if self.latest_ns is not None and pts_ns <= self.latest_ns:
            kind = "repeated_pts" if pts_ns == self.latest_ns else "backward_pts"
            yield self.trouble(
                kind, f"picture {self._index} at {pts_ns} ns follows one at {self.latest_ns} ns"
            )
            pts_ns = self.latest_ns + 1
        size_px = self._pixels.upright_size_px(frame)
        if max(size_px) > MAX_SIDE_PX:
            yield self.trouble("too_large", _too_large(size_px))
            return
        image, full, size_px = self._pixels.convert(frame)
        yield VideoFrame(
            image=image,
            pts_ns=pts_ns,
            capture_ns=capture_ns,
            stream=self._stream,
            epoch=self.epoch,
            index=self._index,
            source_size_px=size_px,
            full=full,
        )
        self._index, self.latest_ns = self._index + 1, pts_ns

    def _chunks(self, pieces: list[Piece]) -> Iterator[AudioChunk]:
        for piece in pieces:
            yield AudioChunk(
                piece.samples,
                self._rate_hz,
                self._place(piece.start_ns),
                self._stream,
                self.epoch,
            )


def _too_large(size_px: tuple[int, int]) -> str:
    width, height = size_px
    return f"a picture of {width} x {height}; sides of up to {MAX_SIDE_PX} pixels can be read"

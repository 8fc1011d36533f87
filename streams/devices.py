"""A camera, with a microphone or without, as one live source on the host's clock."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Protocol, Self, cast

import av

from .camera import OPEN_S, STALL_S, Camera, CameraOptions, Picture
from .clips import NS_PER_S, VideoFrame
from .clockmap import ClockMap
from .hearing import SETTLE_S, Hearing
from .listener import Listener, Told
from .microphone import Microphone
from .pixels import Pixels
from .sources import AudioEnded, Discontinuity, Quiet, SourceEvent, SourceKind, Trouble, TroubleKind

WAIT_S = 0.02
"""Longest wait for a picture before sound is fetched."""
WARM_S = 1.0
"""The first pictures only teach the camera's clock: they lay in the driver's queue."""
OLDEST_NS = NS_PER_S
"""A picture is placed at its arrival where its stamp says that it is older than this."""


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """Which devices, and what comes out.

    Attributes:
        camera: index, path or a part of a name.
        microphone: ``default``, an index or a part of a name; None: the stream has no sound.
        camera_size_px: (width, height) to ask for; None: the camera's own.
        camera_fps: pictures a second to ask for; None: the camera's own.
        camera_latency_ms: how long a picture takes from the light to its timestamp; subtracted.
        stream: name that every event carries.
        image_size_px: (width, height) that pictures are scaled to; None keeps their size.
        keep_full: also keep the unscaled picture.
        sample_rate_hz: rate of the sound that comes out.
        origin_ns: host monotonic clock at 0 of the stream's timeline; None: the moment of opening.
        open_timeout_s: how long the camera may take to give its first picture.
        stall_timeout_s: after so long without a picture the camera is dead.
    """

    camera: str
    microphone: str | None = None
    camera_size_px: tuple[int, int] | None = None
    camera_fps: float | None = None
    camera_latency_ms: float = 0.0
    stream: str = "main"
    image_size_px: tuple[int, int] | None = None
    keep_full: bool = False
    sample_rate_hz: int = 32000
    origin_ns: int | None = None
    open_timeout_s: float = OPEN_S
    stall_timeout_s: float = STALL_S

    def to_map(self) -> dict[str, Any]:
        """Plain values, for another process, with the kind that `live.open_live` reads."""
        return {"kind": "devices", **asdict(self)}

    @classmethod
    def from_map(cls, options: Mapping[str, Any]) -> Self:
        """Read what `to_map` gave, less the kind; tuples have become lists on the way."""
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        return cls(**cast("dict[str, Any]", values))


class Seeing(Protocol):
    """An open camera, as `DeviceSource` uses it; see `Camera`."""

    name: str
    size_px: tuple[int, int]
    fps: float | None

    def take(self, timeout_s: float) -> tuple[list[Picture], list[Trouble]]:
        """Pictures and troubles since the last call, after at most ``timeout_s``."""
        ...

    def close(self) -> None:
        """Free the device."""
        ...


class Listening(Protocol):
    """A microphone that is kept open, as `DeviceSource` uses it; see `Listener`."""

    def take(self) -> list[Told]:
        """What was heard and has happened since the last call."""
        ...

    def close(self) -> None:
        """Free the device."""
        ...


def open_devices(
    options: DeviceOptions, *, clock: Callable[[], int] = time.monotonic_ns
) -> DeviceSource:
    """Open a camera and, where one is wanted, a microphone.

    A microphone that is not there is told of and tried again while the pictures go on; a camera
    that is not there is an error.

    Raises:
        MediaError: the camera cannot be opened: what there is, and what to do.
    """
    asked = CameraOptions(
        options.camera_size_px,
        options.camera_fps,
        stall_s=options.stall_timeout_s,
        open_s=options.open_timeout_s,
    )
    camera = Camera(options.camera, asked, clock=clock)
    listener = None
    if options.microphone is not None:
        wanted = options.microphone
        listener = Listener(lambda: Microphone(wanted))
    return DeviceSource(camera, listener, options, clock=clock)


class DeviceSource:
    """Pictures of a camera and the sound of a microphone, each mapped to the host's clock.

    Times count from ``options.origin_ns``. Pictures are stamped as `camera.Camera` says, sound by
    the count of its samples; what is constant in the delay of both stays, and is what
    ``sync.lag_ms`` corrects. A clock that steps opens an epoch. A microphone that vanishes ends the
    sound (windows become ``gap``, then ``absent``) and comes back; the death of the camera ends the
    source.

    Args:
        camera: an open camera.
        listener: keeps a microphone open; None: there is no sound.
        options: what comes out; devices are not opened here.
        clock: host monotonic clock in nanoseconds.
        settle_s: see `Hearing`.
        warm_s: see `WARM_S`.

    Attributes:
        kind: ``live``.
        stream, has_audio, source_size_px, fps, duration_ns: see `Source`.
    """

    kind: SourceKind = "live"

    def __init__(
        self,
        camera: Seeing,
        listener: Listening | None,
        options: DeviceOptions,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        settle_s: float = SETTLE_S,
        warm_s: float = WARM_S,
    ) -> None:
        self.stream = options.stream
        self.has_audio = listener is not None
        self.source_size_px = camera.size_px
        self.fps = camera.fps
        self.duration_ns: int | None = None
        self._camera, self._listener = camera, listener
        self._origin_ns = clock() if options.origin_ns is None else options.origin_ns
        self._latency_ns = round(options.camera_latency_ms * 1e6)
        self._hearing = Hearing(
            options.stream, options.sample_rate_hz, self._origin_ns, settle_s=settle_s
        )
        self._clock_map = ClockMap()
        self._warm_ns = round(warm_s * NS_PER_S)
        self._first_ns: int | None = None
        self._pixels = Pixels(options.image_size_px, keep_full=options.keep_full)
        self._counts: Counter[str] = Counter()
        self._epoch = self._index = 0
        self._last_ns = -1
        self._is_closed = False

    def __iter__(self) -> Iterator[SourceEvent]:
        while not self._is_closed:
            pictures, troubles = self._camera.take(WAIT_S)
            told = self._listener.take() if self._listener is not None else []
            for one in told:
                yield from self._heard(one)
            yield from troubles
            for picture in pictures:
                yield from self._seen(picture)
            if not told and not pictures and not troubles:
                yield Quiet()

    def close(self) -> None:
        """Free both devices; closing twice is harmless."""
        self._is_closed = True
        if self._listener is not None:
            self._listener.close()
        self._camera.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _heard(self, told: Told) -> Iterator[SourceEvent]:
        for event in self._hearing.push(told):
            if isinstance(event, Discontinuity):
                self._epoch = event.epoch
            yield event

    def _seen(self, picture: Picture) -> Iterator[SourceEvent]:
        if self._clock_map.observe(picture.device_ns, picture.host_ns):
            self._epoch += 1
            self._hearing.epoch = self._epoch
            yield Discontinuity(self._epoch, "the camera's clock has stepped")
            if self._hearing.is_lost:
                yield AudioEnded(self._epoch)
        if self._first_ns is None:
            self._first_ns = picture.host_ns
        if picture.host_ns - self._first_ns < self._warm_ns:
            return
        captured_ns = self._captured_ns(picture)
        pts_ns = captured_ns - self._origin_ns
        if pts_ns <= self._last_ns:
            kind = "repeated_pts" if pts_ns == self._last_ns else "backward_pts"
            yield self._trouble(kind, f"a picture at {pts_ns} ns follows one at {self._last_ns} ns")
            pts_ns = self._last_ns + 1
        yield self._frame(picture, pts_ns, captured_ns)

    def _captured_ns(self, picture: Picture) -> int:
        """When the light fell in; never after the picture's arrival."""
        mapped_ns = self._clock_map.host_ns(picture.device_ns)
        if not 0 <= picture.host_ns - mapped_ns <= OLDEST_NS:
            mapped_ns = picture.host_ns
        return mapped_ns - self._latency_ns

    def _frame(self, picture: Picture, pts_ns: int, captured_ns: int) -> VideoFrame:
        image, full, size_px = self._pixels.convert(
            av.VideoFrame.from_ndarray(picture.bgr, format="bgr24")
        )
        frame = VideoFrame(
            image=image,
            pts_ns=pts_ns,
            capture_ns=captured_ns,
            stream=self.stream,
            epoch=self._epoch,
            index=self._index,
            source_size_px=size_px,
            full=full,
        )
        self._index, self._last_ns = self._index + 1, pts_ns
        return frame

    def _trouble(self, kind: TroubleKind, detail: str) -> Trouble:
        self._counts[kind] += 1
        return Trouble(kind, detail, self._counts[kind])

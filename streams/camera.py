"""A camera through OpenCV: a thread that only grabs, and frames with the time of their capture.

``cv2`` is imported only here, and only where a camera is opened: its wheel needs libGL.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from .cameras import find_camera, list_cameras
from .clips import NS_PER_S
from .driverclock import DriverClock
from .sources import MediaError, Trouble, TroubleKind

KEEP = 4
"""Pictures that wait for their consumer; then the oldest go, and are counted."""
OPEN_S = 15.0
"""How long a camera may take to open and to give its first picture."""
STALL_S = 4.0
"""A camera that has given nothing for so long is taken for dead."""
RETRY_GRAB_S = 0.02
"""Pause after a grab that failed, so that a dead camera costs no core."""
CLOSE_S = 1.0
"""How long closing waits for a driver that does not return."""
BLACK_LEVEL = 6
"""A picture whose brightest pixel is not above this is black: a closed lid, a dead sensor."""
BLACK_AFTER_NS = 2 * NS_PER_S
"""How long it must be black before that is told."""
LARGE_PX = 640 * 480
"""Above this, uncompressed video does not fit through USB 2 at 30 frames a second."""
_log = logging.getLogger(__name__)


class Capture(Protocol):
    """What is used of ``cv2.VideoCapture``."""

    def isOpened(self) -> bool:  # noqa: N802 (OpenCV's name)
        """Whether there is anything to grab from."""
        ...

    def grab(self) -> bool:
        """Wait for the next picture; False where none came."""
        ...

    def retrieve(self) -> tuple[bool, Any]:
        """Decode what was grabbed."""
        ...

    def get(self, prop: int, /) -> float:
        """A property's value; 0 where it is not known."""
        ...

    def set(self, prop: int, value: float, /) -> bool:
        """Ask for a property's value; the driver may take another."""
        ...

    def release(self) -> None:
        """Free the device."""
        ...


@dataclass(frozen=True, slots=True)
class CameraOptions:
    """What is asked of a camera; it gives what it can.

    Attributes:
        size_px: (width, height), or None for its own.
        fps: pictures a second, or None for its own.
        stall_s: after so long without a picture it is dead.
        open_s: how long the first picture may take.
    """

    size_px: tuple[int, int] | None = None
    fps: float | None = None
    stall_s: float = STALL_S
    open_s: float = OPEN_S


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One picture of a camera.

    Attributes:
        bgr: uint8 (H, W, 3), in OpenCV's order of colours.
        device_ns: when it was captured, by the clock that the camera has.
        host_ns: host monotonic clock when it arrived.
    """

    bgr: NDArray[np.uint8]
    device_ns: int
    host_ns: int


class Camera:
    """A camera that is open and giving pictures.

    One thread opens, grabs and frees the device, for a driver may hang in any of these. It stamps
    each picture right after the grab, or takes the driver's stamp where that is plausible (see
    `DriverClock`).

    Args:
        wanted: index, path of the device, or a part of its name.
        options: see `CameraOptions`.
        open_capture: opens ``wanted`` as it stands, for what is no device of this machine;
            default: OpenCV, V4L2 first, opens what `find_camera` finds.
        clock: host monotonic clock in nanoseconds.

    Attributes:
        name: what was opened.
        size_px: (width, height) of the first picture.
        fps: what the driver says it gives, or None.

    Raises:
        MediaError: it is not there, does not open, or gives no picture in time.
    """

    def __init__(
        self,
        wanted: int | str,
        options: CameraOptions | None = None,
        *,
        open_capture: Callable[[int | str], Capture] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._options = options or CameraOptions()
        self._clock = clock
        self._device: int | str = wanted
        self._node: Path | None = None
        self.name = str(wanted)
        if open_capture is None:
            info = find_camera(str(wanted), list_cameras())
            self.name, self._device, self._node = info.name, info.path, Path(info.path)
        elif Path(str(wanted)).exists():
            self._node = Path(str(wanted))
        self._open_capture = open_capture or _open_opencv
        self._changed = threading.Condition()
        self._pictures: deque[Picture] = deque(maxlen=KEEP)
        self._troubles: deque[Trouble] = deque(maxlen=64)
        self._counts: Counter[str] = Counter()
        self._told_ns: dict[str, int] = {}
        self._error: str | None = None
        self._last_ns = clock()
        self._light_ns = self._last_ns
        self._is_dark_told = False
        self._is_stopping = False
        self.size_px: tuple[int, int] = (0, 0)
        self.fps: float | None = None
        self._thread = threading.Thread(target=self._run, name="atlasd-camera", daemon=True)
        self._thread.start()
        try:
            self._wait_for_first()
        except BaseException:
            self.close()
            raise

    def take(self, timeout_s: float) -> tuple[list[Picture], list[Trouble]]:
        """All pictures since the last call, waiting for one at most ``timeout_s``.

        Returns:
            Pictures, oldest first, and what went wrong meanwhile; both may be empty.

        Raises:
            MediaError: the camera has died: it was unplugged, or gives nothing any more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._pictures or self._error, timeout_s)
            pictures, troubles = list(self._pictures), list(self._troubles)
            self._pictures.clear()
            self._troubles.clear()
        if not pictures:
            self._raise_if_dead()
        return pictures, troubles

    def close(self) -> None:
        """Free the device; closing twice is harmless. A driver that hangs is left behind."""
        self._is_stopping = True
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            _log.warning("camera %s does not answer; its thread is left behind", self.name)

    def _wait_for_first(self) -> None:
        deadline_s = self._options.open_s
        with self._changed:
            self._changed.wait_for(lambda: self._pictures or self._error, deadline_s)
        if self._error:
            raise MediaError(self._error)
        if not self._pictures:
            raise MediaError(
                f"camera {self.name} gave no picture within {deadline_s:g} s; see that no other "
                "program uses it, plug it in again, or choose another (`atlasd devices`)"
            )

    def _raise_if_dead(self) -> None:
        silence_s = (self._clock() - self._last_ns) / NS_PER_S
        if self._error is None and self._node is not None and not self._node.exists():
            self._error = f"camera {self.name} was unplugged: {self._node} is gone"
        if self._error is None and silence_s > self._options.stall_s:
            self._error = f"camera {self.name} has given no picture for {silence_s:.1f} s"
        if self._error is not None:
            raise MediaError(self._error)

    # The camera's own thread.

    def _run(self) -> None:
        try:
            capture = self._opened()
        except MediaError as error:
            self._fail(str(error))
            return
        except Exception as error:  # noqa: BLE001 (the consumer raises it, as ours)
            self._fail(f"camera {self.name} cannot be opened: {error}")
            return
        try:
            self._grab(capture)
        except Exception as error:  # noqa: BLE001 (the consumer raises it, as ours)
            self._fail(f"camera {self.name} failed: {error}")
        finally:
            capture.release()

    def _opened(self) -> Capture:
        capture = self._open_capture(self._device)
        if not capture.isOpened():
            capture.release()
            raise MediaError(
                f"camera {self.name} ({self._device}) does not open: another program may use it, "
                "or you may not (`sudo usermod -aG video $USER`, then log in again)"
            )
        _ask(capture, self._options)
        return capture

    def _grab(self, capture: Capture) -> None:
        import cv2

        driver = DriverClock(fps=capture.get(cv2.CAP_PROP_FPS))
        while not self._is_stopping:
            grabbed = capture.grab()
            host_ns = self._clock()
            if not grabbed:
                if self._node is not None and not self._node.exists():
                    self._fail(f"camera {self.name} was unplugged: {self._node} is gone")
                    return
                time.sleep(RETRY_GRAB_S)
                continue
            was_given_up = driver.is_given_up
            device_ns = driver.stamp(round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6), host_ns)
            if driver.is_given_up != was_given_up:
                self._trouble("camera_stamps", _of_stamps(driver))
            retrieved, image = capture.retrieve()
            bgr = _checked(image) if retrieved else None
            if bgr is None:
                self._trouble("corrupt_picture", "a picture of the camera could not be decoded")
                continue
            self._watch(bgr, host_ns, capture)
            self._give(Picture(bgr, device_ns, host_ns))

    def _give(self, picture: Picture) -> None:
        with self._changed:
            if len(self._pictures) == KEEP:
                self._count("camera_overrun", "pictures came faster than they were taken")
            self._pictures.append(picture)
            self._last_ns = picture.host_ns
            self._changed.notify_all()

    def _watch(self, bgr: NDArray[np.uint8], host_ns: int, capture: Capture) -> None:
        """See whether the size has changed, or the picture is black."""
        size_px = (bgr.shape[1], bgr.shape[0])
        if self.size_px == (0, 0):
            self.size_px, self._light_ns = size_px, host_ns
            self._report(capture)
        elif size_px != self.size_px:
            self._trouble("resolution_changed", f"from {self.size_px} to {size_px} pixels")
            self.size_px = size_px
        if bgr[::8, ::8].max() > BLACK_LEVEL:
            self._light_ns, self._is_dark_told = host_ns, False
        elif host_ns - self._light_ns > BLACK_AFTER_NS and not self._is_dark_told:
            self._is_dark_told = True
            self._trouble("black_picture", "the camera gives black pictures: is its lid closed?")

    def _report(self, capture: Capture) -> None:
        """Tell what was asked and what was got: `camera_format` where it is another."""
        options = self._options
        got, self.fps = _got(capture, self.size_px)
        size = f"{options.size_px[0]} x {options.size_px[1]}" if options.size_px else "its own size"
        rate = f"{options.fps:g} fps" if options.fps else "its own rate"
        told = f"camera {self.name}: asked for {size} at {rate}, got {got}"
        slower = options.fps and self.fps and self.fps < 0.95 * options.fps
        is_other = options.size_px not in (None, self.size_px) or slower
        self._trouble("camera_format" if is_other else "camera_open", told)

    def _trouble(self, kind: TroubleKind, detail: str) -> None:
        with self._changed:
            self._count(kind, detail)

    def _count(self, kind: TroubleKind, detail: str) -> None:
        """Count it, and tell of it once a second at most."""
        self._counts[kind] += 1
        now_ns = self._clock()
        if now_ns - self._told_ns.get(kind, now_ns - NS_PER_S) >= NS_PER_S:
            self._told_ns[kind] = now_ns
            self._troubles.append(Trouble(kind, detail, self._counts[kind]))

    def _fail(self, error: str) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()


def _of_stamps(driver: DriverClock) -> str:
    if not driver.is_given_up:
        return "the driver's times of pictures are plausible again, and are taken again"
    return (
        "the driver's times of pictures cannot be; each now counts for as old at its grab as was "
        f"usual, {driver.usual_ns / 1e6:.0f} ms"
    )


def _checked(image: object) -> NDArray[np.uint8] | None:
    """A picture as uint8 (H, W, 3), or None where it is none."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.size == 0:
        return None
    if image.ndim == 2:
        image = image[:, :, np.newaxis]
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        return None
    return cast("NDArray[np.uint8]", image if image.shape[2] == 3 else image.repeat(3, axis=2))


def _open_opencv(device: int | str) -> Capture:
    try:
        import cv2
    except ImportError as error:
        raise MediaError(
            f"OpenCV cannot be loaded: {error}; install libGL (Debian, Ubuntu: `apt install "
            "libgl1`), or `pip install opencv-python-headless`"
        ) from None
    backends = [cv2.CAP_V4L2] if sys.platform.startswith("linux") else []
    for backend in (*backends, cv2.CAP_ANY):
        capture = cv2.VideoCapture(device, backend)
        if capture.isOpened():
            return capture
        capture.release()
    return cv2.VideoCapture()


def _ask(capture: Capture, options: CameraOptions) -> None:
    """Ask for a size, a format and a rate; the driver takes what is nearest."""
    import cv2

    if options.size_px is not None:
        width, height = options.size_px
        if width * height > LARGE_PX:
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
    if options.fps is not None:
        capture.set(cv2.CAP_PROP_FPS, options.fps)


def _got(capture: Capture, size_px: tuple[int, int]) -> tuple[str, float | None]:
    """What a camera gives, in words, and the rate that its driver declares, if it does."""
    import cv2

    code = int(capture.get(cv2.CAP_PROP_FOURCC))
    letters = bytes((code >> shift) & 0xFF for shift in (0, 8, 16, 24)) if code > 0 else b""
    fourcc = letters.decode("ascii", "replace").strip("\0 ") or "unknown format"
    fps = capture.get(cv2.CAP_PROP_FPS)
    declared = fps if 0 < fps < 1000 else None
    rate = f"{declared:g} fps" if declared else "unknown rate"
    return f"{size_px[0]} x {size_px[1]} at {rate}, {fourcc}", declared

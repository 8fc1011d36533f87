"""The configured camera and microphone, opened: in a process of their own, and found again."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..streams.captureprocess import ProcessSource
from ..streams.devices import DeviceOptions
from ..streams.reconnecting import ReconnectingSource
from ..streams.sources import Source
from .config import SourceConfig

OPEN_S = 15.0
"""A camera may take its time to open: it has so long where ``open_timeout_s`` is less."""
START_S = 5.0
"""The process starts first, and says by itself that the camera was too late."""
GRACE_S = 2.0
"""The process says why it has no picture; only one that hangs is killed without a word."""


def open_device_stream(
    config: SourceConfig,
    *,
    image_size_px: tuple[int, int],
    sample_rate_hz: int,
    keep_full: bool = False,
    clock: Callable[[], int] = time.monotonic_ns,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Source:
    """Open ``config.camera`` and, where one is named, ``config.microphone``.

    A camera that is not there yet is no error, but a `Trouble` at once and another attempt: a
    daemon that starts with its machine waits for a camera that is plugged in later.

    Args:
        config: what is watched; ``config.camera`` is set.
        image_size_px: (width, height) that pictures are scaled to.
        sample_rate_hz: rate of the sound that comes out.
        keep_full: also keep the unscaled pictures.
        clock: host monotonic clock in nanoseconds.
        is_wanted: asked while the opening is awaited; where it says no, the opening is ended.

    Raises:
        MediaError: it cannot be opened, and ``config.reconnect_limit`` is 0.
        AbandonedError: it was not wanted any more.
    """
    open_timeout_s = max(config.open_timeout_s, OPEN_S)
    options = DeviceOptions(
        str(config.camera),
        None if config.microphone is None else str(config.microphone),
        camera_size_px=config.camera_size_px,
        camera_fps=config.camera_fps,
        camera_latency_ms=config.camera_latency_ms,
        stream=config.stream,
        image_size_px=image_size_px,
        keep_full=keep_full,
        sample_rate_hz=sample_rate_hz,
        origin_ns=clock(),
        open_timeout_s=open_timeout_s,
        stall_timeout_s=config.stall_timeout_s,
    )

    def start() -> ProcessSource:
        return ProcessSource(
            options.to_map(),
            label=config.label,
            stream=config.stream,
            open_timeout_s=open_timeout_s + START_S,
            stall_timeout_s=config.stall_timeout_s + GRACE_S,
            memory_mb=config.memory_mb,
            clock=clock,
        )

    return ReconnectingSource(
        start,
        label=config.label,
        stream=config.stream,
        longest_s=config.reconnect_max_s,
        limit=config.reconnect_limit,
        clock=clock,
        is_wanted=is_wanted,
    )

"""The configured address, read in a process of its own, and found again where it is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ..streams.addresses import check, redacted
from ..streams.captureprocess import ProcessSource
from ..streams.networkoptions import Mode, NetworkOptions
from ..streams.reconnecting import ReconnectingSource
from ..streams.sources import Source, UnsupportedError
from .config import SourceConfig


def open_network_stream(
    config: SourceConfig,
    *,
    image_size_px: tuple[int, int],
    sample_rate_hz: int,
    keep_full: bool = False,
    clock: Callable[[], int] = time.monotonic_ns,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Source:
    """Open the address ``config.uri``.

    A live source that is not there yet is no error: a daemon that starts with its machine waits
    for a camera that starts later. The reader hears so by a `Trouble` at once.

    Args:
        config: what is watched.
        image_size_px: (width, height) that pictures are scaled to.
        sample_rate_hz: rate of the sound that comes out.
        keep_full: also keep the unscaled pictures.
        clock: host monotonic clock in nanoseconds.
        is_wanted: asked while the opening is awaited; where it says no, the opening is ended.

    Raises:
        UnsupportedError: no attempt will ever open it.
        MediaError: it cannot be opened, and it is a file or is not to be tried again.
        AbandonedError: it was not wanted any more.
    """
    check(config.uri)
    options = NetworkOptions(
        config.uri,
        stream=config.stream,
        image_size_px=image_size_px,
        keep_full=keep_full,
        sample_rate_hz=sample_rate_hz,
        mode=config.kind,
        transport=config.transport,
        open_timeout_s=config.open_timeout_s,
        stall_timeout_s=config.stall_timeout_s,
        tls_verify=config.tls_verify,
        origin_ns=clock(),
    )
    label = redacted(config.uri)

    def start(mode: Mode) -> ProcessSource:
        return ProcessSource(
            replace(options, mode=mode).to_map(),
            label=label,
            stream=config.stream,
            open_timeout_s=config.open_timeout_s,
            stall_timeout_s=config.stall_timeout_s,
            memory_mb=config.memory_mb,
            clock=clock,
        )

    if config.kind == "file":
        return start("file").opened(is_wanted)
    if config.repeat:
        return _with_an_end(start("auto").opened(is_wanted), label)
    return ReconnectingSource(
        partial(start, config.kind),
        start_live=partial(start, "live"),
        label=label,
        stream=config.stream,
        longest_s=config.reconnect_max_s,
        limit=config.reconnect_limit,
        clock=clock,
        is_wanted=is_wanted,
    )


def _with_an_end(source: ProcessSource, label: str) -> ProcessSource:
    """The source, which is to be repeated, if it is one that ends."""
    if source.kind == "live":
        source.close()
        raise UnsupportedError(
            f"{label} is live and has no end to begin again at; set source.repeat to false, or "
            "source.kind to file where it is a recording"
        )
    return source

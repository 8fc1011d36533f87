"""Measure by claps how much later the sound is than the picture, and keep it: `sync.lag_ms`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from ..daemon.configline import write_value
from ..streams.claps import ClapMeter, Measured
from ..streams.clips import NS_PER_S
from ..streams.sources import OPENINGS, Source, Trouble

IMAGE_PX = (320, 240)
"""Pictures are looked at in this size: fine enough for hands, and quick."""
SAMPLE_RATE_HZ = 32000
_PROGRESS_NS = NS_PER_S
_BY = {"flash": "flashes", "hands": "hands that meet"}


class CalibrationError(Exception):
    """The offset cannot be told from what was seen and heard: why, and what to do."""


def calibrate(
    source: Source,
    *,
    seconds: float = 30.0,
    write: Path | None = None,
    console: Console | None = None,
    clock: Callable[[], int] = time.monotonic_ns,
) -> Measured:
    """Watch and listen to claps, and say by how much the sound is later than the picture.

    Args:
        source: opened; it is closed here.
        seconds: how long a live source is watched from its first event on; a file is read whole.
        write: a configuration whose ``sync.lag_ms`` is set to what was measured.
        console: where progress goes.
        clock: host monotonic clock in nanoseconds.

    Returns:
        What was measured, which is good.

    Raises:
        CalibrationError: the source has no sound, or the claps do not say.
        MediaError: the source failed.
        ConfigError: the configuration to write is no good one.
    """
    console = console or Console(soft_wrap=True)
    with source:
        if not source.has_audio:
            raise CalibrationError(
                "this source has no sound: there is nothing to compare the picture with; give a "
                "microphone (`--mic default`) or a stream with sound"
            )
        found = _watched(source, seconds, console, clock)
    if found.problem:
        raise CalibrationError(f"the offset was not measured: {found.problem}")
    _say(found, source.kind == "live", console)
    if write is not None:
        write_value(write, "sync", "lag_ms", round(found.offset_ms, 1))
        console.print(f"sync.lag_ms: {found.offset_ms:.1f} is written to {write}")
    else:
        console.print(
            f"use it with --set sync.lag_ms={found.offset_ms:.1f}, or keep it with --write FILE"
        )
    return found


def _watched(
    source: Source, seconds: float, console: Console, clock: Callable[[], int]
) -> Measured:
    meter = ClapMeter(is_live=source.kind == "live")
    begin_ns = clock()
    told_ns, heard = begin_ns, 0
    console.print(
        "clap in front of the camera about once a second, or flash `atlasd calibrate --make "
        "clap.html` at it"
        if source.kind == "live"
        else "reading"
    )
    for event in source:
        heard += meter.push(event)
        if isinstance(event, Trouble):
            style = None if event.kind in OPENINGS else "yellow"
            console.print(f"{event.kind}: {event.detail}", style=style, markup=False)
        now_ns = clock()
        if source.kind != "live":
            continue
        if heard and now_ns - told_ns >= _PROGRESS_NS:
            _say_progress(meter.measured(), (now_ns - begin_ns) / NS_PER_S, seconds, console)
            told_ns, heard = now_ns, 0
        if now_ns - begin_ns >= seconds * NS_PER_S:
            break
    return meter.measured()


def _say_progress(found: Measured, passed_s: float, seconds: float, console: Console) -> None:
    told = f"{passed_s:3.0f} of {seconds:.0f} s: {found.heard} sounds, {found.seen} sights"
    if found.claps:
        told += (
            f", {found.claps} of them claps; sound {found.offset_ms:+.0f} ms,"
            f" ±{found.spread_ms:.0f}"
        )
    console.print(told, markup=False)


def _say(found: Measured, is_live: bool, console: Console) -> None:
    when = "later" if found.offset_ms >= 0 else "earlier"
    console.print(
        f"the sound is {abs(found.offset_ms):.1f} ms {when} than the picture: {found.claps} claps "
        f"of {found.heard} sounds and {found.seen} {_BY[found.sight]}, ±{found.spread_ms:.1f} ms "
        "each"
    )
    if is_live and found.sight == "flash":
        console.print(
            "where a screen flashed and a speaker clicked, their own delays are in this: 10 to "
            "30 ms of a screen against some 5 to 300 ms of a speaker; compare with hand claps"
        )

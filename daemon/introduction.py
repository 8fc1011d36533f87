"""What a daemon says of its stream before the first mask: to the bus, and to the log."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ..streams.sources import Source
from .config import Config
from .engine import Engine
from .infos import LadderInfo
from .messages import Hello, ModelInfo

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a source gives; it may change with each opening.

    Attributes:
        size_px: width and height of its pictures; zeros: it is not reached yet.
        fps: pictures a second; None: nobody knows.
        has_audio: whether it has sound.
    """

    size_px: tuple[int, int]
    fps: float | None
    has_audio: bool


def hello_of(config: Config, engine: Engine, source: Source, shape: Shape) -> Hello:
    """The greeting of a stream.

    Args:
        config: all that the daemon is told.
        engine: what makes the masks.
        source: where its pictures come from.
        shape: what it gives.
    """
    publish = config.publish
    return Hello(
        stream=config.source.stream,
        source=source.kind,
        frame_size=shape.size_px if all(shape.size_px) else None,
        fps=shape.fps,
        has_audio=shape.has_audio,
        mask_shape=(engine.image_px, engine.image_px),
        enc=publish.encoding,
        threshold=publish.threshold,
        classes=engine.categories,
        window_s=engine.window_s,
        sample_rate_hz=engine.sample_rate_hz,
        model=ModelInfo(preset=engine.preset, version=engine.version),
    )


def say_started(config: Config, engine: Engine, shape: Shape, endpoint: str, policy: str) -> None:
    """Log what comes in, what is made of it, and where it is to be had."""
    width, height = shape.size_px
    sound = "with sound" if shape.has_audio else "without sound"
    fps = f"{shape.fps:.2f}" if shape.fps else "unknown"
    _log.info(
        "%s: %s; %s %s; masks at %s, policy %s",
        config.source.label,
        f"{width} x {height}, {fps} fps, {sound}" if width else "not reached yet",
        engine.preset,
        engine.version,
        endpoint,
        policy,
    )
    if engine.ladder is not None:
        _say_ladder(engine.ladder.info())


def _say_ladder(ladder: LadderInfo) -> None:
    rungs = ", ".join(f"{rung.px} px {rung.p95_ms:.1f} ms" for rung in ladder.rungs)
    _log.info("deadline %g ms, p95 by rung: %s", ladder.deadline_ms, rungs)
    if ladder.rungs[-1].p95_ms > ladder.deadline_ms:
        _log.warning(
            "no rung keeps the deadline: the smallest is used; raise model.deadline_ms or add"
            " a smaller rung to model.ladder"
        )

"""A pipeline's result as the message that travels."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from . import masks
from .messages import AudioInfo, FrameInfo, Mask, MaskData, ModelInfo
from .pipeline import Result


def mask_message(result: Result, encoding: masks.Encoding, threshold: float) -> Mask:
    """The mask of a result, with all that is known of it.

    Args:
        result: what the pipeline gave.
        encoding: how the mask travels.
        threshold: probability above which a pixel is foreground.

    Returns:
        The message; its ``lat_ms`` holds the result's stages and ``pack``, the time spent here.
    """
    began = time.perf_counter()
    frame, window, prediction = result.sample.frame, result.sample.window, result.prediction
    width, height = frame.source_size_px
    data = encode_mask(result, encoding, threshold)
    classes, scores = ranked_classes(prediction.categories, prediction.class_scores)
    audio = AudioInfo(
        state=window.state,
        t0_ns=window.start_ns,
        t1_ns=window.end_ns,
        gap_ms=window.gap_ms,
        rms=window.rms,
    )
    return Mask(
        stream=frame.stream,
        epoch=frame.epoch,
        seq=result.seq,
        pts_ns=frame.pts_ns,
        capture_ns=frame.capture_ns,
        frame=FrameInfo(w=width, h=height, index=frame.index),
        mask=data,
        classes=classes,
        scores=scores,
        audio=audio,
        rung=prediction.rung,
        deadline_ms=prediction.deadline_ms,
        model=ModelInfo(preset=prediction.preset, version=prediction.version),
        lat_ms={**result.latency_ms, "pack": (time.perf_counter() - began) * 1e3},
        drops=result.drops,
    )


def encode_mask(result: Result, encoding: masks.Encoding, threshold: float) -> MaskData:
    """A result's mask as it travels, at model resolution."""
    logits = result.prediction.logits
    picture = probability(logits) if encoding == "prob8" else result.mask(threshold)
    height, width = logits.shape
    return MaskData(
        enc=encoding,
        shape=(height, width),
        threshold=threshold,
        data=masks.encode(picture, encoding, threshold=threshold),
    )


def probability(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sigmoid, float32 in [0, 1], without overflow."""
    return (0.5 * (1.0 + np.tanh(0.5 * logits))).astype(np.float32)


def ranked_classes(
    categories: tuple[str, ...], scores: NDArray[np.float32] | None, most: int = 5
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Names and probabilities of the most probable classes, best first; empty without scores."""
    if scores is None:
        return (), ()
    order = np.argsort(-scores, kind="stable")[:most]
    return tuple(categories[i] for i in order), tuple(
        min(1.0, max(0.0, float(scores[i]))) for i in order
    )

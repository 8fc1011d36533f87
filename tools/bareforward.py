"""The bare network on one prepared sample: what everything around it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ..daemon.engine import TorchEngine
from ..daemon.pipeline import Pipeline, Result
from ..model.network import Network
from ..model.presets import WeightsError, build
from ..streams.clips import Sample
from ..streams.files import open_source
from ..streams.sources import Source


class BenchError(Exception):
    """A measurement that cannot be trusted or made."""


def network_for_speed(preset: str) -> Network:
    """The shipped network, or a random one: speed does not depend on the weights."""
    try:
        return build(preset)
    except WeightsError:
        return build(preset, trained=False, pretrained=False)


def open_for(clip: Path, engine: TorchEngine) -> Source:
    """A clip at the size and rate of an engine."""
    size_px = (engine.image_px, engine.image_px)
    return open_source(clip, image_size_px=size_px, sample_rate_hz=engine.sample_rate_hz)


def last_sample(clip: Path, engine: TorchEngine) -> Sample:
    """A clip's last frame with its sound.

    Raises:
        BenchError: it has none.
    """
    with Pipeline(open_for(clip, engine), engine) as pipeline:
        samples = [item.sample for item in pipeline if isinstance(item, Result)]
    if not samples:
        raise BenchError("the clip gave no frame")
    return samples[-1]


def bare_pass(engine: TorchEngine, sample: Sample, frames: int) -> Callable[[], None]:
    """What runs the network alone on one prepared input, so many times in a row."""
    network = engine.network
    with torch.inference_mode():
        image = torch.from_numpy(sample.frame.image)[None].to(engine.device)
        sound = torch.from_numpy(sample.window.samples)[None].to(engine.device)
        picture, log_mel = network.normalise(image), network.log_mel(sound)

    @torch.inference_mode()
    def run() -> None:
        for _ in range(frames):
            with engine.autocast():
                out = network(picture, log_mel)
            out.mask_logits.float().cpu()

    return run

"""A served network for tests: the smallest preset, as a checkpoint that claims to be trained."""

from __future__ import annotations

from pathlib import Path

import torch
from atlasd.daemon.config import Config, load_config
from atlasd.daemon.engine import TorchEngine
from atlasd.model import checkpoints
from atlasd.model.atlas import Atlas
from atlasd.model.presets import build


def tiny_network() -> Atlas:
    """Random weights, spread so that masks are neither empty nor full and change by frame."""
    network = build("tiny")
    with torch.no_grad():
        for name, parameter in network.decoder.named_parameters():
            if name.endswith("weight") and parameter.ndim == 4:
                parameter.mul_(3.0)
    network.trained = True
    return network


def tiny_engine(batch: int = 1) -> TorchEngine:
    """The tiny network on one thread of the CPU, warm."""
    engine = TorchEngine(tiny_network(), "cpu", 1, batch=batch)
    engine.warm()
    return engine


def tiny_checkpoint(folder: Path) -> Path:
    """The tiny network as a checkpoint in one file."""
    path = folder / "tiny.safetensors"
    checkpoints.save(tiny_network(), path)
    return path


def tiny_config(checkpoint: Path, uri: Path, endpoint: str, *overrides: str) -> Config:
    """A configuration that serves the tiny network at full speed without waiting for anybody."""
    return load_config(
        overrides=[
            f"source.uri={uri}",
            "source.pace=free",
            "model.preset=tiny",
            f"model.weights={checkpoint}",
            "model.threads=1",
            "model.device=cpu",
            f"publish.endpoint={endpoint}",
            "publish.wait_for_subscriber_s=0",
            *overrides,
        ]
    )

"""The network that a run starts from, and how large its saved states become."""

from __future__ import annotations

import torch

from ..model.method import Trainable
from ..model.network import Network
from ..model.presets import build
from .runspec import RunSpec

_TENSORS = 6
"""Of a saved state for each trained parameter, at most: it, Adam's two, three of the method."""


def make_network(spec: RunSpec, trainable: Trainable) -> Network:
    """The network that a run starts from: nothing in it was trained on the data's categories.

    Args:
        spec: names it.
        trainable: what the method trains of the backbone, unless the run says otherwise.
    """
    return _built(spec, trainable, pretrained=not spec.random).to(spec.device)


def make_features_network(spec: RunSpec) -> Network:
    """The network whose features order or cluster the clips, where that is not the run's own."""
    network = build(
        spec.features_of,
        trained=False,
        pretrained=not spec.random,
        seed=spec.seed,
        categories=(),
    )
    return network.to(spec.device)


def laid_out(spec: RunSpec, trainable: Trainable) -> Network:
    """The network of `make_network` without its numbers (on torch's device ``meta``)."""
    with torch.device("meta"):
        return _built(spec, trainable, pretrained=False)


def state_bytes(network: Network) -> int:
    """About what a saved state of a run takes.

    Args:
        network: that the run starts from; it may be without its numbers.
    """
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    return _TENSORS * trained + sum(b.nbytes for b in network.buffers())


def _built(spec: RunSpec, trainable: Trainable, *, pretrained: bool) -> Network:
    chosen = spec.trainable or trainable
    network = build(
        spec.network,
        trained=False,
        pretrained=pretrained,
        seed=spec.seed,
        vary=dict(spec.vary) if chosen == "lora" else {**spec.vary, "lora_rank": 0},
        categories=(),
    )
    if chosen == "all":
        network.unfreeze_backbone()
    return network

"""The network that a run starts from, and how large its saved states become."""

from __future__ import annotations

from pathlib import Path

import torch

from ..model.adapting import Parts, adapted, hold_base
from ..model.baseimportance import BaseImportance
from ..model.baseimportance import read as read_importance
from ..model.lora import lora_maps
from ..model.method import Method, Trainable
from ..model.network import Network
from ..model.presets import WeightsError, build, shipped
from .runspec import RunSpec

_TENSORS = 6
"""Of a saved state for each trained parameter, at most: it, Adam's two, three of the method."""


def deployed(spec: RunSpec) -> tuple[Network, BaseImportance | None]:
    """The trained network of a run's `start`, as a daemon deploys it, and what is held of it.

    Raises:
        WeightsError: there is none, it is broken, of another preset, never trained or without LoRA,
            or the importances that are to be held are not there or not its own.
    """
    path = shipped(spec.network) if spec.start == "ship" else Path(spec.start)
    network = build(spec.network, weights=path)
    network.require_trained()
    if not lora_maps(network.visual):
        raise WeightsError(
            f"{path} has no LoRA (its rank is {network.preset.lora_rank}), and parts {spec.parts} "
            "trains it: start from weights with LoRA"
        )
    return network, read_importance(path, network) if spec.base == "ship" else None


def deploy(spec: RunSpec, method: Method, base: Network, held: BaseImportance | None) -> Network:
    """The network that learns on from `deployed`'s, as the live learner's does.

    Args:
        spec: has a `start`.
        method: holds the base from now on, where the run says so; not yet prepared.
        base: shares its frozen parts.
        held: of the base.
    """
    if held is not None:
        hold_base(method, held)
    parts: Parts = "all" if spec.parts == "all" else "adapters"
    return adapted(base, parts).to(spec.device)


def make_network(spec: RunSpec, trainable: Trainable) -> Network:
    """The network of a run without a `start`: nothing in it was trained on the data's categories.

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


def state_bytes(spec: RunSpec, trainable: Trainable) -> int:
    """About what a saved state of the run takes; the network is laid out without its numbers.

    A `start` is taken for its preset with all parts moving.

    Args:
        spec: names it.
        trainable: as of `make_network`.
    """
    with torch.device("meta"):
        network = _built(spec, trainable, pretrained=False)
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    return _TENSORS * trained + sum(b.nbytes for b in network.buffers())


def _built(spec: RunSpec, trainable: Trainable, *, pretrained: bool) -> Network:
    chosen = "lora" if spec.start else spec.trainable or trainable
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

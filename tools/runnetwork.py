"""The network that a run starts from, what it learns by, and how large its saved states become."""

from __future__ import annotations

from pathlib import Path

import torch

from ..model.adapting import Parts, adapted, hold_base
from ..model.avsbench import AvsBench
from ..model.avsbenchloss import MATCH_WEIGHT, avsbench_loss
from ..model.baseimportance import BaseImportance
from ..model.baseimportance import read as read_importance
from ..model.lora import lora_maps
from ..model.method import Method, Trainable
from ..model.network import Network
from ..model.presets import WeightsError, build, shipped
from ..model.taskloss import task_loss
from ..model.training import LossFunction
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


def loss_of(spec: RunSpec, network: Network) -> LossFunction:
    """What the run's network learns by; of the authors' of AVSBench one of two, by the subset."""
    if spec.loss == "atlas":
        return task_loss(network, spec.class_weight)
    assert isinstance(network, AvsBench)  # noqa: S101  `method_faults` refuses others
    weight = MATCH_WEIGHT if spec.subset == "ms3" else 0.0
    return avsbench_loss(network, spec.class_weight, weight)


def laid_out(spec: RunSpec, trainable: Trainable) -> Network:
    """The network of `make_network` without its numbers (on torch's device ``meta``)."""
    with torch.device("meta"):
        return _built(spec, trainable, pretrained=False)


def state_bytes(network: Network) -> int:
    """About what a saved state of a run takes.

    A `start` is taken for its preset with all parts moving.

    Args:
        network: that the run starts from; it may be without its numbers.
    """
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

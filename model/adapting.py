"""How a deployed network learns on: what of it moves, what holds it, how room comes for classes.

The live learner and the evaluator's runs with a `start` both take it from here, so that the same
clips give the same weights.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator
from typing import Literal

from .baseimportance import BaseImportance
from .basepull import BaseHeld
from .composition import Composed
from .method import Method
from .network import Network
from .training import Trainer

Parts = Literal["adapters", "all"]
"""What moves: LoRA, conditioning, fusion and head over a frozen base, or also what else the network
trains, the decoder above all."""

_ADAPTERS = ("conditioning.", "fusion.", "head.")


def adapted(base: Network, parts: Parts) -> Network:
    """A copy that learns, in `eval()`.

    Args:
        base: the deployed network. It stays as it is; its frozen parts are shared, and stop asking
            for gradients.
        parts: what moves.
    """
    moving = {
        name
        for name, parameter in base.named_parameters()
        if parameter.requires_grad
        and (parts == "all" or ".lora_" in name or name.startswith(_ADAPTERS))
    }
    shared = {id(p): p for name, p in base.named_parameters() if name not in moving}
    shared |= {id(buffer): buffer for buffer in base.buffers()}
    network = copy.deepcopy(base, dict(shared))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in moving)
    return network.eval()


def holds_base(method: Method) -> bool:
    """Whether a method, or one of several that learn together, can hold a base."""
    return any(True for _ in _holders(method))


def hold_base(method: Method, importance: BaseImportance) -> None:
    """Let a method hold a base where it can, from the `prepare` that follows on.

    Args:
        method: one, or several that learn together.
        importance: of the base's weights; see `BaseHeld.hold_base`.
    """
    for part in _holders(method):
        part.hold_base(importance)


def _holders(method: Method) -> Iterator[BaseHeld]:
    parts = method.parts.values() if isinstance(method, Composed) else (method,)
    return (part for part in parts if isinstance(part, BaseHeld))


def make_room(network: Network, trainer: Trainer, come: Iterable[str | None]) -> None:
    """Give classes that nobody knew a row of the head each, in the order in which they come.

    Where one is new all rows are drawn anew from torch's global generator, and the known ones are
    then put back; of the optimizer the head's moments begin anew.

    Args:
        network: the trainer's.
        trainer: between two steps.
        come: the classes of clips that are learned next; None: a clip without a class.
    """
    known = network.preset.categories
    fresh = [name for name in dict.fromkeys(come) if name is not None and name not in known]
    if fresh:
        network.grow([*known, *fresh])
        trainer.method.begin(None)
        trainer.adopt()


def batch_seed(seed: int, after: int) -> int:
    """What torch is seeded with before clips are learned together, below 2^48.

    Args:
        seed: the learner's.
        after: so many batches of clips were learned before.
    """
    digest = hashlib.sha256(f"{seed} {after}".encode()).digest()
    return int.from_bytes(digest[:6], "little")

"""Several methods as one: each hook calls the parts' hooks in the order in which they are listed.

Batches are transformed, and what the network says is changed, by one part after the other; losses
add up. Gradients are where parts could disturb each other, so each part gets the ones it was made
for, whatever the order:

- A quadratic penalty (`Anchored`) is laid on the gradient of the task's loss alone. Path integrals
  (SI, LRA) measure that gradient; what other parts add to the loss is then differentiated apart.
- Every other part rewrites the gradient of task and additions, free of penalties.
- The penalties come on top.

What makes no sense together is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from . import foreach
from .anchoring import Anchored
from .freezing import FrozenAfterFirst
from .method import Batch, Method, MethodError, Segment, Trainable
from .network import Network, Output
from .pathintegral import PathIntegral


@dataclass(eq=False)
class Composed(Method):
    """Methods that learn together.

    State: each part's, under its name.

    Attributes:
        parts: by name, in order.
    """

    parts: Mapping[str, Method]

    def __post_init__(self) -> None:
        methods = list(self.parts.values())
        _check_freezing(self.parts)
        # What one part needs the whole needs; only what all promise the whole promises.
        any_of = ("needs_boundaries", "needs_classes", "uses_task_id", "mixes_clips")
        vars(self).update({fact: any(getattr(m, fact) for m in methods) for fact in any_of})
        vars(self).update(
            exemplar_free=all(m.exemplar_free for m in methods), trainable=_trainable(self.parts)
        )
        self._measures = any(isinstance(m, PathIntegral) for m in methods)
        self._editors = [m for m in methods if type(m).edit_grads is not Method.edit_grads]
        self._apart: dict[nn.Parameter, Tensor] = {}

    def weigh_classes(self, weight: float) -> None:
        """Tells each part."""
        super().weigh_classes(weight)
        for part in self.parts.values():
            part.weigh_classes(weight)

    def prepare(self, network: Network) -> None:
        """Prepares each part."""
        super().prepare(network)
        for part in self.parts.values():
            part.prepare(network)

    def begin(self, segment: Segment | None) -> None:
        """Tells each part."""
        for part in self.parts.values():
            part.begin(segment)

    def transform(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """What the last part makes of what the parts before it made."""
        for part in self.parts.values():
            batch = part.transform(batch, rng)
        return batch

    def extra_loss(self, batch: Batch, out: Output) -> dict[str, Tensor]:
        """All that the parts add, as ``PART.NAME``."""
        terms = {
            f"{name}.{term}": value
            for name, part in self.parts.items()
            for term, value in part.extra_loss(batch, out).items()
        }
        self._apart = {}
        added = [value for value in terms.values() if value.requires_grad]
        if not self._measures or not added:
            return terms
        parameters = self.network.trainable_parameters()
        grads = cast(
            "tuple[Tensor | None, ...]",
            torch.autograd.grad(added, parameters, retain_graph=True, allow_unused=True),
        )
        self._apart = {p: g for p, g in zip(parameters, grads, strict=True) if g is not None}
        return {name: value.detach() for name, value in terms.items()}

    @torch.no_grad()
    def edit_grads(self) -> None:
        """Each part edits the gradient that it was made for; see above."""
        if len(self._editors) < 2 and not self._apart:
            for part in self._editors:
                part.edit_grads()
            return
        reached = {p: p.grad for p in self.network.trainable_parameters() if p.grad is not None}
        for parameter in self._apart:
            reached.setdefault(parameter, torch.zeros_like(parameter))
        parameters, task = list(reached), list(reached.values())
        pulls = [
            _pull_of(part, parameters, task) for part in self._editors if isinstance(part, Anchored)
        ]
        whole = [g + self._apart[p] if p in self._apart else g for p, g in reached.items()]
        _set_grads(parameters, whole)
        for part in self._editors:
            if not isinstance(part, Anchored):
                part.edit_grads()
        for pull in pulls:
            foreach.add(_grads(parameters), pull)

    def after_step(self) -> None:
        """Tells each part."""
        for part in self.parts.values():
            part.after_step()

    @property
    def consolidates(self) -> bool:
        """Whether any part does."""
        return any(part.consolidates for part in self.parts.values())

    def consolidate(self, data: Iterable[Batch]) -> None:
        """Each part keeps what was learned; each reads the data from the beginning."""
        for part in self.parts.values():
            part.consolidate(data)

    def predict(self, batch: Batch, out: Output, segment: Segment | None) -> Output:
        """What the last part makes of what the parts before it made."""
        for part in self.parts.values():
            out = part.predict(batch, out, segment)
        return out

    def state_dict(self) -> dict[str, Tensor]:
        """The parts', as ``PART.NAME``."""
        return {
            f"{name}.{key}": value
            for name, part in self.parts.items()
            for key, value in part.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Gives each part its own."""
        for name, part in self.parts.items():
            prefix = f"{name}."
            part.load_state_dict(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )


def _pull_of(
    part: Anchored, parameters: Sequence[nn.Parameter], task: Sequence[Tensor]
) -> list[Tensor]:
    """What a penalty adds to the task's gradient; the part meets that one alone."""
    _set_grads(parameters, [grad.clone() for grad in task])
    part.edit_grads()
    return foreach.difference(_grads(parameters), task)


def _set_grads(parameters: Sequence[nn.Parameter], grads: Sequence[Tensor]) -> None:
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad


def _grads(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _trainable(parts: Mapping[str, Method]) -> Trainable:
    """What the parts train that narrow it; those that would train all follow."""
    narrow: dict[str, Trainable] = {
        name: part.trainable for name, part in parts.items() if part.trainable != "all"
    }
    if len(set(narrow.values())) > 1:
        told = ", ".join(f"{name} {what!r}" for name, what in narrow.items())
        raise MethodError(
            f"{'+'.join(parts)}: what trains besides decoder and fusion is {told}; parts must "
            "agree, or be of those that train 'all' and follow"
        )
    return next(iter(narrow.values())) if narrow else "all"


def _check_freezing(parts: Mapping[str, Method]) -> None:
    """Refuse to protect what stands still."""
    frozen = [name for name, part in parts.items() if isinstance(part, FrozenAfterFirst)]
    keepers = [name for name, part in parts.items() if part.consolidates]
    if frozen and len(keepers) > 1:
        others = ", ".join(name for name in keepers if name != frozen[0])
        raise MethodError(
            f"{'+'.join(parts)}: {frozen[0]} lets nothing train after the first segment, so "
            f"{others} would keep what no step can change; it goes with methods that keep nothing "
            "at a segment's end, as panda and l2p"
        )

"""What a continual-learning method is: a few hooks in the one training loop.

A method owns no loop, no optimizer and no data. `training.Trainer` calls the hooks in the order in
which they stand here; whoever drives the stream calls `begin`, `consolidate` and `predict`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .losses import CLASS_WEIGHT, NO_LABEL
from .network import Network, Output

Batch = dict[str, Tensor]
"""What a feed gives and a loss reads, by name."""

Trainable = Literal["all", "lora", "decoder"]
"""What a method trains besides conditioning, fusion, decoder and head: the whole visual backbone,
LoRA on it, or nothing of it. Composed with a method that names less, one with "all" follows it."""


class MethodError(ValueError):
    """A method that cannot be had or used as it was asked: what came, what is allowed."""


class PastDataError(RuntimeError):
    """Data of a segment that is over was asked for."""


class Segment(Protocol):
    """What a method may know of the part of the stream that is learned now."""

    @property
    def index(self) -> int:
        """From 0."""
        ...

    @property
    def classes(self) -> Sequence[int]:
        """Rows of the class head that belong to the segment; none where nobody knows."""
        ...

    @property
    def known(self) -> int:
        """Rows of the class head that were there before."""
        ...


class SegmentData:
    """The data of the segment that is learned now; it can be read until `close`.

    Iterated, it gives batches, each time the same from the beginning.
    """

    def __init__(self, batches: Iterable[Batch], device: torch.device | str = "cpu") -> None:
        self._batches: Iterable[Batch] | None = batches
        self._device = device

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._open():
            self._open()
            yield {name: value.to(self._device) for name, value in batch.items()}

    def _open(self) -> Iterable[Batch]:
        if self._batches is None:
            raise PastDataError(
                "data of an earlier segment was asked for; a method without exemplars learns from "
                "the current segment alone"
            )
        return self._batches

    def close(self) -> None:
        """The segment is over."""
        self._batches = None


@dataclass(eq=False)
class Method:
    """The hooks, all of which do nothing here: this is Finetune.

    Attributes:
        state: everything that must survive a restart, by name; nothing else may.
        class_weight: λ_cls of the loss that the network learns by (Eq. 10); whoever drives the
            stream sets it where it is another (`weigh_classes`).
    """

    trainable: ClassVar[Trainable] = "all"
    exemplar_free: ClassVar[bool] = True
    needs_boundaries: ClassVar[bool] = False
    """Whether it works only where segments are told."""
    needs_classes: ClassVar[bool] = False
    """Whether it works only where clips have class labels."""
    uses_task_id: ClassVar[bool] = False
    """Whether masks depend on the segment that `predict` is told."""
    mixes_clips: ClassVar[bool] = False
    """Whether `transform` makes new sounds, so that encoded ones cannot be kept."""
    counts_on_host: ClassVar[bool] = False
    """Whether its state stays on the CPU, wherever the network is."""
    strength: ClassVar[str] = ""
    """The option that at 0 leaves Finetune; none where there is no such option."""

    state: dict[str, Tensor] = field(init=False, repr=False, default_factory=dict[str, Tensor])
    class_weight: float = field(init=False, repr=False, default=CLASS_WEIGHT)

    def weigh_classes(self, weight: float) -> None:
        """Tell λ_cls, before anything is learned."""
        self.class_weight = weight

    def prepare(self, network: Network) -> None:
        """Change or freeze parts of a network before anything is learned, and remember it."""
        self.network = network

    def begin(self, segment: Segment | None) -> None:
        """A segment begins, after the class head grew; None: nobody tells where it does."""

    def transform(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Make another batch of a batch."""
        return batch

    def extra_loss(self, batch: Batch, out: Output) -> dict[str, Tensor]:
        """Weighted scalars, by name, to be added to the task's loss."""
        return {}

    def edit_grads(self) -> None:
        """Change the gradients after the backward pass, before they are clipped."""

    def after_step(self) -> None:
        """The optimizer made its step."""

    @property
    def consolidates(self) -> bool:
        """Whether `consolidate` keeps anything."""
        return type(self).consolidate is not Method.consolidate

    def consolidate(self, data: Iterable[Batch]) -> None:
        """Keep what was learned.

        Args:
            data: batches of the current segment, on the network's device; without boundaries the
                latest batch alone.
        """

    def predict(self, batch: Batch, out: Output, segment: Segment | None) -> Output:
        """Change what the network says of a batch.

        Args:
            batch: what it was shown.
            out: what it says.
            segment: the segment that the batch is known to belong to (TIL): classes of others
                cannot be meant. None: nobody knows (CIL).
        """
        return within(out, segment)

    def state_dict(self) -> dict[str, Tensor]:
        """All state, by name."""
        return dict(self.state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state_dict` was called, after `prepare` of the same network.

        What was read from a file is put where the network is, but for counters without dimensions.
        """
        self.state = {name: self._placed(value) for name, value in state.items()}

    def _placed(self, value: Tensor) -> Tensor:
        if self.counts_on_host or not value.ndim:
            return value.clone()
        return value.to(next(self.network.parameters()).device, copy=True)


def within(out: Output, segment: Segment | None) -> Output:
    """What the network says where only the classes of a segment can be meant.

    Classes that the head has no row for yet are left out; if it has none of them, all can be meant.
    """
    if segment is None or out.class_logits is None:
        return out
    rows = [row for row in segment.classes if row < out.class_logits.shape[1]]
    if not rows:
        return out
    kept = torch.full_like(out.class_logits, -torch.inf)
    kept[:, rows] = out.class_logits[:, rows]
    return out._replace(class_logits=kept)


def parts_of(network: Network, scope: Literal["lora+decoder", "all"]) -> dict[str, nn.Parameter]:
    """Parameters that train, by name: all, or LoRA and the decoder alone (Eq. 9)."""
    return {
        name: parameter
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
        and (scope == "all" or ".lora_" in name or name.startswith("decoder."))
    }


def labels_of(batch: Batch) -> Tensor:
    """int64 (B,): the class of each frame, `NO_LABEL` where none is known."""
    found = batch.get("labels")
    return found if found is not None else torch.full((len(batch["images"]),), NO_LABEL)

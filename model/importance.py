"""Importances that are measured in one pass over a segment's data, example by example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from .method import Batch
from .network import Network


def mean_gradients(
    network: Network,
    named: Mapping[str, Tensor],
    data: Iterable[Batch],
    scalar: Callable[[Batch], Tensor],
    most: int,
    measure: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """The mean over examples of something of the gradient of a scalar.

    Args:
        network: put into `eval()` meanwhile.
        named: by what to differentiate.
        data: batches; each example of them is asked by itself: a frame, or a whole clip where the
            network sees its frames together (`clip_frames`).
        scalar: of a batch with one example.
        most: examples to ask at most.
        measure: of a gradient: `torch.square` (Fisher), `torch.abs` (MAS).

    Returns:
        By name; zeros where no gradient came.
    """
    sums = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    count = 0
    was_training = network.training
    network.eval()
    for one in _examples(data, most, network.clip_frames):
        grads = torch.autograd.grad(
            scalar(one), list(named.values()), allow_unused=True, materialize_grads=True
        )
        for name, grad in zip(named, grads, strict=True):
            sums[name] += measure(grad)
        count += 1
    network.train(was_training)
    return {name: total / max(1, count) for name, total in sums.items()}


def _examples(data: Iterable[Batch], most: int, frames: int) -> Iterator[Batch]:
    """So many frames at a time, of which one at least has a mask."""
    left = most
    for batch in data:
        for row in range(0, len(batch["images"]), frames):
            if left == 0:
                return
            if bool(batch["valid"][row : row + frames].any()):
                left -= 1
                yield {name: value[row : row + frames] for name, value in batch.items()}


def normalised(importance: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All divided by the largest value of all; zeros stay zeros."""
    largest = max(float(value.max()) for value in importance.values())
    scale = 1 / largest if largest > 0 else 0.0
    return {name: value * scale for name, value in importance.items()}

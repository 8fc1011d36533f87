"""Arithmetic on lists of tensors in a few calls, which torch has but gives no public types.

``torch._foreach_*`` is what torch's own optimizers use: one kernel for many tensors on CUDA, one
call instead of many on CPU. Lists must be of equal length and of equal shapes, pair by pair.
"""
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false, reportCallIssue=false
# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    """`a − b` in new tensors."""
    return list(torch._foreach_sub(list(a), list(b)))


def product(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    """`a·b` in new tensors."""
    return list(torch._foreach_mul(list(a), list(b)))


def add(target: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    """`target += other`."""
    torch._foreach_add_(list(target), list(other))


def subtract(target: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    """`target −= other`."""
    torch._foreach_sub_(list(target), list(other))


def multiply(target: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    """`target *= other`."""
    torch._foreach_mul_(list(target), list(other))


def scale(target: Sequence[Tensor], factor: float) -> None:
    """`target *= factor`."""
    torch._foreach_mul_(list(target), factor)


def add_product(target: Sequence[Tensor], a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    """`target += a·b`."""
    torch._foreach_addcmul_(list(target), list(a), list(b))

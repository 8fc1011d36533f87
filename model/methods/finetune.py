"""Finetune: learn each segment, protect nothing. The lower bound."""

from __future__ import annotations

from dataclasses import dataclass

from ..method import Method


@dataclass(eq=False)
class Finetune(Method):
    """No hook at all."""

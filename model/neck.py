"""From a map of the backbone to one with as many channels as the decoder has."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

DILATIONS = (3, 6, 12, 18)


class Neck(nn.Module):
    """The sum of four dilated 3x3 convolutions, as in DeepLab v2 (arXiv 1606.00915)."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(in_dim, dim, 3, padding=dilation, dilation=dilation) for dilation in DILATIONS
        )
        for conv in self.convs:
            nn.init.normal_(cast(nn.Conv2d, conv).weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(B, Cin, h, w) to (B, D, h, w)."""
        first, *others = self.convs
        y: Tensor = first(x)
        for conv in others:
            y = y + conv(x)
        return y

"""A decoder in RefineNet's manner: from maps of four strides to a mask.

Lin et al., "RefineNet: Multi-Path Refinement Networks" (arXiv 1611.06612).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .decoder import PRIOR


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions around a shortcut.

    The shortcut is rectified: AVSBench's code has it so, by a ReLU that works in place.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to the same."""
        x = F.relu(x)
        return x + self.conv2(F.relu(self.conv1(x)))


class RefineDecoder(nn.Module):
    """From the coarsest map on: add the next finer one, mix, double the resolution."""

    def __init__(self, dim: int) -> None:
        """Lays the stages out; ``dim`` is the channels of each map, a multiple of 8."""
        super().__init__()
        self.laterals = nn.ModuleList(ResidualUnit(dim) for _ in range(3))
        self.mixes = nn.ModuleList(ResidualUnit(dim) for _ in range(4))
        self.reduce = nn.Conv2d(dim, dim // 2, 3, padding=1)
        self.smooth = nn.Conv2d(dim // 2, dim // 8, 3, padding=1)
        self.mask = nn.Conv2d(dim // 8, 1, 1)
        if self.mask.bias is not None:
            nn.init.constant_(self.mask.bias, math.log(PRIOR / (1 - PRIOR)))

    def forward(self, maps: tuple[Tensor, ...], size: torch.Size) -> Tensor:
        """Decodes.

        Args:
            maps: (B, D, h, w) at strides 4, 8, 16 and 32.
            size: (H, W) of the masks.

        Returns:
            Mask logits (B, H, W).
        """
        *finer, coarsest = maps
        first, *mixes = self.mixes
        x = first(coarsest)
        for mix, lateral, finer_map in zip(mixes, self.laterals, reversed(finer), strict=True):
            x = F.interpolate(x, finer_map.shape[-2:], mode="bilinear", align_corners=True)
            x = mix(x + lateral(finer_map))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        x = F.interpolate(self.reduce(x), size, mode="bilinear", align_corners=False)
        return self.mask(F.relu(self.smooth(x))).squeeze(1)

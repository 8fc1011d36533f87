"""From the grid of fused tokens to mask logits at the input's resolution."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PRIOR = 0.1
"""Share of a picture that a fresh decoder takes for sounding."""


class Refine(nn.Module):
    """Doubles the resolution, adds a skip, and mixes both."""

    def __init__(self, in_dim: int, out_dim: int, skip_dim: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_dim, out_dim, 1)
        self.lateral = nn.Conv2d(skip_dim, out_dim, 1) if skip_dim else None
        self.mix = nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False)
        self.norm = _group_norm(out_dim)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """(B, Cin, h, w) and a skip (B, Cs, any, any) to (B, Cout, 2h, 2w)."""
        x = _resize(self.reduce(x), (2 * x.shape[2], 2 * x.shape[3]))
        if self.lateral is not None and skip is not None:
            x = x + _resize(self.lateral(skip), x.shape[-2:])
        return F.relu(self.norm(self.mix(x)))


class Decoder(nn.Module):
    """Three 3x3 convolutions at strides 16, 8 and 4, with GroupNorm and optional skips.

    GroupNorm, not BatchNorm: whatever trains here is covered by anchoring, merging and swapping.
    """

    def __init__(
        self, dim: int, widths: tuple[int, int, int], skip_dims: tuple[int, ...] = ()
    ) -> None:
        """Lays the stages out.

        Args:
            dim: size of a fused token.
            widths: channels at strides 16, 8 and 4, multiples of 8.
            skip_dims: channels of the two skips, coarse to fine, or none.

        Raises:
            ValueError: neither no nor two skips.
        """
        super().__init__()
        if len(skip_dims) not in (0, 2):
            raise ValueError(f"skip_dims is {skip_dims}; two skips or none are needed")
        coarse, fine = skip_dims or (0, 0)
        self.entry = nn.Conv2d(dim, widths[0], 3, padding=1, bias=False)
        self.norm = _group_norm(widths[0])
        self.refine8 = Refine(widths[0], widths[1], coarse)
        self.refine4 = Refine(widths[1], widths[2], fine)
        self.mask = nn.Conv2d(widths[2], 1, 1)
        if self.mask.bias is not None:
            nn.init.constant_(self.mask.bias, math.log(PRIOR / (1 - PRIOR)))

    def forward(self, tokens: Tensor, skips: tuple[Tensor, ...], size: torch.Size) -> Tensor:
        """Decodes.

        Args:
            tokens: (B, h, w, D).
            skips: as the visual encoder gives them, coarse to fine; may be empty.
            size: (H, W) of the masks.

        Returns:
            Mask logits (B, H, W).
        """
        coarse, fine = skips or (None, None)
        x = tokens.permute(0, 3, 1, 2)  # (B, D, h, w)
        x = F.relu(self.norm(self.entry(x)))
        x = self.refine4(self.refine8(x, coarse), fine)
        return _resize(self.mask(x), size).squeeze(1)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _resize(x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=False)

"""TPAVI: temporal pixel-wise audio-visual interaction.

Zhou et al., "Audio-Visual Segmentation" (arXiv 2207.05042), Eq. 1 and 2.
"""

from __future__ import annotations

import math

from torch import Tensor, nn


class Tpavi(nn.Module):
    """All pixels of all frames of a clip attend to its sounds.

    `Z = LayerNorm(X + Norm(W_z(α·g(X))))`, `α = θ(X)·φ(A)ᵀ/N`, N = T·h·w, where A repeats each
    frame's sound over its pixels. θ, φ, g and W_z are the paper's 1x1x1 convolutions, which are
    linear maps of the channels. Norm starts with a scale of zero, so that sound adds nothing at
    first. It is BatchNorm in the paper; here it is GroupNorm over a clip, because nothing that
    trains keeps statistics of its own.

    α has no softmax, and A is the same all over a frame: so α (N x N) is never made, and
    `α·g(X) = θ(X)·(1/T · Σ over t of φ(a_t)ᵀ·g(mean over pixels of X_t))`, which is the same.
    """

    def __init__(self, audio_dim: int, dim: int) -> None:
        """Lays the maps out.

        Args:
            audio_dim: size of a sound's embedding.
            dim: channels of the maps; half of them inside.
        """
        super().__init__()
        inner = dim // 2
        self.align = nn.Linear(audio_dim, dim)
        self.theta = nn.Linear(dim, inner)
        self.phi = nn.Linear(dim, inner)
        self.g = nn.Linear(dim, inner)
        self.w_z = nn.Linear(inner, dim)
        self.norm_z = nn.GroupNorm(math.gcd(8, dim), dim)
        nn.init.zeros_(self.norm_z.weight)
        self.norm = nn.LayerNorm(dim)

    def forward(self, maps: Tensor, embedding: Tensor, clip_frames: int) -> Tensor:
        """Attends.

        Args:
            maps: (B·T, D, h, w), the T frames of a clip one after the other.
            embedding: (B·T, De), the sound of each frame.
            clip_frames: T.

        Returns:
            Maps of the same shape.
        """
        T = clip_frames
        h, w = maps.shape[-2:]
        clips = maps.unflatten(0, (-1, T))  # (B, T, D, h, w)
        heard = self.phi(self.align(embedding)).unflatten(0, (-1, T))  # (B, T, D / 2)
        seen = self.g(clips.mean(dim=(3, 4)))  # (B, T, D / 2)
        x = clips.permute(0, 1, 3, 4, 2).flatten(1, 3)  # (B, T·h·w, D)
        y = self.theta(x) @ (heard.transpose(1, 2) @ seen / T)  # (B, T·h·w, D / 2)
        update = self.norm_z(self.w_z(y).transpose(1, 2)).transpose(1, 2)  # (B, T·h·w, D)
        z = self.norm(x + update).unflatten(1, (T, h, w))
        return z.permute(0, 1, 4, 2, 3).flatten(0, 1)

"""How sound meets picture: audio-guided conditioning, then cross-attention."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Conditioning(nn.Module):
    """Audio-guided pre-fusion conditioning: `X̄ = X·(1 + γ) + β`, `[γ, β] = MLP(global audio)`.

    The last layer starts at zero, so the module starts as the identity.
    """

    def __init__(self, audio_dim: int, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(audio_dim)
        self.hidden = nn.Linear(audio_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, 2 * dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        """Modulates visual tokens (B, h, w, D) by audio embeddings (B, De)."""
        gamma, beta = self.out(F.gelu(self.hidden(self.norm(embedding)))).chunk(2, dim=-1)
        return tokens * (1 + gamma[:, None, None]) + beta[:, None, None]


class Fusion(nn.Module):
    """Cross-attention: `F = LayerNorm(X̄ + softmax(QKᵀ/√d)·V)`, K and V from audio tokens."""

    def __init__(self, audio_dim: int, dim: int, heads: int = 1) -> None:
        """Lays the projections out.

        Args:
            audio_dim: size of an audio token.
            dim: size of a visual token; `heads` divides it.
            heads: attention heads; the paper has one.

        Raises:
            ValueError: `heads` does not divide `dim`.
        """
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads is {heads}; it must divide the token size {dim}")
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(audio_dim, dim)
        self.value = nn.Linear(audio_dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, audio_tokens: Tensor) -> Tensor:
        """Adds to visual tokens (B, h, w, D) what they attend to in audio tokens (B, T', Da)."""
        h, w = tokens.shape[1:3]
        x = tokens.flatten(1, 2)  # (B, h·w, D)
        heard = F.scaled_dot_product_attention(
            self._split(self.query(x)),
            self._split(self.key(audio_tokens)),
            self._split(self.value(audio_tokens)),
        )  # (B, heads, h·w, D / heads)
        return self.norm(x + heard.transpose(1, 2).flatten(2)).unflatten(1, (h, w))

    def _split(self, x: Tensor) -> Tensor:
        """(B, n, D) to (B, heads, n, D / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class ClassHead(nn.Module):
    """Global average pool and one linear layer, which grows as classes appear."""

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, n_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, C) of fused tokens (B, h, w, D)."""
        return self.linear(tokens.mean(dim=(1, 2)))

    def grow(self, n_classes: int) -> None:
        """Makes room for more classes; the rows of the known ones stay as they are.

        Args:
            n_classes: classes afterwards, not fewer than now.

        Raises:
            ValueError: `n_classes` is less than what the head has.
        """
        old = self.linear
        if n_classes < old.out_features:
            raise ValueError(f"the head has {old.out_features} classes; it cannot shrink")
        new = nn.Linear(old.in_features, n_classes).to(old.weight)
        new.weight.data[: old.out_features] = old.weight.data
        new.bias.data[: old.out_features] = old.bias.data
        self.linear = new

"""L2P: Learning to Prompt.

Wang et al. (arXiv 2112.08654), §4: a pool of M prompts of Lp tokens, each with a key. A picture's
query, the frozen backbone's summary of it, picks the k keys nearest by cosine (Eq. 3), and their
prompts join the tokens; `L = L_task − λ·mean cos(query, chosen keys)` (Eq. 5). The backbone never
trains. M = 10, Lp = 5, k = 5, λ = 0.1 are the authors'.

Where prompts join is ours: not the ViT's tokens, but the keys and values of the cross-attention,
beside the tokens of the sound, which every backbone of ATLAS has; the decoder then reads as many
tokens as before. Pictures choose one by one; the public code's vote over the batch lets the company
in a test batch decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..fusion import Fusion
from ..method import Batch, Method, MethodError, Trainable
from ..network import Network, Output
from ..visual import last_stage, summary


class PromptPool(nn.Module):
    """Prompts (M, Lp, Da) and their keys (M, Dq), from a seed, uniform in −1..1.

    Its hooks are bound to it and it holds no graph, so that copies of a network (teachers, what is
    served) have a pool of their own.
    """

    def __init__(
        self, prompts: int, length: int, dim: int, query_dim: int, chosen: int, seed: int
    ) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        self.prompts = nn.Parameter(2 * torch.rand(prompts, length, dim, generator=source) - 1)
        self.keys = nn.Parameter(2 * torch.rand(prompts, query_dim, generator=source) - 1)
        self._chosen = chosen
        self._query: Tensor | None = None

    def see(self, _module: nn.Module, _args: object, out: Tensor) -> None:
        """Takes the queries (B, Dq) of the pictures that the backbone has just seen."""
        self._query = summary(out).detach().float()

    def nearest(self) -> tuple[Tensor, Tensor]:
        """The prompts that each picture chooses, (B, k), and their keys' cosines, (B, k)."""
        assert self._query is not None  # noqa: S101  the backbone ran just before
        cosines = F.normalize(self._query, dim=1) @ F.normalize(self.keys, dim=1).T  # (B, M)
        best = cosines.topk(self._chosen, dim=1)
        return best.indices, best.values

    def join(self, _module: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Appends to audio tokens (B·K, T', Da) the prompts that each of B pictures chose."""
        tokens, audio_tokens = args
        joining = self.prompts[self.nearest()[0]].flatten(1, 2)  # (B, k·Lp, Da)
        joining = joining.repeat_interleave(len(audio_tokens) // len(joining), dim=0)
        return tokens, torch.cat([audio_tokens, joining.to(audio_tokens.dtype)], dim=1)


@dataclass(eq=False)
class L2P(Method):
    """Trains prompts and keys besides what follows the backbone.

    Attributes:
        prompts: M.
        length: Lp.
        chosen: k.
        pull: λ.
        seed: of the prompts.
    """

    trainable: ClassVar[Trainable] = "decoder"

    prompts: int = 10
    length: int = 5
    chosen: int = 5
    pull: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.chosen <= self.prompts or self.length < 1 or self.pull < 0:
            raise MethodError(
                f"prompts {self.prompts}, length {self.length}, chosen {self.chosen}, pull "
                f"{self.pull}: chosen must be 1 to prompts, length at least 1, pull at least 0"
            )
        self._pool: PromptPool | None = None

    def prepare(self, network: Network) -> None:
        """Puts the pool into the network, as ``prompt_pool``."""
        super().prepare(network)
        fusion = network.get_submodule("fusion")
        if not isinstance(fusion, Fusion):
            raise MethodError(
                f"l2p needs a cross-attention that prompts can join; {network.preset.name} has none"
            )
        last = last_stage(network.visual.backbone)
        seen: list[int] = []
        probe = last.register_forward_hook(
            lambda _m, _args, out: seen.append(summary(out).shape[1])
        )
        with torch.no_grad():
            px = network.preset.image_px
            like = next(network.parameters())
            network.visual(like.new_zeros(1, 3, px, px))
        probe.remove()
        dim = fusion.key.in_features
        self._pool = PromptPool(self.prompts, self.length, dim, seen[0], self.chosen, self.seed).to(
            like
        )
        network.add_module("prompt_pool", self._pool)
        last.register_forward_hook(self._pool.see)
        fusion.register_forward_pre_hook(self._pool.join)

    def extra_loss(self, batch: Batch, out: Output) -> dict[str, Tensor]:
        """`−λ·mean cos`: draws the chosen keys to the queries."""
        assert self._pool is not None  # noqa: S101  `prepare` came first
        return {"pull": -self.pull * self._pool.nearest()[1].mean()} if self.pull else {}

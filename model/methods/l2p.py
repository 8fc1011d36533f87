"""L2P: Learning to Prompt.

Wang et al. (arXiv 2112.08654), §4: a pool of M prompts of Lp tokens, each with a key. A picture's
query, what the frozen backbone makes of it, picks the k keys nearest by cosine (Eq. 3), and their
prompts join the tokens; `L = L_task − λ·Σ cos(query, chosen keys)`, averaged over pictures (Eq. 5).
The backbone never trains. M = 10, Lp = 5, k = 5, λ = 0.1 are the authors'.

Where prompts join depends on the network (``place``):

- ``vit``, the paper's: before the patches' tokens of a ViT, whose blocks all attend to them. The
  query is the class token of the ViT without prompts, which takes a second forward pass. The paper
  classifies by the prompts' own tokens; here (ours) these have no positions, are dropped at the
  ViT's end, and the decoder reads as many tokens as before.
- ``attention`` (ours), for every other backbone of ATLAS: among the keys and values of the
  cross-attention, beside the tokens of the sound. The query is `visual.summary`.

Who chooses (ours; the paper has pictures, no videos): a clip, by the mean of its frames' queries
(``query`` ``video``), so that its masks do not flicker with the choice, where the network sees a
clip's frames together (`Network.clip_frames`); by default it sees one frame at a time, and each
chooses by itself, as with ``frame``. The public code's vote over the batch lets the company in a
test batch decide; it is not here.

The cross-entropy sees the logits of the current task's classes alone (``current_classes``), as in
the authors' code. Which these are where boundaries blur is ours: the rows that the segment names,
and from then on those of labels that came in it all the same. Where nobody tells segments, or none
of their classes, it sees all so far. What is added is `λ_cls·(theirs − the task's)`, so that the
total has theirs alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..fusion import Fusion
from ..losses import NO_LABEL
from ..method import Batch, Method, MethodError, Segment, Trainable, labels_of
from ..network import Network, Output
from ..visual import VitEncoder, last_stage, summary


class PromptPool(nn.Module):
    """Prompts (M, Lp, D) and their keys (M, Dq), from a seed, uniform in −1..1.

    Its hooks are bound to it and it holds no graph, so that copies of a network (teachers, what is
    served) have a pool of their own.
    """

    def __init__(
        self,
        prompts: int,
        length: int,
        dim: int,
        query_dim: int,
        chosen: int,
        seed: int,
        together: Callable[[], int],
    ) -> None:
        """Draws prompts and keys; ``together`` says how many frames choose as one."""
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        self.prompts = nn.Parameter(2 * torch.rand(prompts, length, dim, generator=source) - 1)
        self.keys = nn.Parameter(2 * torch.rand(prompts, query_dim, generator=source) - 1)
        self._chosen = chosen
        self._together = together
        self._query: Tensor | None = None

    def _ask(self, queries: Tensor) -> None:
        """Keeps the queries (B, Dq) of pictures; those of a clip become their mean."""
        B, T = len(queries), self._together()
        if B % T:
            raise ValueError(f"got {B} frames; clips of {T} consecutive frames are needed")
        clips = queries.float().unflatten(0, (B // T, T)).mean(dim=1)  # (B / T, Dq)
        self._query = clips.repeat_interleave(T, dim=0)

    def nearest(self) -> tuple[Tensor, Tensor]:
        """The prompts that each picture chooses, (B, k), and their keys' cosines, (B, k)."""
        assert self._query is not None  # noqa: S101  the backbone ran just before
        cosines = F.normalize(self._query, dim=1) @ F.normalize(self.keys, dim=1).T  # (B, M)
        best = cosines.topk(self._chosen, dim=1)
        return best.indices, best.values

    def _choice(self) -> Tensor:
        """The prompts' tokens that each picture chooses, (B, k·Lp, D)."""
        return self.prompts[self.nearest()[0]].flatten(1, 2)

    def lead(self, encoder: VitEncoder, args: tuple[Tensor]) -> tuple[Tensor, Tensor]:
        """Gives a ViT, beside pictures (B, 3, H, W), the prompts that each chose."""
        (frames,) = args
        with torch.no_grad():
            self._ask(encoder.backbone.forward_features(frames)[:, 0])
        return frames, self._choice()

    def see(self, _module: nn.Module, _args: object, out: Tensor) -> None:
        """Takes the queries (B, Dq) of the pictures that the backbone has just seen."""
        self._ask(summary(out).detach())

    def join(self, _module: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Appends to audio tokens (B·K, T', D) the prompts that each of B pictures chose."""
        tokens, audio_tokens = args
        joining = self._choice()
        joining = joining.repeat_interleave(len(audio_tokens) // len(joining), dim=0)
        return tokens, torch.cat([audio_tokens, joining.to(audio_tokens.dtype)], dim=1)


@dataclass(eq=False)
class L2P(Method):
    """Trains prompts and keys besides what follows the backbone.

    State: ``current``, which rows of the class head are of this segment; absent where nobody tells.

    Attributes:
        prompts: M.
        length: Lp.
        chosen: k.
        pull: λ.
        place: ``vit``, ``attention``, or ``auto``: the ViT where the network has one.
        query: ``video`` or ``frame``, what chooses where frames are seen together.
        current_classes: whether the cross-entropy sees the current segment's classes alone; false:
            all so far.
        seed: of the prompts.
    """

    trainable: ClassVar[Trainable] = "decoder"

    prompts: int = 10
    length: int = 5
    chosen: int = 5
    pull: float = 0.1
    place: str = "auto"
    query: str = "video"
    current_classes: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.chosen <= self.prompts or self.length < 1 or self.pull < 0:
            raise MethodError(
                f"prompts {self.prompts}, length {self.length}, chosen {self.chosen}, pull "
                f"{self.pull}: chosen must be 1 to prompts, length at least 1, pull at least 0"
            )
        if self.place not in ("auto", "vit", "attention"):
            raise MethodError(f"place is {self.place!r}; allowed are 'auto', 'vit' and 'attention'")
        if self.query not in ("video", "frame"):
            raise MethodError(f"query is {self.query!r}; allowed are 'video' and 'frame'")
        self._pool: PromptPool | None = None

    def prepare(self, network: Network) -> None:
        """Puts the pool into the network, as ``prompt_pool``."""
        super().prepare(network)
        if isinstance(network.visual, VitEncoder) and self.place != "attention":
            pool = self._new_pool(network.visual.token_dim, network.visual.token_dim)
            network.visual.register_forward_pre_hook(pool.lead)
        elif self.place == "vit":
            raise MethodError(
                f"l2p's place is vit, and {network.preset.name} has no ViT; 'attention' is for "
                "other backbones, 'auto' takes what the network has"
            )
        else:
            self._join_attention(network)

    def _join_attention(self, network: Network) -> None:
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
            network.visual(next(network.parameters()).new_zeros(1, 3, px, px))
        probe.remove()
        pool = self._new_pool(fusion.key.in_features, seen[0])
        last.register_forward_hook(pool.see)
        fusion.register_forward_pre_hook(pool.join)

    def _new_pool(self, dim: int, query_dim: int) -> PromptPool:
        """The pool, which becomes a part of the network."""
        together = _FramesOf(self.network) if self.query == "video" else _one
        pool = PromptPool(
            self.prompts, self.length, dim, query_dim, self.chosen, self.seed, together
        )
        self._pool = pool.to(next(self.network.parameters()))
        self.network.add_module("prompt_pool", self._pool)
        return self._pool

    def begin(self, segment: Segment | None) -> None:
        """Learns which rows of the class head are the segment's."""
        self.state.pop("current", None)
        head = self.network.head
        if segment is None or not segment.classes or head is None or not self.current_classes:
            return
        current = torch.zeros_like(head.linear.bias, dtype=torch.bool)
        current[[row for row in segment.classes if row < len(current)]] = True
        self.state["current"] = current

    def extra_loss(self, batch: Batch, out: Output) -> dict[str, Tensor]:
        """`−λ·Σ cos`, which draws the chosen keys to the queries, and what the mask changes."""
        assert self._pool is not None  # noqa: S101  `prepare` came first
        pull = self._pool.nearest()[1].sum(dim=1).mean()
        return ({"pull": -self.pull * pull} if self.pull else {}) | self._mask_classes(batch, out)

    def _mask_classes(self, batch: Batch, out: Output) -> dict[str, Tensor]:
        """`λ_cls·(CE of the current rows − CE of all)`."""
        if "current" not in self.state or out.class_logits is None:
            return {}
        logits = out.class_logits.float()
        labels = labels_of(batch).to(logits.device)
        known = labels[labels != NO_LABEL]
        if not len(known):
            return {}
        current = self.state["current"].to(logits.device).index_fill(0, known, value=True)
        self.state["current"] = current
        masked = logits.masked_fill(~current, -torch.inf)
        theirs, plain = (
            F.cross_entropy(of, labels, ignore_index=NO_LABEL) for of in (masked, logits)
        )
        return {"current_classes": self.class_weight * (theirs - plain)}


class _FramesOf:
    """How many frames a network sees together now; a copy of the network brings one of its own."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def __call__(self) -> int:
        return self._network.clip_frames


def _one() -> int:
    return 1

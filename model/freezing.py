"""Networks that stand still after the first segment while statistics of their features go on.

What RanPAC and FeCAM share: gradients only move the network until the first consolidation; from
then on nothing trains, and closed forms over the fused tokens learn instead. They never forget, and
the order in which data came does not matter to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .method import Batch, Method, MethodError, Segment
from .network import Output
from .teacher import answer


@dataclass(eq=False)
class FrozenAfterFirst(Method):
    """Freezes; who inherits says what is learned of a batch, and what it comes to.

    Where boundaries are told, statistics are taken of a segment's data when it ends. Where nobody
    tells them, the first consolidation freezes the network, from then on each step's batch is
    learned, and consolidations bring the closed forms up to date; their batches count twice.

    State: ``frozen``, from the first consolidation on.
    """

    _told: bool = field(init=False, repr=False, default=True)

    @property
    def is_frozen(self) -> bool:
        """Whether a consolidation took place."""
        return "frozen" in self.state

    def begin(self, segment: Segment | None) -> None:
        """Freezes the rows by which the class head grew, too."""
        self._told = segment is not None
        self._freeze()

    def extra_loss(self, batch: Batch, out: Output) -> dict[str, Tensor]:
        """Adds nothing to the loss."""
        if self.is_frozen and not self._told:
            self._take(batch, out)
        return {}

    @torch.no_grad()
    def consolidate(self, data: Iterable[Batch]) -> None:
        """Freeze, the first time; learn what the data holds."""
        self.state["frozen"] = torch.tensor(data=True)
        self._freeze()
        was_training = self.network.training
        self.network.eval()
        for batch in data:
            self._take(batch, answer(self.network, batch))
        self.network.train(was_training)
        self.settle()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Freezes the network if it was frozen."""
        super().load_state_dict(state)
        self._freeze()

    def _freeze(self) -> None:
        if self.is_frozen:
            self.network.requires_grad_(requires_grad=False)

    @torch.no_grad()
    def _take(self, batch: Batch, out: Output) -> None:
        device = out.mask_logits.device
        with torch.autocast(device.type, enabled=False):
            self.learn({name: value.to(device) for name, value in batch.items()}, out)

    def learn(self, batch: Batch, out: Output) -> None:
        """Add a batch to the statistics."""
        raise NotImplementedError

    def settle(self) -> None:
        """Bring what `predict` uses up to date with the statistics."""
        raise NotImplementedError


def tokens_of(out: Output) -> Tensor:
    """The fused tokens (B, h, w, D) in float32.

    Raises:
        MethodError: nobody kept them.
    """
    if out.fused is None:
        raise MethodError("the network's output has no fused tokens; one that keeps them is needed")
    return out.fused.detach().float()


def shares_of(masks: Tensor, tokens: Tensor) -> Tensor:
    """How much of each token's cell sounds: (B, h, w) in 0..1.

    Args:
        masks: (B, H, W) in {0, 1}.
        tokens: (B, h, w, D).
    """
    h, w = tokens.shape[1:3]
    return F.adaptive_avg_pool2d(masks.float()[:, None], (h, w))[:, 0]


def with_masks(out: Output, logits: Tensor) -> Output:
    """The output with logits of tokens (B·h·w,) as its masks."""
    shape, size = tokens_of(out).shape[:3], out.mask_logits.shape[-2:]
    masks = F.interpolate(logits.view(shape)[:, None], size, mode="bilinear", align_corners=False)
    return out._replace(mask_logits=masks[:, 0])


def grown(held: Tensor | None, like: Tensor, dim: int = 0) -> Tensor:
    """State that grows with the classes: zeros where nothing was held, of the shape of ``like``."""
    if held is None:
        return torch.zeros_like(like)
    missing = like.shape[dim] - held.shape[dim]
    if missing == 0:
        return held
    shape = [*held.shape]
    shape[dim] = missing
    return torch.cat([held, held.new_zeros(shape)], dim)

"""What a clip is like, for protocols that put like to like: frozen features of both senses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..model.network import Network
from ..streams.protocols import ClipInfo
from .clipstore import ClipStore

_MIDDLE = 2


@torch.no_grad()
def clip_embeddings(
    network: Network, store: ClipStore, clips: Sequence[ClipInfo]
) -> NDArray[np.float64]:
    """Embeddings of clips by the parts of a network that never train.

    Args:
        network: untrained, so that LoRA adds nothing yet.
        store: the clips.
        clips: which.

    Returns:
        (N, D): the mean over positions of the backbone's last map for the middle picture, of length
        1, beside the mean audio embedding, of length 1.
    """
    seen: list[Tensor] = []
    last = _last_stage(network.visual.backbone)
    handle = last.register_forward_hook(lambda _module, _args, out: seen.append(_pooled(out)))
    rows: list[NDArray[np.float64]] = []
    try:
        for clip in clips:
            seen.clear()
            picture = torch.from_numpy(store.pictures(clip.id)[0][_MIDDLE : _MIDDLE + 1])
            device = next(network.parameters()).device
            network.visual(network.normalise(picture.to(device)))
            sound = store.features(clip.id).embedding.mean(dim=0)
            rows.append(np.concatenate([_unit(seen[-1]), _unit(sound)]))
    finally:
        handle.remove()
    return np.stack(rows)


def _last_stage(backbone: nn.Module) -> nn.Module:
    """The last block of a ViT or an EfficientNet, the last stage of a pyramid."""
    blocks: Any = getattr(backbone, "blocks", None)
    if blocks is None:
        blocks = getattr(backbone, "stages", None) or list(backbone.children())
    return cast(nn.Module, blocks[-1])


def _pooled(out: Tensor) -> Tensor:
    """(1, C, h, w) or (1, n, C) to (C,)."""
    return (out.mean(dim=(2, 3)) if out.ndim == 4 else out.mean(dim=1))[0]


def _unit(x: Tensor) -> NDArray[np.float64]:
    values = x.double().cpu().numpy()
    return values / max(float(np.linalg.norm(values)), 1e-12)

"""What a clip is like, for protocols that put like to like: frozen features of both senses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.network import Network
from ..model.visual import last_stage, summary
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
        (N, D): the `visual.summary` of the middle picture, of length 1, beside the mean audio
        embedding, of length 1.
    """
    seen: list[Tensor] = []
    last = last_stage(network.visual.backbone)
    handle = last.register_forward_hook(lambda _module, _args, out: seen.append(summary(out)[0]))
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


def _unit(x: Tensor) -> NDArray[np.float64]:
    values = x.double().cpu().numpy()
    return values / max(float(np.linalg.norm(values)), 1e-12)

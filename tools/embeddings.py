"""What a clip is like, for protocols that put like to like: frozen features of both senses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.checkpoints import tensor_hash
from ..model.lora import base_state
from ..model.network import Network
from ..model.visual import last_stage, summary
from ..streams.protocols import ClipInfo
from .clipstore import ClipStore, computes_on

_MIDDLE = 2


@torch.no_grad()
def clip_embeddings(
    network: Network,
    store: ClipStore,
    clips: Sequence[ClipInfo],
    progress: Callable[[int], None] = lambda _done: None,
) -> NDArray[np.float64]:
    """Embeddings of clips by the parts of a network that never train.

    Args:
        network: untrained, so that LoRA adds nothing yet.
        store: the clips; keeps each one's embedding for all runs of the same frozen parts.
        clips: which.
        progress: told how many are done.

    Returns:
        (N, D): the `visual.summary` of the middle picture, of length 1, beside the mean audio
        embedding, of length 1.
    """
    seen: list[Tensor] = []
    last = last_stage(network.visual.backbone)
    handle = last.register_forward_hook(lambda _module, _args, out: seen.append(summary(out)[0]))
    name = _name(network)
    device = next(network.parameters()).device
    rows: list[NDArray[np.float64]] = []
    try:
        for number, clip in enumerate(clips):

            def row(clip: str = clip.id) -> dict[str, NDArray[np.generic]]:
                picture = torch.from_numpy(store.pictures(clip)[0][_MIDDLE : _MIDDLE + 1])
                network.visual(network.normalise(picture.to(device)))
                sound = store.features(clip).embedding.mean(dim=0)
                return {"row": np.concatenate([_unit(seen.pop()), _unit(sound)])}

            found = store.kept(clip.id, name, row)["row"]
            rows.append(found.astype(np.float64, copy=False))
            progress(number + 1)
    finally:
        handle.remove()
    return np.stack(rows)


def _name(network: Network) -> str:
    """All that an embedding depends on besides the clip."""
    preset = network.preset
    frozen = {f"visual.{n}": t for n, t in base_state(network.visual.backbone).items()}
    frozen |= {f"audio.{n}": t for n, t in network.audio.state_dict().items()}
    told = (preset.image_px, preset.mean, preset.std, preset.window_s, preset.front_end)
    return f"embedding {tensor_hash(frozen)} {told} {computes_on(network)}"


def _unit(x: Tensor) -> NDArray[np.float64]:
    values = x.double().cpu().numpy()
    return values / max(float(np.linalg.norm(values)), 1e-12)

"""The loss that AVSBench's authors train their network by, instead of the ATLAS paper's.

Zhou et al., "Audio-Visual Segmentation" (arXiv 2207.05042), as their code has it
(github.com/OpenNLPLab/AVSBench, `avs_s4` and `avs_ms3`: `loss.py`, `train.sh`):

- of single sources (S4) the binary cross-entropy of frames that have a mask: the first of a clip;
- of several (MS3) that of all frames, `+ λ·mean over stages of Σ over frames KL(a ‖ v)`, λ = 0.5:
  with m the mask's logits averaged down to the size of a stage's maps Z (TPAVI's result),
  `v = softmax(mean over pixels of sigmoid(m)·ReLU(Z))` over channels, `a` the softmax of the sound
  in the same channels. Masks so learn to hold what looks as the sound is heard.

The sum is over all frames of a step, those without a mask too, and is not divided by their number:
λ means more in a larger step (the authors' has 20 frames). Z is rectified because the ReLU of their
decoder works in place, and the maps have gone through it when the loss reads them.

What is ours: where clips have classes, their cross-entropy (Eq. 10 of the ATLAS paper) is added;
`class_weight` 0 leaves the authors' loss. The cross-entropy is computed from logits: theirs, from
probabilities in float32, differs where a logit is beyond about 16.

Their training goes with it: Adam at 1e-4 over the whole network, which is this project's AdamW with
`weight_decay` 0, and steps of four clips.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .avsbench import AvsBench, Stage
from .losses import total_loss
from .method import Batch
from .taskloss import encode_sounds
from .teacher import inputs
from .training import LossFunction, Outcome

MATCH_WEIGHT = 0.5
"""λ, for several sources; for single ones the authors leave the term out."""


def avsbench_loss(network: AvsBench, class_weight: float, match_weight: float) -> LossFunction:
    """The authors' loss of a batch; encodes sounds that are waves.

    Args:
        network: is run on each batch.
        class_weight: of the class term, which is ours.
        match_weight: λ; 0 leaves the term out.

    Returns:
        A function that gives `total_loss`'s terms, of which ``dice`` has no say, and where λ is
        above 0 ``match``, unweighted.
    """

    def loss(batch: Batch) -> Outcome:
        encode_sounds(network, batch)
        out, stages = network.forward_stages(*inputs(network, batch))
        terms = total_loss(
            out,
            batch["masks"],
            batch["valid"],
            batch["labels"],
            dice_weight=0.0,
            class_weight=class_weight,
        )
        if match_weight:
            terms["match"] = match(out.mask_logits, stages)
            terms["loss"] = terms["loss"] + match_weight * terms["match"]
        return Outcome(terms, out)

    return loss


def match(mask_logits: Tensor, stages: Sequence[Stage]) -> Tensor:
    """How far what masks hold is from what is heard: the mean over stages of `Σ KL(a ‖ v)`.

    Args:
        mask_logits: (B, H, W).
        stages: of the same pictures.

    Returns:
        A scalar in float32, at least 0.
    """
    return torch.stack([_divergence(mask_logits.float(), stage) for stage in stages]).mean()


def _divergence(mask_logits: Tensor, stage: Stage) -> Tensor:
    """`Σ over frames KL(a ‖ v)` of one stage."""
    maps = F.relu(stage.maps.float())  # (B, D, h, w)
    h, w = maps.shape[-2:]
    m = F.adaptive_avg_pool2d(mask_logits.unsqueeze(1), (h, w))  # (B, 1, h, w)
    seen = (torch.sigmoid(m) * maps).mean(dim=(2, 3)).log_softmax(dim=1)  # (B, D)
    heard = stage.sounds.float().log_softmax(dim=1)  # (B, D)
    return F.kl_div(seen, heard, reduction="sum", log_target=True)

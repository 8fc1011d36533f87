"""The training losses: binary cross-entropy and Dice on masks, cross-entropy on classes.

The paper's Eq. 7, 8 and 10: the mean over the batch of ``BCE + Dice``, plus ``0.5 · CE`` where
class labels exist. A frame without a mask adds nothing, neither to the sum nor to the count.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

CLASS_WEIGHT = 0.5
"""Weight of the class term (Eq. 10)."""

NO_LABEL = -1
"""The label of an example whose class is not known."""

DICE_SMOOTHING = 1.0
"""Pixels added to both sides of the Dice ratio: an empty mask then pulls the prediction to
empty with a finite gradient, and an empty prediction of an empty mask costs nothing."""


class Prediction(Protocol):
    """What `total_loss` reads of a network's output."""

    @property
    def mask_logits(self) -> Tensor:
        """Float (B, H, W)."""
        ...

    @property
    def class_logits(self) -> Tensor | None:
        """Float (B, C), or None where the network has no class head."""
        ...


def mask_terms(logits: Tensor, masks: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The BCE and the Dice loss, each a scalar: the mean over the valid frames of the batch.

    Args:
        logits: float (B, H, W).
        masks: (B, H, W) in {0, 1} or booleans, of any dtype.
        valid: bool (B,), which frames have a mask.

    Returns:
        ``(bce, dice)``; both are zero, with a graph to ``logits``, where no frame is valid.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    if logits.ndim != 3 or masks.shape != logits.shape or valid.shape != logits.shape[:1]:
        raise ValueError(
            f"logits {tuple(logits.shape)}, masks {tuple(masks.shape)}, "
            f"valid {tuple(valid.shape)}: they must be (B, H, W), (B, H, W) and (B,)"
        )
    weight = valid.to(torch.float32)
    count = weight.sum().clamp(min=1.0)
    logits, truth = logits.float(), masks.float()
    bce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(dim=(1, 2))
    probs = torch.sigmoid(logits)
    overlap = (probs * truth).sum(dim=(1, 2))
    total = (probs + truth).sum(dim=(1, 2))
    dice = 1.0 - (2.0 * overlap + DICE_SMOOTHING) / (total + DICE_SMOOTHING)
    return (bce * weight).sum() / count, (dice * weight).sum() / count


def mask_loss(logits: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """``BCE + Dice``, a scalar; see `mask_terms` for arguments and errors."""
    bce, dice = mask_terms(logits, masks, valid)
    return bce + dice


def total_loss(
    out: Prediction,
    masks: Tensor,
    valid: Tensor,
    labels: Tensor | None = None,
    *,
    dice_weight: float = 1.0,
    class_weight: float = CLASS_WEIGHT,
) -> dict[str, Tensor]:
    """The loss of a batch and its terms.

    Args:
        out: the network's output.
        masks: (B, H, W) in {0, 1}.
        valid: bool (B,), which frames have a mask.
        labels: int64 (B,), the class of each frame, `NO_LABEL` where it is not known; None where
            nothing is labelled. Ignored if the network has no class head.
        dice_weight: of the Dice term.
        class_weight: of the class term.

    Returns:
        Scalars by name: ``loss`` is to be differentiated; ``bce``, ``dice`` and, where classes
        were scored, ``ce`` are its unweighted terms.
    """
    bce, dice = mask_terms(out.mask_logits, masks, valid)
    terms = {"loss": bce + dice_weight * dice, "bce": bce, "dice": dice}
    if labels is not None and out.class_logits is not None and bool((labels != NO_LABEL).any()):
        terms["ce"] = F.cross_entropy(out.class_logits.float(), labels, ignore_index=NO_LABEL)
        terms["loss"] = terms["loss"] + class_weight * terms["ce"]
    return terms

"""What a network keeps of its teacher's answers: distillation of masks and of classes.

Hinton, Vinyals, Dean (arXiv 1503.02531): scores softened by a temperature T, the loss times T²,
so that its gradients do not shrink with T.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .network import Output


def mask_distillation(
    out: Output, old: Output, temperature: float, pixels: Tensor | None = None
) -> Tensor:
    """`T²·mean BCE(m/T, sigmoid(m_old/T))`, a scalar.

    Args:
        out: of the network that learns.
        old: of its teacher.
        temperature: T.
        pixels: bool (B, H, W), which count; None: all.
    """
    soft = torch.sigmoid(old.mask_logits.float() / temperature)
    loss = F.binary_cross_entropy_with_logits(
        out.mask_logits.float() / temperature, soft, reduction="none"
    )
    if pixels is not None:
        kept = pixels.to(loss.dtype)
        return temperature**2 * (loss * kept).sum() / kept.sum().clamp(min=1)
    return temperature**2 * loss.mean()


def class_distillation(out: Output, old: Output, temperature: float) -> Tensor:
    """`T²·mean CE(softmax(z_old/T), softmax(z/T))` over the teacher's classes, a scalar.

    Args:
        out: of the network that learns; it has at least the teacher's classes, in its order.
        old: of its teacher.
        temperature: T.
    """
    assert out.class_logits is not None and old.class_logits is not None  # noqa: S101
    known = old.class_logits.shape[1]
    soft = torch.softmax(old.class_logits.float() / temperature, dim=1)
    now = F.log_softmax(out.class_logits[:, :known].float() / temperature, dim=1)
    return -(temperature**2) * (soft * now).sum(dim=1).mean()

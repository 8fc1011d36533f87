"""BatchNorm folded into the convolutions before it, for serving."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(root: nn.Module) -> int:
    """Folds each BatchNorm that directly follows a convolution among a module's children.

    The order of children is taken for the order of use, which holds for the encoders here; a test
    compares the outputs. Statistics are frozen, so the network must be in `eval()`.

    Args:
        root: changed in place.

    Returns:
        How many were folded.
    """
    folded = 0
    for module in root.modules():
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
                continue
            if norm.num_features != conv.out_channels:
                continue
            setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
            after = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
            setattr(module, norm_name, cast(nn.Module, after))
            folded += 1
    return folded

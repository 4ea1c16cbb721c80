"""The loss of each patch, the weight of each class, and which patches of a batch are learned from."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def class_weights(normal: int, tumor: int) -> tuple[float, float]:
    """Weights N / (2 N_c) of (normal, tumor): the mean weight of a patch is 1 (King and Zeng 2001).

    Give the counts of what is back-propagated: tumor patches with copies, normal ones that mining keeps.
    """
    total = normal + tumor
    return total / (2 * normal), total / (2 * tumor)


def patch_losses(
    logits: Tensor, labels: Tensor, *, gamma: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Focal loss of each patch (Lin et al. 2017): ``-w_t (1 - p_t)^gamma log(p_t)``, (n,) float32.

    With ``gamma`` 0 it is the (weighted) cross-entropy.

    Args:
        logits: (n, 2), any float type; labels: (n,) int64.
        weights: (2,) weight of each class, or None for equal weights.
    """
    log_p = functional.log_softmax(logits.float(), dim=1).gather(1, labels[:, None]).squeeze(1)
    losses = -log_p
    if gamma > 0:
        # 1 - p from expm1: near p = 1 the difference would lose every digit, and with gamma < 1 its
        # gradient would be infinite at exactly 0.
        losses = losses * (-torch.expm1(log_p)).clamp_min(1e-12) ** gamma
    return losses if weights is None else losses * weights[labels]


def kept_normals(count: int, tumor: int, *, ratio: float, tumor_share: float) -> int:
    """How many normal patches mining keeps in a batch of ``count`` patches: ``ceil(ratio * tumor)``.

    A batch without tumor patches is treated as one with as many as an average batch has, at least one, so
    that it neither teaches nothing nor outweighs others.
    """
    keep = math.ceil(ratio * (tumor or max(1.0, tumor_share * count)))
    return min(keep, count - tumor)


def hard_example_mask(losses: Tensor, labels: Tensor, keep: int) -> Tensor:
    """(n,) bool: all tumor patches and the ``keep`` normal ones of the highest loss, the earlier of equals.

    Online hard example mining (Shrivastava et al. 2016) as used for imbalanced detection (Liu et al. 2016).
    """
    mask = labels == 1
    hardness = losses.detach().masked_fill(mask, -torch.inf)
    mask[torch.argsort(hardness, descending=True, stable=True)[:keep]] = True
    return mask

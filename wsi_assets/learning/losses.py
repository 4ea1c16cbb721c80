"""The loss of each patch, the weight of each class, and which patches of a batch are learned from."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def class_weights(normal: int, tumor: int) -> tuple[float, float]:
    """Weights of (normal, tumor) inverse to their counts, scaled so that the mean weight of a patch is 1.

    w_c = N / (2 N_c), the "balanced" heuristic of King and Zeng (2001). Give the counts of what is
    back-propagated: tumor patches with their copies, normal patches that mining keeps.
    """
    total = normal + tumor
    return total / (2 * normal), total / (2 * tumor)


def patch_losses(
    logits: Tensor, labels: Tensor, *, gamma: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Focal loss of each patch: ``-w_t (1 - p_t)^gamma log(p_t)`` (Lin et al. 2017, equation 5).

    With ``gamma`` 0 it is the (weighted) cross-entropy.

    Args:
        logits: (n, 2), any float type; computed in float32.
        labels: (n,) int64.
        weights: (2,) weight of each class, or None for equal weights.

    Returns:
        (n,) float32.
    """
    log_p = functional.log_softmax(logits.float(), dim=1).gather(1, labels[:, None]).squeeze(1)
    losses = -log_p
    if gamma > 0:
        # 1 - p from expm1: near p = 1 the difference would lose every digit, and with gamma < 1 its
        # gradient would be infinite at exactly 0.
        losses = losses * (-torch.expm1(log_p)).clamp_min(1e-12) ** gamma
    return losses if weights is None else losses * weights[labels]


def kept_normals(count: int, tumor: int, *, ratio: float, tumor_share: float) -> int:
    """How many normal patches of a batch of ``count`` patches, ``tumor`` of them tumor, mining keeps.

    ``ceil(ratio * tumor)``. A batch without tumor patches is treated as one that holds as many as an average
    batch does, at least one, so that it neither teaches nothing nor outweighs others.
    """
    keep = math.ceil(ratio * (tumor or max(1.0, tumor_share * count)))
    return min(keep, count - tumor)


def hard_example_mask(losses: Tensor, labels: Tensor, keep: int) -> Tensor:
    """Which patches of a batch are learned from: all tumor patches and the ``keep`` hardest normal ones.

    Online hard example mining (Shrivastava et al. 2016) as used for imbalanced detection (Liu et al. 2016).

    Args:
        losses: (n,) loss of each patch.
        labels: (n,) int64.

    Returns:
        (n,) bool. Among equal losses the earlier patch stays, so the choice is deterministic.
    """
    mask = labels == 1
    hardness = losses.detach().masked_fill(mask, -torch.inf)
    mask[torch.argsort(hardness, descending=True, stable=True)[:keep]] = True
    return mask

"""The loss of each patch, the weight of each class, and which patches of a batch are learned from.

Everything is per sample and returns tensors; averaging and back-propagation are the training loop's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def class_weights(normal: int, tumor: int) -> tuple[float, float]:
    """Weights of (normal, tumor) inverse to their counts, scaled so that the mean weight of a patch is 1.

    w_c = N / (2 N_c), the "balanced" heuristic of King and Zeng (2001). Give the counts of the training part
    as the model sees it: after tumour patches are repeated, without validation patches.
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


def hard_example_mask(
    losses: Tensor, labels: Tensor, *, ratio: float, tumor_share: float, positives: int | None = None
) -> Tensor:
    """Which patches of a batch are learned from: all tumour patches and the hardest normal ones.

    Online hard example mining (Shrivastava et al. 2016) as used for imbalanced detection (Liu et al. 2016):
    with P tumour patches in the batch, the ``ceil(ratio * P)`` normal patches of highest loss stay. A batch
    without tumour patches is treated as one that holds as many as an average batch does, at least one:
    ``ceil(ratio * max(1, tumor_share * n))`` stay, so that it neither teaches nothing nor outweighs others.

    Args:
        losses: (n,) loss of each patch.
        labels: (n,) int64.
        tumor_share: share of tumour patches in the training part after augmentation.
        positives: number of tumour patches, where known: counting them would wait for a GPU.

    Returns:
        (n,) bool. Among equal losses the earlier patch stays, so the choice is deterministic.
    """
    tumor = labels == 1
    positives = int(tumor.sum()) if positives is None else positives
    keep = math.ceil(ratio * (positives or max(1.0, tumor_share * len(labels))))
    if keep >= len(labels) - positives:
        return torch.ones_like(tumor)
    hardness = losses.detach().masked_fill(tumor, -torch.inf)
    mask = tumor.clone()
    mask[torch.argsort(hardness, descending=True, stable=True)[:keep]] = True
    return mask

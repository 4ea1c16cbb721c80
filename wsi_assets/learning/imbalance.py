"""Strategies against class imbalance: class weights, focal loss and hard example mining.

A fourth strategy, augmented copies of tumor patches, is in ``data.epoch_batches``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wsi_assets.learning.data import Batch, Split
from wsi_assets.learning.options import TrainingOptions

IDLE = "_cannot_act"
"""Suffix of the codes of warnings that a strategy is switched on but has no effect."""
LEAST_EFFECT = 0.02
"""Mining that leaves out a smaller share of the normal patches has no effect; nor have class weights closer
to 1 than this."""
FEW_VALIDATING = 20
"""With fewer validation patches of a class, the choice of epoch and threshold is unreliable."""


@dataclass(frozen=True)
class Imbalance:
    """Numbers of patches in one epoch, known before training: mining keeps a fixed number of each batch.

    Attributes:
        seen_normal, seen_tumor: patches of each class, with copies.
        kept_normal: normal patches that mining keeps.
        weights: class weights (normal, tumor) of the loss, from the numbers of patches that are
            back-propagated; (1, 1) when switched off.
    """

    seen_normal: int
    seen_tumor: int
    kept_normal: int
    weights: tuple[float, float]

    @property
    def tumor_share(self) -> float:
        return self.seen_tumor / (self.seen_tumor + self.seen_normal)

    @property
    def mined(self) -> float:
        """Share of the normal patches that mining leaves out."""
        return 1 - self.kept_normal / self.seen_normal


def measure_imbalance(batches: Sequence[Batch], labels: np.ndarray, options: TrainingOptions) -> Imbalance:
    """Count the patches in the batches of one epoch; ``labels`` are those of all rows of the table."""
    tumor = [int(labels[batch.rows].sum()) for batch in batches]
    sizes = [len(batch.rows) for batch in batches]
    normal = kept = sum(sizes) - sum(tumor)
    if options.use_ohem:
        share = sum(tumor) / sum(sizes)
        kept = sum(
            kept_normals(size, count, ratio=options.ohem_ratio, tumor_share=share)
            for size, count in zip(sizes, tumor, strict=True)
        )
    weights = class_weights(kept, sum(tumor)) if options.use_class_weights else (1.0, 1.0)
    return Imbalance(normal, sum(tumor), kept, weights)


def class_weights(normal: int, tumor: int) -> tuple[float, float]:
    """Weights N / (2 N_c) of (normal, tumor): the mean weight of a patch is 1 (King and Zeng 2001).

    Args:
        normal, tumor: numbers of patches that are back-propagated, after mining and with copies.
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
        # expm1 gives 1 - p, since a subtraction would lose all digits near p = 1. The clamp keeps the
        # gradient finite at 1 - p = 0 if gamma < 1.
        losses = losses * (-torch.expm1(log_p)).clamp_min(1e-12) ** gamma
    return losses if weights is None else losses * weights[labels]


def kept_normals(count: int, tumor: int, *, ratio: float, tumor_share: float) -> int:
    """Number of normal patches that mining keeps of a batch: ``ceil(ratio * tumor)``.

    A batch without tumor patches keeps as many as an average batch, so that it is neither lost nor outweighs
    others.

    Args:
        count, tumor: patches of the batch, and how many of them are tumor patches.
        tumor_share: share of tumor patches in the epoch.
    """
    keep = math.ceil(ratio * (tumor or max(1.0, tumor_share * count)))
    return min(keep, count - tumor)


def hard_example_mask(losses: Tensor, labels: Tensor, keep: int) -> Tensor:
    """(n,) bool: all tumor patches, and the ``keep`` normal patches with the highest loss.

    Online hard example mining (Shrivastava et al. 2016) as used for imbalanced detection (Liu et al. 2016).
    """
    mask = labels == 1
    hardness = losses.detach().masked_fill(mask, -torch.inf)
    return mask.index_fill(0, hardness.topk(keep).indices, True)


def training_warnings(options: TrainingOptions, imbalance: Imbalance, split: Split) -> dict[str, str]:
    """Warnings about a finished training: code -> one sentence."""
    ratio, weight = imbalance.seen_normal / imbalance.seen_tumor, imbalance.weights[0]
    validation = [
        sum(row[c] for row in split.rows if row["side"] == "validation") for c in ("tumor", "normal")
    ]
    mining_acts = options.use_ohem and imbalance.mined >= LEAST_EFFECT
    warnings = {}
    if options.use_ohem and not mining_acts:
        warnings[f"hard_example_mining{IDLE}"] = (
            f"Hard example mining leaves out {imbalance.mined:.1%} of the normal patches: training sees "
            f"{ratio:.1f} for each tumor patch or copy, and mining keeps {options.ohem_ratio:g}. Raise "
            "normal_per_tumor, or lower aug_factor or ohem_ratio"
        )
    # Weights of 1 are right where mining has made the classes equal.
    if options.use_class_weights and not mining_acts and abs(weight - 1) < LEAST_EFFECT:
        warnings[f"class_weights{IDLE}"] = (
            "Class weights are 1: as many normal as tumor patches are back-propagated. Raise "
            "normal_per_tumor or ohem_ratio"
        )
    if options.use_focal_loss and options.focal_gamma == 0:
        warnings[f"focal_loss{IDLE}"] = "Focal loss with focal_gamma 0 is cross-entropy"
    if imbalance.tumor_share > 0.5:
        warnings["tumor_is_the_majority"] = (
            f"{imbalance.tumor_share:.0%} of the patches that training sees are tumor patches and their "
            "copies. Raise normal_per_tumor or lower aug_factor"
        )
    if min(validation) < FEW_VALIDATING:
        warnings["few_validation_patches"] = (
            f"There are only {validation[0]} tumor and {validation[1]} normal validation patches: the choice "
            "of the best epoch and of the threshold is unreliable. Add slides, or raise val_size"
        )
    if split.unit != "patient":
        warnings[f"split_by_{split.unit}"] = (
            f"Too few patients to split by patient, so {split.unit}s were split: validation looks better "
            "than it would on a new patient"
        )
    if split.shared:
        warnings["patients_in_test_and_training"] = (
            f"{len(split.shared)} patients have test and other slides ({', '.join(split.shared[:5])}): "
            "test results look better than they would on a new patient"
        )
    return warnings

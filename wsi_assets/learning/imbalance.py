"""How much each strategy against class imbalance acts on a training, and warnings where one cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsi_assets.learning.data import Draw, Split
from wsi_assets.learning.losses import class_weights, kept_normals
from wsi_assets.learning.options import TrainingOptions
from wsi_assets.learning.records import IDLE, TrainingWarning

LEAST_ACTING = 0.02
"""Share of normal patches left out below which mining changes nothing, and of a weight from 1."""
FEW_VALIDATING = 20
"""Patches of a class below which what is chosen on the validation part rests on little."""


@dataclass(frozen=True)
class Imbalance:
    """What the batches of an epoch hold: which patches are mined does not change how many are.

    Attributes:
        seen_normal, seen_tumor: patches with copies; kept_normal: of the normal ones after mining.
        weights: (normal, tumor) in the loss, from what is back-propagated; (1, 1) when switched off.
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


def measure_imbalance(batches: Sequence[Draw], labels: np.ndarray, options: TrainingOptions) -> Imbalance:
    """Count the batches of one epoch."""
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


def training_warnings(
    options: TrainingOptions, imbalance: Imbalance, split: Split, labels: np.ndarray
) -> tuple[TrainingWarning, ...]:
    """What the user of a finished training should know."""
    ratio = imbalance.seen_normal / imbalance.seen_tumor
    normal, tumor = np.bincount(labels[split.validation], minlength=2).tolist()
    mining_acts = options.use_ohem and imbalance.mined >= LEAST_ACTING
    possible = {
        f"hard_example_mining{IDLE}": (
            options.use_ohem and not mining_acts,
            f"Hard example mining leaves out {imbalance.mined:.1%} of the normal patches: training sees "
            f"{ratio:.1f} for each tumor patch and copy, and it keeps {options.ohem_ratio:g}. Raise "
            "normal_per_tumor, or lower aug_factor or ohem_ratio",
        ),
        # Weights of 1 are right where mining has made the classes equal.
        f"class_weights{IDLE}": (
            options.use_class_weights and not mining_acts and abs(imbalance.weights[0] - 1) < LEAST_ACTING,
            "Class weights are 1: as many normal as tumor patches are back-propagated. Raise "
            "normal_per_tumor or ohem_ratio",
        ),
        f"focal_loss{IDLE}": (
            options.use_focal_loss and options.focal_gamma == 0,
            "Focal loss with focal_gamma 0 is cross-entropy",
        ),
        "tumor_is_the_majority": (
            imbalance.tumor_share > 0.5,
            f"{imbalance.tumor_share:.0%} of the patches that training sees are tumor patches and their "
            "copies. Raise normal_per_tumor or lower aug_factor",
        ),
        "few_validation_patches": (
            min(normal, tumor) < FEW_VALIDATING,
            f"Only {tumor} tumor and {normal} normal patches validate: the best epoch and the threshold are "
            "chosen on little. Add slides, or raise val_size",
        ),
        f"split_by_{split.unit}": (
            split.unit != "patient",
            f"Too few patients to split by patient, so {split.unit}s were split: validation looks better "
            "than it would on a new patient",
        ),
        "patients_in_test_and_training": (
            bool(split.shared),
            f"{len(split.shared)} patients have test slides and others ({', '.join(split.shared[:5])}): the "
            "test looks better than it would on a new patient",
        ),
    }
    return tuple(TrainingWarning(code, text) for code, (holds, text) in possible.items() if holds)

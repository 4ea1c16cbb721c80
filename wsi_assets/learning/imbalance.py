"""How much each strategy against class imbalance acts on a training, and warnings where one cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsi_assets.learning.data import Draw, Split
from wsi_assets.learning.losses import class_weights, kept_normals
from wsi_assets.learning.options import TrainingOptions
from wsi_assets.learning.records import IDLE, TrainingWarning

LEAST_MINED = 0.02
"""Share of normal patches left out below which mining is said to change nothing."""
FEW_VALIDATING = 20
"""Patches of a class below which what is chosen on the validation part rests on little."""
FEW_STEPS = 200
"""A whole training of fewer steps has hardly begun."""


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
    total = sum(len(batch.rows) for batch in batches)
    normal = total - sum(tumor)
    kept = normal
    if options.use_ohem:
        kept = sum(
            kept_normals(len(batch.rows), count, ratio=options.ohem_ratio, tumor_share=sum(tumor) / total)
            for batch, count in zip(batches, tumor, strict=True)
        )
    weights = class_weights(kept, sum(tumor)) if options.use_class_weights else (1.0, 1.0)
    return Imbalance(normal, sum(tumor), kept, weights)


def idle_strategies(imbalance: Imbalance, options: TrainingOptions) -> list[TrainingWarning]:
    """Strategies that are switched on and cannot change this training."""
    found = []
    ratio = imbalance.seen_normal / imbalance.seen_tumor
    if options.use_ohem and imbalance.mined < LEAST_MINED:
        found.append(
            TrainingWarning(
                f"hard_example_mining{IDLE}",
                f"Hard example mining leaves out {imbalance.mined:.1%} of the normal patches: training sees "
                f"{ratio:.1f} for each tumor patch with its copies, and it keeps {options.ohem_ratio:g}. Raise "
                "normal_per_tumor, or lower aug_factor or ohem_ratio",
            )
        )
    if options.use_class_weights and abs(imbalance.weights[0] - 1) < LEAST_MINED:
        found.append(
            TrainingWarning(
                f"class_weights{IDLE}",
                "Class weights are 1: as many normal as tumor patches are back-propagated. Raise "
                "normal_per_tumor or ohem_ratio",
            )
        )
    if options.use_focal_loss and options.focal_gamma == 0:
        found.append(TrainingWarning(f"focal_loss{IDLE}", "Focal loss with focal_gamma 0 is cross-entropy"))
    if imbalance.tumor_share > 0.5:
        found.append(
            TrainingWarning(
                "tumor_is_the_majority",
                f"{imbalance.tumor_share:.0%} of the patches that training sees are copies of tumor patches. "
                "Raise normal_per_tumor or lower aug_factor",
            )
        )
    return found


def split_warnings(split: Split, labels: np.ndarray) -> list[TrainingWarning]:
    """What makes the choice of the best epoch and the threshold less certain."""
    found = []
    normal, tumor = np.bincount(labels[split.validation], minlength=2).tolist()
    if min(normal, tumor) < FEW_VALIDATING:
        found.append(
            TrainingWarning(
                "few_validation_patches",
                f"Only {tumor} tumor and {normal} normal patches validate: the best epoch and the threshold "
                "are chosen on little. Add slides, or raise val_size",
            )
        )
    if split.unit != "patient":
        found.append(
            TrainingWarning(
                f"split_by_{split.unit}",
                f"Too few patients to split by patient, so {split.unit}s were split: validation looks better "
                "than it would on a new patient",
            )
        )
    if split.shared:
        found.append(
            TrainingWarning(
                "patients_in_test_and_training",
                f"{len(split.shared)} patients have test slides and others ({', '.join(split.shared[:5])}): the "
                "test looks better than it would on a new patient",
            )
        )
    return found


def training_warnings(
    options: TrainingOptions, imbalance: Imbalance, split: Split, labels: np.ndarray, steps: int
) -> tuple[TrainingWarning, ...]:
    """All that the user of a finished training of ``steps`` steps should know."""
    found = [*idle_strategies(imbalance, options), *split_warnings(split, labels)]
    if steps < FEW_STEPS:
        found.append(
            TrainingWarning(
                "few_steps",
                f"The training had only {steps} steps: raise max_epochs, or lower batch_size",
            )
        )
    if options.weights == "none":
        found.append(
            TrainingWarning(
                "random_start", "Trained from random weights; weights=imagenet usually gives a better model"
            )
        )
    return tuple(found)

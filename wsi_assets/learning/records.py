"""The result of a training, and its record of each epoch."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_assets.files import publish_file
from wsi_assets.learning.data import Split

CSV_NAME = "epoch_losses.csv"
CSV_HEADER = ("epoch", "train_loss", "train_acc", "val_loss", "val_acc")


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Losses are the cross-entropy averaged over each class and then over the classes, so that trainings with
    any options can be compared. ``train_loss`` is measured during the epoch, on augmented patches;
    ``val_loss`` is that of unaugmented patches after a fit of temperature and shift (see
    ``validation.validation_loss``).

    Attributes:
        epoch: from 1.
        objective: mean of the loss that was back-propagated (class weights, focal loss, hard examples).
        lr: learning rate of the last step; that of the classifier, where pretrained layers have a lower one.
        images_per_second: training patches per second, without validation and writing files.
        waiting: share of the training time in which the model waited for patches, 0 to 1.
        seconds: duration of the epoch, with validation.
        is_best: the validation loss is the lowest so far.
        confusion: validation patches as (true normal, false tumor, false normal, true tumor), at 0.5.
    """

    epoch: int
    train_loss: float
    train_acc: float
    val_loss: float
    val_acc: float
    objective: float
    val_auc: float
    lr: float
    images_per_second: float
    waiting: float
    seconds: float
    is_best: bool
    confusion: tuple[int, int, int, int]


@dataclass(frozen=True)
class TrainingResult:
    """The result of a finished training.

    Attributes:
        best_path: ``checkpoints/best.pt``, the weights of the lowest validation loss.
        card: the content of ``best.json`` beside it.
        csv_path: ``epoch_losses.csv``.
        resumed_from: the epoch after which this run continued, or None.
        device: e.g. ``cpu`` or ``cuda:0``, as used.
        precision: ``float32`` or ``bfloat16``, as used.
        warnings: code, e.g. ``few_validation_patches``, -> one sentence.
    """

    best_path: Path
    card: dict[str, Any]
    csv_path: Path
    epochs: tuple[EpochRecord, ...]
    resumed_from: int | None
    split: Split
    device: str
    precision: str
    warnings: dict[str, str]

    @property
    def best(self) -> EpochRecord:
        """The epoch of ``best_path``."""
        return [record for record in self.epochs if record.is_best][-1]

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of patches: ``train_tumor`` and ``train_normal`` for training, ``seen_tumor`` and
        ``seen_normal`` in an epoch with copies, ``kept_normal`` in an epoch after mining, ``val_tumor`` and
        ``val_normal`` for validation."""
        return self.card["counts"]

    @property
    def majority_share(self) -> float:
        """Validation accuracy of always predicting the larger class."""
        parts = self.counts["val_normal"], self.counts["val_tumor"]
        return max(parts) / sum(parts)

    @property
    def better_than_majority(self) -> bool:
        """Whether, in the best epoch, the AUC is above 0.5 and Youden's index (at threshold 0.5) above 0."""
        true_normal, false_tumor, false_normal, true_tumor = self.best.confusion
        sensitivity = true_tumor / (true_tumor + false_normal)
        specificity = true_normal / (true_normal + false_tumor)
        return self.best.val_auc > 0.5 and sensitivity + specificity > 1


def write_csv(path: Path, epochs: Iterable[EpochRecord]) -> None:
    """Write ``epoch_losses.csv`` atomically, with six decimals of losses and accuracies."""
    with publish_file(path) as staged, staged.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(CSV_HEADER)
        for record in epochs:
            writer.writerow([record.epoch, *(f"{getattr(record, name):.6f}" for name in CSV_HEADER[1:])])

"""What a training returns: a record for each epoch, warnings, and the result. Plain values."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wsi_assets.files import publish_file
from wsi_assets.learning.data import Split

CSV_NAME = "epoch_losses.csv"
CSV_HEADER = ("epoch", "train_loss", "train_acc", "val_loss", "val_acc")
IDLE = "_cannot_act"
"""End of the codes of warnings that a strategy against imbalance changes nothing."""


@dataclass(frozen=True)
class TrainingWarning:
    """Something about a training that its user should know.

    Attributes:
        code: e.g. ``hard_example_mining_cannot_act``, ``few_validation_patches``, ``split_by_slide``.
        message: one sentence with figures and the remedy.
    """

    code: str
    message: str


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Losses are cross-entropy averaged over each class and then over the classes, so they do not depend on
    what a training optimizes and compare between trainings of any options. ``train_loss`` is gathered while
    the model learns, on the patches as augmented; ``val_loss`` is of the patches as they are and of the
    averaged weights, after the best temperature and shift (``scores.validation_loss``).

    Attributes:
        epoch: from 1.
        objective: mean of what was back-propagated (class weights, focal loss, hard examples).
        val_auc: area under the ROC curve; None if the validation patches are of one class.
        lr: learning rate of the last step (of the classifier, where the body has a lower one).
        phase: ``warm-up``, ``constant`` or ``cool-down``, at its last step.
        images_per_second: training patches a second, validation and writing not counted.
        waiting: share of the training time in which the model waited for patches, 0 to 1.
        seconds: the whole epoch with validation.
        is_best: the validation loss is the lowest so far.
        confusion: validation patches as (true normal, false tumor, false normal, true tumor), where a patch
            is predicted tumor from 0.5 on.
    """

    epoch: int
    train_loss: float
    train_acc: float
    val_loss: float
    val_acc: float
    objective: float
    val_auc: float | None
    lr: float
    phase: str
    images_per_second: float
    waiting: float
    seconds: float
    is_best: bool
    confusion: tuple[int, int, int, int]

    def to_plain(self) -> dict[str, Any]:
        return {**asdict(self), "confusion": list(self.confusion)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> EpochRecord:
        return cls(**{**plain, "confusion": tuple(plain["confusion"])})


@dataclass(frozen=True)
class TrainingResult:
    """What a finished training left behind.

    Attributes:
        best_path: ``checkpoints/best.pt``, the weights of the lowest validation loss.
        card: what ``best.json`` beside it says.
        csv_path: ``epoch_losses.csv``.
        checkpoints: ``ckpt_epoch_N.pt``, by epoch.
        best_epoch: the epoch of ``best_path``, from 1.
        stopped_early: the training ended before ``max_epochs``.
        resumed_from: the epoch after which this run continued, or None.
        seconds: of all epochs.
        counts: patches as ``train_tumor``, ``train_normal`` (distinct), ``seen_tumor``, ``seen_normal`` (an
            epoch, with copies), ``kept_normal`` (of those, after mining), ``val_tumor``, ``val_normal``.
        class_weights: (normal, tumor); (1, 1) when switched off.
        majority_share: accuracy on the validation part of always answering its larger class.
        better_than_majority: at the best epoch the AUC is above 0.5 and Youden's index at 0.5 above 0.
        device: e.g. ``cpu`` or ``cuda:0``; precision: ``float32`` or ``bfloat16``, as used.
    """

    best_path: Path
    card: dict[str, Any]
    csv_path: Path
    checkpoints: tuple[Path, ...]
    epochs: tuple[EpochRecord, ...]
    best_epoch: int
    stopped_early: bool
    resumed_from: int | None
    seconds: float
    split: Split
    counts: dict[str, int]
    class_weights: tuple[float, float]
    majority_share: float
    better_than_majority: bool
    data_digest: str
    run_digest: str
    device: str
    precision: str
    warnings: tuple[TrainingWarning, ...]

    @property
    def best(self) -> EpochRecord:
        return self.epochs[self.best_epoch - 1]

    @property
    def idle_strategies(self) -> tuple[TrainingWarning, ...]:
        """Warnings of strategies against imbalance that are switched on and change nothing."""
        return tuple(warning for warning in self.warnings if warning.code.endswith(IDLE))


def write_csv(path: Path, epochs: Iterable[EpochRecord]) -> None:
    """Publish ``epoch_losses.csv``; losses and accuracies with six decimals."""
    with publish_file(path) as staged, staged.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(CSV_HEADER)
        for record in epochs:
            writer.writerow([record.epoch, *(f"{getattr(record, name):.6f}" for name in CSV_HEADER[1:])])

"""What a training tells: one record an epoch, one result at the end. Plain values, no torch."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wsi_assets.files import publish_file
from wsi_assets.learning.split import Split

CSV_HEADER = ("epoch", "train_loss", "train_acc", "val_loss", "val_acc")


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Both losses are the mean over patches of the same function (class weights and focal term as switched on),
    before hard example mining takes its choice, so they mean the same from epoch to epoch and can be compared
    with each other. The training values are gathered during the epoch, with augmentation, while the model
    learns; the validation values come after it, on the patches as they are. In the validation loss a tumour
    patch counts as often as training sees one (``aug_factor`` times), so that both losses are of the same mix
    of classes; accuracies count each patch once, in training each copy.

    Attributes:
        epoch: from 1.
        val_auc: area under the ROC curve of the validation patches; None if they are of one class.
        val_threshold: the tumour probability that separates the validation patches best (Youden's index, see
            ``scores``); None if no threshold does.
        lr: learning rate of the last step.
        images_per_second: training patches a second, validation and writing not counted.
        waiting: share of the training time in which the model waited for patches, 0 to 1.
        seconds: the whole epoch with validation.
        is_best: the validation loss is the lowest so far.
        confusion: validation patches as (true normal, false tumor, false normal, true tumor), where a patch
            is called tumour from 0.5 on.
    """

    epoch: int
    train_loss: float
    train_acc: float
    val_loss: float
    val_acc: float
    val_auc: float | None
    val_threshold: float | None
    lr: float
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
        csv_path: ``epoch_losses.csv``.
        checkpoints: periodic checkpoints, by epoch.
        best_epoch: the epoch of ``best_path``, from 1.
        stopped_early: patience ran out before ``max_epochs``.
        resumed_from: the epoch of the checkpoint this run continued, or None.
        counts: patches as ``train_tumor``, ``train_normal`` (distinct), ``seen_tumor``, ``seen_normal`` (an
            epoch, after repetition), ``val_tumor``, ``val_normal``.
        class_weights: (normal, tumor); (1, 1) when switched off.
        majority_share: accuracy on the validation part of always answering its larger class.
        better_than_majority: at the best epoch accuracy is above ``majority_share`` and AUC above 0.5.
        data_digest: content digest of the store.
        run_digest: digest of data, split and every option that changes the outcome.
        device: e.g. ``cpu`` or ``cuda:0``; precision: ``float32`` or ``bfloat16``, as used.
    """

    best_path: Path
    csv_path: Path
    checkpoints: tuple[Path, ...]
    epochs: tuple[EpochRecord, ...]
    best_epoch: int
    stopped_early: bool
    resumed_from: int | None
    split: Split
    counts: dict[str, int]
    class_weights: tuple[float, float]
    majority_share: float
    better_than_majority: bool
    data_digest: str
    run_digest: str
    device: str
    precision: str
    notes: tuple[str, ...]

    @property
    def best(self) -> EpochRecord:
        return self.epochs[self.best_epoch - 1]


def write_csv(path: Path, epochs: Iterable[EpochRecord]) -> None:
    """Publish ``epoch_losses.csv``; losses and accuracies with six decimals."""
    with publish_file(path) as aside, aside.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(CSV_HEADER)
        for record in epochs:
            writer.writerow([record.epoch, *(f"{getattr(record, name):.6f}" for name in CSV_HEADER[1:])])

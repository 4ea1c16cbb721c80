"""What is shown of a training: lines for the log, pictures and metadata for Dagster, facts for the record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wsi_assets.orchestration.metadata import picture, rounded, table

if TYPE_CHECKING:
    from wsi_assets.learning import EpochRecord, TrainingOptions, TrainingResult
    from wsi_assets.patches import PatchStore


def epoch_line(record: EpochRecord, of: int) -> str:
    """One epoch for the log."""
    return (
        f"epoch {record.epoch} of at most {of}: loss {record.train_loss:.4f} / {record.val_loss:.4f}, "
        f"accuracy {record.train_acc:.3f} / {record.val_acc:.3f} (training / validation), "
        f"{record.images_per_second:.0f} images/s{', the best so far' if record.is_best else ''}"
    )


def epoch_metrics(record: EpochRecord) -> dict[str, float]:
    """The numbers of one epoch that could be computed, by name."""
    return {
        name: float(value)
        for name, value in vars(record).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "epoch"
    }


def training_pictures(
    result: TrainingResult, store: PatchStore, options: TrainingOptions
) -> dict[str, bytes]:
    """Name -> PNG file; no augmentation where it is switched off."""
    from wsi_assets.learning import augmentation_mosaic_png, confusion_png, curves_png

    pictures = {"curves": curves_png(result.epochs), "confusion": confusion_png(result.best.confusion)}
    if options.use_augmentation:
        pictures["augmentation"] = augmentation_mosaic_png(store, seed=options.seed)
    return pictures


def training_facts(result: TrainingResult) -> dict[str, Any]:
    """Small plain figures of a training: what the checks and the report read."""
    from wsi_assets.learning.imbalance import IDLE

    best = result.best
    return {
        "epochs": len(result.epochs),
        "best_epoch": best.epoch,
        "val_loss": float(f"{best.val_loss:.6g}"),
        "val_acc": float(f"{best.val_acc:.6g}"),
        "val_auc": best.val_auc,
        "majority_share": result.majority_share,
        "better_than_majority": result.better_than_majority,
        "stopped_early": len(result.epochs) < result.card["parameters"]["max_epochs"],
        "counts": dict(result.counts),
        "warnings": result.warnings,
        "idle_strategies": [text for code, text in result.warnings.items() if code.endswith(IDLE)],
        "device": f"{result.device}, {result.precision}",
    }


def training_metadata(result: TrainingResult, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    """What only Dagster shows beside the trained model."""
    metrics = {name: rounded(value) for name, value in epoch_metrics(result.best).items()}
    metrics["seconds"] = rounded(sum(record.seconds for record in result.epochs))
    rows = [{"epoch": record.epoch, **epoch_metrics(record)} for record in result.epochs]
    return {
        **metrics,
        **{name: picture(image, name) for name, image in pictures.items()},
        "resumed_from": result.resumed_from or "the start",
        "epoch_table": table(rows),
        "split": table(result.split.rows),
        "split_unit": result.split.unit,
    }

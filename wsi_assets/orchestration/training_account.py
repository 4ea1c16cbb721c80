"""What is told of a training: notes for MLflow, pictures and metadata for Dagster.

Only puts together what the training returned; nothing is computed, and nothing is delivered, here.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from typing import TYPE_CHECKING, Any

import dagster as dg

from wsi_assets.orchestration import mlflow_notes as notes
from wsi_assets.orchestration.mlflow_notes import Note
from wsi_assets.orchestration.reporting import picture, rounded, table

if TYPE_CHECKING:
    from wsi_assets.learning import EpochRecord, TrainingOptions, TrainingResult
    from wsi_assets.orchestration.resources.tracking import TrackedRun
    from wsi_assets.patches import PatchStore

PICTURES = {
    "curves": "losses by epoch",
    "confusion": "validation patches at the best epoch, called tumor from 0.5 on",
    "augmentation": "patches as stored and as training sees them",
}
"""Name of a picture -> what it shows."""


def epoch_line(record: EpochRecord, of: int) -> str:
    """One epoch for the log."""
    return (
        f"epoch {record.epoch} of at most {of}: loss {record.train_loss:.4f} / {record.val_loss:.4f}, "
        f"accuracy {record.train_acc:.3f} / {record.val_acc:.3f} (training / validation), "
        f"{record.images_per_second:.0f} images/s{', the best so far' if record.is_best else ''}"
    )


def epoch_figures(record: EpochRecord) -> dict[str, float | None]:
    """The numbers of one epoch, by name."""
    left_out = ("epoch", "is_best", "confusion", "phase")
    return {name: value for name, value in record.to_plain().items() if name not in left_out}


def epoch_note(record: EpochRecord) -> Note:
    return notes.metrics(epoch_figures(record), step=record.epoch)


def beginning(level: str, options: TrainingOptions, store: PatchStore) -> list[Note]:
    """What is known before the first epoch: parameters, the data, the environment."""
    info = store.info
    labels = [int(label) for label in store.labels]
    counts = {"patches": len(labels), "tumor": sum(labels), "normal": len(labels) - sum(labels)}
    data = {"level": int(level), "patch_size": info["patch_size"], "slides": len(info["slides"])}
    return [
        notes.parameters({**options.model_dump(mode="json"), **data}),
        notes.tags({"dataset_digest": info["digest"]}),
        notes.dataset(
            f"patches of level {level}",
            str(info["digest"]),
            {"store": str(store.path)},
            {**counts, "slides": [slide["slide_id"] for slide in info["slides"]]},
        ),
        notes.file(_json(_environment()), "environment.json", "environment"),
        notes.file(_frozen_requirements().encode(), "requirements.txt", "environment"),
    ]


def outcome(
    level: str, store: PatchStore, result: TrainingResult, pictures: Mapping[str, bytes], told: set[int]
) -> list[Note]:
    """What is known after the last epoch: figures, files, pictures and the model.

    Args:
        told: epochs already told while they happened; a resumed training has earlier ones.
    """
    best = result.best
    of_best = {name: value for name, value in epoch_figures(best).items() if name.startswith("val_")}
    known = {name: f"{value:.4f}" for name, value in of_best.items() if value is not None}
    tags = {"dataset_digest": result.data_digest, "epoch": best.epoch, **known}
    split = result.split
    return [
        *(epoch_note(record) for record in result.epochs if record.epoch not in told),
        notes.parameters(
            {
                **{f"patches_{name}": count for name, count in result.counts.items()},
                "class_weights": ", ".join(f"{weight:.4f}" for weight in result.class_weights),
                "split_unit": split.unit,
                "best_epoch": result.best_epoch,
                "majority_share": f"{result.majority_share:.4f}",
                "device_used": result.device,
                "precision_used": result.precision,
            }
        ),
        # To compare runs by: of a curve MLflow's tables show the last value, not the best epoch's.
        notes.metrics({f"{name}_best": value for name, value in of_best.items()}),
        notes.tags({"stopped_early": result.stopped_early, notes.DESCRIPTION_TAG: _description(result)}),
        notes.file(_json(result.card["split"]), "split.json", "split"),
        notes.file(_csv(split.rows), "split.csv", "split"),
        *(notes.file(image, f"{name}.png", "pictures") for name, image in pictures.items()),
        notes.file(result.csv_path, result.csv_path.name),
        notes.file(result.best_path, result.best_path.name),
        notes.file(result.best_path.with_suffix(".json"), "best.json"),
        notes.model(result.best_path, f"wsi-level-{level}", store.info["patch_size"], tags),
    ]


def training_pictures(
    result: TrainingResult, store: PatchStore, options: TrainingOptions
) -> dict[str, bytes]:
    """PNG files by the names of ``PICTURES``; no augmentation where it is switched off."""
    from wsi_assets.learning import augmentation_mosaic_png, confusion_png, curves_png

    pictures = {"curves": curves_png(result.epochs), "confusion": confusion_png(result.best.confusion)}
    if options.use_augmentation:
        pictures["augmentation"] = augmentation_mosaic_png(store, seed=options.seed)
    return pictures


def training_metadata(
    result: TrainingResult, pictures: Mapping[str, bytes], run: TrackedRun
) -> dict[str, Any]:
    """What Dagster shows beside the trained model."""
    of_best = epoch_figures(result.best).items()
    figures = {name: rounded(value) for name, value in of_best if value is not None}
    rows = [{"epoch": record.epoch, **epoch_figures(record)} for record in result.epochs]
    metadata = {
        **{name: picture(image, PICTURES[name]) for name, image in pictures.items()},
        "epochs": len(result.epochs),
        "best_epoch": result.best_epoch,
        **figures,
        "majority_share": rounded(result.majority_share),
        "better_than_majority": result.better_than_majority,
        "stopped_early": result.stopped_early,
        "resumed_from": result.resumed_from or "the start",
        "epoch_table": table(rows),
        "seconds": rounded(result.seconds),
        "split": table(result.split.rows),
        "split_unit": result.split.unit,
        "counts": result.counts,
        "warnings": [warning.message for warning in result.warnings],
        "idle_strategies": [warning.code for warning in result.idle_strategies],
        "device": f"{result.device}, {result.precision}",
        "mlflow_key": run.key,
    }
    if run.url:
        metadata |= {"mlflow_run": dg.MetadataValue.url(run.url), "mlflow_run_id": run.run_id}
    if run.owes:
        metadata["mlflow_pending"] = dg.MetadataValue.path(str(run.pending))
    return metadata


def _environment() -> dict[str, Any]:
    """Where this runs; packages are in ``requirements.txt``."""
    import torch

    from wsi_assets import __version__

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "wsi_assets": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if gpus else None,
        "cudnn": torch.backends.cudnn.version() if gpus else None,
        "gpus": gpus,
    }


def _frozen_requirements() -> str:
    """Every installed package with its version, as pip reads it."""
    installed = {(found.metadata["Name"] or "", found.version) for found in distributions()}
    return "".join(f"{name}=={version}\n" for name, version in sorted(installed) if name)


def _description(result: TrainingResult) -> str:
    """Markdown for the head of the run's page."""
    return "\n".join(f"- {warning.message}" for warning in result.warnings)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()

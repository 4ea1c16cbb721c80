"""The detector: training on the patch store, and prediction of the test slides."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from wsi_assets.learning.options import PredictionOptions, TrainingOptions
from wsi_assets.orchestration.artefact import Artefact
from wsi_assets.orchestration.assets.index import SAMPLED_INDEX
from wsi_assets.orchestration.assets.patches import PATCH_STORE
from wsi_assets.orchestration.config import launchpad_config
from wsi_assets.orchestration.making import Making
from wsi_assets.orchestration.metadata import picture, progress_to, rounded, table, user_errors_as_failures
from wsi_assets.orchestration.mlflow import MlflowResource, log_outcome
from wsi_assets.orchestration.storage import StorageResource

if TYPE_CHECKING:
    from wsi_assets.learning import EpochRecord, TrainingResult
    from wsi_assets.patches import PatchStore

POOL = "gpu"
"""Pool of training and prediction, which need the accelerator for themselves."""

TRAINED_MODEL = Artefact(
    name="trained_model",
    code_version="5",
    path="{level}/checkpoints",
    options=TrainingOptions,
    inputs=(SAMPLED_INDEX, PATCH_STORE),
    main_file="best.pt",
    without_effect=frozenset({"num_workers", "device"}),
    may_name_a_file=frozenset({"weights"}),
    reproducible=False,
    shown=("epochs", "best_epoch", "val_loss", "val_acc", "val_auc"),
)

TEST_PREDICTIONS = Artefact(
    name="test_predictions",
    code_version="2",
    path="{level}/slide_index_test.pkl",
    options=PredictionOptions,
    inputs=(SAMPLED_INDEX, PATCH_STORE, TRAINED_MODEL),
    without_effect=frozenset({"num_workers", "device", "prediction_batch_size"}),
    shown=("slides", "patches", "predicted_tumor"),
)

TrainedModelConfig = launchpad_config(TRAINED_MODEL)
TestPredictionsConfig = launchpad_config(TEST_PREDICTIONS)


@dg.asset(
    **TRAINED_MODEL.asset_arguments(io_manager_key="model_io"),
    kinds={"pytorch", "mlflow"},
    pool=POOL,
    description="A patch classifier (tumor or normal), trained with strategies against class imbalance: "
    "`checkpoints/best.pt`, `best.json`, `epoch_losses.csv`, and an MLflow run. Resumes after an "
    "interruption; at most a minute of training is lost.",
)
def trained_model(
    context: dg.AssetExecutionContext,
    config: TrainedModelConfig,
    storage: StorageResource,
    mlflow: MlflowResource,
    sampled_index: dict[str, Any],
    patch_store: Any,
) -> dg.MaterializeResult:
    from wsi_assets.learning import train

    level, warn = context.partition_key, context.log.warning
    with user_errors_as_failures(), patch_store:
        making = Making(context, storage, TRAINED_MODEL, config)
        tags = {"dagster_run_id": context.run.run_id}
        folder = storage.level_folder(level) / "training_in_progress"
        with mlflow.training_run(level, making.parameters, tags, warn) as run:

            def on_epoch(record: "EpochRecord") -> None:
                context.log.info(_epoch_line(record, making.options.max_epochs))
                run.metrics(_epoch_metrics(record), step=record.epoch)

            result = train(
                patch_store,
                sampled_index,
                making.options,
                folder,
                progress=progress_to(context.log),
                on_epoch=on_epoch,
            )
            for record in result.epochs[: result.resumed_from or 0]:
                run.metrics(_epoch_metrics(record), step=record.epoch)
            pictures = _training_pictures(result, patch_store, making.options)
            log_outcome(run, folder, result.card, pictures)
    for warning in result.warnings.values():
        context.log.warning(warning)
    return making.result(
        folder,
        facts=_training_facts(result),
        metadata={
            **_shown_of_training(result, pictures),
            **({"mlflow_run": dg.MetadataValue.url(run.url)} if run.url else {}),
        },
        content=_digest_of_weights(result.best_path),
    )


@dg.asset(
    **TEST_PREDICTIONS.asset_arguments(),
    kinds={"pytorch", "pickle"},
    pool=POOL,
    description="Tumor probability of every patch of every test slide: `slide_index_test.pkl`, the index "
    "entries with `probs` and `preds`.",
)
def test_predictions(
    context: dg.AssetExecutionContext,
    config: TestPredictionsConfig,
    storage: StorageResource,
    sampled_index: dict[str, Any],
    patch_store: Any,
    trained_model: Path,
) -> dg.MaterializeResult:
    from wsi_assets.learning import predict

    with user_errors_as_failures(), patch_store:
        making = Making(context, storage, TEST_PREDICTIONS, config)
        predictions = predict(
            patch_store, sampled_index, trained_model, making.options, progress=progress_to(context.log)
        )
    predicted = [prediction for entry in predictions.values() for prediction in entry["preds"]]
    return making.result(
        predictions,
        facts={
            "slides": len(predictions),
            "patches": len(predicted),
            "predicted_tumor": sum(prediction == 1 for prediction in predicted),
            "not_predicted": sum(prediction == -1 for prediction in predicted),
        },
    )


def _digest_of_weights(path: Path) -> str:
    """Digest of names and values, because the bytes of the file also depend on its original file name."""
    import hashlib

    import torch

    total = hashlib.sha256()
    for name, tensor in torch.load(path, map_location="cpu", weights_only=True).items():
        total.update(name.encode())
        total.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _epoch_line(record: "EpochRecord", most: int) -> str:
    """Line for the log about an epoch, of at most ``most`` epochs."""
    return (
        f"epoch {record.epoch} of at most {most}: loss {record.train_loss:.4f} / {record.val_loss:.4f}, "
        f"accuracy {record.train_acc:.3f} / {record.val_acc:.3f} (training / validation), "
        f"{record.images_per_second:.0f} images/s{', the best so far' if record.is_best else ''}"
    )


def _epoch_metrics(record: "EpochRecord") -> dict[str, float]:
    """Name -> value of the metrics of one epoch, without those that could not be computed."""
    return {
        name: float(value)
        for name, value in vars(record).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "epoch"
    }


def _training_pictures(
    result: "TrainingResult", store: "PatchStore", options: TrainingOptions
) -> dict[str, bytes]:
    """Name -> bytes of a PNG file; ``augmentation`` only if it is switched on."""
    from wsi_assets.learning import augmentation_mosaic_png, confusion_png, curves_png

    pictures = {"curves": curves_png(result.epochs), "confusion": confusion_png(result.best.confusion)}
    if options.use_augmentation:
        pictures["augmentation"] = augmentation_mosaic_png(store, seed=options.seed)
    return pictures


def _training_facts(result: "TrainingResult") -> dict[str, Any]:
    """Facts of a training for the record, which checks and the report read."""
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


def _shown_of_training(result: "TrainingResult", pictures: Mapping[str, bytes]) -> dict[str, Any]:
    """Metadata of the trained model for the UI."""
    metrics = {name: rounded(value) for name, value in _epoch_metrics(result.best).items()}
    metrics["seconds"] = rounded(sum(record.seconds for record in result.epochs))
    rows = [{"epoch": record.epoch, **_epoch_metrics(record)} for record in result.epochs]
    return {
        **metrics,
        **{name: picture(image, name) for name, image in pictures.items()},
        "resumed_from": result.resumed_from or "the start",
        "epoch_table": table(rows),
        "split": table(result.split.rows),
        "split_unit": result.split.unit,
    }

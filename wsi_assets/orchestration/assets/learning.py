"""The detector: trained on the patch store, applied to the test slides."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from wsi_assets.orchestration import catalog
from wsi_assets.orchestration.config import PredictionConfig, TrainingConfig, parameters
from wsi_assets.orchestration.lineage import CODE_VERSIONS, made, recorded_version
from wsi_assets.orchestration.partitions import LEVELS
from wsi_assets.orchestration.reporting import clear_failures, picture, progress_to, table
from wsi_assets.orchestration.resources.storage import Storage
from wsi_assets.orchestration.resources.tracking import ModelTracking, TrackedRun

if TYPE_CHECKING:
    from wsi_assets.learning import EpochRecord, TrainingResult


@dg.asset(
    partitions_def=LEVELS,
    group_name=catalog.GROUP_LEARNING,
    io_manager_key="model_io",
    kinds={"pytorch", "mlflow"},
    owners=catalog.OWNERS,
    pool=catalog.POOL_GPU,
    code_version=CODE_VERSIONS["trained_model"],
    description="A tumour classifier trained against class imbalance: `checkpoints/best.pt`, "
    "`epoch_losses.csv`, and an MLflow run. Cut off, it resumes from its last checkpoint.",
)
def trained_model(
    context: dg.AssetExecutionContext,
    config: TrainingConfig,
    storage: Storage,
    tracking: ModelTracking,
    sampled_index: list[dict[str, Any]],
    patch_store: Any,
) -> dg.MaterializeResult:
    from wsi_assets.learning import train

    level = context.partition_key
    tags = {"level": level, "dagster_run_id": context.run_id}
    with (
        clear_failures(),
        tracking.open_run(f"level_{level}", tags, context.log.warning) as mlflow_run,
    ):
        mlflow_run.log_parameters(parameters(config))

        def on_epoch(record: "EpochRecord") -> None:
            context.log.info(_epoch_line(record, config.max_epochs))
            mlflow_run.log_metrics(_figures(record), step=record.epoch)

        result = train(
            patch_store,
            config,
            storage.layout.training_folder(level),
            patient_pattern=sampled_index[0]["config"]["patient_pattern"],
            progress=progress_to(context.log),
            on_epoch=on_epoch,
        )
        _log_files(mlflow_run, result)
    return made(
        "trained_model",
        result,
        config=config,
        made_from=recorded_version(context.instance, "patch_store", level),
        metadata=_training_metadata(result, mlflow_run),
    )


@dg.asset(
    partitions_def=LEVELS,
    group_name=catalog.GROUP_LEARNING,
    io_manager_key="pickle_io",
    kinds={"pytorch", "pickle"},
    owners=catalog.OWNERS,
    pool=catalog.POOL_GPU,
    code_version=CODE_VERSIONS["test_predictions"],
    description="Tumour probability of every patch of every test slide: `slide_index_test.pkl`, the index "
    "entries with `probs` and `preds`.",
)
def test_predictions(
    context: dg.AssetExecutionContext,
    config: PredictionConfig,
    sampled_index: list[dict[str, Any]],
    patch_store: Any,
    trained_model: Path,
) -> dg.MaterializeResult:
    from wsi_assets.learning import predict

    with clear_failures():
        predictions = predict(
            patch_store, sampled_index, trained_model, config, progress=progress_to(context.log)
        )
    predicted = [prediction for entry in predictions for prediction in entry["preds"]]
    return made(
        "test_predictions",
        predictions,
        config=config,
        made_from=recorded_version(context.instance, "trained_model", context.partition_key),
        metadata={
            "slides": len(predictions),
            "patches": len(predicted),
            "predicted_tumor": sum(prediction == 1 for prediction in predicted),
            "not_predicted": sum(prediction == -1 for prediction in predicted),
        },
    )


def _epoch_line(record: "EpochRecord", of: int) -> str:
    return (
        f"epoch {record.epoch} of at most {of}: loss {record.train_loss:.4f} / {record.val_loss:.4f}, "
        f"accuracy {record.train_acc:.3f} / {record.val_acc:.3f} (training / validation), "
        f"{record.images_per_second:.0f} images/s{', the best so far' if record.is_best else ''}"
    )


def _figures(record: "EpochRecord") -> dict[str, float | None]:
    return {
        name: value
        for name, value in record.to_plain().items()
        if name not in ("epoch", "is_best", "confusion")
    }


def _log_files(mlflow_run: TrackedRun, result: "TrainingResult") -> None:
    for file in (result.best_path, result.csv_path, *result.checkpoints):
        mlflow_run.log_file(file)


def _training_metadata(result: "TrainingResult", mlflow_run: TrackedRun) -> dict[str, Any]:
    from wsi_assets.learning import curves_png

    metadata = {
        "epochs": len(result.epochs),
        "best_epoch": result.best_epoch,
        **{name: value for name, value in _figures(result.best).items() if value is not None},
        "majority_share": result.majority_share,
        "better_than_majority": result.better_than_majority,
        "stopped_early": result.stopped_early,
        "resumed_from": result.resumed_from or "the start",
        "curves": picture(curves_png(result.epochs), "losses by epoch"),
        "epoch_table": table([{"epoch": record.epoch, **_figures(record)} for record in result.epochs]),
        "split": table(result.split.rows),
        "split_unit": result.split.unit,
        "counts": result.counts,
        "notes": list(result.notes),
        "device": f"{result.device}, {result.precision}",
        "mlflow_run_id": mlflow_run.run_id or "none: MLflow could not be reached",
    }
    if mlflow_run.url:
        metadata["mlflow_run"] = dg.MetadataValue.url(mlflow_run.url)
    return metadata

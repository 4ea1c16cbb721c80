"""The detector: trained on the patch store, applied to the test slides."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from wsi_assets.orchestration import catalog
from wsi_assets.orchestration.config import PredictionConfig, TrainingConfig
from wsi_assets.orchestration.lineage import CODE_VERSIONS, made, recorded_metadata, recorded_version
from wsi_assets.orchestration.mlflow_notes import metrics
from wsi_assets.orchestration.partitions import LEVELS
from wsi_assets.orchestration.reporting import clear_failures, progress_to
from wsi_assets.orchestration.resources.storage import Storage
from wsi_assets.orchestration.resources.tracking import ModelTracking
from wsi_assets.orchestration.training_account import (
    beginning,
    epoch_line,
    epoch_note,
    outcome,
    training_metadata,
    training_pictures,
)

if TYPE_CHECKING:
    from wsi_assets.learning import EpochRecord


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
    sampled_index: dict[str, Any],
    patch_store: Any,
) -> dg.MaterializeResult:
    from wsi_assets.learning import train

    level, told = context.partition_key, set()
    upstream = recorded_version(context.instance, "patch_store", level)
    with (
        clear_failures(),
        patch_store,  # closed in the end: open, it keeps its room on the disk when another store follows
        tracking.open_run(level, {"dagster_run_id": context.run.run_id}, context.log.warning) as mlflow_run,
    ):
        mlflow_run.tell(*beginning(level, config, patch_store))

        def on_epoch(record: "EpochRecord") -> None:
            context.log.info(epoch_line(record, config.max_epochs))
            mlflow_run.tell(epoch_note(record))
            told.add(record.epoch)

        result = train(
            patch_store,
            sampled_index,
            config,
            storage.layout.training_folder(level),
            progress=progress_to(context.log),
            on_epoch=on_epoch,
        )
        pictures = training_pictures(result, patch_store, config)
        mlflow_run.tell(*outcome(level, patch_store, result, pictures, told))
    return made(
        "trained_model",
        result,
        config=config,
        made_from=upstream,
        metadata=training_metadata(result, pictures, mlflow_run),
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
    tracking: ModelTracking,
    sampled_index: dict[str, Any],
    patch_store: Any,
    trained_model: Path,
) -> dg.MaterializeResult:
    from wsi_assets.learning import load_model, predict

    level = context.partition_key
    upstream = recorded_version(context.instance, "trained_model", level)
    with clear_failures(), patch_store:
        model = load_model(trained_model)
        threshold = model.threshold and model.threshold["threshold"]
        predictions = predict(patch_store, sampled_index, model, config, progress=progress_to(context.log))
    predicted = [prediction for entry in predictions.values() for prediction in entry["preds"]]
    counts = {
        "slides": len(predictions),
        "patches": len(predicted),
        "predicted_tumor": sum(prediction == 1 for prediction in predicted),
        "not_predicted": sum(prediction == -1 for prediction in predicted),
    }
    mlflow_key = recorded_metadata(context.instance, "trained_model", level).get("mlflow_key")
    with tracking.resume_run(level, mlflow_key, context.log.warning) as mlflow_run:
        mlflow_run.tell(metrics({f"test_{name}": count for name, count in counts.items()}))
    return made(
        "test_predictions",
        predictions,
        config=config,
        made_from=upstream,
        # What belongs to these predictions, whichever model is trained after them.
        metadata={**counts, "validation_threshold": threshold, "mlflow_key": mlflow_key},
    )

"""The detector: trained on the patch store, applied to the test slides."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from wsi_assets.learning.options import PredictionOptions, TrainingOptions
from wsi_assets.orchestration.artefact import Artefact
from wsi_assets.orchestration.assets.index import SAMPLED_INDEX
from wsi_assets.orchestration.assets.patches import PATCH_STORE
from wsi_assets.orchestration.config import launchpad_config
from wsi_assets.orchestration.making import Making
from wsi_assets.orchestration.metadata import progress_to, user_errors_as_failures
from wsi_assets.orchestration.mlflow import MlflowResource, log_outcome
from wsi_assets.orchestration.storage import StorageResource
from wsi_assets.orchestration.training_metadata import (
    epoch_line,
    epoch_metrics,
    training_facts,
    training_metadata,
    training_pictures,
)

if TYPE_CHECKING:
    from wsi_assets.learning import EpochRecord

POOL = "gpu"
"""Training and prediction own the accelerator."""

TRAINED_MODEL = Artefact(
    name="trained_model",
    code_version="2",
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
    description="A tumor classifier trained against class imbalance: `checkpoints/best.pt`, `best.json`, "
    "`epoch_losses.csv`, and an MLflow run. Cut off, it goes on from what it saved, a minute before at most.",
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
                context.log.info(epoch_line(record, making.options.max_epochs))
                run.metrics(epoch_metrics(record), step=record.epoch)

            result = train(
                patch_store,
                sampled_index,
                making.options,
                folder,
                progress=progress_to(context.log),
                on_epoch=on_epoch,
            )
            for record in result.epochs[: result.resumed_from or 0]:
                run.metrics(epoch_metrics(record), step=record.epoch)
            pictures = training_pictures(result, patch_store, making.options)
            log_outcome(run, folder, result.card, pictures)
    for warning in result.warnings.values():
        context.log.warning(warning)
    return making.result(
        folder,
        facts=training_facts(result),
        metadata={
            **training_metadata(result, pictures),
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
    """Of names and values: the bytes of a saved state dict also hold the name it was first written under."""
    import hashlib

    import torch

    total = hashlib.sha256()
    for name, tensor in torch.load(path, map_location="cpu", weights_only=True).items():
        total.update(name.encode())
        total.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()

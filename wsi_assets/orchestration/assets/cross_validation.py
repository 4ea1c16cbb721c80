"""Cross-validation: how much the metrics of a level depend on the choice of training patients."""

import shutil
from pathlib import Path
from typing import Any

import dagster as dg

from wsi_assets.learning.options import CrossValidationOptions, TrainingOptions
from wsi_assets.orchestration.artefact import Artefact
from wsi_assets.orchestration.assets.index import SAMPLED_INDEX
from wsi_assets.orchestration.assets.learning import POOL, TRAINED_MODEL
from wsi_assets.orchestration.assets.patches import PATCH_STORE
from wsi_assets.orchestration.config import launchpad_config
from wsi_assets.orchestration.evaluation_metadata import model_card
from wsi_assets.orchestration.making import Making
from wsi_assets.orchestration.metadata import progress_to, rounded, table, user_errors_as_failures
from wsi_assets.orchestration.storage import StorageResource

CROSS_VALIDATION = Artefact(
    name="cross_validation",
    code_version="4",
    path="{level}/cross_validation",
    options=CrossValidationOptions,
    inputs=(SAMPLED_INDEX, PATCH_STORE, TRAINED_MODEL),
    main_file="folds.json",
    optional=True,
    shown=("roc_auc", "roc_auc_spread", "average_precision", "average_precision_spread"),
)

CrossValidationConfig = launchpad_config(CROSS_VALIDATION)


@dg.asset(
    **CROSS_VALIDATION.asset_arguments(io_manager_key="report_io"),
    kinds={"pytorch"},
    pool=POOL,
    description="Cross-validation by patient: for each fold a model is trained without its patients and "
    "predicts their slides. `cross_validation/out_of_fold.pkl` and `folds.json`; the next evaluation shows "
    "the results. Made only on request. Resumes after an interruption.",
)
def cross_validation(
    context: dg.AssetExecutionContext,
    config: CrossValidationConfig,
    storage: StorageResource,
    sampled_index: dict[str, Any],
    patch_store: Any,
    trained_model: Path,
) -> dg.MaterializeResult:
    from wsi_assets.learning import cross_validate

    with user_errors_as_failures(), patch_store:
        making = Making(context, storage, CROSS_VALIDATION, config)
        folder = storage.level_folder(context.partition_key) / "cross_validation_in_progress"
        _, summary = cross_validate(
            patch_store,
            sampled_index,
            TrainingOptions(**model_card(trained_model)["parameters"]),
            folder,
            folds=making.options.folds,
            progress=progress_to(context.log),
        )
        for fold in folder.glob("fold_*"):
            shutil.rmtree(fold)  # the models of the folds are not used afterwards
    spread = {f"{name}_spread": value for name, value in summary["spread"].items()}
    return making.result(
        folder,
        facts={name: rounded(value) for name, value in {**summary["mean"], **spread}.items()},
        metadata={"folds": table([{**row, "slides": ", ".join(row["slides"])} for row in summary["folds"]])},
    )

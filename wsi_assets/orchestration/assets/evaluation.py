"""How good the detector is, on slides it has never seen."""

from functools import partial
from typing import Any

import dagster as dg

from wsi_assets.orchestration import catalog
from wsi_assets.orchestration.config import EvaluationConfig, parameters
from wsi_assets.orchestration.io_managers.plain_pickle import LazyPickles
from wsi_assets.orchestration.lineage import (
    CODE_VERSIONS,
    recorded_metadata,
    recorded_version,
    version_of,
)
from wsi_assets.orchestration.partitions import EVERY_SLIDE, LEVELS
from wsi_assets.orchestration.report_context import report_context
from wsi_assets.orchestration.reporting import clear_failures, picture, table
from wsi_assets.orchestration.resources.storage import Storage
from wsi_assets.orchestration.resources.tracking import ModelTracking


@dg.asset(
    partitions_def=LEVELS,
    ins={"annotation_regions": dg.AssetIn(**EVERY_SLIDE)},
    deps=["slide_index", "patch_store", "trained_model"],
    group_name=catalog.GROUP_EVALUATION,
    io_manager_key="report_io",
    kinds={"scikitlearn", "html"},
    owners=catalog.OWNERS,
    code_version=CODE_VERSIONS["evaluation"],
    description="Patch and slide figures with intervals, FROC, heatmaps and `report/report.html`, one "
    "self-contained page.",
)
def evaluation(
    context: dg.AssetExecutionContext,
    config: EvaluationConfig,
    storage: Storage,
    tracking: ModelTracking,
    test_predictions: list[dict[str, Any]],
    annotation_regions: LazyPickles,
) -> dg.MaterializeResult:
    from wsi_assets.evaluation import evaluate, write_report

    level = context.partition_key
    with clear_failures():
        outcome = evaluate(
            test_predictions, tumor_regions=_outlines(test_predictions, annotation_regions), options=config
        )
    about = report_context(context.instance, storage.layout, level, config)
    run_id = recorded_metadata(context.instance, "trained_model", level).get("mlflow_run_id")
    tracking.resume_run(run_id, context.log.warning).log_metrics(
        {f"test_{name}": value for name, value in outcome.headline().items()}
    )
    return dg.MaterializeResult(
        value=partial(write_report, outcome, context=about),
        metadata={
            **{name: value for name, value in outcome.headline().items() if value is not None},
            "figures": table(outcome.figure_rows()),
            "overview": picture(outcome.overview_png(), "ROC, confusion matrix and slide scores"),
        },
        data_version=dg.DataVersion(
            version_of(
                "evaluation",
                parameters(config),
                recorded_version(context.instance, "test_predictions", level),
            )
        ),
    )


def _outlines(predictions: list[dict[str, Any]], annotation_regions: LazyPickles) -> dict[str, Any]:
    from wsi_assets.annotations import TumorRegions
    from wsi_assets.slides import slide_id_of

    outlines = {}
    for entry in predictions:
        slide_id = slide_id_of(entry["slide_path"])
        stored = annotation_regions[slide_id]["regions"] if slide_id in annotation_regions else None
        outlines[slide_id] = None if stored is None else TumorRegions.from_plain(stored)
    return outlines

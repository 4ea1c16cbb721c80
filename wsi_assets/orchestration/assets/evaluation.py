"""Evaluation of the detector on test slides, and comparison of all evaluated levels."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dagster as dg

from wsi_assets.evaluation.options import EvaluationOptions
from wsi_assets.orchestration.artefact import Artefact
from wsi_assets.orchestration.assets.cross_validation import CROSS_VALIDATION
from wsi_assets.orchestration.assets.index import SAMPLED_INDEX
from wsi_assets.orchestration.assets.learning import TEST_PREDICTIONS, TRAINED_MODEL
from wsi_assets.orchestration.assets.slides import (
    ANNOTATION_REGIONS,
    REGIONS_OF_ALL_SLIDES,
    TISSUE_REGIONS,
)
from wsi_assets.orchestration.automation import follow_reports
from wsi_assets.orchestration.config import launchpad_config
from wsi_assets.orchestration.evaluation_metadata import (
    headline,
    heatmap_pictures,
    metric_rows,
    model_card,
    report_context,
)
from wsi_assets.orchestration.making import Making
from wsi_assets.orchestration.metadata import picture, progress_to, rounded, table, user_errors_as_failures
from wsi_assets.orchestration.mlflow import MlflowResource
from wsi_assets.orchestration.resources import SlideFolderResource
from wsi_assets.orchestration.storage import StorageResource
from wsi_assets.slides.resolution import name_of

EVALUATION = Artefact(
    name="evaluation",
    code_version="8",
    path="{level}/report",
    options=EvaluationOptions,
    inputs=(TEST_PREDICTIONS, TRAINED_MODEL, CROSS_VALIDATION),
    main_file="report.html",
    shown=("roc_auc", "average_precision", "sensitivity", "specificity", "slide_auc"),
)

LEVEL_COMPARISON = Artefact(
    name="level_comparison",
    code_version="4",
    path="level_comparison",
    inputs=(EVALUATION,),
    main_file="comparison.html",
    automation=follow_reports,
)

EvaluationConfig = launchpad_config(EVALUATION)


@dg.asset(
    **EVALUATION.asset_arguments(io_manager_key="report_io"),
    deps=REGIONS_OF_ALL_SLIDES,
    kinds={"scikitlearn", "html"},
    description="Patch and slide metrics with confidence intervals, FROC, heatmaps and "
    "`report/report.html`, one self-contained page.",
)
def evaluation(
    context: dg.AssetExecutionContext,
    config: EvaluationConfig,
    folder: SlideFolderResource,
    storage: StorageResource,
    mlflow: MlflowResource,
    test_predictions: dict[str, Any],
    trained_model: Path,
) -> dg.MaterializeResult:
    from wsi_assets.evaluation import evaluate, write_report

    level, progress = context.partition_key, progress_to(context.log)
    with user_errors_as_failures(storage.root):
        making = Making(context, storage, EVALUATION, config)
        card = model_card(trained_model)
        outcome = evaluate(
            folder.with_present_paths(test_predictions),
            tumor_regions=_annotations(test_predictions, storage),
            options=making.options,
            validation_threshold=card["thresholds"]["validation"]["threshold"],
            calibration=card["calibration"],
            incomplete_slides=_incomplete(storage, level),
            sizes=_sizes(test_predictions, storage),
            progress=progress,
        )
        pages = _empty(storage.root / f"report_{name_of(level)}_in_progress")
        metrics = headline(outcome)
        context_of_report = replace(
            report_context(storage, level, metrics),
            viewer={slide_id: folder.viewer_page(slide_id).url for slide_id in test_predictions},
        )
        write_report(outcome, pages, context=context_of_report, progress=progress)
    values = {name: metric.value for name, metric in metrics.items()}
    measured = {f"test_{name}": value for name, value in values.items()}
    address = mlflow.add_evaluation(level, measured, pages, context.log.warning)
    return making.result(
        pages,
        facts={name: rounded(value) for name, value in values.items() if value is not None},
        metadata={
            **heatmap_pictures(outcome, pages),
            **({"report": dg.MetadataValue.url(address)} if address else {}),
            **{f"view_{one.slide_id}": folder.viewer_page(one.slide_id) for one in outcome.slide.ranking[:3]},
            "metrics": table(metric_rows(metrics)),
            "slides": table([asdict(score) for score in outcome.slide.ranking]),
            "notes": list(outcome.notes),
        },
    )


@dg.asset(
    **LEVEL_COMPARISON.asset_arguments(io_manager_key="report_io"),
    ins={"evaluation": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())},
    kinds={"html"},
    description="Comparison of all evaluated levels, to choose a magnification: counts, metrics with "
    "confidence intervals, computing time. `level_comparison/comparison.html`.",
)
def level_comparison(
    context: dg.AssetExecutionContext,
    storage: StorageResource,
    mlflow: MlflowResource,
    evaluation: dict[str, Path],
) -> dg.MaterializeResult:
    from wsi_assets.evaluation import read_levels, write_comparison

    with user_errors_as_failures(storage.root):
        inputs = {level: storage.version(EVALUATION, level) for level in evaluation}
        making = Making(context, storage, LEVEL_COMPARISON, inputs=inputs)
        files = {level: pages / "metrics.json" for level, pages in evaluation.items()}
        rows, left_out = read_levels(files)
        pages = _empty(storage.root / "level_comparison_in_progress")
        chart = write_comparison(rows, pages).with_name("comparison.png")
    address = mlflow.add_comparison(pages, context.log.warning)
    shown = [
        {"level": row["level"], "mpp": row["mpp"], **{k: f["value"] for k, f in row["metrics"].items()}}
        for row in rows
    ]
    return making.result(
        pages,
        facts={"left_out": left_out},
        metadata={
            **({"picture": picture(chart.read_bytes(), "metrics by level")} if rows else {}),
            **({"report": dg.MetadataValue.url(address)} if address else {}),
            "levels": table(shown),
        },
    )


def _empty(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def _sizes(predictions: dict[str, Any], storage: StorageResource) -> dict[str, tuple[int, int]]:
    """Slide id -> (height, width) of level 0."""
    from wsi_assets.index import TissueRegions

    sizes = {}
    for slide_id in predictions:
        stored = storage.stored(TISSUE_REGIONS, slide_id)
        if stored is not None:
            whole = TissueRegions.from_plain(stored).levels[0]
            sizes[slide_id] = (whole.height, whole.width)
    return sizes


def _annotations(predictions: dict[str, Any], storage: StorageResource) -> dict[str, Any]:
    from wsi_assets.annotations import TumorRegions

    found = {}
    for slide_id in predictions:
        stored = (storage.stored(ANNOTATION_REGIONS, slide_id) or {}).get("regions")
        found[slide_id] = None if stored is None else TumorRegions.from_plain(stored)
    return found


def _incomplete(storage: StorageResource, level: str) -> frozenset[str]:
    """Slides listed as incompletely annotated in the parameters of the sampled index."""
    from wsi_assets.index import incomplete_slides

    record = storage.record(SAMPLED_INDEX, level)
    return incomplete_slides(record.parameters.get("incomplete_slides") if record else None)

"""How good the detector is, on slides it has never seen."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

from wsi_assets.orchestration import catalog
from wsi_assets.orchestration.config import EvaluationConfig
from wsi_assets.orchestration.io_managers.plain_pickle import LazyPickles
from wsi_assets.orchestration.io_managers.reports import Report
from wsi_assets.orchestration.lineage import CODE_VERSIONS, made, recorded_version
from wsi_assets.orchestration.mlflow_notes import metrics
from wsi_assets.orchestration.partitions import EVERY_PARTITION, LEVELS
from wsi_assets.orchestration.report_context import (
    confusion_rows,
    figure_rows,
    headline,
    heatmaps,
    report_context,
)
from wsi_assets.orchestration.reporting import clear_failures, picture, progress_to, rounded, table
from wsi_assets.orchestration.resources.library import SlideLibrary
from wsi_assets.orchestration.resources.tracking import ModelTracking


@dg.asset(
    partitions_def=LEVELS,
    ins={
        "tissue_regions": dg.AssetIn(**EVERY_PARTITION),
        "annotation_regions": dg.AssetIn(**EVERY_PARTITION),
    },
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
    library: SlideLibrary,
    tracking: ModelTracking,
    test_predictions: dict[str, Any],
    tissue_regions: LazyPickles,
    annotation_regions: LazyPickles,
) -> dg.MaterializeResult:
    from wsi_assets.evaluation import evaluate, write_report

    level = context.partition_key
    upstream = recorded_version(context.instance, "test_predictions", level)
    about = report_context(context.instance, level)
    progress = progress_to(context.log)
    with clear_failures():
        outcome = evaluate(
            library.at_home(test_predictions),
            tumor_regions=_outlines(test_predictions, annotation_regions),
            options=config,
            validation_threshold=about.validation_threshold,
            incomplete_slides=_incomplete(test_predictions),
            sizes=_sizes(test_predictions, tissue_regions),
            progress=progress,
        )
    figures = headline(outcome)
    with tracking.resume_run(level, about.mlflow_key, context.log.warning) as mlflow_run:
        mlflow_run.tell(metrics({f"test_{name}": figure.value for name, figure in figures.items()}))
    return made(
        "evaluation",
        Report(partial(write_report, outcome, context=about.report, progress=progress), heatmaps(outcome)),
        config=config,
        made_from=upstream,
        metadata={
            **{name: rounded(figure.value) for name, figure in figures.items() if figure.value is not None},
            "figures": table(figure_rows(figures)),
            "confusion": table(confusion_rows(outcome)),
            "slides": table([asdict(score) for score in outcome.slide.ranking]),
            "notes": list(outcome.notes),
        },
    )


@dg.asset(
    ins={"evaluation": dg.AssetIn(**EVERY_PARTITION)},
    group_name=catalog.GROUP_EVALUATION,
    io_manager_key="report_io",
    kinds={"html"},
    owners=catalog.OWNERS,
    code_version=CODE_VERSIONS["level_comparison"],
    description="All evaluated levels side by side, to choose a magnification: counts, figures with "
    "intervals, time. `level_comparison/comparison.html`.",
)
def level_comparison(evaluation: dict[str, Path]) -> dg.MaterializeResult:
    from wsi_assets.evaluation import compare, write_comparison
    from wsi_assets.evaluation.comparison import comparison_png, read_levels

    with clear_failures():
        files = {level: folder / "metrics.json" for level, folder in evaluation.items()}
        metrics, left_out = read_levels(files)
        rows = compare(metrics)
    shown = [{"level": row["level"], **{k: f["value"] for k, f in row["metrics"].items()}} for row in rows]
    return dg.MaterializeResult(
        value=Report(partial(write_comparison, metrics)),
        metadata={
            "levels": table(shown),
            "left_out": left_out,
            **({"picture": picture(comparison_png(rows), "figures by level")} if rows else {}),
        },
    )


def _incomplete(predictions: dict[str, Any]) -> set[str]:
    """Slides of the list of incompletely annotated ones that the index was sampled with."""
    from wsi_assets.index import incomplete_slides

    lists = {entry.get("config", {}).get("incomplete_slides") for entry in predictions.values()}
    return {slide_id for source in lists for slide_id in incomplete_slides(source)}


def _sizes(predictions: dict[str, Any], tissue_regions: LazyPickles) -> dict[str, tuple[int, int]]:
    """Slide id -> (height, width) of level 0."""
    from wsi_assets.index import TissueRegions

    sizes = {}
    for slide_id in predictions:
        if slide_id in tissue_regions:
            whole = TissueRegions.from_plain(tissue_regions[slide_id]).levels[0]
            sizes[slide_id] = (whole.height, whole.width)
    return sizes


def _outlines(predictions: dict[str, Any], annotation_regions: LazyPickles) -> dict[str, Any]:
    from wsi_assets.annotations import TumorRegions

    outlines = {}
    for slide_id in predictions:
        stored = annotation_regions[slide_id]["regions"] if slide_id in annotation_regions else None
        outlines[slide_id] = None if stored is None else TumorRegions.from_plain(stored)
    return outlines

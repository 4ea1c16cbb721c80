"""What the report and the UI tell of an evaluation, gathered from what the instance recorded of a level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from wsi_assets.orchestration import catalog
from wsi_assets.orchestration.lineage import recorded_metadata
from wsi_assets.orchestration.verdicts import failed_checks

if TYPE_CHECKING:
    from wsi_assets.evaluation import Evaluation, Metric, ReportContext

HEATMAPS_SHOWN = 3
"""Beside the figures in the UI; the report has them all."""


@dataclass(frozen=True)
class LevelContext:
    """What is known of a level beside its predictions.

    Attributes:
        report: for the report.
        mlflow_key: of the MLflow run of the model that predicted, None if it has none.
        validation_threshold: of that model, None if none was chosen.
    """

    report: ReportContext
    mlflow_key: str | None
    validation_threshold: float | None


def report_context(instance: dg.DagsterInstance, level: str) -> LevelContext:
    """Collect counts, split, curves, exclusions and parameters of the level as last materialized."""
    from wsi_assets.evaluation import ReportContext

    # Not the evaluation itself: what is recorded of it is an earlier one.
    above = [asset for asset in catalog.LEVEL_ASSETS if asset != "evaluation"]
    known = {asset: recorded_metadata(instance, asset, level) for asset in above}
    index, store, training = known["slide_index"], known["patch_store"], known["trained_model"]
    counts = known["sampled_index"].get("counts_by_slide")
    report = ReportContext(
        level=int(level),
        magnification=_magnification(counts or []),
        counts=counts,
        split=training.get("split"),
        split_notes=tuple(training.get("notes", ())),
        warnings=tuple(failed_checks(instance, level, above)),
        epochs=training.get("epoch_table"),
        left_out=index.get("left_out"),
        quarantined=store.get("quarantine"),
        audit=_audit(instance, counts or []),
        config={
            f"{asset}.{name}": value
            for asset, metadata in known.items()
            for name, value in metadata.get("parameters", {}).items()
        },
        seconds={
            asset: metadata["seconds"]
            for asset, metadata in known.items()
            if metadata.get("seconds") is not None
        },
        mlflow_url=training.get("mlflow_run"),
    )
    predicted = known["test_predictions"]
    return LevelContext(report, predicted.get("mlflow_key"), predicted.get("validation_threshold"))


def headline(outcome: Evaluation) -> dict[str, Metric]:
    """The figures a reader asks for first; one that could not be computed carries its reason."""
    from wsi_assets.evaluation import Metric

    default = outcome.patch.at_default
    missing = Metric.missing("no test patch was predicted")
    return {
        "roc_auc": outcome.patch.roc_auc,
        "average_precision": outcome.patch.average_precision,
        "sensitivity": default.sensitivity if default else missing,
        "specificity": default.specificity if default else missing,
        "slide_auc": outcome.slide.auc_top_mean,
        "froc_score": outcome.froc.corrected,
        "froc_score_official": outcome.froc.official,
    }


def figure_rows(figures: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """One row a figure, with its 95 % interval, or why it is missing."""
    return [
        {
            "figure": name,
            "value": figure.value,
            "low (95 %)": figure.low,
            "high (95 %)": figure.high,
            "remark": figure.reason or "",
        }
        for name, figure in figures.items()
    ]


def confusion_rows(outcome: Evaluation) -> list[dict[str, Any]]:
    """The confusion matrix of the test patches at the default threshold."""
    point = outcome.patch.at_default
    if point is None:
        return []
    rows = {
        "tumor": (point.true_positives, point.false_negatives),
        "normal": (point.false_positives, point.true_negatives),
    }
    return [
        {"truth": truth, "predicted tumor": tumor, "predicted normal": normal}
        for truth, (tumor, normal) in rows.items()
    ]


def heatmaps(outcome: Evaluation) -> dict[str, str]:
    """Name -> file, in the report, of the heatmaps of the slides that look most like tumour."""
    most = [score.slide_id for score in outcome.slide.ranking[:HEATMAPS_SHOWN]]
    return {f"heatmap_{slide_id}": f"heatmaps/{slide_id}.png" for slide_id in most}


def _magnification(counts: list[dict[str, Any]]) -> float | None:
    """The level's magnification if its slides agree on one."""
    seen = {row["magnification"] for row in counts}
    return seen.pop() if len(seen) == 1 else None


def _audit(instance: dg.DagsterInstance, counts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outlines that were not taken as drawn, over the slides of the level."""
    rows = []
    for slide_id in (str(row["slide"]) for row in counts):
        audit = recorded_metadata(instance, "annotation_regions", slide_id).get("audit", [])
        rows += [{"slide": slide_id, **row} for row in audit if row.get("action") not in (None, "kept")]
    return rows

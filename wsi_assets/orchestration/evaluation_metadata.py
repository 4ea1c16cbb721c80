"""What the report and the UI show of an evaluation, gathered from the artefacts of a level."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from wsi_assets.errors import ModelError
from wsi_assets.files import read_plain_pickle
from wsi_assets.orchestration.artefact import level_chain
from wsi_assets.orchestration.metadata import picture
from wsi_assets.orchestration.resources import StorageResource

if TYPE_CHECKING:
    from wsi_assets.evaluation import Evaluation, Metric, ReportContext

HEATMAPS_SHOWN = 3
"""Beside the metrics in the UI; the report has them all."""


@dataclass(frozen=True)
class ModelCard:
    """What ``best.json`` says of a model's probabilities; None where it says nothing."""

    threshold: float | None
    calibration: dict[str, float] | None
    plain: dict[str, Any]


def model_card(best: Path) -> ModelCard:
    """Read the ``best.json`` beside ``best.pt``.

    Raises:
        ModelError: it is missing or damaged.
    """
    path = best.with_suffix(".json")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        chosen = (plain.get("thresholds") or {}).get("validation")
        fitted = plain.get("calibration")
        return ModelCard(
            chosen["threshold"] if isinstance(chosen, dict) else chosen,
            fitted
            and {"temperature": fitted["temperature"], "bias": fitted.get("bias", fitted.get("shift"))},
            plain,
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"is missing or damaged ({error!r:.120})", path=path, remedy="Train again"
        ) from error


def report_context(storage: StorageResource, level: str) -> ReportContext:
    """Counts, split, curves, exclusions, repairs and parameters of the level, from its artefacts."""
    from wsi_assets.evaluation import ReportContext
    from wsi_assets.index import slide_table
    from wsi_assets.orchestration.asset_checks import failed_checks

    paths, provenance = storage.paths, storage.provenance
    above = [artefact for artefact in level_chain() if artefact.name != "evaluation"]
    by_name = {artefact.name: artefact for artefact in above}
    records = {artefact.name: provenance.record(artefact, level) for artefact in above}
    known = {name: record for name, record in records.items() if record is not None}
    sampled = read_plain_pickle(paths.artefact(by_name["sampled_index"], level))
    counts = slide_table(sampled)
    magnifications = {row["magnification"] for row in counts}
    checkpoints = paths.artefact(by_name["trained_model"], level)
    split = model_card(checkpoints / "best.pt").plain.get("split") or {}
    training = known["trained_model"].facts if "trained_model" in known else {}
    return ReportContext(
        level=int(level),
        magnification=magnifications.pop() if len(magnifications) == 1 else None,
        counts=counts,
        split=split.get("rows"),
        split_notes=tuple(training.get("warnings", {}).values()),
        warnings=tuple(failed_checks(paths, level, above)),
        epochs=_epochs(checkpoints.parent / "epoch_losses.csv"),
        left_out=known["slide_index"].facts.get("left_out") if "slide_index" in known else None,
        quarantined=_quarantined(storage, level),
        audit=_audit(storage, sampled),
        config={
            f"{name}.{parameter}": value
            for name, record in known.items()
            for parameter, value in record.parameters.items()
        },
        seconds={
            name: record.facts["seconds"] for name, record in known.items() if "seconds" in record.facts
        },
        mlflow_url=_page(paths.mlflow_run(level)),
    )


def headline(outcome: Evaluation) -> dict[str, Metric]:
    """The metrics a reader asks for first; one that could not be computed carries its reason."""
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


def metric_rows(metrics: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """One row a metric, with its 95 % interval, or why it is missing."""
    return [
        {
            "metric": name,
            "value": metric.value,
            "low (95 %)": metric.low,
            "high (95 %)": metric.high,
            "remark": metric.reason or "",
        }
        for name, metric in metrics.items()
    ]


def confusion_rows(outcome: Evaluation) -> list[dict[str, Any]]:
    """The confusion matrix of the test patches at the default threshold."""
    point = outcome.patch.at_default
    if point is None:
        return []
    columns = ("truth", "predicted tumor", "predicted normal")
    rows = (
        ("tumor", point.true_positives, point.false_negatives),
        ("normal", point.false_positives, point.true_negatives),
    )
    return [dict(zip(columns, row, strict=True)) for row in rows]


def heatmap_pictures(outcome: Evaluation, folder: Path) -> dict[str, dg.MetadataValue]:
    """Heatmaps of the slides that look most like tumor, from the written report."""
    most = [score.slide_id for score in outcome.slide.ranking[:HEATMAPS_SHOWN]]
    files = {slide_id: folder / "heatmaps" / f"{slide_id}.png" for slide_id in most}
    return {
        f"heatmap_{slide_id}": picture(file.read_bytes(), f"heatmap of {slide_id}")
        for slide_id, file in files.items()
        if file.is_file()
    }


def _epochs(path: Path) -> list[dict[str, float]] | None:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    except (OSError, ValueError):
        return None


def _quarantined(storage: StorageResource, level: str) -> list[dict[str, Any]]:
    """Rows of the patches that could not be read, from the store itself."""
    from wsi_assets.orchestration.assets.patches import PATCH_STORE
    from wsi_assets.orchestration.paths import store_named_by
    from wsi_assets.patches import open_store

    with open_store(store_named_by(storage.paths.artefact(PATCH_STORE, level))) as store:
        rows = store.info.get("quarantined") or []
    names = ("key", "slide_id", "y", "x", "reason")
    return [row if isinstance(row, dict) else dict(zip(names, row, strict=False)) for row in rows]


def _audit(storage: StorageResource, slide_ids: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Annotations that were not taken as drawn, over the slides of the level."""
    from wsi_assets.orchestration.assets.slides import ANNOTATION_REGIONS

    rows = []
    for slide_id in slide_ids:
        record = storage.provenance.record(ANNOTATION_REGIONS, slide_id)
        rows += [{"slide": slide_id, **row} for row in (record.facts.get("audit", []) if record else [])]
    return rows


def _page(path: Path) -> str | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["page"]
    except (OSError, ValueError, KeyError, TypeError):
        return None

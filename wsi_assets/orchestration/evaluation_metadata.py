"""Data for the report and for the UI metadata of an evaluation, from the artefacts of a level."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from wsi_assets.errors import ModelError
from wsi_assets.files import read_plain_pickle
from wsi_assets.orchestration.artefact import all_artefacts, level_chain, slide_artefacts
from wsi_assets.orchestration.metadata import picture
from wsi_assets.orchestration.storage import StorageResource, store_named_by

if TYPE_CHECKING:
    from wsi_assets.evaluation import Evaluation, Metric, ReportContext

HEATMAPS_SHOWN = 3
"""Number of heatmaps in the UI's metadata; the report has all of them."""


SPLIT_COLUMNS = ("patient", "side", "slides", "tumor", "normal")


def model_card(best: Path) -> dict[str, Any]:
    """Read the ``best.json`` beside ``best.pt``.

    Raises:
        ModelError: it is missing or damaged.
    """
    path = best.with_suffix(".json")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        _ = card["thresholds"]["validation"]["threshold"], card["calibration"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"is missing or damaged ({error!r:.120})", path=path, remedy="Train again"
        ) from error
    return card


def report_context(
    storage: StorageResource, level: str, metrics: Mapping[str, Metric] | None = None
) -> ReportContext:
    """Counts, split, training curves, left-out slides, annotation repairs and parameters of a level.

    Args:
        metrics: result of :func:`headline`, to be compared with those before a round of hard negatives.

    Raises:
        ModelError: the card of the model is missing or damaged.
    """
    from wsi_assets.evaluation import ReportContext
    from wsi_assets.index import slide_table

    upstream = {artefact.name: artefact for artefact in level_chain() if artefact.name != "evaluation"}
    records = {name: storage.record(artefact, level) for name, artefact in upstream.items()}
    known = {name: record for name, record in records.items() if record is not None}
    facts = {name: known[name].facts if name in known else {} for name in upstream}
    sampled = read_plain_pickle(storage.artefact(upstream["sampled_index"], level))
    counts = slide_table(sampled)
    magnifications = {row["magnification"] for row in counts}
    card = model_card(storage.artefact(upstream["trained_model"], level) / "best.pt")
    split = card.get("split") or {}
    folders = {"/".join(Path(entry["slide_path"]).parts[-3:-1]) for entry in sampled.values()}
    return ReportContext(
        cohort=f"{', '.join(sorted(folders))} ({len(counts):,} slides)",
        model=_model(card),
        patch_size=card.get("patch_size"),
        level=int(level) if level.isdigit() else level,
        mpp=card.get("mpp"),
        magnification=magnifications.pop() if len(magnifications) == 1 else None,
        counts=counts,
        split=[{name: row[name] for name in SPLIT_COLUMNS} for row in split.get("rows", [])],
        split_notes=tuple(facts["trained_model"].get("warnings", {}).values()),
        warnings=tuple(storage.failed_checks(upstream.values(), level)),
        cross_validation=_cross_validation(storage, level),
        hard_negatives=_hard_negatives(
            facts["sampled_index"].get("hard_negatives"),
            storage.artefact(upstream["test_predictions"], level),
            metrics,
        ),
        epochs=read_epochs(storage.level_folder(level) / "epoch_losses.csv"),
        left_out=facts["slide_index"].get("left_out"),
        quarantined=_quarantined(storage.artefact(upstream["patch_store"], level)),
        audit=_audit(storage, sampled),
        config={
            f"{name}.{parameter}": value
            for name, record in known.items()
            for parameter, value in record.parameters.items()
        },
        changed=[
            f"{name}.{parameter}"
            for name, record in known.items()
            for parameter, default in upstream[name].options().model_dump(mode="json").items()
            if record.parameters.get(parameter) != default
        ],
        seconds={name: found["seconds"] for name, found in facts.items() if "seconds" in found},
        mlflow_url=storage.mlflow_note(level).get("page"),
    )


def _model(card: Mapping[str, Any]) -> dict[str, Any]:
    """Network, weights, epoch and library versions of a model, from its card."""
    provenance = card.get("provenance") or {}
    known = {
        "network": (card.get("model") or {}).get("name"),
        "weights": (card.get("parameters") or {}).get("weights"),
        "epoch": card.get("epoch"),
        **(provenance.get("versions") or {}),
    }
    return {name: value for name, value in known.items() if value is not None and name != "wsi-assets"}


def headline(outcome: Evaluation) -> dict[str, Metric]:
    """The main metrics by name; one that could not be computed has a ``reason``."""
    from wsi_assets.evaluation import Metric

    default, slides = outcome.patch.at_default, outcome.slide.operating_point
    missing = Metric.missing("no test patch was predicted")
    return {
        "roc_auc": outcome.patch.roc_auc,
        "average_precision": outcome.patch.average_precision,
        "sensitivity": default.sensitivity if default else missing,
        "specificity": default.specificity if default else missing,
        "slide_auc": outcome.slide.auc_top_mean,
        "slide_sensitivity": slides.sensitivity if slides else missing,
        "slide_specificity": slides.specificity if slides else missing,
        "froc_score": outcome.froc.corrected,
        "froc_score_official": outcome.froc.official,
    }


def metric_rows(metrics: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """One row per metric, with its 95 % interval or the reason why it is missing."""
    columns = ("metric", "value", "low (95 %)", "high (95 %)", "remark")
    return [
        dict(zip(columns, (name, one.value, one.low, one.high, one.reason or ""), strict=True))
        for name, one in metrics.items()
    ]


def heatmap_pictures(outcome: Evaluation, folder: Path) -> dict[str, dg.MetadataValue]:
    """Heatmaps of the slides with the highest scores, read from the report in ``folder``."""
    highest = [score.slide_id for score in outcome.slide.ranking[:HEATMAPS_SHOWN]]
    files = {slide_id: folder / "heatmaps" / f"{slide_id}.png" for slide_id in highest}
    return {
        f"heatmap_{slide_id}": picture(file.read_bytes(), f"heatmap of {slide_id}")
        for slide_id, file in files.items()
        if file.is_file()
    }


def read_epochs(path: Path) -> list[dict[str, float]] | None:
    """Rows of ``epoch_losses.csv``; None if it is missing or damaged."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    except (OSError, ValueError):
        return None


def _cross_validation(storage: StorageResource, level: str) -> dict[str, Any] | None:
    """Contents of ``folds.json``; None if the cross-validation is not of the current model."""
    named = {artefact.name: artefact for artefact in all_artefacts()}
    record = storage.record(named["cross_validation"], level)
    model = storage.version(named["trained_model"], level)
    if record is None or record.inputs.get("trained_model") != model:
        return None
    path = storage.artefact(named["cross_validation"], level) / "folds.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _hard_negatives(
    used: Mapping[str, Any] | None, predictions: Path, metrics: Mapping[str, Metric]
) -> dict[str, Any] | None:
    """The round of hard negatives used in training; metrics before and after if the test patches agree."""
    if not used:
        return None
    before, rows = used["before"] or {}, []
    tested = {slide_id: len(entry["patches"]) for slide_id, entry in read_plain_pickle(predictions).items()}
    if before.get("tested") == tested:
        rows = [
            {"metric": name, "before": before["metrics"][name], "after": one.value}
            for name, one in metrics.items()
            if one.value is not None and name in before["metrics"]
        ]
    return {"round": used["round"], "patches": used["patches"], "rows": rows}


def _quarantined(pointer: Path) -> list[dict[str, Any]]:
    """The patches that could not be read, as the store lists them."""
    from wsi_assets.patches import open_store

    with open_store(store_named_by(pointer)) as store:
        return list(store.info["quarantined"])


def _audit(storage: StorageResource, slide_ids: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Annotations of these slides that were repaired, changed or ignored."""
    (annotation,) = (one for one in slide_artefacts() if one.name == "annotation_regions")
    records = {slide_id: storage.record(annotation, slide_id) for slide_id in slide_ids}
    return [
        {"slide": slide_id, **row}
        for slide_id, record in records.items()
        if record is not None
        for row in record.facts.get("audit", [])
    ]

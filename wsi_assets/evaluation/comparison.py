"""Levels side by side, from the ``metrics.json`` of each: which magnification to use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_assets.drawing import canvas_png, canvas_svg
from wsi_assets.errors import EvaluationError
from wsi_assets.evaluation.evaluation import FORMAT
from wsi_assets.evaluation.report import render
from wsi_assets.files import write_json

METRICS = {
    "slide_auc": ("Slide AUC", ("slide", "auc_top_mean")),
    "froc_corrected": ("FROC, corrected", ("froc", "corrected_score")),
    "froc_official": ("FROC, official", ("froc", "official_score")),
    "patch_auc": ("Patch AUC", ("patch", "overall", "roc_auc")),
    "average_precision": ("Patch PR-AUC", ("patch", "overall", "average_precision")),
    "sensitivity": ("Sensitivity", ("patch", "overall", "at_default", "sensitivity")),
    "specificity": ("Specificity", ("patch", "overall", "at_default", "specificity")),
    "brier": ("Brier score", ("patch", "overall", "brier")),
}
"""Column -> its name for a reader, and where ``metrics.json`` has it."""

DRAWN = ("slide_auc", "froc_corrected", "patch_auc", "sensitivity", "specificity")
_AGAIN = "Make evaluation again for this level"


def compare(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a level, highest magnification first: counts, model, time, and every metric in its plain form.

    Args:
        metrics: contents of several levels' ``metrics.json``.

    Raises:
        EvaluationError: one of them is no such thing, or is of another version.
    """
    try:
        rows = [_row(one) for one in metrics]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise EvaluationError(
            f"metrics.json of a level lacks what an evaluation writes ({error!r})", remedy=_AGAIN
        ) from error
    return sorted(rows, key=lambda row: (row["level"] is None, row["level"] or 0))


def read_metrics(path: str | Path) -> dict[str, Any]:
    """One ``metrics.json``.

    Raises:
        EvaluationError: it is missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"is not readable as metrics ({error})", path=path, remedy=_AGAIN) from error


def read_levels(files: Mapping[str, str | Path]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Metrics of the levels that can be compared; of the others, level -> why not.

    Args:
        files: level -> its ``metrics.json``.

    Raises:
        EvaluationError: there are levels, and none can be compared.
    """
    metrics, left_out = [], {}
    for level, file in files.items():
        try:
            one = read_metrics(file)
            compare([one])
            metrics.append(one)
        except EvaluationError as error:
            left_out[level] = str(error)
    if left_out and not metrics:
        raise EvaluationError("; ".join(f"level {level}: {why}" for level, why in left_out.items()))
    return metrics, left_out


def write_comparison(metrics: Sequence[Mapping[str, Any]], out_dir: str | Path) -> Path:
    """Write ``comparison.html``, one self-contained page, ``comparison.png`` and ``comparison.json``.

    The page links the reports where the storage has them, ``../level_N/report/report.html``.
    """
    from wsi_assets.evaluation.charts import comparison_chart
    from wsi_assets.evaluation.pictures import data_uri

    rows = compare(metrics)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    chart = None
    if rows:
        names = [f"level {'?' if row['level'] is None else row['level']}{_zoom(row)}" for row in rows]
        panels = {METRICS[key][0]: [row["metrics"][key] for row in rows] for key in DRAWN}
        canvas = comparison_chart(names, panels)
        (out / "comparison.png").write_bytes(canvas_png(canvas))
        chart = data_uri(canvas_svg(canvas), "svg+xml")
    write_json(out / "comparison.json", rows)
    html = render(
        "comparison.html.j2",
        rows=rows,
        names={key: name for key, (name, _) in METRICS.items()},
        reasons=sorted({one["reason"] for row in rows for one in row["metrics"].values() if one["reason"]}),
        same_slides=len({(row["slides"], row["patients"]) for row in rows}) <= 1,
        chart=chart,
    )
    path = out / "comparison.html"
    path.write_text(html, encoding="utf-8")
    return path


def _zoom(row: Mapping[str, Any]) -> str:
    return "" if row["magnification"] is None else f" ({row['magnification']:.3g}×)"


def _row(metrics: Mapping[str, Any]) -> dict[str, Any]:
    if metrics.get("format") != FORMAT:
        version = f"{metrics.get('format')!r:.40}"
        raise EvaluationError(f"metrics of another version ({version}, not {FORMAT})", remedy=_AGAIN)
    context, overall, slide = metrics.get("context", {}), metrics["patch"]["overall"], metrics["slide"]
    seconds, model = context.get("seconds") or {}, context.get("model") or {}
    numbers = {
        "level": context.get("level"),
        "magnification": context.get("magnification"),
        "patch_size": context.get("patch_size"),
        "slides": slide["slides"],
        "tumor_slides": slide["tumor_slides"],
        "patients": slide["patients"],
        "patches": overall["patches"],
        "tumor_patches": overall["tumor"],
        "lesions": metrics["froc"]["lesions"],
        "seconds": sum(map(_number, seconds.values())) if seconds else None,
    }
    texts = {name: context.get(name) for name in ("created", "mlflow_url")}
    texts["model"] = ", ".join(f"{value}" for value in model.values()) or None
    return {
        **{name: _number(value) for name, value in numbers.items()},
        **{name: None if value is None else str(value) for name, value in texts.items()},
        "left_out": len(context.get("left_out") or {}),
        "metrics": {key: _metric(metrics, place) for key, (_, place) in METRICS.items()},
    }


def _metric(metrics: Mapping[str, Any], place: Sequence[str]) -> dict[str, Any]:
    value: Any = metrics
    for name in place:
        value = value[name]
        if value is None:
            return {"value": None, "low": None, "high": None, "reason": "no patch"}
    numbers = {name: _number(value[name]) for name in ("value", "low", "high")}
    return {**numbers, "reason": None if value["reason"] is None else str(value["reason"])}


def _number(value: Any) -> float | int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
        raise TypeError(f"{value!r:.40} is not a number to show")
    return value

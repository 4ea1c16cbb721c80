"""Comparison of the levels (magnifications) of a cohort by the ``metrics.json`` of each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_assets.drawing import canvas_png, canvas_svg, data_uri
from wsi_assets.errors import EvaluationError
from wsi_assets.evaluation.charts import comparison_chart
from wsi_assets.evaluation.evaluation import FORMAT
from wsi_assets.evaluation.report import render
from wsi_assets.files import write_json
from wsi_assets.slides.resolution import name_of, words_of

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
"""Key -> heading, and path of the metric in ``metrics.json``."""

DRAWN = ("slide_auc", "froc_corrected", "patch_auc", "sensitivity", "specificity")


def read_levels(files: Mapping[str, str | Path]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Read a row for each level, smallest pixels first: counts, model, time, and metrics as plain dicts.

    Args:
        files: level -> its ``metrics.json``.

    Returns:
        The rows, and level -> reason for the levels that cannot be compared.

    Raises:
        EvaluationError: none of the given levels can be compared.
    """
    rows, left_out = [], {}
    for level, file in files.items():
        try:
            rows.append(_row(json.loads(Path(file).read_text(encoding="utf-8"))))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            left_out[level] = f"{file} holds no metrics of this version ({error!r:.80}). Evaluate it again"
    if left_out and not rows:
        raise EvaluationError("; ".join(f"{words_of(level)}: {why}" for level, why in left_out.items()))
    return sorted(rows, key=_by_pixel_size), left_out


def write_comparison(rows: Sequence[Mapping[str, Any]], out_dir: str | Path) -> Path:
    """Write ``comparison.html``, one self-contained page, ``comparison.png`` and ``comparison.json``.

    The page links to the reports of the levels in the storage, e.g. ``../level_4/report``, ``../10x/report``.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    chart = None
    if rows:
        names = [_words(row["level"]) for row in rows]
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
        words=_words,
        folder=lambda level: name_of(str(level)),
    )
    path = out / "comparison.html"
    path.write_text(html, encoding="utf-8")
    return path


def _row(metrics: Mapping[str, Any]) -> dict[str, Any]:
    if metrics["format"] != FORMAT:
        raise ValueError(f"format {metrics['format']}")
    context, overall, slide = metrics["context"], metrics["patch"]["overall"], metrics["slide"]
    return {
        **{name: context[name] for name in ("level", "mpp", "magnification", "patch_size")},
        **{name: context[name] for name in ("created", "mlflow_url")},
        **{name: slide[name] for name in ("slides", "tumor_slides", "patients")},
        "patches": overall["patches"],
        "tumor_patches": overall["tumor"],
        "lesions": metrics["froc"]["lesions"],
        "model": ", ".join(f"{name} {value}" for name, value in context["model"].items()),
        "seconds": sum(context["seconds"].values()),
        "left_out": len(context["left_out"]),
        "metrics": {key: _metric(metrics, path) for key, (_, path) in METRICS.items()},
    }


def _words(level: int | str | None) -> str:
    return words_of("?" if level is None else level)


def _by_pixel_size(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Sort key: um per pixel, estimated from the magnification if unknown, then the level."""
    size = row["mpp"] or (10 / row["magnification"] if row["magnification"] else None)
    level = row["level"] if isinstance(row["level"], int) else 99
    return size is None, size or 0, level


def _metric(metrics: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """The metric at ``path``; a missing one if a part of the path is null."""
    value: Any = metrics
    for name in path:
        value = value[name]
        if value is None:
            return {"value": None, "low": None, "high": None, "reason": "no patch"}
    return value

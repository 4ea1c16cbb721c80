"""Write an evaluation to a folder: the report, its figures as JSON, its pictures, heatmaps and detections.

Numbers are computed in ``evaluation``, pictures drawn in ``plots`` and ``slide_pictures``; here they are put
into ``report.html.j2`` and into files:

    report.html                          one file, no network
    metrics.json                         every figure, and what the level is
    plots/*.png                          the charts
    heatmaps/<slide>.png                 the heatmap over the slide
    heatmaps/<slide>.geojson             the same for QuPath
    heatmaps/<slide>_likelihood_map.tif  the same for ASAP, where the slide opens
    detections/<slide>.csv               probability,x,y at level 0, without a header; empty if there are none
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wsi_assets.errors import SlideError
from wsi_assets.evaluation import plots
from wsi_assets.evaluation.detections import detections_csv
from wsi_assets.evaluation.evaluation import Evaluation, SlideEvaluation
from wsi_assets.evaluation.heatmap_files import heatmap_geojson, write_likelihood_tiff
from wsi_assets.evaluation.slide_pictures import (
    jpeg_of,
    outline_picture,
    overlay_picture,
    patch_jpeg,
    png_of,
    view_of,
)
from wsi_assets.evaluation.worst import WorstPatch, worst_patches
from wsi_assets.files import write_json
from wsi_assets.progress import Progress, silent

THUMBNAIL_SIDE = 110


@dataclass(frozen=True)
class ReportContext:
    """What the other rooms know of a level. Whatever is None is shown as not available.

    Attributes:
        title: what the report is of, e.g. the cohort's name.
        level, magnification: the partition, and its effective magnification.
        counts: rows of the index: one a slide, any columns.
        split: rows of the training and validation split, any columns.
        split_notes: sentences about the split, e.g. that it had to be by slide.
        warnings: one line each on what is wrong with what the figures rest on; a reader sees them first.
        epochs: rows with the columns of ``epoch_losses.csv``.
        left_out: slide id -> why it is not part of this level.
        quarantined: rows of patches that could not be read.
        audit: rows of repairs and skips of outlines.
        config: setting -> value.
        seconds: step -> seconds it took.
        mlflow_url: where the training run is.
        created: when, as text; None is now.
    """

    title: str = "Tumour detection"
    level: int | None = None
    magnification: float | None = None
    counts: Sequence[Mapping[str, Any]] | None = None
    split: Sequence[Mapping[str, Any]] | None = None
    split_notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    epochs: Sequence[Mapping[str, Any]] | None = None
    left_out: Mapping[str, str] | None = None
    quarantined: Sequence[Mapping[str, Any]] | None = None
    audit: Sequence[Mapping[str, Any]] | None = None
    config: Mapping[str, Any] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    mlflow_url: str | None = None
    created: str | None = None


def write_report(
    evaluation: Evaluation,
    out_dir: str | Path,
    context: ReportContext | None = None,
    *,
    open_slide: Callable[[str], Any] | None = None,
    progress: Progress = silent,
) -> Path:
    """Write everything of ``evaluation`` into ``out_dir`` and return the path of ``report.html``.

    ``out_dir`` should be new or empty (see ``files.publish_folder``): nothing old is removed from it.

    Args:
        open_slide: path -> reader, ``wsi_assets.slides.open_slide`` by default. A slide that does not open
            is reported as such, and only its pictures are missing.
    """
    if open_slide is None:
        from wsi_assets.slides import open_slide
    out = Path(out_dir)
    for folder in ("plots", "heatmaps", "detections"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    context = context or ReportContext()
    created = context.created or datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    charts = _charts(evaluation, context)
    for name, picture in charts.items():
        (out / "plots" / f"{name}.png").write_bytes(picture)
    wrong, missed = worst_patches(evaluation)
    pages, mosaics = [], {}
    for done, slide in enumerate(evaluation.slides, start=1):
        page, patches = _slide_page(slide, evaluation, [*wrong, *missed], out, open_slide)
        pages.append(page)
        mosaics.update(patches)
        progress(done, len(evaluation.slides), "drawing slides")
    plain = evaluation.to_plain()
    plain["context"] = _context_plain(context, created)
    write_json(out / "metrics.json", plain)
    html = _render(
        "report.html.j2",
        evaluation=evaluation,
        context=context,
        created=created,
        charts={name: _data_uri(picture, "png") for name, picture in charts.items()},
        pages={page["slide_id"]: page for page in pages},
        wrong=[_shown(patch, mosaics) for patch in wrong],
        missed=[_shown(patch, mosaics) for patch in missed],
        lesions=plain["froc"]["lesion_table"],
        froc_points=plain["froc"],
    )
    path = out / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def _charts(evaluation: Evaluation, context: ReportContext) -> dict[str, bytes]:
    import numpy as np

    charts = {}
    if context.epochs:
        charts["training"] = plots.training_png(context.epochs)
    parts = [slide.predictions for slide in evaluation.slides]
    if parts and evaluation.patch.patches:
        probs = np.concatenate([part.probs[part.seen] for part in parts])
        labels = np.concatenate([part.is_tumor[part.seen] for part in parts])
        points = (evaluation.patch.at_default, evaluation.patch.at_validation)
        marked = list({point.threshold: point for point in points if point}.values())
        if evaluation.patch.roc_auc.value is not None:
            charts["roc"] = plots.roc_and_precision_png(labels, probs, marked)
        charts["calibration"] = plots.calibration_png(evaluation.patch.calibration, labels, probs)
    if evaluation.froc.corrected.value is not None:
        charts["froc"] = plots.froc_png(evaluation.froc)
    return charts


def _slide_page(
    slide: SlideEvaluation,
    evaluation: Evaluation,
    worst: Sequence[WorstPatch],
    out: Path,
    open_slide: Callable[[str], Any],
) -> tuple[dict[str, Any], dict[WorstPatch, bytes]]:
    """What the report shows of a slide, its files written; and the pictures of its worst patches."""
    name, part = slide.slide_id, slide.predictions
    (out / "detections" / f"{name}.csv").write_text(detections_csv(slide.detections), encoding="utf-8")
    (out / "heatmaps" / f"{name}.geojson").write_text(heatmap_geojson(slide.heatmap), encoding="utf-8")
    patches = {}
    with ExitStack() as stack:
        reader, reason = None, None
        try:
            reader = stack.enter_context(open_slide(part.slide_path))
        except SlideError as error:
            reason = str(error)
        view = view_of(slide, reader, evaluation.options.heatmap_side, reason)
        if reader is not None and slide.heatmap is not None:
            base = reader.levels[0]
            write_likelihood_tiff(
                out / "heatmaps" / f"{name}_likelihood_map.tif",
                slide.heatmap,
                (base.height, base.width),
                part.mpp,
            )
        for patch in worst:
            if reader is not None and patch.slide_id == name:
                try:
                    patches[patch] = patch_jpeg(reader, part.level, patch.y, patch.x, part.patch_size)
                except SlideError as error:
                    reason = str(error)
    overlay = overlay_picture(slide, view, evaluation.options.prediction_threshold)
    (out / "heatmaps" / f"{name}.png").write_bytes(png_of(overlay))
    page = {
        "slide_id": name,
        "slide": slide,
        "reason": view.reason or reason,
        "outline": _data_uri(jpeg_of(outline_picture(slide, view)), "jpeg"),
        "overlay": _data_uri(jpeg_of(overlay), "jpeg"),
        "thumbnail": None
        if view.pixels is None
        else _data_uri(jpeg_of(view.pixels, THUMBNAIL_SIDE * 2), "jpeg"),
    }
    return page, patches


def _shown(patch: WorstPatch, mosaics: Mapping[WorstPatch, bytes]) -> dict[str, Any]:
    picture = mosaics.get(patch)
    return {**asdict(patch), "picture": _data_uri(picture, "jpeg") if picture else None}


def _context_plain(context: ReportContext, created: str) -> dict[str, Any]:
    """What a comparison of levels needs; tables stay in the report."""
    return {
        "title": context.title,
        "level": context.level,
        "magnification": context.magnification,
        "created": created,
        "mlflow_url": context.mlflow_url,
        "seconds": dict(context.seconds),
        "left_out": dict(context.left_out or {}),
    }


def _render(template: str, **values: Any) -> str:
    from wsi_assets.evaluation.templating import environment

    return environment().get_template(template).render(**values)


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"

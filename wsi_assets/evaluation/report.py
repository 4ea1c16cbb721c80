"""Write an evaluation to a folder: the report, its metrics as JSON, its pictures, heatmaps and detections.

    report.html                          the report, self-contained
    metrics.json                         every metric, and facts about the level
    plots/*.svg                          the charts
    heatmaps/<slide>.png                 the heatmap over the slide
    heatmaps/<slide>.geojson             the same for QuPath
    heatmaps/<slide>_likelihood_map.tif  the same for ASAP, where the slide opens
    detections/<slide>.csv               probability,x,y at level 0, without a header; empty if there are none

Heatmap and detection files are missing for a slide whose downsample is unknown.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from wsi_assets.drawing import data_uri, jpeg_of, png_of, shrunk
from wsi_assets.errors import SlideError
from wsi_assets.evaluation import charts, pictures
from wsi_assets.evaluation.evaluation import Evaluation, SlideEvaluation
from wsi_assets.evaluation.heatmap import detections_csv
from wsi_assets.evaluation.heatmap_files import heatmap_geojson, write_likelihood_tiff
from wsi_assets.files import write_json
from wsi_assets.progress import Progress, silent
from wsi_assets.slides.resolution import words_of

THUMBNAIL_SIDE, PICTURE_SIDE = 160, 800
CONTEXT = 3
"""Side of a worst patch's picture, in patches."""

NOT_AVAILABLE = "not available"


@dataclass(frozen=True)
class ReportContext:
    """What the report shows of a level besides its evaluation. None is shown as not available.

    Attributes:
        cohort: where the slides come from.
        level, mpp, magnification, patch_size: the level, its um per pixel, its effective magnification, and
            the side of its patches in pixels.
        model: name -> value of facts about the model.
        counts: rows of the index, one for each slide, with any columns.
        split: rows of the training and validation split, with any columns.
        split_notes: sentences about the split, e.g. that it had to be by slide.
        warnings: failed checks of the data and the model, one line each; the report shows them first.
        epochs: rows with the columns of ``epoch_losses.csv``.
        cross_validation: ``folds``, rows of numbers, with ``mean`` and ``spread`` (standard deviation) of the
            rows, as in ``cross_validation.json``; None if there was none.
        hard_negatives: ``round``, number of ``patches`` used in training, and ``rows`` of ``metric``,
            ``before`` and ``after``, empty if the earlier test slides differ; None without hard negatives.
        left_out: slide id -> why it is not part of this level.
        quarantined: rows of patches that could not be read.
        audit: rows of repairs and skips of annotations.
        config: setting -> value.
        changed: settings whose value is not the default.
        seconds: step -> seconds it took.
        mlflow_url: address of the training run.
        viewer: slide id -> address of its page in the slide viewer.
    """

    cohort: str | None = None
    level: int | str | None = None
    mpp: float | None = None
    magnification: float | None = None
    patch_size: int | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    counts: Sequence[Mapping[str, Any]] | None = None
    split: Sequence[Mapping[str, Any]] | None = None
    split_notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    epochs: Sequence[Mapping[str, Any]] | None = None
    cross_validation: Mapping[str, Any] | None = None
    hard_negatives: Mapping[str, Any] | None = None
    left_out: Mapping[str, str] | None = None
    quarantined: Sequence[Mapping[str, Any]] | None = None
    audit: Sequence[Mapping[str, Any]] | None = None
    config: Mapping[str, Any] | None = None
    changed: Collection[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    mlflow_url: str | None = None
    viewer: Mapping[str, str] = field(default_factory=dict)


@dataclass
class WorstPatch:
    """``y``, ``x``: top-left corner in pixels of the level; ``y0``, ``x0``: center at level 0, if known.

    ``picture`` is None until it is read, or if it cannot be read.
    """

    slide_id: str
    y: int
    x: int
    y0: int | None
    x0: int | None
    probability: float
    picture: pictures.Scene | None = None


def write_report(
    evaluation: Evaluation,
    out_dir: str | Path,
    context: ReportContext | None = None,
    *,
    open_slide: Callable[[str], Any] | None = None,
    progress: Progress = silent,
) -> Path:
    """Write the files of an evaluation into ``out_dir`` and return the path of ``report.html``.

    ``out_dir`` should be new or empty (see ``files.publish_folder``), because old files in it stay.

    Args:
        open_slide: path -> reader, ``wsi_assets.slides.open_slide`` by default. Of a slide that cannot be
            opened, the report says so and only its pictures are missing.
    """
    if open_slide is None:
        from wsi_assets.slides import open_slide
    out = Path(out_dir)
    for folder in ("plots", "heatmaps", "detections"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    context = context or ReportContext()
    drawn = charts.report_charts(evaluation, context.epochs)
    for name, picture in drawn.items():
        (out / "plots" / f"{name}.svg").write_bytes(picture)
    false_positives, false_negatives = worst_patches(evaluation)
    pages = {}
    for done, slide in enumerate(evaluation.slides, start=1):
        worst = [one for one in (*false_positives, *false_negatives) if one.slide_id == slide.slide_id]
        pages[slide.slide_id] = _slide_page(slide, evaluation, worst, out, open_slide)
        progress(done, len(evaluation.slides), "drawing slides")
    metrics = evaluation.to_plain()
    known = ("cohort", "level", "mpp", "magnification", "patch_size", "model", "mlflow_url", "seconds")
    metrics["context"] = {name: getattr(context, name) for name in known}
    created = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    metrics["context"] |= {"created": created, "left_out": dict(context.left_out or {})}
    write_json(out / "metrics.json", metrics)
    own, defaults = evaluation.options.model_dump(), type(evaluation.options)().model_dump()
    html = render(
        "report.html.j2",
        evaluation=evaluation,
        context=context,
        created=created,
        version=version("wsi-assets"),
        charts={name: data_uri(picture, "svg+xml") for name, picture in drawn.items()},
        pages=pages,
        worst={"False positives": false_positives, "False negatives": false_negatives},
        froc_plain=metrics["froc"],
        settings={**(context.config or {}), **{f"evaluation.{name}": own[name] for name in own}},
        changed={*context.changed, *(f"evaluation.{name}" for name in own if own[name] != defaults[name])},
    )
    path = out / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def worst_patches(evaluation: Evaluation) -> tuple[list[WorstPatch], list[WorstPatch]]:
    """False positives with the highest, and false negatives with the lowest probabilities, worst first.

    Patches of neither class and slides with an incomplete annotation are left out.
    """
    threshold, most = evaluation.options.prediction_threshold, evaluation.options.worst_patches
    false_positives, false_negatives = [], []
    for slide in evaluation.slides:
        part = slide.predictions
        if not slide.incomplete:
            wrong = part.counted & ~part.is_tumor & (part.probs >= threshold)
            false_positives += _worst_of(slide, wrong, -part.probs, most)
            false_negatives += _worst_of(slide, part.is_tumor & (part.probs < threshold), part.probs, most)
    false_positives.sort(key=lambda patch: (-patch.probability, patch.slide_id, patch.y, patch.x))
    false_negatives.sort(key=lambda patch: (patch.probability, patch.slide_id, patch.y, patch.x))
    return false_positives[:most], false_negatives[:most]


def _worst_of(slide: SlideEvaluation, wrong: np.ndarray, order: np.ndarray, most: int) -> list[WorstPatch]:
    part, which = slide.predictions, np.flatnonzero(wrong)

    def center(corner: int) -> int | None:
        return round((corner + part.patch_size / 2) * part.downsample) if part.downsample else None

    first = which[np.argsort(order[which], kind="stable")[:most]]
    places = ((int(part.y[i]), int(part.x[i]), float(part.probs[i])) for i in first)
    return [WorstPatch(slide.slide_id, y, x, center(y), center(x), prob) for y, x, prob in places]


def _slide_page(
    slide: SlideEvaluation,
    evaluation: Evaluation,
    worst: Sequence[WorstPatch],
    out: Path,
    open_slide: Callable[[str], Any],
) -> dict[str, Any]:
    """Write a slide's files, add pictures to its ``worst`` patches, and return what the report shows."""
    name, part, options = slide.slide_id, slide.predictions, evaluation.options
    heatmaps = out / "heatmaps"
    if part.downsample:
        (out / "detections" / f"{name}.csv").write_text(detections_csv(slide.detections), encoding="utf-8")
        (heatmaps / f"{name}.geojson").write_text(heatmap_geojson(slide.heatmap), encoding="utf-8")
    crops, reason = [], None
    with ExitStack() as stack:
        try:
            reader = stack.enter_context(open_slide(part.slide_path))
            view = pictures.view_of(slide, reader, options.heatmap_side)
        except SlideError as error:
            reader, reason = None, str(error)
            view = pictures.view_of(slide, None, options.heatmap_side)
        if reader is not None and slide.heatmap is not None:
            size = reader.levels[0].height, reader.levels[0].width
            write_likelihood_tiff(heatmaps / f"{name}_likelihood_map.tif", slide.heatmap, size, part.mpp)
        try:
            for caption, center, side in pictures.crops_of(slide):
                shown = pictures.crop(reader, view, center, side)
                crops.append((caption, pictures.scene(shown, slide)))
            for patch in worst if part.downsample else ():
                side = part.patch_size * part.downsample
                shown = pictures.crop(reader, view, (patch.x0, patch.y0), CONTEXT * side)
                square = patch.x0 - side / 2, patch.y0 - side / 2, side
                patch.picture = pictures.scene(shown, slide, square)
        except SlideError as error:
            reason = str(error)
    page = {"slide": slide, "reason": reason, "crops": crops, "scene": pictures.scene(view, slide)}
    if slide.heatmap is not None:
        page["heat"] = data_uri(pictures.heat_png(slide.heatmap), "png")
        page["extent"] = pictures.heat_extent(slide.heatmap)
    if part.downsample:
        drawn = pictures.heatmap_picture(slide, view, PICTURE_SIDE, options.prediction_threshold)
        (heatmaps / f"{name}.png").write_bytes(png_of(drawn))
    if view.pixels is not None:
        page["thumbnail"] = data_uri(jpeg_of(shrunk(view.pixels, THUMBNAIL_SIDE)), "jpeg")
    return page


def render(template: str, **values: Any) -> str:
    """Render a template of the ``templates`` folder as HTML, in which values are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    env = Environment(
        loader=PackageLoader("wsi_assets.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals["words"] = words_of
    env.filters.update(number=_number, count=_count, duration=_duration, cell=_cell, heading=_heading)
    # Metrics are objects, or dicts if read from ``metrics.json``; plain() makes both dicts.
    env.globals.update(
        plain=lambda metric: asdict(metric) if is_dataclass(metric) else metric,
        viridis=pictures.viridis_gradient,
    )
    return env.get_template(template).render(**values)


def _number(value: float | None, digits: int = 3) -> str:
    return NOT_AVAILABLE if value is None else f"{value:.{digits}f}"


def _count(value: float | None, unit: str = "") -> str:
    """A whole number with separators; ``unit`` is put in the plural unless the number is 1."""
    if value is None:
        return NOT_AVAILABLE
    plural = "" if value == 1 else "es" if unit.endswith("ch") else "s"
    return f"{value:,.0f} {unit}{plural}" if unit else f"{value:,.0f}"


def _duration(seconds: float | None) -> str:
    """Seconds in readable units: 42 s, 3 min 5 s, 2 h 10 min."""
    if seconds is None:
        return NOT_AVAILABLE
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _cell(value: Any) -> str:
    """Text of a table cell: integers with separators, floats with 3 or 4 digits, None as a dash."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if 0 < abs(value) < 0.001:  # a learning rate of 0.0001 is not 0.000
            return f"{value:.3g}"
        if abs(value) >= 1:  # a magnification of 20 is not 20.000
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        return f"{value:.3f}"
    return str(value)


def _heading(name: str) -> str:
    """The heading of a column: ``tumor_patches`` becomes Tumor patches."""
    return name.replace("_", " ").strip().capitalize()

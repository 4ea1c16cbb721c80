"""The pictures of the report: charts, slides with annotation and heatmap, and single patches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_assets.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    canvas_pixels,
    canvas_png,
    new_canvas,
    plain_axes,
    scale_bar,
)
from wsi_assets.errors import SlideError
from wsi_assets.evaluation.froc import FALSE_POSITIVES_PER_SLIDE, Froc
from wsi_assets.evaluation.metrics import CalibrationBin, OperatingPoint

if TYPE_CHECKING:
    from wsi_assets.evaluation.evaluation import SlideEvaluation
    from wsi_assets.slides.reader import SlideReader

MARGIN = 0.04
"""Share of the longer side shown around the predicted and annotated part of a slide."""

LARGEST_THUMBNAIL = 4000
DPI = 150
LONGER_SIDE = 5.2
"""Inches of the longer side of a slide's picture."""

BAR_STRIP = 0.6
"""Inches below the picture for the color bar."""


def roc_and_precision_png(labels: np.ndarray, probs: np.ndarray, marked: Sequence[OperatingPoint]) -> bytes:
    """ROC and precision-recall curve of patches, thresholds of ``marked`` as dots; needs both classes."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    canvas = new_canvas(7.2, 3.6)
    left, right = canvas.subplots(1, 2)
    false_positive_rate, sensitivity, _ = roc_curve(labels, probs)
    left.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":", label="chance")
    left.plot(false_positive_rate, sensitivity, color=BLUE, lw=2)
    _square(left, "False positive rate (1 − specificity)", "Sensitivity", "ROC, patches")
    precision, recall, _ = precision_recall_curve(labels, probs)
    share = float(np.mean(labels))
    right.axhline(share, color=GREY, lw=1, ls=":", label=f"chance ({share:.2f})")
    right.step(recall, precision, color=BLUE, lw=2, where="post")
    _square(right, "Sensitivity (recall)", "Precision", "Precision and recall, patches")
    for point, marker, color in zip(marked, "os", (ORANGE, GREEN), strict=False):
        if point.sensitivity.value is None or point.specificity.value is None:
            continue
        style = {"marker": marker, "color": color, "ms": 7, "mec": "white", "ls": "none", "zorder": 5}
        style["label"] = f"p ≥ {point.threshold:.3g}"
        left.plot(1 - point.specificity.value, point.sensitivity.value, **style)
        if point.precision.value is not None:
            right.plot(point.sensitivity.value, point.precision.value, **style)
    left.legend(loc="lower right", frameon=False, fontsize=8)
    right.legend(loc="lower left", frameon=False, fontsize=8)
    return canvas_png(canvas)


def calibration_png(
    curves: Mapping[str, Sequence[CalibrationBin]], labels: np.ndarray, probs: np.ndarray
) -> bytes:
    """Observed share of tumor against mean probability, and how the raw probabilities spread by truth.

    Args:
        curves: name -> bins; at most three.
    """
    canvas = new_canvas(7.2, 3.6)
    left, right = canvas.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":", label="perfectly calibrated")
    styles = ((BLUE, "-", "o"), (GREEN, ":", "^"), (ORANGE, "--", "s"))
    for (name, bins), (color, dash, marker) in zip(curves.items(), styles, strict=False):
        mean, share = [part.mean_probability for part in bins], [part.tumor_fraction for part in bins]
        left.plot(mean, share, color=color, lw=1.5, ls=dash, marker=marker, mec="white", label=name)
    _square(left, "Mean predicted probability", "Observed share of tumor", "Calibration")
    left.legend(loc="upper left", frameon=False, fontsize=8)
    edges = np.linspace(0, 1, 21)
    right.hist(probs[~labels], edges, color=BLUE, alpha=0.55, label="normal patches")
    right.hist(probs[labels], edges, histtype="step", lw=2, color=ORANGE, label="tumor patches")
    right.set_yscale("symlog", linthresh=10)
    right.set_ylim(top=6 * right.get_ylim()[1])  # room for the legend
    right.yaxis.set_major_formatter("{x:,.0f}")
    right.set(xlim=(0, 1), xlabel="Predicted probability (raw)", ylabel="Patches (log above 10)")
    right.set_title("Probabilities by truth", fontsize=10)
    right.legend(loc="upper center", frameon=False, fontsize=8)
    plain_axes(right)
    return canvas_png(canvas)


def froc_png(froc: Froc) -> bytes:
    """Both FROC curves with the six points that make the score."""
    canvas = new_canvas(6.4, 3.8)
    axes = canvas.subplots()
    curves = (
        (froc.official_curve, froc.official, "official", BLUE, "-", "o"),
        (froc.corrected_curve, froc.corrected, "corrected", ORANGE, "--", "s"),
    )
    for curve, score, name, color, dash, marker in curves:
        beyond = max(FALSE_POSITIVES_PER_SLIDE[-1], float(curve.false_positives.max()))
        x = np.append(curve.false_positives[::-1], beyond)
        y = np.append(curve.sensitivity[::-1], curve.sensitivity[0])
        axes.plot(x, y, color=color, lw=2, ls=dash, label=f"{name}: {score.value:.3f}")
        axes.plot(FALSE_POSITIVES_PER_SLIDE, curve.at(), marker, color=color, mec="white", ms=7)
    axes.set_xscale("symlog", linthresh=0.25, linscale=0.5)
    axes.set_xticks([0, *FALSE_POSITIVES_PER_SLIDE], ["0", "¼", "½", "1", "2", "4", "8"])
    axes.minorticks_off()
    axes.set(xlim=(0, 9), ylim=(-0.02, 1.04))
    axes.set(xlabel="False positives per slide", ylabel="Share of lesions detected")
    axes.legend(loc="lower right", frameon=False, title="mean of the six points")
    plain_axes(axes)
    return canvas_png(canvas)


def training_png(epochs: Sequence[Mapping[str, Any]]) -> bytes:
    """Loss and accuracy by epoch; rows as in ``epoch_losses.csv``. The lowest validation loss is marked."""
    canvas = new_canvas(7.2, 3.2)
    left, right = canvas.subplots(1, 2)
    number = [int(row["epoch"]) for row in epochs]
    for axes, what in ((left, "loss"), (right, "acc")):
        for part, color, dash, marker in (("train", BLUE, "-", "o"), ("val", ORANGE, "--", "s")):
            values = [_number(row.get(f"{part}_{what}")) for row in epochs]
            name = {"train": "training", "val": "validation"}[part]
            axes.plot(number, values, color=color, ls=dash, marker=marker, ms=4, lw=1.8, label=name)
        axes.set(xlabel="Epoch", ylabel={"loss": "Loss", "acc": "Accuracy"}[what])
        axes.xaxis.get_major_locator().set_params(integer=True)
        plain_axes(axes)
    validation = np.array([_number(row.get("val_loss")) for row in epochs], float)
    if np.isfinite(validation).any():
        best = int(np.nanargmin(validation))
        left.plot(
            number[best], validation[best], "*", color=GREEN, ms=14, mec="white", label="best", zorder=5
        )
    losses = np.array([_number(row.get(f"{part}_loss")) for part in ("train", "val") for row in epochs])
    if (losses > 0).all() and losses.max() > 20 * losses.min():
        left.set_yscale("log")  # one early loss would otherwise flatten all the others
    left.legend(frameon=False, fontsize=8)
    return canvas_png(canvas)


def intervals_png(names: Sequence[str], panels: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Metrics side by side: a panel a metric, a row a name, dot and 95 % interval, or that there is none."""
    canvas = new_canvas(max(2.4 * len(panels), 3.2), 0.9 + 0.42 * len(names))
    for axes, (title, values) in zip(
        np.atleast_1d(canvas.subplots(1, len(panels), sharey=True)), panels.items(), strict=True
    ):
        for row, metric in enumerate(values):
            value, low, high = metric["value"], metric["low"], metric["high"]
            if value is None:
                style = {"ha": "center", "va": "center", "color": GREY, "fontsize": 8, "style": "italic"}
                axes.text(0.5, row, "not available", **style)
                continue
            if low is not None:
                style = {"color": BLUE, "lw": 4, "alpha": 0.4, "solid_capstyle": "butt", "clip_on": False}
                axes.plot([low, high], [row, row], **style)
            axes.plot(value, row, "o", color=BLUE, mec="white", ms=7, clip_on=False, zorder=5)
        axes.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names)
        axes.set_title(title, fontsize=9)
        plain_axes(axes)
    return canvas_png(canvas)


def _number(value: Any) -> float:
    return float("nan") if value is None or value == "" else float(value)


def _square(axes, x: str, y: str, title: str) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.03), xlabel=x, ylabel=y, aspect="equal")
    axes.set_title(title, fontsize=10)
    plain_axes(axes)


@dataclass(frozen=True)
class View:
    """A part of a slide as pixels.

    Attributes:
        box: level-0 (x0, y0, x1, y1) of the part.
        pixels: uint8 (h, w, 3) RGB, None if the slide could not be read.
        mpp: level-0 pixel size in um, None if unknown.
        reason: why there are no pixels.
    """

    box: tuple[float, float, float, float]
    pixels: np.ndarray | None
    mpp: float | None
    reason: str | None = None


def view_of(slide: SlideEvaluation, reader: SlideReader | None, side: int, reason: str | None = None) -> View:
    """The part of a slide that holds its predictions and annotation, its longer side about ``side`` pixels.

    Args:
        reader: None where the slide does not open; ``reason`` then says why.
    """
    mpp = slide.predictions.mpp
    parts = [slide.heatmap.bounds] if slide.heatmap else []
    parts += [slide.geometry.bounds] if slide.geometry is not None else []
    box = np.array([0.0, 0.0, 1.0, 1.0])
    if parts:
        box = np.concatenate([np.min(parts, 0)[:2], np.max(parts, 0)[2:]])
        box += np.array([-1, -1, 1, 1]) * MARGIN * max(box[2:] - box[:2])
    if reader is None:
        return View(tuple(box.tolist()), None, mpp, reason)
    whole = np.array([reader.levels[0].width, reader.levels[0].height] * 2)
    box = np.clip(box, 0, whole)
    if not parts or (box[2:] <= box[:2]).any():  # nothing of it lies on the slide
        box = whole * [0, 0, 1, 1]
    try:
        side = math.ceil(side * whole.max() / max(box[2:] - box[:2]))
        pixels = reader.thumbnail(min(side, LARGEST_THUMBNAIL))
    except SlideError as error:
        return View(tuple(box.tolist()), None, mpp, str(error))
    scale = np.array([pixels.shape[1], pixels.shape[0]] * 2) / whole
    x0, y0 = (box * scale).astype(int)[:2]
    x1, y1 = np.clip(np.ceil(box * scale).astype(int), 1, [pixels.shape[1], pixels.shape[0]] * 2)[2:]
    # The box follows the whole pixels that were cut, so that what is drawn over them does not shift.
    return View(tuple((np.array([x0, y0, x1, y1]) / scale).tolist()), pixels[y0:y1, x0:x1], mpp)


def annotation_picture(slide: SlideEvaluation, view: View) -> np.ndarray:
    """The slide with the pathologist's annotation and a scale bar, uint8 (h, w, 3) RGB."""
    canvas, axes = _canvas(view, view.pixels)
    _draw_annotation(axes, slide.geometry)
    _draw_scale_bar(axes, view)
    return canvas_pixels(canvas, DPI)


def overlay_picture(slide: SlideEvaluation, view: View, threshold: float) -> np.ndarray:
    """The heatmap over the slide in grey, with annotation, color bar, scale bar and the stronger detections.

    The grey keeps the stain from mixing with the colors; the more probable a cell, the less it lets through,
    but none so much that it looks like tissue that was not evaluated.
    """
    from matplotlib import colormaps

    grey = None
    if view.pixels is not None:
        grey = np.repeat((view.pixels @ [0.299, 0.587, 0.114])[..., None], 3, axis=2).astype(np.uint8)
    canvas, axes = _canvas(view, grey, strip=BAR_STRIP)
    colors = colormaps["viridis"]
    if slide.heatmap is not None:
        image, extent = _cells(slide.heatmap, colors)
        axes.imshow(image, extent=extent, interpolation="nearest", zorder=2)
    _draw_annotation(axes, slide.geometry)
    # Weaker peaks are in the detections file; drawn here they would hide what they point at.
    strong = [found for found in slide.detections if found.probability >= threshold]
    if strong:
        x, y = [found.x for found in strong], [found.y for found in strong]
        axes.scatter(x, y, s=11, marker="o", fc="white", ec=INK, lw=1.0, zorder=7)
    _draw_scale_bar(axes, view)
    _draw_color_bar(canvas, colors)
    return canvas_pixels(canvas, DPI)


def _cells(heatmap, colors) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """RGBA picture of the cells and its level-0 extent (left, right, bottom, top), as imshow has it."""
    probability = np.nan_to_num(heatmap.probability)
    image = colors(probability)
    image[..., 3] = np.where(np.isfinite(heatmap.probability), 0.35 + 0.45 * probability, 0)
    left, top, right, bottom = heatmap.bounds
    if heatmap.cell >= heatmap.step:
        return image, (left, right, bottom, top)
    # Patches leave gaps: paint on a finer grid so that the gaps stay visible.
    fine = 8
    image = np.repeat(np.repeat(image, fine, axis=0), fine, axis=1)
    inside = (np.arange(fine) + 0.5) / fine < heatmap.cell / heatmap.step
    rows, cols = heatmap.probability.shape
    image[..., 3] *= np.tile(inside, rows)[:, None] & np.tile(inside, cols)[None, :]
    return image, (left, left + cols * heatmap.step, top + rows * heatmap.step, top)


def _canvas(view: View, pixels: np.ndarray | None, strip: float = 0.0):
    """Canvas and axes over ``pixels``; the slide's size in inches does not depend on the strip below it."""
    x0, y0, x1, y1 = view.box
    inches = LONGER_SIDE / max(x1 - x0, y1 - y0)
    width, height = max((x1 - x0) * inches, 1.8), max((y1 - y0) * inches, 1.2)
    canvas = new_canvas(width, height + strip, layout="none")
    axes = canvas.add_axes((0, strip / (height + strip), 1, height / (height + strip)))
    axes.set(xticks=[], yticks=[], xlim=(x0, x1), ylim=(y1, y0), aspect="equal", facecolor="#f2f2f2")
    axes.spines[:].set_color("#bbbbbb")
    if pixels is not None:
        axes.imshow(pixels, extent=(x0, x1, y1, y0), interpolation="antialiased", zorder=1)
    return canvas, axes


def _draw_color_bar(canvas, colors) -> None:
    from matplotlib.cm import ScalarMappable

    total = canvas.get_figheight()
    place = canvas.add_axes((0.06, (BAR_STRIP - 0.2) / total, 0.88, 0.12 / total))
    bar = canvas.colorbar(ScalarMappable(cmap=colors), cax=place, orientation="horizontal")
    bar.set_label("Tumor probability", fontsize=9, labelpad=1)
    place.tick_params(labelsize=8, pad=1)


def _draw_annotation(axes, geometry) -> None:
    import shapely

    if geometry is None:
        return
    for polygon in getattr(geometry, "geoms", [geometry]):
        for ring in (polygon.exterior, *polygon.interiors):
            points = shapely.get_coordinates(ring)
            # Black within white is seen on stain, on glass and on every color of the map.
            for color, width, order in (("white", 2.6, 4), (INK, 1.2, 5)):
                axes.plot(*points.T, color=color, lw=width, zorder=order, solid_joinstyle="round")


def _draw_scale_bar(axes, view: View) -> None:
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = view.box
    width, height = x1 - x0, y1 - y0
    length, text = scale_bar(width, view.mpp, 0.3)
    pad, thick = 0.03 * max(width, height), 0.012 * max(width, height)
    plate = {"boxstyle": "round,pad=0.3", "fc": "white", "ec": "none", "alpha": 0.85}
    left, base = x0 + pad, y1 - pad
    axes.add_patch(Rectangle((left, base - thick), length, thick, fc=INK, ec="white", lw=1.2, zorder=9))
    axes.text(
        left, base - 1.8 * thick, text, ha="left", va="bottom", fontsize=10, color=INK, zorder=9, bbox=plate
    )

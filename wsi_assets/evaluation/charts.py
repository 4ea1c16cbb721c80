"""The charts of the report, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_assets.drawing import BLUE, GREEN, GREY, NORMAL, TUMOR, canvas_svg, new_canvas, plain_axes
from wsi_assets.evaluation.froc import FALSE_POSITIVES_PER_SLIDE, Froc
from wsi_assets.evaluation.metrics import CalibrationBin, OperatingPoint, pooled
from wsi_assets.learning.pictures import curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wsi_assets.evaluation.evaluation import Evaluation


def report_charts(evaluation: Evaluation, epochs: Sequence[Mapping[str, Any]] | None) -> dict[str, bytes]:
    """Name -> SVG of every chart that can be drawn; ``epochs`` are rows of ``epoch_losses.csv``."""
    charts, patch = {}, evaluation.patch
    if epochs:
        charts["training"] = curves(epochs)
    if patch.patches:
        probs, labels, _ = pooled([one.predictions for one in evaluation.slides if not one.incomplete])
        points = (patch.at_default, patch.at_validation)
        marked = list({point.threshold: point for point in points if point}.values())
        if patch.roc_auc.value is not None:
            charts["patch_roc"] = ranking_chart("patches", labels, probs, marked)
        named = {"raw": patch.calibration}
        if evaluation.calibrated:
            named["calibrated"] = evaluation.calibrated.calibration
        charts["calibration"] = calibration_chart(named, labels, probs)
    if evaluation.slide.auc_top_mean.value is not None:
        scored = [one for one in evaluation.slide.ranking if one.top_mean is not None]
        labels, scores = np.array([(one.is_tumor, one.top_mean) for one in scored]).T
        charts["slide_roc"] = ranking_chart("slides", labels.astype(bool), scores)
    if evaluation.froc.corrected.value is not None:
        charts["froc"] = froc_chart(evaluation.froc)
    return {name: canvas_svg(canvas) for name, canvas in charts.items()}


def ranking_chart(
    what: str, labels: np.ndarray, scores: np.ndarray, marked: Sequence[OperatingPoint] = ()
) -> Figure:
    """ROC and precision-recall curves, with the operating points ``marked`` as dots.

    Args:
        what: name of the scored items in the titles.
        labels, scores: (n,) bool, of both classes, and (n,).
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    canvas = new_canvas(7.2, 3.6)
    left, right = canvas.subplots(1, 2)
    false_positive_rate, sensitivity, _ = roc_curve(labels, scores)
    left.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":", label="chance")
    left.plot(false_positive_rate, sensitivity, color=BLUE, lw=2)
    _square(left, "False positive rate (1 − specificity)", "Sensitivity", f"ROC, {what}")
    precision, recall, _ = precision_recall_curve(labels, scores, drop_intermediate=True)
    share = float(np.mean(labels))
    right.axhline(share, color=GREY, lw=1, ls=":", label=f"chance ({share:.2f})")
    right.step(recall, precision, color=BLUE, lw=2, where="post")
    _square(right, "Sensitivity (recall)", "Precision", f"Precision and recall, {what}")
    for point, marker, color in zip(marked, "os", (BLUE, GREEN), strict=False):
        style = {"marker": marker, "color": color, "ms": 7, "mec": "white", "ls": "none", "zorder": 5}
        style["label"] = f"p ≥ {point.threshold:.3g}"
        left.plot(1 - point.specificity.value, point.sensitivity.value, **style)
        if point.precision.value is not None:
            right.plot(point.sensitivity.value, point.precision.value, **style)
    left.legend(loc="lower right", frameon=False, fontsize=8)
    right.legend(loc="lower left", frameon=False, fontsize=8)
    return canvas


def calibration_chart(
    curves: Mapping[str, Sequence[CalibrationBin]], labels: np.ndarray, probs: np.ndarray
) -> Figure:
    """Calibration curves (name -> bins), and a histogram of raw probabilities (n,) by labels (n,) bool."""
    canvas = new_canvas(7.2, 3.6)
    left, right = canvas.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":", label="perfectly calibrated")
    styles = ((BLUE, "-", "o"), (GREEN, "--", "s"))
    for (name, bins), (color, dash, marker) in zip(curves.items(), styles, strict=False):
        mean, share = [part.mean_probability for part in bins], [part.tumor_fraction for part in bins]
        left.plot(mean, share, color=color, lw=1.5, ls=dash, marker=marker, mec="white", label=name)
    _square(left, "Mean predicted probability", "Observed share of tumor", "Calibration")
    left.legend(loc="upper left", frameon=False, fontsize=8)
    edges = np.linspace(0, 1, 21)
    right.hist(probs[~labels], edges, color=NORMAL, alpha=0.55, label="normal patches")
    right.hist(probs[labels], edges, histtype="step", lw=2, color=TUMOR, label="tumor patches")
    right.set_yscale("symlog", linthresh=10)
    right.set_ylim(top=6 * right.get_ylim()[1])  # space for the legend
    right.yaxis.set_major_formatter("{x:,.0f}")
    right.set(xlim=(0, 1), xlabel="Predicted probability (raw)", ylabel="Patches (log above 10)")
    right.set_title("Probabilities by truth", fontsize=10)
    right.legend(loc="upper center", frameon=False, fontsize=8)
    plain_axes(right)
    return canvas


def froc_chart(froc: Froc) -> Figure:
    """The FROC curves with the six points whose mean is the score."""
    canvas = new_canvas(6.4, 3.8)
    axes = canvas.subplots()
    curves = (
        (froc.corrected_curve, froc.corrected, "corrected", BLUE, "-", "o"),
        (froc.official_curve, froc.official, "official", GREEN, "--", "s"),
    )
    for curve, score, name, color, dash, marker in curves:
        if curve is None:
            continue
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
    return canvas


def comparison_chart(names: Sequence[str], panels: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """A panel for each metric (title -> values), in it a row for each level with value and 95 % interval.

    Axes begin just below their lowest value, so that similar levels can be distinguished.
    """
    canvas = new_canvas(max(2.4 * len(panels), 3.2), 0.9 + 0.42 * len(names))
    for axes, (title, values) in zip(
        np.atleast_1d(canvas.subplots(1, len(panels), sharey=True)), panels.items(), strict=True
    ):
        for row, metric in enumerate(values):
            value, low, high = metric["value"], metric["low"], metric["high"]
            if value is None:
                style = {"ha": "center", "va": "center", "color": GREY, "fontsize": 9, "style": "italic"}
                axes.text(0.5, row, "not available", transform=axes.get_yaxis_transform(), **style)
                continue
            if low is not None:
                style = {"color": BLUE, "lw": 4, "alpha": 0.4, "solid_capstyle": "butt", "clip_on": False}
                axes.plot([low, high], [row, row], **style)
            axes.plot(value, row, "o", color=BLUE, mec="white", ms=7, clip_on=False, zorder=5)
        shown = [one[end] for one in values for end in ("value", "low") if one[end] is not None]
        low = min([0.8, *(value - 0.05 for value in shown)])
        axes.set(xlim=(max(low, 0), 1.01), ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names)
        axes.set_title(title, fontsize=11)
        plain_axes(axes)
    return canvas


def _square(axes, x: str, y: str, title: str) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.03), xlabel=x, ylabel=y, aspect="equal")
    axes.set_title(title, fontsize=10)
    plain_axes(axes)

"""The charts of the report, as PNG bytes. Pictures of slides and patches are in ``slide_pictures``.

Everything is drawn through matplotlib's objects on an Agg canvas of its own: no global figure, no backend is
touched. Colours are Okabe and Ito's, told apart by colour-blind readers; lines differ in dash as well.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wsi_assets.evaluation.froc import FALSE_POSITIVES_PER_SLIDE, Froc
from wsi_assets.evaluation.patch_metrics import CalibrationBin, OperatingPoint

BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#767676", "#222222"
DPI = 160


def new_figure(width: float, height: float, layout: str = "constrained"):
    """A matplotlib figure of ``width`` x ``height`` inches that nothing else can reach."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def png_of(figure) -> bytes:
    stream = io.BytesIO()
    # Without the software's name and version the same data make the same bytes.
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()


def pixels_of(figure, dpi: int) -> np.ndarray:
    """The drawn figure as uint8 (h, w, 3) RGB."""
    figure.set_dpi(dpi)
    figure.canvas.draw()
    return np.array(figure.canvas.buffer_rgba())[..., :3]


def roc_and_precision_png(labels: np.ndarray, probs: np.ndarray, marked: Sequence[OperatingPoint]) -> bytes:
    """ROC and precision-recall curve of patches, thresholds of ``marked`` as dots; needs both classes."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    figure = new_figure(7.2, 3.6)
    left, right = figure.subplots(1, 2)
    wrong, found, _ = roc_curve(labels, probs)
    left.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":", label="chance")
    left.plot(wrong, found, color=BLUE, lw=2)
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
        left.plot(
            1 - point.specificity.value, point.sensitivity.value, **style, label=f"p ≥ {point.threshold:.3g}"
        )
        if point.precision.value is not None:
            right.plot(
                point.sensitivity.value, point.precision.value, **style, label=f"p ≥ {point.threshold:.3g}"
            )
    left.legend(loc="lower right", frameon=False, fontsize=8)
    right.legend(loc="lower left", frameon=False, fontsize=8)
    return png_of(figure)


def calibration_png(bins: Sequence[CalibrationBin], labels: np.ndarray, probs: np.ndarray) -> bytes:
    """Observed share of tumour against mean probability, and how the probabilities are spread by truth."""
    figure = new_figure(7.2, 3.6)
    left, right = figure.subplots(1, 2)
    full = [part for part in bins if part.patches]
    left.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":", label="perfectly calibrated")
    mean, share = [part.mean_probability for part in full], [part.tumor_fraction for part in full]
    left.plot(mean, share, color=BLUE, lw=1.5)
    largest = max((part.patches for part in full), default=1)
    sizes = [20 + 120 * part.patches / largest for part in full]
    left.scatter(mean, share, s=sizes, color=BLUE, ec="white", zorder=4, label="bin (size: patches)")
    _square(left, "Mean predicted probability", "Observed share of tumour", "Calibration")
    left.legend(loc="upper left", frameon=False, fontsize=8)
    edges = np.linspace(0, 1, 21)
    right.hist(probs[~labels], edges, color=BLUE, alpha=0.55, label="normal patches")
    right.hist(probs[labels], edges, histtype="step", lw=2, color=ORANGE, label="tumour patches")
    right.set_yscale("symlog", linthresh=10)
    right.yaxis.set_major_formatter("{x:,.0f}")
    right.set(xlim=(0, 1), xlabel="Predicted probability", ylabel="Patches (log above 10)")
    right.set_title("Probabilities by truth", fontsize=10)
    right.legend(loc="upper center", frameon=False, fontsize=8)
    _plain(right)
    return png_of(figure)


def froc_png(froc: Froc) -> bytes:
    """Both FROC curves with the six points that make the score."""
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
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
    axes.set(xlabel="False positives per slide", ylabel="Share of lesions found")
    axes.legend(loc="lower right", frameon=False, title="mean of the six points")
    _plain(axes)
    return png_of(figure)


def training_png(epochs: Sequence[Mapping[str, Any]]) -> bytes:
    """Loss and accuracy by epoch; rows as in ``epoch_losses.csv``. The lowest validation loss is marked."""
    figure = new_figure(7.2, 3.2)
    left, right = figure.subplots(1, 2)
    number = [int(row["epoch"]) for row in epochs]
    for axes, what in ((left, "loss"), (right, "acc")):
        for part, color, dash, marker in (("train", BLUE, "-", "o"), ("val", ORANGE, "--", "s")):
            values = [_number(row.get(f"{part}_{what}")) for row in epochs]
            name = {"train": "training", "val": "validation"}[part]
            axes.plot(number, values, color=color, ls=dash, marker=marker, ms=4, lw=1.8, label=name)
        axes.set(xlabel="Epoch", ylabel={"loss": "Loss", "acc": "Accuracy"}[what])
        axes.xaxis.get_major_locator().set_params(integer=True)
        _plain(axes)
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
    return png_of(figure)


def intervals_png(names: Sequence[str], panels: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Figures side by side: a panel a metric, a row a name, dot and 95 % interval, or that there is none."""
    figure = new_figure(max(2.4 * len(panels), 3.2), 0.9 + 0.42 * len(names))
    for axes, (title, values) in zip(
        np.atleast_1d(figure.subplots(1, len(panels), sharey=True)), panels.items(), strict=True
    ):
        for row, figure_of in enumerate(values):
            value, low, high = figure_of["value"], figure_of["low"], figure_of["high"]
            if value is None:
                axes.text(
                    0.5,
                    row,
                    "not available",
                    ha="center",
                    va="center",
                    color=GREY,
                    fontsize=8,
                    style="italic",
                )
                continue
            if low is not None:
                axes.plot(
                    [low, high], [row, row], color=BLUE, lw=4, alpha=0.4, solid_capstyle="butt", clip_on=False
                )
            axes.plot(value, row, "o", color=BLUE, mec="white", ms=7, clip_on=False, zorder=5)
        axes.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names)
        axes.set_title(title, fontsize=9)
        _plain(axes)
    return png_of(figure)


def _number(value: Any) -> float:
    return float("nan") if value is None or value == "" else float(value)


def _square(axes, x: str, y: str, title: str) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.03), xlabel=x, ylabel=y, aspect="equal")
    axes.set_title(title, fontsize=10)
    _plain(axes)


def _plain(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)

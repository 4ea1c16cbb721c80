"""Metrics of patches and of whole slides, each with a 95 % interval.

A slide has two scores: ``maximum``, the highest patch probability, and ``top_mean``, the mean of the
``slide_top_fraction`` most suspicious patches (rounded up to whole patches), which one odd patch cannot
carry on a slide of thousands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsi_assets.errors import EvaluationError
from wsi_assets.evaluation.bootstrap import Metric, Resamples, ranking
from wsi_assets.evaluation.options import EvaluationOptions
from wsi_assets.evaluation.predictions import SlidePredictions


@dataclass(frozen=True)
class Calibration:
    """Calibrated logit = logit(p) / temperature + bias."""

    temperature: float
    bias: float

    @classmethod
    def of(cls, plain: Mapping[str, Any] | None) -> Calibration | None:
        """Read ``{"temperature": ..., "bias": ...}``; ``shift`` and ``prior_shift`` are other names of bias.

        Raises:
            EvaluationError: the two are not finite numbers, or the temperature is not positive.
        """
        if plain is None:
            return None
        try:
            temperature = float(plain["temperature"])
            (bias,) = (float(plain[name]) for name in ("bias", "shift", "prior_shift") if name in plain)
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(f"a calibration is a temperature and a bias, not {plain!r:.80}") from error
        if not (0 < temperature < math.inf and math.isfinite(bias)):
            raise EvaluationError(f"a calibration cannot have temperature {temperature} and bias {bias}")
        return cls(temperature, bias)

    def __call__(self, probs: np.ndarray) -> np.ndarray:
        """Calibrated probabilities (n,); 0 and 1 are taken as 1e-7 and 1 - 1e-7, float32's steps."""
        p = np.clip(probs, 1e-7, 1 - 1e-7)
        return 1 / (1 + np.exp(-(np.log(p / (1 - p)) / self.temperature + self.bias)))


@dataclass(frozen=True)
class OperatingPoint:
    """The confusion matrix of one threshold; a probability equal to it is predicted tumor."""

    threshold: float
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    sensitivity: Metric
    specificity: Metric
    precision: Metric


@dataclass(frozen=True)
class CalibrationBin:
    """Patches whose probability lies in [low, high), the last bin in [low, high]."""

    low: float
    high: float
    patches: int
    mean_probability: float
    tumor_fraction: float


@dataclass(frozen=True)
class ProbabilityMetrics:
    """What depends on the probabilities themselves, beyond their order.

    The calibration error is the gap |mean probability - tumor fraction| of the bins, weighted by size, over
    bins of equal width and over bins of equal numbers of patches; empty bins are not listed.
    """

    brier: Metric
    calibration_error: Metric
    calibration_error_equal_mass: Metric
    calibration: tuple[CalibrationBin, ...]
    calibration_equal_mass: tuple[CalibrationBin, ...]
    at_default: OperatingPoint | None
    at_validation: OperatingPoint | None


@dataclass(frozen=True)
class PartialPatches:
    """Patches with too little tumor to be of either class: their number, and how the model sees them."""

    patches: int
    mean_probability: float | None
    predicted_tumor: float | None


@dataclass(frozen=True)
class PatchMetrics(ProbabilityMetrics):
    """Metrics of a set of patches, partial ones apart. ``unit`` names what the intervals resample.

    ``quarantined`` counts the patches that could not be read; ``calibrated`` is None without a calibration.
    """

    patches: int
    tumor: int
    normal: int
    quarantined: int
    partial: PartialPatches
    unit: str
    groups: int
    roc_auc: Metric
    average_precision: Metric
    validation_reason: str | None
    calibrated: ProbabilityMetrics | None


def patch_metrics(
    probs: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    options: EvaluationOptions,
    *,
    partial: np.ndarray | None = None,
    unit: str = "patients",
    validation_threshold: float | None = None,
    calibration: Calibration | None = None,
) -> PatchMetrics:
    """Every patch-level metric of one set of patches.

    Args:
        probs: (n,) tumor probabilities in [0, 1]; nan marks a patch that could not be read.
        labels: (n,) bool, True for tumor.
        groups: (n,) integers; patches of one group are resampled together.
        partial: (n,) bool, True for patches that are neither class; None for none.
        unit: what a group is, in the plural.
        validation_threshold: the threshold chosen on validation patches, None if none was.
        calibration: of the model; the metrics of the calibrated probabilities are then given too.
    """
    probs, labels, groups = np.asarray(probs, float), np.asarray(labels, bool), np.asarray(groups)
    partial = np.zeros(len(probs), bool) if partial is None else partial
    seen = ~np.isnan(probs)
    between = probs[seen & partial]
    kept = seen & ~partial
    probs, labels = probs[kept], labels[kept]
    names, groups = np.unique(groups[kept], return_inverse=True)
    resamples = Resamples(len(names), options.bootstrap_samples, options.seed, unit)
    raw = _probability_metrics(probs, labels, groups, resamples, options, validation_threshold)
    auc, precision = ranking(probs, labels, groups, resamples, "patch")
    reason = "no threshold was chosen on validation patches" if validation_threshold is None else "no patch"
    return PatchMetrics(
        **vars(raw),
        patches=len(probs),
        tumor=int(labels.sum()),
        normal=int((~labels).sum()),
        quarantined=int((~seen).sum()),
        partial=PartialPatches(
            patches=len(between),
            mean_probability=float(between.mean()) if len(between) else None,
            predicted_tumor=float((between >= options.prediction_threshold).mean()) if len(between) else None,
        ),
        unit=unit,
        groups=len(names),
        roc_auc=auc,
        average_precision=precision,
        validation_reason=None if raw.at_validation else reason,
        calibrated=_probability_metrics(calibration(probs), labels, groups, resamples, options, None)
        if calibration
        else None,
    )


def _probability_metrics(
    probs, labels, groups, resamples: Resamples, options: EvaluationOptions, validation_threshold
) -> ProbabilityMetrics:
    """All of them are ratios of sums over patches, so they are summed per group and then over resamples."""
    if not len(probs):
        none = Metric.missing("no patch")
        return ProbabilityMetrics(none, none, none, (), (), None, None)

    def per_group(weights: np.ndarray) -> np.ndarray:
        return np.bincount(groups, weights=weights, minlength=resamples.n_groups)

    shares = np.arange(options.calibration_bins + 1) / options.calibration_bins
    width = _calibration_curve(probs, labels, shares)
    mass = _calibration_curve(probs, labels, np.unique(np.quantile(probs, shares)))
    sums = {"patches": per_group(np.ones(len(probs))), "squares": per_group((probs - labels) ** 2)}
    for name, (bins, of_patch) in (("width", width), ("mass", mass)):
        sums |= {(name, i): per_group((probs - labels) * (of_patch == i)) for i in range(len(bins))}
    thresholds = (options.prediction_threshold, validation_threshold)
    for threshold in thresholds:
        if threshold is not None:
            predicted = probs >= threshold
            sums["TP", threshold] = per_group(predicted & labels)
            sums["FP", threshold] = per_group(predicted & ~labels)
            sums["TN", threshold] = per_group(~predicted & ~labels)
            sums["FN", threshold] = per_group(~predicted & labels)
    # The draws are long to make where groups are many, so everything is summed in one go.
    totals = resamples.totals(sums)

    def error(name: str) -> Metric:
        gaps = sum(np.abs(total) for key, total in totals.items() if key[0] == name)
        return resamples.ratio(gaps, totals["patches"], "no patch")

    return ProbabilityMetrics(
        resamples.ratio(totals["squares"], totals["patches"], "no patch"),
        error("width"),
        error("mass"),
        width[0],
        mass[0],
        *(None if threshold is None else _point(totals, threshold, resamples) for threshold in thresholds),
    )


def _point(totals: dict, threshold: float, resamples: Resamples) -> OperatingPoint:
    tp, fp, tn, fn = (totals[kind, threshold] for kind in ("TP", "FP", "TN", "FN"))
    return OperatingPoint(
        float(threshold),
        *(int(count[0]) for count in (tp, fp, tn, fn)),
        sensitivity=resamples.ratio(tp, tp + fn, "no tumor patch"),
        specificity=resamples.ratio(tn, tn + fp, "no normal patch"),
        precision=resamples.ratio(tp, tp + fp, "no patch is predicted tumor"),
    )


def _calibration_curve(
    probs: np.ndarray, labels: np.ndarray, edges: np.ndarray
) -> tuple[tuple[CalibrationBin, ...], np.ndarray]:
    """The bins between ``edges`` that hold patches, and the number of the bin of each patch (n,)."""
    edges = edges if len(edges) > 1 else np.repeat(edges, 2)
    used, of_patch = np.unique(np.searchsorted(edges[1:-1], probs, side="right"), return_inverse=True)
    size = np.bincount(of_patch)
    mean, tumor = np.bincount(of_patch, probs) / size, np.bincount(of_patch, labels) / size
    bins = (
        CalibrationBin(float(edges[i]), float(edges[i + 1]), int(n), float(p), float(share))
        for i, n, p, share in zip(used, size, mean, tumor, strict=True)
    )
    return tuple(bins), of_patch


@dataclass(frozen=True)
class SlideScore:
    """One slide's truth and scores; the scores are None when none of its patches has a probability.

    ``detections`` is None where patches have no place on level 0.
    """

    slide_id: str
    patient: str
    is_tumor: bool
    patches: int
    tumor_patches: int
    quarantined: int
    maximum: float | None
    top_mean: float | None
    detections: int | None


@dataclass(frozen=True)
class SlideMetrics:
    """``ranking``: by ``top_mean``, then ``maximum``, most suspicious first; slides without scores last."""

    slides: int
    tumor_slides: int
    patients: int
    auc_maximum: Metric
    auc_top_mean: Metric
    ranking: tuple[SlideScore, ...]


def score_slide(
    slide: SlidePredictions, is_tumor: bool, detections: int | None, options: EvaluationOptions
) -> SlideScore:
    """The scores of one slide; see the module's docstring for the two."""
    probs = np.sort(slide.probs[slide.seen])[::-1]
    # Rounded first: 0.07 of 100 is 7.000000000000001 in floating point.
    top = probs[: max(1, math.ceil(round(options.slide_top_fraction * len(probs), 6)))]
    return SlideScore(
        slide_id=slide.slide_id,
        patient=slide.patient,
        is_tumor=is_tumor,
        patches=len(probs),
        tumor_patches=int(slide.is_tumor.sum()),
        quarantined=int((~slide.seen).sum()),
        maximum=float(probs[0]) if len(probs) else None,
        top_mean=float(top.mean()) if len(probs) else None,
        detections=detections,
    )


def slide_metrics(scores: Sequence[SlideScore], options: EvaluationOptions) -> SlideMetrics:
    """AUC of both scores over the slides that have them, with 95 % intervals over patients."""
    ranked = sorted(scores, key=lambda one: (one.maximum is None, -(one.top_mean or 0), -(one.maximum or 0)))
    scored = [one for one in scores if one.maximum is not None]
    labels = np.array([one.is_tumor for one in scored], bool)
    patients, group = np.unique([one.patient for one in scored], return_inverse=True)
    resamples = Resamples(len(patients), options.bootstrap_samples, options.seed)
    maximum, top_mean = (
        ranking(np.array([getattr(one, name) for one in scored]), labels, group, resamples, "test slide")[0]
        for name in ("maximum", "top_mean")
    )
    return SlideMetrics(
        slides=len(scores),
        tumor_slides=sum(one.is_tumor for one in scores),
        patients=len({one.patient for one in scores}),
        auc_maximum=maximum,
        auc_top_mean=top_mean,
        ranking=tuple(ranked),
    )

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
from wsi_assets.evaluation.intervals import Metric, Resamples, ranking
from wsi_assets.evaluation.options import EvaluationOptions
from wsi_assets.evaluation.predictions import SlidePredictions

CALIBRATION_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Calibrated logit = logit(p) / temperature + shift."""

    temperature: float
    shift: float

    @classmethod
    def of(cls, plain: Mapping[str, Any] | None) -> Calibration | None:
        """Read ``{"temperature": ..., "shift": ...}``.

        Raises:
            EvaluationError: the two are not finite numbers, or the temperature is not positive.
        """
        if plain is None:
            return None
        try:
            temperature, shift = float(plain["temperature"]), float(plain["shift"])
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(f"a calibration is a temperature and a shift, not {plain!r:.80}") from error
        if not (0 < temperature < math.inf and math.isfinite(shift)):
            raise EvaluationError(f"a calibration cannot have temperature {temperature} and shift {shift}")
        return cls(temperature, shift)

    def __call__(self, probs: np.ndarray) -> np.ndarray:
        """Calibrated probabilities (n,); 0 and 1 are taken as 1e-7 and 1 - 1e-7, float32's steps."""
        from scipy.special import expit, logit

        return expit(logit(np.clip(probs, 1e-7, 1 - 1e-7)) / self.temperature + self.shift)


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

    The calibration error is the mean gap |mean probability - tumor fraction| of bins of equal numbers of
    patches, weighted by size.
    """

    brier: Metric
    calibration_error: Metric
    calibration: tuple[CalibrationBin, ...]
    at_default: OperatingPoint | None


@dataclass(frozen=True)
class PartialPatches:
    """Patches with too little tumor to be of either class: their number, and how the model sees them."""

    patches: int
    mean_probability: float | None
    predicted_tumor: float | None


@dataclass(frozen=True)
class PatchMetrics(ProbabilityMetrics):
    """Metrics of a set of patches, partial ones apart.

    ``quarantined`` counts the patches that could not be read; ``at_validation`` is None without a threshold
    chosen on validation patches, ``calibrated`` without a calibration.
    """

    patches: int
    tumor: int
    normal: int
    quarantined: int
    partial: PartialPatches
    patients: int
    roc_auc: Metric
    average_precision: Metric
    at_validation: OperatingPoint | None
    calibrated: ProbabilityMetrics | None


def patch_metrics(
    probs: np.ndarray,
    labels: np.ndarray,
    patients: Sequence,
    options: EvaluationOptions,
    *,
    partial: np.ndarray | None = None,
    validation_threshold: float | None = None,
    calibration: Calibration | None = None,
) -> PatchMetrics:
    """Every patch-level metric of one set of patches.

    Args:
        probs: (n,) tumor probabilities in [0, 1]; nan marks a patch that could not be read.
        labels: (n,) bool, True for tumor.
        patients: (n,) whose patch it is; patches of one patient are resampled together.
        partial: (n,) bool, True for patches that are neither class; None for none.
        validation_threshold: the threshold chosen on validation patches, None if none was.
        calibration: of the model; the metrics of the calibrated probabilities are then given too.
    """
    probs, labels = np.asarray(probs, float), np.asarray(labels, bool)
    partial = np.zeros(len(probs), bool) if partial is None else partial
    seen = ~np.isnan(probs)
    between = probs[seen & partial]
    kept = seen & ~partial
    probs, labels = probs[kept], labels[kept]
    resamples = Resamples(np.asarray(patients)[kept], options)
    auc, precision = ranking(probs, labels, resamples, "patch")
    threshold = options.prediction_threshold
    raw = _probability_metrics(probs, labels, resamples, threshold)
    return PatchMetrics(
        **vars(raw),
        patches=len(probs),
        tumor=int(labels.sum()),
        normal=int((~labels).sum()),
        quarantined=int((~seen).sum()),
        partial=PartialPatches(
            patches=len(between),
            mean_probability=float(between.mean()) if len(between) else None,
            predicted_tumor=float((between >= threshold).mean()) if len(between) else None,
        ),
        patients=resamples.patients,
        roc_auc=auc,
        average_precision=precision,
        at_validation=operating_point(probs, labels, resamples, validation_threshold),
        calibrated=_probability_metrics(calibration(probs), labels, resamples, threshold)
        if calibration
        else None,
    )


def operating_point(
    probs: np.ndarray, labels: np.ndarray, resamples: Resamples, threshold: float | None
) -> OperatingPoint | None:
    """What ``threshold`` makes of the patches (n,); None without threshold or patches."""
    if threshold is None or not len(probs):
        return None
    predicted = probs >= threshold
    return OperatingPoint(
        float(threshold),
        int((predicted & labels).sum()),
        int((predicted & ~labels).sum()),
        int((~predicted & ~labels).sum()),
        int((~predicted & labels).sum()),
        sensitivity=resamples.mean(predicted, labels, "no tumor patch"),
        specificity=resamples.mean(~predicted, ~labels, "no normal patch"),
        precision=resamples.mean(labels, predicted, "no patch is predicted tumor"),
    )


def _probability_metrics(
    probs: np.ndarray, labels: np.ndarray, resamples: Resamples, threshold: float
) -> ProbabilityMetrics:
    if not len(probs):
        return ProbabilityMetrics(Metric.missing("no patch"), Metric.missing("no patch"), (), None)
    edges = np.unique(np.quantile(probs, np.linspace(0, 1, CALIBRATION_BINS + 1)))
    edges = edges if len(edges) > 1 else np.repeat(edges, 2)
    _, bins = np.unique(np.searchsorted(edges[1:-1], probs, side="right"), return_inverse=True)
    curve, gaps = [], []
    for number in range(bins.max() + 1):
        inside = bins == number
        low, high = probs[inside].min(), probs[inside].max()
        mean, share = float(probs[inside].mean()), float(labels[inside].mean())
        curve.append(CalibrationBin(float(low), float(high), int(inside.sum()), mean, share))
        gaps.append(resamples.sums((probs - labels) * inside))
    gaps, sizes = np.stack(gaps, axis=1), resamples.sums(np.ones(len(probs)))
    resampled = np.abs(resamples.counts @ gaps).sum(1) / (resamples.counts @ sizes)
    return ProbabilityMetrics(
        brier=resamples.mean((probs - labels) ** 2, np.ones(len(probs), bool), "no patch"),
        calibration_error=resamples.metric(float(np.abs(gaps.sum(0)).sum() / len(probs)), resampled),
        calibration=tuple(curve),
        at_default=operating_point(probs, labels, resamples, threshold),
    )


@dataclass(frozen=True)
class PatchSummary:
    """The patches of a slide or a patient: one patient, so no intervals; None for what is not defined."""

    tumor: int
    normal: int
    roc_auc: float | None
    sensitivity: float | None
    specificity: float | None
    brier: float | None


def patch_summary(slides: Sequence[SlidePredictions], options: EvaluationOptions) -> PatchSummary:
    """All patches of either class of ``slides`` together."""
    from sklearn.metrics import roc_auc_score

    probs = np.concatenate([np.zeros(0), *(one.probs[one.counted] for one in slides)])
    labels = np.concatenate([np.zeros(0, bool), *(one.is_tumor[one.counted] for one in slides)])
    right = (probs >= options.prediction_threshold) == labels

    def mean(values: np.ndarray) -> float | None:
        return float(values.mean()) if len(values) else None

    return PatchSummary(
        tumor=int(labels.sum()),
        normal=int((~labels).sum()),
        roc_auc=float(roc_auc_score(labels, probs)) if len(np.unique(labels)) == 2 else None,
        sensitivity=mean(right[labels]),
        specificity=mean(right[~labels]),
        brier=mean((probs - labels) ** 2),
    )


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
    """``ranking``: by ``top_mean``, then ``maximum``, most suspicious first; slides without scores last.

    ``average_precision`` is of ``top_mean``.
    """

    slides: int
    tumor_slides: int
    patients: int
    auc_maximum: Metric
    auc_top_mean: Metric
    average_precision: Metric
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
    resamples = Resamples([one.patient for one in scored], options)
    (maximum, _), (top_mean, precision) = (
        ranking(np.array([getattr(one, name) for one in scored]), labels, resamples, "test slide")
        for name in ("maximum", "top_mean")
    )
    return SlideMetrics(
        slides=len(scores),
        tumor_slides=sum(one.is_tumor for one in scores),
        patients=len({one.patient for one in scores}),
        auc_maximum=maximum,
        auc_top_mean=top_mean,
        average_precision=precision,
        ranking=tuple(ranked),
    )

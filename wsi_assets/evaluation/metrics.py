"""Metrics of patches and of whole slides, each with a 95 % interval.

A slide has two scores: ``maximum``, the highest patch probability, and ``top_mean``, the mean of the
``slide_top_fraction`` of patches with the highest probabilities (rounded up to whole patches), which depends
less on single patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from wsi_assets.evaluation.intervals import Metric, Resamples, ranking
from wsi_assets.evaluation.options import EvaluationOptions
from wsi_assets.evaluation.predictions import SlidePredictions

CALIBRATION_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Calibrated logit = logit(p) / temperature + shift."""

    temperature: float
    shift: float

    def __call__(self, probs: np.ndarray) -> np.ndarray:
        """Calibrated probabilities (n,); 0 and 1 are taken as 1e-7 and 1 - 1e-7, the precision of float32."""
        from scipy.special import expit, logit

        return expit(logit(np.clip(probs, 1e-7, 1 - 1e-7)) / self.temperature + self.shift)


@dataclass(frozen=True)
class OperatingPoint:
    """Confusion matrix and metrics of patches, or of slides, at a threshold.

    A probability, or score, equal to the threshold is predicted tumor.
    """

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
    """One of the bins of a calibration curve, which have about equal numbers of patches."""

    patches: int
    mean_probability: float
    tumor_fraction: float


@dataclass(frozen=True)
class PatchMetrics:
    """Metrics of a set of patches.

    The calibration error is the mean of |mean probability - tumor fraction| over the bins, weighted by size.
    Operating points are None if there are no patches; ``at_validation`` also if no threshold was chosen on
    validation patches.
    """

    patches: int
    tumor: int
    normal: int
    patients: int
    roc_auc: Metric
    average_precision: Metric
    brier: Metric
    calibration_error: Metric
    calibration: tuple[CalibrationBin, ...]
    at_default: OperatingPoint | None
    at_validation: OperatingPoint | None


def pooled(slides: Sequence[SlidePredictions]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probability, label (bool) and patient of all tumor and normal patches of ``slides``, each (n,)."""
    parts = [(one.probs[one.counted], one.is_tumor[one.counted], one.patient) for one in slides]
    probs = np.concatenate([np.zeros(0), *(part[0] for part in parts)])
    labels = np.concatenate([np.zeros(0, bool), *(part[1] for part in parts)])
    return probs, labels, np.repeat([part[2] for part in parts], [len(part[0]) for part in parts])


def patch_metrics(
    probs: np.ndarray,
    labels: np.ndarray,
    patients: Sequence,
    options: EvaluationOptions,
    validation_threshold: float | None = None,
) -> PatchMetrics:
    """Every patch-level metric of one set of patches.

    Args:
        probs: (n,) tumor probabilities in [0, 1].
        labels: (n,) bool, True for tumor.
        patients: (n,) patient of each patch; patches of one patient are resampled together.
        validation_threshold: the threshold chosen on validation patches, or None.
    """
    probs, labels = np.asarray(probs, float), np.asarray(labels, bool)
    resamples = Resamples(patients, options)
    auc, precision = ranking(probs, labels, resamples, "patch")
    bins, error = _calibration(probs, labels, resamples)
    return PatchMetrics(
        patches=len(probs),
        tumor=int(labels.sum()),
        normal=int((~labels).sum()),
        patients=resamples.patients,
        roc_auc=auc,
        average_precision=precision,
        brier=resamples.mean((probs - labels) ** 2, np.ones(len(probs), bool), "no patch"),
        calibration_error=error,
        calibration=bins,
        at_default=_operating_point(probs, labels, resamples.mean, options.prediction_threshold),
        at_validation=_operating_point(probs, labels, resamples.mean, validation_threshold),
    )


def _operating_point(
    probs: np.ndarray,
    labels: np.ndarray,
    mean: Callable[[np.ndarray, np.ndarray, str], Metric],
    threshold: float | None,
    what: str = "patch",
) -> OperatingPoint | None:
    if threshold is None or not len(probs):
        return None
    from sklearn.metrics import confusion_matrix

    predicted = probs >= threshold
    (tn, fp), (fn, tp) = confusion_matrix(labels, predicted, labels=[False, True]).tolist()
    return OperatingPoint(
        *(float(threshold), tp, fp, tn, fn),
        sensitivity=mean(predicted, labels, f"no tumor {what}"),
        specificity=mean(~predicted, ~labels, f"no normal {what}"),
        precision=mean(labels, predicted, f"no {what} is predicted tumor"),
    )


def _calibration(
    probs: np.ndarray, labels: np.ndarray, resamples: Resamples
) -> tuple[tuple[CalibrationBin, ...], Metric]:
    """The bins, with equal probabilities in the same one, and the calibration error."""
    if not len(probs):
        return (), Metric.missing("no patch")
    edges = np.unique(np.quantile(probs, np.linspace(0, 1, CALIBRATION_BINS + 1)))
    number = np.searchsorted(edges[1:-1], probs, side="right")
    inside = [number == one for one in np.unique(number)]
    bins = tuple(
        CalibrationBin(int(one.sum()), float(probs[one].mean()), float(labels[one].mean())) for one in inside
    )
    gaps = np.stack([resamples.sums((probs - labels) * one) for one in inside], axis=1)
    resampled = np.abs(resamples.counts @ gaps).sum(1)
    resampled /= resamples.counts @ resamples.sums(np.ones(len(probs)))
    return bins, resamples.metric(float(np.abs(gaps.sum(0)).sum() / len(probs)), resampled)


@dataclass(frozen=True)
class SlideScore:
    """Truth and scores of one slide; the scores are None if none of its patches has a probability.

    ``quarantined`` counts unreadable patches; ``detections`` is None if the downsample is unknown.
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
    """Metrics of whole slides; ``average_precision`` and ``operating_point`` are those of ``top_mean``.

    ``operating_point`` is at the threshold of patches: the one chosen on validation patches, else the
    default; None if no slide has a score. ``ranking`` is by ``top_mean``, then ``maximum``, highest first;
    slides without scores are last.
    """

    slides: int
    tumor_slides: int
    patients: int
    auc_maximum: Metric
    auc_top_mean: Metric
    average_precision: Metric
    operating_point: OperatingPoint | None
    ranking: tuple[SlideScore, ...]


def score_slide(
    slide: SlidePredictions, is_tumor: bool, detections: int | None, options: EvaluationOptions
) -> SlideScore:
    """The two scores of one slide, which the docstring of this module defines."""
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


def slide_metrics(
    scores: Sequence[SlideScore], options: EvaluationOptions, validation_threshold: float | None = None
) -> SlideMetrics:
    """Metrics over the slides that have scores, with 95 % intervals over patients."""
    ranked = sorted(scores, key=lambda one: (one.maximum is None, -(one.top_mean or 0), -(one.maximum or 0)))
    scored = [one for one in scores if one.maximum is not None]
    labels = np.array([one.is_tumor for one in scored], bool)
    resamples = Resamples([one.patient for one in scored], options)
    highest, means = (np.array([getattr(one, name) for one in scored]) for name in ("maximum", "top_mean"))
    maximum, _ = ranking(highest, labels, resamples, "test slide")
    top_mean, precision = ranking(means, labels, resamples, "test slide")
    threshold = options.prediction_threshold if validation_threshold is None else validation_threshold
    return SlideMetrics(
        slides=len(scores),
        tumor_slides=sum(one.is_tumor for one in scores),
        patients=len({one.patient for one in scores}),
        auc_maximum=maximum,
        auc_top_mean=top_mean,
        average_precision=precision,
        operating_point=_operating_point(means, labels, resamples.share, threshold, "test slide"),
        ranking=tuple(ranked),
    )

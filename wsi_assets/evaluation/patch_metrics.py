"""How well single patches are told apart, and how far their probabilities can be believed.

Every figure carries a 95 % interval. Slides, lesions and pictures do not belong here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from wsi_assets.evaluation.bootstrap import draw_groups, ranking_samples, ratio_samples, with_interval
from wsi_assets.evaluation.figures import Figure
from wsi_assets.evaluation.options import EvaluationOptions


@dataclass(frozen=True)
class OperatingPoint:
    """The confusion matrix of one threshold; a probability equal to the threshold is called tumour."""

    threshold: float
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    sensitivity: Figure
    specificity: Figure
    precision: Figure

    def to_plain(self) -> dict[str, Any]:
        return {
            "threshold": self.threshold,
            "confusion": {
                "true_positives": self.true_positives,
                "false_positives": self.false_positives,
                "true_negatives": self.true_negatives,
                "false_negatives": self.false_negatives,
            },
            "sensitivity": self.sensitivity.to_plain(),
            "specificity": self.specificity.to_plain(),
            "precision": self.precision.to_plain(),
        }


@dataclass(frozen=True)
class CalibrationBin:
    """Patches whose probability lies in [low, high), the last bin in [low, 1].

    ``mean_probability`` and ``tumor_fraction`` are None in an empty bin.
    """

    low: float
    high: float
    patches: int
    mean_probability: float | None
    tumor_fraction: float | None


@dataclass(frozen=True)
class PatchMetrics:
    """Figures of a set of patches. ``unit`` names what the intervals resample, in the plural."""

    patches: int
    tumor: int
    normal: int
    quarantined: int
    unit: str
    groups: int
    roc_auc: Figure
    average_precision: Figure
    brier: Figure
    calibration_error: Figure
    at_default: OperatingPoint | None
    at_validation: OperatingPoint | None
    validation_reason: str | None
    calibration: tuple[CalibrationBin, ...]

    def to_plain(self) -> dict[str, Any]:
        return {
            "patches": self.patches,
            "tumor": self.tumor,
            "normal": self.normal,
            "quarantined": self.quarantined,
            "interval_over": {"unit": self.unit, "count": self.groups},
            "roc_auc": self.roc_auc.to_plain(),
            "average_precision": self.average_precision.to_plain(),
            "brier": self.brier.to_plain(),
            "calibration_error": self.calibration_error.to_plain(),
            "at_default_threshold": self.at_default.to_plain() if self.at_default else None,
            "at_validation_threshold": self.at_validation.to_plain() if self.at_validation else None,
            "validation_threshold_reason": self.validation_reason,
            "calibration": [vars(part) for part in self.calibration],
        }


def patch_metrics(
    probs: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    options: EvaluationOptions,
    *,
    unit: str = "patients",
    validation_threshold: float | None = None,
) -> PatchMetrics:
    """Every patch-level figure of one set of patches.

    Args:
        probs: (n,) tumour probabilities in [0, 1]; nan marks a patch that could not be read: it is left out
            and counted as quarantined.
        labels: (n,) bool, True for tumour.
        groups: (n,) any hashable integers; patches of one group are resampled together.
        unit: what a group is, in the plural.
        validation_threshold: the threshold chosen on validation patches, None if none was.
    """
    probs, labels, groups = np.asarray(probs, float), np.asarray(labels, bool), np.asarray(groups)
    seen = ~np.isnan(probs)
    quarantined = int((~seen).sum())
    probs, labels = probs[seen], labels[seen]
    names, groups = np.unique(groups[seen], return_inverse=True)
    tumor, normal = int(labels.sum()), int((~labels).sum())
    counts = draw_groups(len(names), options.bootstrap_samples, options.seed)
    sums = _GroupSums(groups, len(names), counts, unit)
    bins = _calibration_bin(probs, options.calibration_bins)
    auc, precision = _ranking(probs, labels, groups, counts, len(names), unit)
    chosen = None
    if validation_threshold is not None and len(probs):
        chosen = _operating_point(validation_threshold, probs, labels, sums)
    return PatchMetrics(
        patches=len(probs),
        tumor=tumor,
        normal=normal,
        quarantined=quarantined,
        unit=unit,
        groups=len(names),
        roc_auc=auc,
        average_precision=precision,
        brier=_brier(probs, labels, sums),
        calibration_error=_calibration_error(probs, labels, bins, options.calibration_bins, sums),
        at_default=_operating_point(options.prediction_threshold, probs, labels, sums)
        if len(probs)
        else None,
        at_validation=chosen,
        validation_reason=None if chosen else _no_validation(validation_threshold),
        calibration=calibration_curve(probs, labels, options.calibration_bins),
    )


def calibration_curve(probs: np.ndarray, labels: np.ndarray, n_bins: int) -> tuple[CalibrationBin, ...]:
    """Mean probability against the observed share of tumour in ``n_bins`` equal-width bins."""
    bins = _calibration_bin(probs, n_bins)
    size = np.bincount(bins, minlength=n_bins)
    total = np.bincount(bins, weights=probs, minlength=n_bins)
    found = np.bincount(bins, weights=labels, minlength=n_bins)
    return tuple(
        CalibrationBin(
            low=i / n_bins,
            high=(i + 1) / n_bins,
            patches=int(size[i]),
            mean_probability=float(total[i] / size[i]) if size[i] else None,
            tumor_fraction=float(found[i] / size[i]) if size[i] else None,
        )
        for i in range(n_bins)
    )


def one_class_reason(labels: np.ndarray, what: str) -> str | None:
    """Why a ranking of ``labels`` cannot be judged, None if it can."""
    if len(labels) == 0:
        return f"no {what}"
    if not labels.any():
        return f"no tumour {what} among the {len(labels)}"
    if labels.all():
        return f"no normal {what} among the {len(labels)}"
    return None


class _GroupSums:
    """Sums per group, and the ratio of two of them as a figure with its interval."""

    def __init__(self, groups: np.ndarray, n_groups: int, counts: np.ndarray, unit: str):
        self.groups, self.n_groups, self.counts, self.unit = groups, n_groups, counts, unit

    def per_group(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.groups, weights=values, minlength=self.n_groups)

    def ratio(self, numerator: np.ndarray, denominator: np.ndarray, reason: str) -> Figure:
        if not denominator.any():
            return Figure.missing(reason)
        above, below = self.per_group(numerator), self.per_group(denominator)
        value = float(np.sum(numerator, dtype=float) / np.sum(denominator, dtype=float))
        return with_interval(value, ratio_samples(self.counts, above, below), self.n_groups, self.unit)


def _ranking(probs, labels, groups, counts, n_groups, unit) -> tuple[Figure, Figure]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    reason = one_class_reason(labels, "patch")
    if reason:
        return Figure.missing(reason), Figure.missing(reason)
    aucs, precisions = ranking_samples(counts, probs, labels, groups)
    auc, precision = float(roc_auc_score(labels, probs)), float(average_precision_score(labels, probs))
    return (
        with_interval(auc, aucs, n_groups, unit),
        with_interval(precision, precisions, n_groups, unit),
    )


def _brier(probs: np.ndarray, labels: np.ndarray, sums: _GroupSums) -> Figure:
    return sums.ratio((probs - labels) ** 2, np.ones(len(probs)), "no patch")


def _calibration_error(probs, labels, bins, n_bins, sums: _GroupSums) -> Figure:
    """Expected calibration error: the gap |mean probability - tumour share| of the bins, weighted by size."""
    if not len(probs):
        return Figure.missing("no patch")
    cell = sums.groups * n_bins + bins
    surplus = np.bincount(cell, weights=probs - labels, minlength=sums.n_groups * n_bins)
    surplus = surplus.reshape(sums.n_groups, n_bins)
    value = float(np.abs(surplus.sum(0)).sum() / len(probs))
    size = sums.counts @ sums.per_group(np.ones(len(probs)))
    resampled = np.abs(sums.counts @ surplus).sum(1) / size
    return with_interval(value, resampled, sums.n_groups, sums.unit)


def _operating_point(
    threshold: float, probs: np.ndarray, labels: np.ndarray, sums: _GroupSums
) -> OperatingPoint:
    called = probs >= threshold
    right = called & labels
    return OperatingPoint(
        threshold=float(threshold),
        true_positives=int(right.sum()),
        false_positives=int((called & ~labels).sum()),
        true_negatives=int((~called & ~labels).sum()),
        false_negatives=int((~called & labels).sum()),
        sensitivity=sums.ratio(right, labels, "no tumour patch"),
        specificity=sums.ratio(~called & ~labels, ~labels, "no normal patch"),
        precision=sums.ratio(right, called, "no patch is called tumour"),
    )


def _no_validation(threshold: float | None) -> str:
    return "no threshold was chosen on validation patches" if threshold is None else "no patch"


def _calibration_bin(probs: np.ndarray, n_bins: int) -> np.ndarray:
    return np.minimum((probs * n_bins).astype(int), n_bins - 1)

"""How well single patches are told apart, and how far their probabilities can be believed.

Every figure carries a 95 % interval. Slides, lesions and pictures do not belong here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsi_assets.evaluation.bootstrap import Resamples, ranking_samples, ratio_samples, with_interval
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
    resamples = Resamples(len(names), options.bootstrap_samples, options.seed)
    thresholds = [options.prediction_threshold, validation_threshold]
    points, brier, calibration_error = _sum_figures(
        probs, labels, groups, resamples, unit, options.calibration_bins, thresholds
    )
    auc, precision = _ranking(probs, labels, groups, resamples, unit)
    return PatchMetrics(
        patches=len(probs),
        tumor=tumor,
        normal=normal,
        quarantined=quarantined,
        unit=unit,
        groups=len(names),
        roc_auc=auc,
        average_precision=precision,
        brier=brier,
        calibration_error=calibration_error,
        at_default=points[0],
        at_validation=points[1],
        validation_reason=None if points[1] else _no_validation(validation_threshold),
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


@dataclass(frozen=True)
class _Sum:
    """A sum over patches: of the whole set, and (samples,) of every resample."""

    whole: float
    resampled: np.ndarray

    def __add__(self, other: _Sum) -> _Sum:
        return _Sum(self.whole + other.whole, self.resampled + other.resampled)


def _sum_figures(
    probs, labels, groups, resamples: Resamples, unit: str, n_bins: int, thresholds: Sequence[float | None]
) -> tuple[list[OperatingPoint | None], Figure, Figure]:
    """What follows from sums: the operating points, the Brier score and the expected calibration error.

    The error is the gap |mean probability - tumour share| of the bins, weighted by size.
    """
    if not len(probs):
        return [None] * len(thresholds), Figure.missing("no patch"), Figure.missing("no patch")
    n_groups = resamples.n_groups
    cell = groups * n_bins + _calibration_bin(probs, n_bins)
    surplus = np.bincount(cell, weights=probs - labels, minlength=n_groups * n_bins)
    columns = [np.bincount(groups), np.bincount(groups, weights=(probs - labels) ** 2)]
    columns += list(surplus.reshape(n_groups, n_bins).T)
    for threshold in thresholds:
        if threshold is not None:
            columns += _confusion(threshold, probs, labels, groups, n_groups)
    # The draws are long to make where groups are many, so all columns are summed in one go.
    resampled = resamples.sums(np.stack(columns, axis=1))
    sums = [_Sum(column.sum(), part) for column, part in zip(columns, resampled.T, strict=True)]
    size, squares, gaps, rest = sums[0], sums[1], sums[2 : 2 + n_bins], iter(sums[2 + n_bins :])
    error = _Sum(sum(abs(gap.whole) for gap in gaps), sum(np.abs(gap.resampled) for gap in gaps))

    def ratio(above: _Sum, below: _Sum, reason: str) -> Figure:
        if not below.whole:
            return Figure.missing(reason)
        drawn = ratio_samples(above.resampled, below.resampled)
        return with_interval(float(above.whole / below.whole), drawn, n_groups, unit)

    points = []
    for threshold in thresholds:
        if threshold is None:
            points.append(None)
            continue
        right, wrong, spared, missed = (next(rest) for _ in range(4))
        points.append(
            OperatingPoint(
                threshold=float(threshold),
                true_positives=int(right.whole),
                false_positives=int(wrong.whole),
                true_negatives=int(spared.whole),
                false_negatives=int(missed.whole),
                sensitivity=ratio(right, right + missed, "no tumour patch"),
                specificity=ratio(spared, spared + wrong, "no normal patch"),
                precision=ratio(right, right + wrong, "no patch is called tumour"),
            )
        )
    return points, ratio(squares, size, "no patch"), ratio(error, size, "no patch")


def _confusion(threshold: float, probs, labels, groups, n_groups: int) -> list[np.ndarray]:
    """True and false positives, true and false negatives of each group, four (n_groups,)."""
    called = probs >= threshold
    kinds = (called & labels, called & ~labels, ~called & ~labels, ~called & labels)
    return [np.bincount(groups[kind], minlength=n_groups) for kind in kinds]


def _ranking(probs, labels, groups, resamples: Resamples, unit: str) -> tuple[Figure, Figure]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    reason = one_class_reason(labels, "patch")
    if reason:
        return Figure.missing(reason), Figure.missing(reason)
    aucs, precisions = ranking_samples(resamples, probs, labels, groups)
    auc, precision = float(roc_auc_score(labels, probs)), float(average_precision_score(labels, probs))
    return (
        with_interval(auc, aucs, resamples.n_groups, unit),
        with_interval(precision, precisions, resamples.n_groups, unit),
    )


def _no_validation(threshold: float | None) -> str:
    return "no threshold was chosen on validation patches" if threshold is None else "no patch"


def _calibration_bin(probs: np.ndarray, n_bins: int) -> np.ndarray:
    return np.minimum((probs * n_bins).astype(int), n_bins - 1)

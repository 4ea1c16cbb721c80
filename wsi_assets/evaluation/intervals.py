"""Metrics with 95 % intervals over patients.

Patches of one patient resemble each other, so resampling patches would make every interval far too narrow.
Instead, patients are drawn with replacement, each with all of its slides and patches (percentile interval of
a cluster bootstrap). With too few patients there is no interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsi_assets.evaluation.options import EvaluationOptions

FEWEST_PATIENTS = 10
"""With fewer patients no interval is given, because it would be unreliable."""

TUMOR_SCORES = 4096
"""Largest number of distinct tumor scores used in resampling; the metrics themselves use all scores."""


@dataclass(frozen=True)
class Metric:
    """A number and its 95 % interval.

    ``value`` is None if the number cannot be computed, instead of 0.0 or NaN. ``reason`` says why the value,
    or only its interval, is missing.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    def __post_init__(self):
        if any(
            number is not None and not math.isfinite(number) for number in (self.value, self.low, self.high)
        ):
            raise ValueError(f"a metric is a finite number or None: {self}")
        if (self.value is None or self.low is None) and not self.reason:
            raise ValueError("a metric without a value or an interval says why")

    @classmethod
    def missing(cls, reason: str) -> Metric:
        return cls(None, reason=reason)


class Resamples:
    """Bootstrap samples of patients, equal for equal patients and options.

    Attributes:
        patients: number of different patients.
        group: (n,) number of the patient of each measured item (slide or patch).
        counts: (samples, patients) float, how often each is drawn; a row sums to ``patients``.
        reason: why there are no samples, or None.
    """

    def __init__(self, patient_of: Sequence, options: EvaluationOptions):
        names, self.group = np.unique(np.asarray(patient_of), return_inverse=True)
        self.patients = n = len(names)
        self.reason = None if options.bootstrap_samples else "intervals are switched off"
        if n < FEWEST_PATIENTS:
            self.reason = f"too few patients ({n})"
        self.counts = np.zeros((0, n))
        if self.reason is None:
            generator = np.random.default_rng(options.seed)
            draws = generator.multinomial(n, np.full(n, 1 / n), options.bootstrap_samples)
            self.counts = draws.astype(float)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums of ``values`` (n,) over each patient, (patients,)."""
        return np.bincount(self.group, values, self.patients)

    def metric(self, value: float, resampled: np.ndarray) -> Metric:
        """``value`` with the 2.5 and 97.5 percentiles of ``resampled`` (samples,), NaN if undefined."""
        if self.reason:
            return Metric(value, reason=self.reason)
        defined = resampled[np.isfinite(resampled)]
        if defined.size < resampled.size / 2:
            return Metric(value, reason=f"not defined in most draws of {self.patients} patients")
        low, high = np.percentile(defined, [2.5, 97.5])
        if low == high:
            return Metric(value, reason="the same in every draw of the patients")
        return Metric(value, float(low), float(high))

    def mean(self, values: np.ndarray, among: np.ndarray, missing: str) -> Metric:
        """Mean of ``values`` (n,) where ``among`` (n,) is True; if it never is, ``missing`` is the reason.

        A share that is equal in all samples, e.g. a specificity of 1, gets the interval of :meth:`share`.
        """
        if not among.any():
            return Metric.missing(missing)
        above, below = self.sums(values * among), self.sums(among)
        metric = self.metric(
            float(above.sum() / below.sum()), _ratio(self.counts @ above, self.counts @ below)
        )
        if self.reason or metric.low is not None or values.dtype != bool:
            return metric
        return self.share(values, among, missing)

    def share(self, values: np.ndarray, among: np.ndarray, missing: str) -> Metric:
        """Share of True ``values`` as by :meth:`mean`, with Wilson's interval, which holds for few items.

        Its sample size is the number of patients, so that several slides of one patient count once.
        """
        if not among.any():
            return Metric.missing(missing)
        value = float(np.mean(values[among]))
        if self.reason:
            return Metric(value, reason=self.reason)
        from scipy.stats import binomtest

        patients = len(np.unique(self.group[among]))
        interval = binomtest(round(value * patients), patients).proportion_ci(method="wilson")
        return Metric(value, float(interval.low), float(interval.high))


def ranking(scores: np.ndarray, labels: np.ndarray, resamples: Resamples, what: str) -> tuple[Metric, Metric]:
    """ROC-AUC and average precision of scores (n,); ``what`` names a scored item, e.g. "patch"."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    if len(np.unique(labels)) < 2:
        lacking = "normal" if labels.any() else "tumor"
        reason = f"no {lacking} {what} among the {len(labels)}" if len(labels) else f"no {what}"
        return Metric.missing(reason), Metric.missing(reason)
    aucs, precisions = ranking_samples(resamples, scores, labels)
    return (
        resamples.metric(float(roc_auc_score(labels, scores)), aucs),
        resamples.metric(float(average_precision_score(labels, scores)), precisions),
    )


def ranking_samples(
    resamples: Resamples, scores: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ROC-AUC and average precision of every sample, each (samples,), NaN for a sample with one class only.

    Scikit-learn would sort all scores for every sample. Here each distinct tumor score has a bin, and all
    scores between two of them share a bin: they are normal, so their order changes neither metric. Of more
    than ``TUMOR_SCORES`` distinct tumor scores, that many are used, evenly spaced in rank.
    """
    levels = np.unique(scores[labels])
    levels = levels[np.linspace(0, len(levels) - 1, min(len(levels), TUMOR_SCORES)).round().astype(int)]
    bins = np.searchsorted(levels, scores) + np.searchsorted(levels, scores, side="right")
    shape = resamples.patients, 2 * len(levels) + 1
    place = np.ravel_multi_index((resamples.group, bins), shape)
    # The highest bin first.
    tumor, normal = (
        np.bincount(place[kind], minlength=math.prod(shape)).reshape(shape)[:, ::-1].astype(float)
        for kind in (labels, ~labels)
    )
    found = []
    for counts in np.array_split(resamples.counts, len(resamples.counts) // 50 + 1):
        new_tp, new_fp = counts @ tumor, counts @ normal
        tp, fp = np.cumsum(new_tp, axis=1), np.cumsum(new_fp, axis=1)
        auc = _ratio((new_tp * (fp[:, -1:] - fp + new_fp / 2)).sum(1), tp[:, -1] * fp[:, -1])
        precision = _ratio((new_tp * _ratio(tp, tp + fp, 0.0)).sum(1), tp[:, -1])
        found.append((auc, precision))
    return tuple(np.concatenate(found, axis=1))


def _ratio(above: np.ndarray, below: np.ndarray, otherwise: float = np.nan) -> np.ndarray:
    """``above / below``, and ``otherwise`` where ``below`` is 0."""
    return np.divide(above, below, out=np.full(np.shape(below), otherwise), where=below > 0)

"""Metrics with 95 % intervals, by resampling whole groups: patients of a cohort, or blocks of one slide.

Patches of one patient resemble each other, so resampling patches would make every interval far too
narrow; a group is drawn with replacement with all that belongs to it (Efron's percentile interval over
clusters).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

TUMOR_RANKS = 1024
"""Resolution, in ranks, at least, of a group's tumor scores while resampling.

Point values use the scores themselves; ``ranking_samples`` says what this adds to an end of an interval.
"""

MAX_CELLS = 1_000_000
"""Most numbers in one array over resamples; about ten such arrays live at once, whatever the cohort."""


@dataclass(frozen=True)
class Metric:
    """A number and its 95 % interval.

    ``value`` is None when the number cannot be computed: never 0.0, never nan. ``reason`` says why the
    value, or where there is a value its interval, is missing.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    def __post_init__(self):
        for number in (self.value, self.low, self.high):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"a metric is a finite number or None, not {number}")
        if (self.value is None or self.low is None) and not self.reason:
            raise ValueError("a metric without a value or an interval says why")

    @classmethod
    def missing(cls, reason: str) -> Metric:
        return cls(None, reason=reason)


@dataclass(frozen=True)
class Resamples:
    """``samples`` draws of ``n_groups`` groups with replacement, the same each time.

    They are drawn anew on every use, because holding them would take samples x groups numbers.
    ``unit`` is what a group is, in the plural.
    """

    n_groups: int
    samples: int
    seed: int
    unit: str = "patients"

    def drawn(self) -> Iterator[np.ndarray]:
        """How often each group is drawn: parts (some samples, n_groups) float64; a row sums to n_groups."""
        generator, groups = np.random.default_rng(self.seed), self.n_groups
        step = max(1, MAX_CELLS // max(groups, 1))
        for start in range(0, self.samples, step):
            counts = np.zeros((min(step, self.samples - start), groups))
            for row in counts:
                row[:] = np.bincount(generator.integers(0, groups, groups), minlength=groups) if groups else 0
            yield counts

    def totals(self, per_group: Mapping[Hashable, np.ndarray]) -> dict[Hashable, np.ndarray]:
        """Sums over the cohort, then over each resample, (1 + samples,), of numbers per group (n_groups,)."""
        columns = np.stack(list(per_group.values()), axis=1).astype(float)
        sums = np.concatenate([columns.sum(0)[None], *(counts @ columns for counts in self.drawn())])
        return dict(zip(per_group, sums.T, strict=True))

    def ratio(self, above: np.ndarray, below: np.ndarray, reason: str) -> Metric:
        """One total over another with its interval; missing for ``reason`` where the cohort has x/0."""
        if not below[0]:
            return Metric.missing(reason)
        values = np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)
        return self.metric(float(values[0]), values[1:])

    def metric(self, value: float, resampled: np.ndarray) -> Metric:
        """``value`` with the 2.5 and 97.5 percentiles of its values in the resamples (samples,), nan if none.

        The percentiles stand as they are: of a skewed number they need not enclose the value.
        """
        if resampled.size == 0:
            return Metric(value, reason="intervals are switched off")
        if self.n_groups < 2:
            return Metric(value, reason=f"an interval over {self.unit} needs at least two of them")
        defined = resampled[np.isfinite(resampled)]
        if defined.size < resampled.size / 2:
            return Metric(value, reason=f"not defined in most resamples of only {self.n_groups} {self.unit}")
        low, high = np.percentile(defined, [2.5, 97.5])
        return Metric(value, float(low), float(high))


def ranking(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, resamples: Resamples, what: str):
    """ROC-AUC and average precision, two metrics; ``what`` names one scored thing, e.g. "patch".

    Args as for :func:`ranking_samples`.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    reason = None
    if len(labels) == 0:
        reason = f"no {what}"
    elif labels.all() or not labels.any():
        reason = f"no {'normal' if labels.all() else 'tumor'} {what} among the {len(labels)}"
    if reason:
        return Metric.missing(reason), Metric.missing(reason)
    aucs, precisions = ranking_samples(resamples, scores, labels, groups)
    return (
        resamples.metric(float(roc_auc_score(labels, scores)), aucs),
        resamples.metric(float(average_precision_score(labels, scores)), precisions),
    )


def ranking_samples(
    resamples: Resamples, scores: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ROC-AUC and average precision in every resample.

    Exact where no group has more than ``TUMOR_RANKS`` tumor scores. Otherwise a bin of several tumor scores
    holds less than 1 / TUMOR_RANKS of the tumor of any group, so of any resample: the AUC is off by less
    than half of that; the average precision takes the precision at the lower end of each such bin, and
    comes out low by less than that where precision only falls.

    Args:
        scores: (n,) float.
        labels: (n,) bool, True for tumor.
        groups: (n,) int, the group of each score.

    Returns:
        Two (samples,) arrays, nan where a resample holds one class only. Ties count one half in the AUC;
        average precision is the sum of precision times the step of recall, as scikit-learn has it.
    """
    from scipy.sparse import csr_array

    bins = _bins(scores, labels, groups)
    shape = int(bins.max()) + 1, resamples.n_groups
    tumor, normal = (
        csr_array((np.ones(int(kind.sum())), (bins[kind], groups[kind])), shape=shape)
        for kind in (labels, ~labels)
    )
    parts = [_ranking(tumor, normal, counts) for counts in resamples.drawn()]
    auc, precision = np.concatenate([np.zeros((2, 0)), *parts], axis=1)
    return auc, precision


def _ranking(tumor, normal, counts: np.ndarray) -> np.ndarray:
    """AUC and average precision, (2, samples), of sparse histograms (bins, groups), the highest bin first."""
    samples, weights = len(counts), np.ascontiguousarray(counts.T)
    n_tumor, n_normal = counts @ tumor.sum(0), counts @ normal.sum(0)
    tp_before, fp_before = np.zeros((samples, 1)), np.zeros((samples, 1))
    auc, precision = np.zeros(samples), np.zeros(samples)
    step = max(1, MAX_CELLS // samples)
    for start in range(0, tumor.shape[0], step):
        # A row a resample: sums along a row are several times as fast as sums from row to row.
        new_tp = np.ascontiguousarray((tumor[start : start + step] @ weights).T)
        new_fp = np.ascontiguousarray((normal[start : start + step] @ weights).T)
        tp = np.cumsum(new_tp, axis=1) + tp_before
        fp = np.cumsum(new_fp, axis=1) + fp_before
        auc += np.einsum("ij,ij->i", new_tp, n_normal[:, None] - fp + 0.5 * new_fp)
        precision += np.einsum("ij,ij->i", new_tp, tp / np.maximum(tp + fp, 1))
        tp_before, fp_before = tp[:, -1:], fp[:, -1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        both = np.where((n_tumor > 0) & (n_normal > 0), n_tumor * n_normal, np.nan)
        return np.stack([auc / both, precision / np.where(n_tumor > 0, n_tumor, np.nan)])


def _bins(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The bin of each score, (n,) int, the highest scores in the lowest bin; equal scores share one.

    A tumor score has a bin of its own, and all scores between two such share the bin between them: they are
    normal, so neither AUC nor average precision depends on their order. Of a group with more tumor scores
    than ``TUMOR_RANKS``, as many have a bin of their own, evenly spread in rank; the rest fall between.
    """
    levels, level = np.unique(scores, return_inverse=True)
    tumor_level, tumor_group = level[labels], groups[labels]
    order = np.lexsort((tumor_level, tumor_group))
    tumor_level, tumor_group = tumor_level[order], tumor_group[order]
    size = np.bincount(tumor_group)
    rank = np.arange(len(order)) - (np.cumsum(size) - size)[tumor_group]
    size = size[tumor_group]
    steps = rank * TUMOR_RANKS // size != (rank - 1) * TUMOR_RANKS // size
    alone = np.zeros(len(levels), bool)
    alone[tumor_level[steps]] = True
    begins = alone.copy()
    begins[1:] |= alone[:-1]
    bin_of_level = np.cumsum(begins)
    return (bin_of_level[-1] - bin_of_level)[level]

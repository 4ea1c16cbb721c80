"""95 % intervals by resampling whole groups: patients of a cohort, or blocks of tissue of one slide.

Patches of one patient resemble each other, so resampling patches would make every interval far too
narrow; a group is drawn with replacement with all that belongs to it (Efron's percentile interval over
clusters). What is resampled is not a concern of this module.
"""

from __future__ import annotations

import numpy as np

from wsi_assets.evaluation.figures import Figure

RANK_BINS = 2048
"""Scores are ranked into at most this many bins while resampling; point values use the scores themselves.

The error this adds to an end of an interval is below 1 / (2 x 2048).
"""

MAX_CELLS = 4_000_000
"""Most numbers held at once while resampling, whatever the size of the cohort."""


def draw_groups(n_groups: int, samples: int, seed: int) -> np.ndarray:
    """How often each group is drawn in each resample: (samples, n_groups) float64; a row sums to n_groups."""
    if n_groups == 0:
        return np.zeros((samples, 0))
    generator = np.random.default_rng(seed)
    return generator.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=samples).astype(float)


def with_interval(value: float, resampled: np.ndarray, n_groups: int, unit: str) -> Figure:
    """``value`` with the 2.5 and 97.5 percentiles of ``resampled``, its value in each resample.

    Args:
        resampled: (samples,), nan where the number is not defined in a resample, e.g. one class only.
        n_groups: groups that were resampled; fewer than two give no interval.
        unit: what a group is, in the plural, for the reason.
    """
    if resampled.size == 0:
        return Figure(value, reason="intervals are switched off")
    if n_groups < 2:
        return Figure(value, reason=f"an interval over {unit} needs at least two of them")
    defined = resampled[np.isfinite(resampled)]
    if defined.size < resampled.size / 2:
        return Figure(value, reason=f"not defined in most resamples of only {n_groups} {unit}")
    low, high = np.percentile(defined, [2.5, 97.5])
    # Rank bins may move an end across the exact value by less than their own error.
    return Figure(value, min(float(low), value), max(float(high), value))


def ratio_samples(counts: np.ndarray, numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Sum of ``numerator`` over sum of ``denominator`` (both per group) in every resample; nan for 0/0."""
    below = counts @ denominator
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, (counts @ numerator) / below, np.nan)


def ranking_samples(
    counts: np.ndarray, scores: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ROC-AUC and average precision in every resample.

    Args:
        counts: (samples, n_groups), from :func:`draw_groups`.
        scores: (n,) float.
        labels: (n,) bool, True for tumour.
        groups: (n,) int, the group of each score.

    Returns:
        Two (samples,) arrays, nan where a resample holds one class only. Ties count one half in the AUC;
        average precision is the sum of precision times the step of recall, as scikit-learn has it.
    """
    bins = _rank_bins(scores)
    n_bins, n_groups = int(bins.max()) + 1, counts.shape[1]
    cell = groups * n_bins + bins
    shape = (n_groups, n_bins)
    tumor = np.bincount(cell[labels], minlength=n_groups * n_bins).reshape(shape).astype(float)
    normal = np.bincount(cell[~labels], minlength=n_groups * n_bins).reshape(shape).astype(float)
    auc, precision = np.empty(len(counts)), np.empty(len(counts))
    step = max(1, MAX_CELLS // n_bins)
    for start in range(0, len(counts), step):
        chunk = counts[start : start + step]
        auc[start : start + step], precision[start : start + step] = _ranking(chunk @ tumor, chunk @ normal)
    return auc, precision


def _ranking(tumor: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUC and average precision of histograms (samples, bins) of scores in ascending order."""
    n_tumor, n_normal = tumor.sum(1), normal.sum(1)
    lower = np.cumsum(normal, axis=1) - normal
    called = np.cumsum((tumor + normal)[:, ::-1], axis=1)[:, ::-1]
    found = np.cumsum(tumor[:, ::-1], axis=1)[:, ::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        auc = ((lower + 0.5 * normal) * tumor).sum(1) / (n_tumor * n_normal)
        precision = (tumor * np.where(called > 0, found / called, 0)).sum(1) / n_tumor
    one_class = (n_tumor == 0) | (n_normal == 0)
    auc[one_class] = np.nan
    precision[n_tumor == 0] = np.nan
    return auc, precision


def _rank_bins(scores: np.ndarray) -> np.ndarray:
    """A bin per distinct score while there are few, else about equally full ones; ties share one."""
    _, rank, repeats = np.unique(scores, return_inverse=True, return_counts=True)
    if len(repeats) <= RANK_BINS:
        return rank
    before = np.cumsum(repeats) - repeats
    coarse = before * RANK_BINS // len(scores)
    return np.unique(coarse, return_inverse=True)[1][rank]

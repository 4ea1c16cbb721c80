"""95 % intervals by resampling whole groups: patients of a cohort, or blocks of tissue of one slide.

Patches of one patient resemble each other, so resampling patches would make every interval far too
narrow; a group is drawn with replacement with all that belongs to it (Efron's percentile interval over
clusters). What is resampled is not a concern of this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wsi_assets.evaluation.figures import Figure

TUMOR_RANKS = 1024
"""Into how many ranks, at least, the tumour scores of a group are told apart while resampling.

Point values use the scores themselves; ``ranking_samples`` says what this adds to an end of an interval.
"""

MAX_CELLS = 1_000_000
"""Most numbers in one array over resamples; about ten such arrays live at once.

Whatever the size of the cohort: resamples are drawn, and scores ranked, a part at a time. What else grows
with the cohort is a few numbers a patch.
"""


@dataclass(frozen=True)
class Resamples:
    """``samples`` draws of ``n_groups`` groups with replacement, the same every time they are asked for.

    They are drawn anew each time, because holding them would take samples x groups numbers.
    """

    n_groups: int
    samples: int
    seed: int

    def drawn(self) -> Iterator[np.ndarray]:
        """How often each group is drawn: parts (some samples, n_groups) float64; a row sums to n_groups."""
        generator, groups = np.random.default_rng(self.seed), self.n_groups
        step = max(1, MAX_CELLS // max(groups, 1))
        for start in range(0, self.samples, step):
            counts = np.zeros((min(step, self.samples - start), groups))
            for row in counts:
                row[:] = np.bincount(generator.integers(0, groups, groups), minlength=groups) if groups else 0
            yield counts

    def sums(self, per_group: np.ndarray) -> np.ndarray:
        """Sums over each resample, (samples, columns), of columns (n_groups, columns)."""
        parts = [counts @ per_group for counts in self.drawn()]
        return np.concatenate([np.zeros((0, per_group.shape[1])), *parts])


def with_interval(value: float, resampled: np.ndarray, n_groups: int, unit: str) -> Figure:
    """``value`` with the 2.5 and 97.5 percentiles of ``resampled``, its value in each resample.

    The percentiles stand as they are: of a skewed number they need not enclose the value.

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
    return Figure(value, float(low), float(high))


def ratio_samples(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """One sum over another in every resample, (samples,); nan for 0/0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def ranking_samples(
    resamples: Resamples, scores: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ROC-AUC and average precision in every resample.

    Exact where no group has more than ``TUMOR_RANKS`` tumour scores. Otherwise a bin of several tumour scores
    holds less than 1 / TUMOR_RANKS of the tumour of any group, so of any resample: the AUC is off by less
    than half of that; the average precision takes the precision at the lower end of each such bin, and
    comes out low by less than that where precision only falls.

    Args:
        scores: (n,) float.
        labels: (n,) bool, True for tumour.
        groups: (n,) int, the group of each score.

    Returns:
        Two (samples,) arrays, nan where a resample holds one class only. Ties count one half in the AUC;
        average precision is the sum of precision times the step of recall, as scikit-learn has it.
    """
    tumor, normal = _histograms(_bins(scores, labels, groups), labels, groups, resamples.n_groups)
    parts = [_ranking(tumor, normal, counts) for counts in resamples.drawn()]
    auc, precision = np.concatenate([np.zeros((2, 0)), *parts], axis=1)
    return auc, precision


def _ranking(tumor, normal, counts: np.ndarray) -> np.ndarray:
    """AUC and average precision, (2, samples), of histograms (bins, groups), the highest bin first."""
    samples, weights = len(counts), np.ascontiguousarray(counts.T)
    n_tumor, n_normal = counts @ tumor.sum(0), counts @ normal.sum(0)
    found_before, wrong_before = np.zeros((samples, 1)), np.zeros((samples, 1))
    auc, precision = np.zeros(samples), np.zeros(samples)
    step = max(1, MAX_CELLS // samples)
    for start in range(0, tumor.shape[0], step):
        # A row a resample: sums along a row are several times as fast as sums from row to row.
        hits = np.ascontiguousarray((tumor[start : start + step] @ weights).T)
        misses = np.ascontiguousarray((normal[start : start + step] @ weights).T)
        found = np.cumsum(hits, axis=1) + found_before
        wrong = np.cumsum(misses, axis=1) + wrong_before
        auc += np.einsum("ij,ij->i", hits, n_normal[:, None] - wrong + 0.5 * misses)
        precision += np.einsum("ij,ij->i", hits, found / np.maximum(found + wrong, 1))
        found_before, wrong_before = found[:, -1:], wrong[:, -1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        both = np.where((n_tumor > 0) & (n_normal > 0), n_tumor * n_normal, np.nan)
        return np.stack([auc / both, precision / np.where(n_tumor > 0, n_tumor, np.nan)])


def _histograms(bins: np.ndarray, labels: np.ndarray, groups: np.ndarray, n_groups: int):
    """How many tumour and how many normal scores lie in each bin of each group: two sparse (bins, groups)."""
    from scipy.sparse import csr_array

    shape = int(bins.max()) + 1, n_groups
    return [
        csr_array((np.ones(int(kind.sum())), (bins[kind], groups[kind])), shape=shape)
        for kind in (labels, ~labels)
    ]


def _bins(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The bin of each score, (n,) int, the highest scores in the lowest bin; equal scores share one.

    A tumour score has a bin of its own, and all scores between two such share the bin between them: they are
    normal, so neither AUC nor average precision can tell their order. Of a group with more tumour scores than
    ``TUMOR_RANKS``, as many have a bin of their own, evenly spread in rank; the rest fall between.
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

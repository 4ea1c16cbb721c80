"""Patch metrics against arithmetic by hand, and intervals against resampling by hand."""

from __future__ import annotations

import tracemalloc
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_assets.evaluation import bootstrap
from wsi_assets.evaluation.bootstrap import Resamples, ranking_samples
from wsi_assets.evaluation.metrics import patch_metrics
from wsi_assets.evaluation.options import EvaluationOptions

QUICK = EvaluationOptions(bootstrap_samples=0)


def pair_auc(labels, scores) -> float:
    """The share of (tumor, normal) pairs in the right order, ties as one half."""
    pairs = [(t, n) for t, is_t in zip(scores, labels, strict=True) if is_t
             for n, is_n in zip(scores, labels, strict=True) if not is_n]  # fmt: skip
    return sum(1.0 if t > n else 0.5 if t == n else 0.0 for t, n in pairs) / len(pairs)


def stepwise_precision(labels, scores) -> float:
    """Precision at every distinct score, weighted by the recall it adds."""
    total, before = 0.0, 0
    for level in sorted(set(scores), reverse=True):
        predicted = [is_t for score, is_t in zip(scores, labels, strict=True) if score >= level]
        total += sum(predicted) / len(predicted) * (sum(predicted) - before) / sum(labels)
        before = sum(predicted)
    return total


scored = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]), st.booleans()), min_size=2, max_size=40
).filter(lambda rows: len({label for _, label in rows}) == 2)


@given(scored)
@settings(max_examples=60, deadline=None)
def test_ranking_metrics_are_the_pairs_and_the_steps(rows):
    scores, labels = [score for score, _ in rows], [label for _, label in rows]
    metrics = patch_metrics(scores, labels, range(len(rows)), QUICK)
    assert metrics.roc_auc.value == pytest.approx(pair_auc(labels, scores))
    assert metrics.average_precision.value == pytest.approx(stepwise_precision(labels, scores))


@given(scored, st.sampled_from([0.0, 0.25, 0.5, 0.6, 1.0]))
@settings(max_examples=60, deadline=None)
def test_a_probability_at_the_threshold_is_predicted_tumor(rows, threshold):
    scores, labels = np.array([score for score, _ in rows]), np.array([label for _, label in rows])
    point = patch_metrics(scores, labels, labels, QUICK, validation_threshold=threshold).at_validation
    counts = [0, 0, 0, 0]
    for score, label in rows:
        counts[2 * (score >= threshold) + label] += 1
    true_negatives, false_negatives, false_positives, true_positives = counts
    assert (point.true_positives, point.false_positives) == (true_positives, false_positives)
    assert (point.true_negatives, point.false_negatives) == (true_negatives, false_negatives)
    assert point.sensitivity.value == pytest.approx(true_positives / (true_positives + false_negatives))
    assert point.specificity.value == pytest.approx(true_negatives / (true_negatives + false_positives))


def test_brier_and_calibration_error_by_hand():
    probs, labels = [0.1, 0.15, 0.9, 1.0], [False, True, True, True]
    metrics = patch_metrics(probs, labels, range(4), QUICK)
    assert metrics.brier.value == pytest.approx((0.1**2 + 0.85**2 + 0.1**2 + 0) / 4)
    # Two bins hold patches: 0.1 to 0.2 with mean 0.125 and share 0.5, 0.9 to 1 with mean 0.95 and share 1.
    assert metrics.calibration_error.value == pytest.approx((2 * 0.375 + 2 * 0.05) / 4)
    filled = {round(part.low, 1): part for part in metrics.calibration}
    assert sorted(filled) == [0.1, 0.9]
    assert filled[0.1].mean_probability == pytest.approx(0.125)
    assert filled[0.9].tumor_fraction == 1.0


def test_bins_of_equal_numbers_show_a_fault_that_bins_of_equal_width_average_out():
    # At a prevalence of 1 % all patches lie in the first bin of equal width, where the errors cancel.
    probs = np.repeat([0.005, 0.015], 1000)
    labels = np.zeros(2000, bool)
    labels[:15] = labels[-5:] = True
    metrics = patch_metrics(probs, labels, range(2000), QUICK)
    assert metrics.calibration_error.value == pytest.approx(0, abs=1e-9)
    assert metrics.calibration_error_equal_mass.value == pytest.approx(0.01)
    assert [part.patches for part in metrics.calibration_equal_mass] == [1000, 1000]


@given(scored)
@settings(max_examples=60, deadline=None)
def test_bins_hold_every_patch_once_and_equal_scores_share_one(rows):
    scores, labels = np.array([score for score, _ in rows]), [label for _, label in rows]
    metrics = patch_metrics(scores, labels, range(len(rows)), QUICK)
    for bins in (metrics.calibration, metrics.calibration_equal_mass):
        assert sum(part.patches for part in bins) == len(rows)
        assert all(part.low - 1e-9 <= part.mean_probability <= part.high + 1e-9 for part in bins)
        assert sum(part.patches * part.tumor_fraction for part in bins) == pytest.approx(sum(labels))


def test_an_unreadable_patch_is_in_no_metric_and_is_counted():
    whole = patch_metrics([0.2, 0.8, 0.6], [False, True, False], [0, 1, 2], QUICK)
    holed = patch_metrics([0.2, np.nan, 0.8, 0.6], [False, True, True, False], [0, 0, 1, 2], QUICK)
    assert (holed.quarantined, holed.patches) == (1, 3)
    assert holed.roc_auc == whole.roc_auc
    assert holed.brier == whole.brier


@pytest.mark.parametrize("label", [True, False])
def test_one_class_says_why_and_is_never_zero(label):
    metrics = patch_metrics([0.3, 0.7], [label, label], [0, 1], EvaluationOptions(bootstrap_samples=50))
    assert metrics.roc_auc.value is None
    assert metrics.average_precision.value is None
    missing = metrics.at_default.specificity if label else metrics.at_default.sensitivity
    assert missing.value is None
    assert ("normal" if label else "tumor") in missing.reason
    assert ("normal" if label else "tumor") in metrics.roc_auc.reason
    assert metrics.brier.low is not None


def test_no_patch_at_all_says_so_everywhere():
    metrics = patch_metrics([], [], [], EvaluationOptions(bootstrap_samples=20), validation_threshold=0.3)
    for metric in (metrics.roc_auc, metrics.average_precision, metrics.brier, metrics.calibration_error):
        assert metric.value is None
        assert metric.reason
    assert metrics.at_default is None
    assert metrics.at_validation is None
    assert metrics.validation_reason


def test_equal_scores_rank_nothing():
    metrics = patch_metrics([0.4] * 6, [True, False] * 3, range(6), EvaluationOptions(bootstrap_samples=50))
    assert metrics.roc_auc.value == 0.5
    assert (metrics.roc_auc.low, metrics.roc_auc.high) == (0.5, 0.5)


def test_one_patient_has_metrics_without_an_interval():
    metrics = patch_metrics([0.1, 0.9], [False, True], [7, 7], EvaluationOptions(bootstrap_samples=50))
    assert metrics.roc_auc.value == 1.0
    assert metrics.roc_auc.low is None
    assert "at least two" in metrics.roc_auc.reason


def counts_of(resamples: Resamples) -> np.ndarray:
    return np.concatenate(list(resamples.drawn()))


def test_a_resample_is_whole_patients_written_out():
    generator = np.random.default_rng(5)
    groups = np.repeat(np.arange(6), 15)
    labels = generator.random(90) < 0.4
    scores = np.round(generator.random(90) * 0.5 + labels * 0.3, 2)
    resamples = Resamples(6, 40, seed=1)
    counts = counts_of(resamples)
    assert (counts.sum(1) == 6).all()
    aucs, precisions = ranking_samples(resamples, scores, labels, groups)
    for row in range(40):
        taken = np.concatenate([np.tile(np.flatnonzero(groups == g), int(counts[row, g])) for g in range(6)])
        assert aucs[row] == pytest.approx(pair_auc(labels[taken], scores[taken]))
        assert precisions[row] == pytest.approx(stepwise_precision(labels[taken], scores[taken].tolist()))


def patches(share: float, n: int, shift: float, n_groups: int, seed: int = 0):
    """Scores, labels and groups of ``n`` patches; the first group holds half of the tumor."""
    generator = np.random.default_rng(seed)
    labels = np.zeros(n, bool)
    labels[generator.choice(n, round(share * n), replace=False)] = True
    scores = 1 / (1 + np.exp(3 - generator.normal(labels * shift)))
    groups = generator.integers(0, n_groups, n)
    groups[np.flatnonzero(labels)[::2]] = 0
    return scores, labels, groups


def weighted_by_scikit_learn(resamples: Resamples, scores, labels, groups) -> np.ndarray:
    from sklearn.metrics import average_precision_score, roc_auc_score

    weights = [counts[groups] for counts in counts_of(resamples)]
    return np.array([
        [measure(labels, scores, sample_weight=weight) for weight in weights]
        for measure in (roc_auc_score, average_precision_score)
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("share", "shift", "step"), [(0.001, 40.0, 0), (0.001, 1.0, 1 / 256), (0.3, 4.0, 0), (0.3, 1.0, 1 / 8)]
)
def test_resampled_rankings_are_scikit_learns(share, shift, step):
    """Few tumor patches or many, hard or perfectly separated, every score its own or many the same."""
    n = 50_000 if share < 0.01 else 5_000
    scores, labels, groups = patches(share, n, shift, 10)
    scores = np.round(scores / step) * step if step else scores
    resamples = Resamples(10, 8, seed=4)
    found = ranking_samples(resamples, scores, labels, groups)
    np.testing.assert_allclose(found, weighted_by_scikit_learn(resamples, scores, labels, groups), rtol=1e-9)


@pytest.mark.parametrize("saturated", [False, True])
@pytest.mark.parametrize("shift", [0.5, 2.0, 4.0])
def test_ranking_many_tumor_patches_together_moves_no_metric_by_a_thousandth(shift, saturated):
    scores, labels, groups = patches(0.3, 60_000, shift, 3)
    # The second patient's tumor is seen dimly, so that it lies among few of the first one's.
    scores = np.where(labels & (groups == 1), scores * 0.2, scores)
    scores = np.minimum(scores, np.quantile(scores[labels], 0.6)) if saturated else scores
    resamples = Resamples(3, 12, seed=1)
    found = ranking_samples(resamples, scores, labels, groups)
    exact = weighted_by_scikit_learn(resamples, scores, labels, groups)
    assert not np.array_equal(found, exact)
    np.testing.assert_allclose(found, exact, atol=1 / bootstrap.TUMOR_RANKS)


@pytest.mark.parametrize(("shift", "share"), [(40.0, 0.001), (5.0, 0.001), (2.0, 0.3)])
def test_the_interval_of_average_precision_is_where_its_resamples_lie(shift, share):
    scores, labels, groups = patches(share, 20_000, shift, 12)
    options = EvaluationOptions(bootstrap_samples=40, seed=2)
    metric = patch_metrics(scores, labels, groups, options).average_precision
    resampled = weighted_by_scikit_learn(Resamples(12, 40, seed=2), scores, labels, groups)[1]
    assert (metric.low, metric.high) == pytest.approx(tuple(np.percentile(resampled, [2.5, 97.5])), abs=1e-3)
    assert (metric.low == metric.high == 1.0) == (shift == 40.0)


def test_a_whole_slide_in_blocks_takes_little_memory():
    scores, labels, groups = patches(0.05, 100_000, 2.0, 20_000)
    options = EvaluationOptions(bootstrap_samples=100)
    patch_metrics(scores[:100], labels[:100], groups[:100], QUICK)
    tracemalloc.start()
    try:
        metrics = patch_metrics(scores, labels, groups, options, unit="blocks of tissue")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert metrics.roc_auc.low < metrics.roc_auc.value < metrics.roc_auc.high
    assert peak < 16 * 8 * bootstrap.MAX_CELLS


def test_resampling_in_parts_gives_the_same_metrics(monkeypatch):
    scores, labels, groups = patches(0.3, 500, 2.0, 30)
    options = EvaluationOptions(bootstrap_samples=20)
    whole = asdict(patch_metrics(scores, labels, groups, options))
    monkeypatch.setattr(bootstrap, "MAX_CELLS", 70)
    parts = asdict(patch_metrics(scores, labels, groups, options))
    for name in ("roc_auc", "average_precision", "brier", "calibration_error"):
        assert parts[name] == pytest.approx(whole[name])
    assert parts["at_default"] == whole["at_default"]


def test_the_interval_follows_patients_not_patches():
    generator = np.random.default_rng(3)
    # Every patch of a patient has the same fate: 10 patients are 10 observations, however many patches.
    fate = np.repeat(np.arange(10) % 2 == 0, 400)
    probs, labels = np.where(fate, 0.9, 0.1), np.ones(4000, bool)
    options = EvaluationOptions(bootstrap_samples=500)
    by_patient = patch_metrics(probs, labels, np.repeat(np.arange(10), 400), options).at_default.sensitivity
    by_patch = patch_metrics(probs, labels, generator.permutation(4000), options).at_default.sensitivity
    assert by_patient.value == by_patch.value == 0.5
    assert by_patient.high - by_patient.low > 0.4
    assert by_patch.high - by_patch.low < 0.05


def test_ends_of_an_interval_are_percentiles_of_the_resamples():
    generator = np.random.default_rng(8)
    groups, labels = np.repeat(np.arange(12), 10), np.ones(120, bool)
    probs = np.clip(generator.random(120) + (groups % 3)[...] * 0.1, 0, 1)
    options = EvaluationOptions(bootstrap_samples=300, seed=9)
    metric = patch_metrics(probs, labels, groups, options).at_default.sensitivity
    hits = np.array([(probs[groups == g] >= 0.5).sum() for g in range(12)])
    drawn = counts_of(Resamples(12, 300, 9)) @ hits / 120
    assert (metric.low, metric.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))

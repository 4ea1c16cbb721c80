"""Patch metrics against direct computation, and intervals against direct resampling."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_assets.evaluation import intervals
from wsi_assets.evaluation.intervals import Metric, Resamples, ranking_samples
from wsi_assets.evaluation.metrics import patch_metrics
from wsi_assets.evaluation.options import EvaluationOptions

QUICK = EvaluationOptions(bootstrap_samples=0)
SOME = EvaluationOptions(bootstrap_samples=50)


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
def test_auc_and_average_precision_follow_their_definitions(rows):
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
    # At a prevalence of 1 % bins of equal width would hold all patches in the first, where errors cancel.
    probs = np.repeat([0.005, 0.015], 1000)
    labels = np.zeros(2000, bool)
    labels[:15] = labels[-5:] = True
    metrics = patch_metrics(probs, labels, range(2000), QUICK)
    assert metrics.brier.value == pytest.approx(np.mean((probs - labels) ** 2))
    assert metrics.calibration_error.value == pytest.approx(0.01)
    assert [part.patches for part in metrics.calibration] == [1000, 1000]
    assert [part.tumor_fraction for part in metrics.calibration] == [0.015, 0.005]


@given(scored)
@settings(max_examples=60, deadline=None)
def test_bins_hold_every_patch_once_and_equal_scores_share_one(rows):
    scores, labels = np.array([score for score, _ in rows]), [label for _, label in rows]
    bins = patch_metrics(scores, labels, range(len(rows)), QUICK).calibration
    assert sum(part.patches for part in bins) == len(rows)
    assert all(before.mean_probability < after.mean_probability for before, after in pairwise(bins))
    assert sum(part.patches * part.tumor_fraction for part in bins) == pytest.approx(sum(labels))


@pytest.mark.parametrize("label", [True, False])
def test_metrics_of_one_class_are_missing_with_a_reason(label):
    metrics = patch_metrics(np.linspace(0.1, 0.9, 12), [label] * 12, range(12), SOME)
    missing = metrics.at_default.specificity if label else metrics.at_default.sensitivity
    for metric in (metrics.roc_auc, metrics.average_precision, missing):
        assert metric.value is None
        assert ("normal" if label else "tumor") in metric.reason
    assert metrics.brier.low is not None


def test_without_patches_every_metric_is_missing_with_a_reason():
    metrics = patch_metrics([], [], [], SOME, validation_threshold=0.3)
    for metric in (metrics.roc_auc, metrics.average_precision, metrics.brier, metrics.calibration_error):
        assert metric == Metric.missing("no patch")
    assert metrics.at_default is None
    assert metrics.at_validation is None


@pytest.mark.parametrize(("patients", "given"), [(9, False), (10, True)])
def test_too_few_patients_have_metrics_without_an_interval(patients, given):
    scores, labels, groups = patches(0.3, 500, 2.0, patients)
    metrics = patch_metrics(scores, labels, groups, SOME)
    for metric in (metrics.roc_auc, metrics.brier, metrics.at_default.sensitivity):
        assert metric.value is not None
        assert (metric.low is not None) == given
        assert given or "too few patients (9)" in metric.reason


def test_a_share_without_mistakes_has_wilsons_interval_over_its_patients():
    groups = np.repeat(np.arange(20), 50)
    labels = groups < 12
    point = patch_metrics(np.where(labels, 0.9, 0.1), labels, groups, SOME).at_default
    assert point.sensitivity.value == 1.0
    # Wilson at n of n is n / (n + z^2), where n is the number of patients with tumor, 12.
    assert point.sensitivity.low == pytest.approx(12 / (12 + 1.959964**2), rel=1e-6)
    assert point.specificity.low == pytest.approx(8 / (8 + 1.959964**2), rel=1e-6)


def test_other_metrics_have_no_interval_of_zero_width():
    labels = np.arange(24) % 2 == 0
    metrics = patch_metrics(np.where(labels, 0.9, 0.1), labels, np.arange(24) // 2, SOME)
    assert metrics.roc_auc == Metric(1.0, reason=metrics.roc_auc.reason)


def test_resampling_repeats_all_patches_of_a_patient():
    generator = np.random.default_rng(5)
    groups = np.repeat(np.arange(12), 15)
    labels = generator.random(180) < 0.4
    scores = np.round(generator.random(180) * 0.5 + labels * 0.3, 2)
    resamples = Resamples(groups, SOME)
    assert (resamples.counts.sum(1) == 12).all()
    aucs, precisions = ranking_samples(resamples, scores, labels)
    for counts, auc, precision in zip(resamples.counts, aucs, precisions, strict=True):
        taken = np.concatenate([np.tile(np.flatnonzero(groups == g), int(counts[g])) for g in range(12)])
        assert auc == pytest.approx(pair_auc(labels[taken], scores[taken]))
        assert precision == pytest.approx(stepwise_precision(labels[taken], scores[taken].tolist()))


def patches(share: float, n: int, shift: float, patients: int):
    """Scores, labels and patients of ``n`` patches; the first patient holds half of the tumor."""
    generator = np.random.default_rng(0)
    labels = np.zeros(n, bool)
    labels[generator.choice(n, round(share * n), replace=False)] = True
    scores = 1 / (1 + np.exp(3 - generator.normal(labels * shift)))
    groups = generator.integers(0, patients, n)
    groups[np.flatnonzero(labels)[::2]] = 0
    return scores, labels, groups


def weighted_by_scikit_learn(resamples: Resamples, scores, labels) -> np.ndarray:
    from sklearn.metrics import average_precision_score, roc_auc_score

    weights = [counts[resamples.group] for counts in resamples.counts]
    return np.array([
        [measure(labels, scores, sample_weight=weight) for weight in weights]
        for measure in (roc_auc_score, average_precision_score)
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("share", "shift", "step"), [(0.001, 40.0, 0), (0.001, 1.0, 1 / 256), (0.3, 4.0, 0), (0.3, 1.0, 1 / 8)]
)
def test_resampled_ranking_metrics_equal_those_of_scikit_learn(share, shift, step):
    """With few or many tumor patches, overlapping or separated scores, distinct or equal scores."""
    scores, labels, groups = patches(share, 50_000 if share < 0.01 else 5_000, shift, 10)
    scores = np.round(scores / step) * step if step else scores
    resamples = Resamples(groups, EvaluationOptions(bootstrap_samples=8))
    found = ranking_samples(resamples, scores, labels)
    np.testing.assert_allclose(found, weighted_by_scikit_learn(resamples, scores, labels), rtol=1e-9)


@pytest.mark.parametrize("saturated", [False, True])
@pytest.mark.parametrize("shift", [0.5, 2.0, 4.0])
def test_grouping_many_tumor_scores_changes_no_metric_by_a_thousandth(shift, saturated):
    scores, labels, groups = patches(0.3, 60_000, shift, 10)
    # The second patient's tumor has low scores, so that few scores of the first lie among them.
    scores = np.where(labels & (groups == 1), scores * 0.2, scores)
    scores = np.minimum(scores, np.quantile(scores[labels], 0.6)) if saturated else scores
    resamples = Resamples(groups, EvaluationOptions(bootstrap_samples=12))
    found = ranking_samples(resamples, scores, labels)
    exact = weighted_by_scikit_learn(resamples, scores, labels)
    assert not np.array_equal(found, exact)
    np.testing.assert_allclose(found, exact, atol=4 / intervals.TUMOR_SCORES)


def test_the_interval_depends_on_the_number_of_patients():
    generator = np.random.default_rng(3)
    # All patches of a patient are right or wrong together: 10 patients are 10 observations.
    fate = np.repeat(np.arange(10) % 2 == 0, 400)
    probs, labels = np.where(fate, 0.9, 0.1), np.ones(4000, bool)
    by_patient = patch_metrics(probs, labels, np.repeat(np.arange(10), 400), SOME).at_default.sensitivity
    by_patch = patch_metrics(probs, labels, generator.permutation(4000), SOME).at_default.sensitivity
    assert by_patient.value == by_patch.value == 0.5
    assert by_patient.high - by_patient.low > 0.4
    assert by_patch.high - by_patch.low < 0.05


def test_the_ends_of_an_interval_are_percentiles_of_the_resamples():
    scores, labels, groups = patches(0.3, 2_000, 2.0, 12)
    metrics = patch_metrics(scores, labels, groups, SOME)
    resamples = Resamples(groups, SOME)
    hits, of = resamples.sums((scores >= 0.5) & labels), resamples.sums(labels)
    drawn = (resamples.counts @ hits) / (resamples.counts @ of)
    precisions = weighted_by_scikit_learn(resamples, scores, labels)[1]
    for metric, values in ((metrics.at_default.sensitivity, drawn), (metrics.average_precision, precisions)):
        assert (metric.low, metric.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_assets.learning import load_model, train
from wsi_assets.learning.scores import confusion, roc_auc, youden_threshold
from wsi_assets_tests.learning.fakes import cohort, quick


def youden(truth, probabilities, threshold):
    true_normal, false_tumor, false_normal, true_tumor = confusion(truth, probabilities, threshold)
    return true_tumor / (true_tumor + false_normal) + true_normal / (true_normal + false_tumor) - 1


patches = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 20).map(lambda k: np.float32(k / 20))),
    min_size=2,
    max_size=40,
).filter(lambda rows: len({label for label, _ in rows}) == 2)


@given(patches)
def test_no_threshold_separates_better_than_the_chosen_one(rows):
    truth, probabilities = map(np.array, zip(*rows, strict=True))
    chosen = youden_threshold(truth, probabilities)
    everywhere = np.linspace(0, 1, 161)
    best = max(youden(truth, probabilities, threshold) for threshold in everywhere)
    if chosen is None:
        assert best == 0
    else:
        assert youden(truth, probabilities, chosen) == pytest.approx(best, abs=1e-12)


def test_a_detector_that_is_wrong_everywhere_or_says_the_same_of_all_gets_no_threshold():
    assert youden_threshold(np.array([0, 0, 1, 1]), np.array([0.8, 0.9, 0.1, 0.2])) is None
    assert youden_threshold(np.array([0, 1]), np.array([0.3, 0.3])) is None


def test_a_detector_that_is_right_about_half_keeps_one_half():
    assert youden_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.9, 0.95])) == 0.5


def test_a_detector_whose_probabilities_are_all_low_gets_a_low_threshold_between_the_classes():
    assert youden_threshold(np.array([0, 0, 1, 1]), np.array([0.01, 0.02, 0.10, 0.2])) == pytest.approx(0.06)


def test_among_equally_good_thresholds_the_one_nearest_one_half_wins():
    # At 0.15 one normal patch is lost, at 0.35 one tumour patch: the same index.
    assert youden_threshold(np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4])) == pytest.approx(0.35)


@pytest.mark.parametrize("truth", [[0, 0], [1, 1]])
def test_without_one_of_the_classes_there_is_no_threshold_and_no_area(truth):
    assert youden_threshold(np.array(truth), np.array([0.2, 0.7])) is None
    assert roc_auc(np.array(truth), np.array([0.2, 0.7])) is None


def test_the_best_model_carries_the_threshold_of_its_own_epoch(tmp_path):
    result = train(cohort(), quick(), tmp_path)
    assert 0 < result.best.val_threshold < 1
    assert load_model(result.best_path).val_threshold == result.best.val_threshold

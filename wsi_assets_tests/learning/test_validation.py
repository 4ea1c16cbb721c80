import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_assets.learning.validation import (
    confusion,
    fit_calibration,
    threshold_at,
    validation_loss,
)

patches = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 20).map(lambda k: np.float32(k / 20))),
    min_size=2,
    max_size=40,
).filter(lambda rows: len({label for label, _ in rows}) == 2)


@given(patches, st.sampled_from([0.5, 0.8, 0.95, 0.99]))
def test_the_threshold_is_the_lowest_that_reaches_the_specificity(rows, specificity):
    truth, probabilities = map(np.array, zip(*rows, strict=True))
    chosen = threshold_at(truth, probabilities, specificity)
    assert chosen["specificity"] >= specificity - 1e-9
    for threshold in np.linspace(0, 1, 161):
        true_normal, false_tumor, false_normal, true_tumor = confusion(truth, probabilities, threshold)
        if true_normal / (true_normal + false_tumor) >= specificity:
            assert true_tumor / (true_tumor + false_normal) <= chosen["sensitivity"] + 1e-9


def test_the_threshold_lies_between_two_probabilities():
    truth, probabilities = np.array([0, 0, 1, 1]), np.array([0.01, 0.02, 0.10, 0.2])
    assert threshold_at(truth, probabilities, 0.95)["threshold"] == pytest.approx(0.06)


def test_the_validation_loss_does_not_depend_on_prevalence():
    truth, probabilities = np.array([0, 0, 1, 1]), np.array([0.2, 0.6, 0.7, 0.3])
    more = np.repeat([0, 1, 2, 3], [50, 50, 1, 1])
    expected = validation_loss(truth, probabilities)
    assert validation_loss(truth[more], probabilities[more]) == pytest.approx(expected, rel=0.02)


def test_the_validation_loss_does_not_depend_on_scale_and_shift_of_the_logits():
    truth, probabilities = drawn(0.3, 2000)
    logits = np.log(probabilities / (1 - probabilities))
    expected = validation_loss(truth, probabilities)
    for slope, shift in ((0.2, 0.0), (3.0, -2.0)):
        changed = 1 / (1 + np.exp(-(slope * logits + shift)))
        assert validation_loss(truth, changed) == pytest.approx(expected, rel=1e-3)
    noisy = 1 / (1 + np.exp(-(logits + np.random.default_rng(1).normal(0, 1, 2000))))
    assert expected < validation_loss(truth, noisy) < np.log(2)
    assert validation_loss(truth, np.full(2000, 0.3)) == pytest.approx(np.log(2), rel=1e-3)


def test_an_epoch_that_ranks_tumor_below_normal_has_a_higher_validation_loss_than_a_weak_one():
    truth, probabilities = drawn(0.3, 500)
    reversed_ranks = validation_loss(1 - truth, probabilities)
    weak = 1 / (1 + np.exp(-(0.5 * truth + np.random.default_rng(0).normal(0, 1, 500))))
    assert validation_loss(truth, probabilities) < validation_loss(truth, weak) < reversed_ranks


def drawn(prevalence, count=40_000):
    """Truth, and the probabilities of a model trained on equally frequent classes."""
    rng = np.random.default_rng(0)
    truth = (rng.random(count) < prevalence).astype(int)
    logits = rng.normal(np.where(truth == 1, 2, -2), 2)  # log odds for equally frequent classes
    return truth, 1 / (1 + np.exp(-logits / 3))


@pytest.mark.parametrize("prevalence", [0.02, 0.3])
def test_calibration_finds_temperature_and_prevalence(prevalence):
    truth, probabilities = drawn(prevalence)
    fitted = fit_calibration(truth, probabilities, np.ones(len(truth)))
    assert fitted["temperature"] == pytest.approx(1 / 3, rel=0.15)
    assert fitted["shift"] == pytest.approx(np.log(prevalence / (1 - prevalence)), abs=0.3)
    logits = np.log(probabilities / (1 - probabilities)) / fitted["temperature"] + fitted["shift"]
    changed = 1 / (1 + np.exp(-logits))
    assert changed.mean() == pytest.approx(truth.mean(), rel=0.05)
    for low, high in ((0.0, 0.1), (0.1, 0.4), (0.4, 0.8)):
        inside = (changed >= low) & (changed < high)
        assert changed[inside].mean() == pytest.approx(truth[inside].mean(), abs=0.05)


def test_weights_represent_patches_outside_the_validation_sample():
    truth, probabilities = drawn(0.1)
    kept = (truth == 1) | (np.arange(len(truth)) % 4 == 0)
    weights = np.where(truth == 1, 1.0, 4.0)[kept]
    whole = fit_calibration(truth, probabilities, np.ones(len(truth)))
    part = fit_calibration(truth[kept], probabilities[kept], weights)
    assert part["shift"] == pytest.approx(whole["shift"], abs=0.15)


def test_a_model_worse_than_chance_gets_no_calibration():
    truth, probabilities = drawn(0.3, 500)
    assert fit_calibration(1 - truth, probabilities, np.ones(500)) is None

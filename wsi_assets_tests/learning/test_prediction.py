from dataclasses import replace

import numpy as np
import pytest
import torch

from wsi_assets.errors import ModelError
from wsi_assets.learning import PredictionOptions, load_model, predict
from wsi_assets_tests.learning.made import Patches, cohort, quick, run

CPU = {"device": "cpu", "num_workers": 0}


@pytest.fixture(scope="module")
def patches():
    mixed = cohort(patients=6, test_patients=3, per_patient=7)
    # test slides in the middle, because keys number the patches of all slides
    order = [i for i in range(63) if i < 21] + list(range(42, 63)) + list(range(21, 42))
    return Patches(mixed.pixels[order], mixed.labels[order], [mixed.slides[i] for i in order])


@pytest.fixture(scope="module")
def best(patches, tmp_path_factory):
    return run(patches, quick(max_epochs=4, lr=0.01), tmp_path_factory.mktemp("model")).best_path


@pytest.fixture(scope="module")
def store(best, patches):
    return patches.store(best.parents[1])


def probabilities(predictions):
    return np.concatenate([entry["probs"] for entry in predictions.values()])


def test_only_test_slides_are_predicted_in_the_order_of_their_patches(patches, store, best):
    predictions = predict(store, patches.index(), best, PredictionOptions(**CPU))
    assert list(predictions) == ["test_006_node_1", "test_007_node_1", "test_008_node_1"]
    classifier = load_model(best).classifier()
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(patches.pixels))[:, 1].double().numpy()
    for number, (slide_id, entry) in enumerate(predictions.items()):
        first = 21 + 7 * number
        np.testing.assert_allclose(entry["probs"], expected[first : first + 7], atol=1e-6)
        assert entry["preds"] == [int(p >= 0.5) for p in entry["probs"]]
        assert entry["patches"] == patches.index()[slide_id]["patches"]
        assert all(type(p) is float for p in entry["probs"])
        assert all(type(p) is int for p in entry["preds"])


def averaging(best, tta):
    """The model, with or without averaging over flips and quarter turns."""
    loaded = load_model(best)
    return replace(loaded, card={**loaded.card, "tta": tta})


@pytest.mark.parametrize("tta", [False, True])
def test_batches_of_one_and_of_64_give_the_same_probabilities(patches, store, best, tta):
    one, many = (
        PredictionOptions(prediction_batch_size=size, device="cpu", num_workers=workers)
        for size, workers in ((1, 0), (64, 2))
    )
    model = averaging(best, tta)
    found = [probabilities(predict(store, patches.index(), model, options)) for options in (one, many)]
    np.testing.assert_allclose(*found, atol=2e-6)


def test_dihedral_averaging_makes_a_probability_the_same_for_every_orientation(
    patches, store, best, tmp_path
):
    turned = Patches(np.rot90(patches.pixels, 1, axes=(1, 2)), patches.labels, patches.slides)
    difference = {}
    for tta in (True, False):
        model, options = averaging(best, tta), PredictionOptions(**CPU)
        found = [predict(one, patches.index(), model, options) for one in (store, turned.store(tmp_path))]
        difference[tta] = np.abs(probabilities(found[0]) - probabilities(found[1])).max()
    assert difference[True] < 1e-5 < difference[False]


def test_an_unreadable_patch_has_no_probability_and_does_not_shift_others(patches, store, best, tmp_path):
    options = PredictionOptions(**CPU)
    whole = probabilities(predict(store, patches.index(), best, options))
    found = predict(patches.store(tmp_path, without=(30,)), patches.index(), best, options)
    assert found["test_007_node_1"]["preds"][2] == -1
    assert np.isnan(probabilities(found)).nonzero()[0].tolist() == [9]
    np.testing.assert_allclose(np.delete(probabilities(found), 9), np.delete(whole, 9), atol=1e-6)


def test_the_threshold_decides_what_is_predicted_tumor(patches, store, best):
    for threshold, expected in ((0.0, 1), (1.0, 0)):
        options = PredictionOptions(prediction_threshold=threshold, **CPU)
        found = predict(store, patches.index(), best, options)
        assert {pred for entry in found.values() for pred in entry["preds"]} == {expected}


def test_a_store_of_another_level_or_patch_size_is_refused(patches, store, best, tmp_path):
    small = Patches(patches.pixels[:, :16, :16], patches.labels, patches.slides)
    for other, index in ((store, patches.index(level=5)), (small.store(tmp_path), patches.index())):
        with pytest.raises(ModelError):
            predict(other, index, best, PredictionOptions(**CPU))


def test_only_the_given_slides_are_predicted(patches, store, best):
    index, options = patches.index(), PredictionOptions(**CPU)
    found = predict(store, index, best, options, slides=["patient_002_node_1"])
    assert list(found) == ["patient_002_node_1"]
    assert predict(store, dict(list(index.items())[:3]), best, options) == {}

import numpy as np
import pytest
import torch

from wsi_assets.errors import ModelError, StoreError
from wsi_assets.learning import PredictionOptions, load_model, predict, train
from wsi_assets_tests.learning.fakes import MemoryStore, cohort, index_of, quick

CPU = {"device": "cpu", "num_workers": 0}


@pytest.fixture(scope="module")
def store():
    mixed = cohort(patients=6, test_patients=3, per_patient=7)
    # test slides in the middle: keys count over all slides
    order = [i for i in range(63) if i < 21] + list(range(42, 63)) + list(range(21, 42))
    return MemoryStore(mixed.patches[order], mixed.labels[order], [mixed.slide_ids[i] for i in order])


@pytest.fixture(scope="module")
def best(store, tmp_path_factory):
    return train(
        store, index_of(store), quick(max_epochs=4, lr=0.01), tmp_path_factory.mktemp("model")
    ).best_path


def test_only_test_slides_are_predicted_in_the_order_of_their_patches(store, best):
    predictions = predict(store, index_of(store), best, PredictionOptions(**CPU))
    assert list(predictions) == ["test_006_node_1", "test_007_node_1", "test_008_node_1"]
    classifier = load_model(best).classifier()
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(store.patches))[:, 1].double().numpy()
    for number, (slide_id, entry) in enumerate(predictions.items()):
        first = 21 + 7 * number
        np.testing.assert_allclose(entry["probs"], expected[first : first + 7], atol=1e-6)
        assert entry["preds"] == [int(p >= 0.5) for p in entry["probs"]]
        assert entry["patches"] == index_of(store)[slide_id]["patches"]
        assert all(type(p) is float for p in entry["probs"])
        assert all(type(p) is int for p in entry["preds"])


@pytest.mark.parametrize("tta", [False, True])
def test_batches_of_one_and_of_64_give_the_same_probabilities(store, best, tta):
    one, many = (
        np.concatenate(
            [
                entry["probs"]
                for entry in predict(
                    store,
                    index_of(store),
                    best,
                    PredictionOptions(prediction_batch_size=size, tta=tta, device="cpu", num_workers=workers),
                ).values()
            ]
        )
        for size, workers in ((1, 0), (64, 2))
    )
    np.testing.assert_allclose(one, many, atol=2e-6)


def test_dihedral_averaging_makes_a_probability_the_same_for_every_orientation(store, best):
    turned = MemoryStore(np.rot90(store.patches, 1, axes=(1, 2)), store.labels, store.slide_ids)

    def probabilities(store, tta):
        found = predict(store, index_of(store), best, PredictionOptions(tta=tta, **CPU))
        return np.concatenate([entry["probs"] for entry in found.values()])

    np.testing.assert_allclose(probabilities(store, True), probabilities(turned, True), atol=1e-5)
    assert np.abs(probabilities(store, False) - probabilities(turned, False)).max() > 1e-5


def test_a_quarantined_patch_has_no_probability_and_shifts_no_other(store, best):
    whole = predict(store, index_of(store), best, PredictionOptions(**CPU))
    keep = [i for i in range(63) if i != 30]
    key = store.keys[30]
    missing = MemoryStore(
        store.patches[keep],
        store.labels[keep],
        [store.slide_ids[i] for i in keep],
        keys=[store.keys[i] for i in keep],
        left_out=[{"key": key, "reason": "unreadable tile"}],
    )
    missing.coords = store.coords[keep]
    found = predict(missing, index_of(store), best, PredictionOptions(**CPU))
    assert np.isnan(found["test_007_node_1"]["probs"][2])
    assert found["test_007_node_1"]["preds"][2] == -1
    for slide_id, entry in found.items():
        expected = whole[slide_id]
        known = ~np.isnan(entry["probs"])
        np.testing.assert_allclose(
            np.array(entry["probs"])[known], np.array(expected["probs"])[known], atol=1e-6
        )
        assert len(entry["probs"]) == 7


def test_a_patch_never_gets_the_probability_of_another(store, best):
    """An index made anew counts its patches from 0 as well: its keys are the store's, its places are not."""
    for changed in (lambda patches: patches[::-1], lambda patches: [(y, x + 1, t) for y, x, t in patches]):
        entries = index_of(store)
        entry = entries["test_007_node_1"]
        entry["patches"] = changed(entry["patches"])
        with pytest.raises(StoreError):
            predict(store, entries, best, PredictionOptions(**CPU))


def test_the_threshold_decides_what_is_predicted_tumor(store, best):
    for threshold, expected in ((0.0, 1), (1.0, 0)):
        found = predict(
            store, index_of(store), best, PredictionOptions(prediction_threshold=threshold, **CPU)
        )
        assert {pred for entry in found.values() for pred in entry["preds"]} == {expected}
    probability = found["test_006_node_1"]["probs"][3]
    at_it = PredictionOptions(prediction_threshold=probability, **CPU)
    assert predict(store, index_of(store), best, at_it)["test_006_node_1"]["preds"][3] == 1


def test_a_store_of_another_level_or_patch_size_is_refused(store, best):
    other_level = MemoryStore(store.patches, store.labels, store.slide_ids, level=5)
    other_size = MemoryStore(store.patches[:, :16, :16], store.labels, store.slide_ids)
    for other in (other_level, other_size):
        with pytest.raises(ModelError):
            predict(other, index_of(other), best, PredictionOptions(**CPU))


def test_without_test_slides_there_is_nothing_to_predict(store, best):
    assert predict(store, dict(list(index_of(store).items())[:3]), best, PredictionOptions(**CPU)) == {}


def test_the_slides_to_predict_may_be_named(store, best):
    found = predict(store, index_of(store), best, PredictionOptions(**CPU), slides=["patient_002_node_1"])
    assert list(found) == ["patient_002_node_1"]

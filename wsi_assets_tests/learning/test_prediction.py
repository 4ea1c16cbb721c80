from itertools import groupby

import numpy as np
import pytest
import torch

from wsi_assets.errors import ModelError, StoreError
from wsi_assets.learning import PredictionOptions, load_model, predict, train
from wsi_assets_tests.learning.fakes import MemoryStore, cohort, quick

CPU = {"device": "cpu", "num_workers": 0}


def entries_of(store):
    slides = groupby(zip(store.origins, store.labels, strict=True), key=lambda row: row[0][0])
    return [
        {"slide_path": f"/data/{slide}.tif", "patches": [(y, x, int(label)) for (_, y, x), label in rows]}
        for slide, rows in slides
    ]


@pytest.fixture(scope="module")
def store():
    mixed = cohort(patients=6, test_patients=3, per_patient=7)
    # test slides in the middle: keys count over all slides
    order = [i for i in range(63) if i < 21] + list(range(42, 63)) + list(range(21, 42))
    return MemoryStore(mixed.patches[order], mixed.labels[order], [mixed.origins[i][0] for i in order])


@pytest.fixture(scope="module")
def best(store, tmp_path_factory):
    return train(store, quick(max_epochs=4, lr=0.01), tmp_path_factory.mktemp("model")).best_path


def test_only_test_slides_are_predicted_in_the_order_of_their_patches(store, best):
    predictions = predict(store, entries_of(store), best, PredictionOptions(**CPU))
    assert [entry["slide_path"][6:14] for entry in predictions] == ["test_006", "test_007", "test_008"]
    classifier = load_model(best).classifier()
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(store.patches))[:, 1].double().numpy()
    for number, entry in enumerate(predictions):
        first = 21 + 7 * number
        np.testing.assert_allclose(entry["probs"], expected[first : first + 7], atol=1e-6)
        assert entry["preds"] == [int(p >= 0.5) for p in entry["probs"]]
        assert entry["patches"] == entries_of(store)[3 + number]["patches"]
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
                    entries_of(store),
                    best,
                    PredictionOptions(prediction_batch_size=size, tta=tta, device="cpu", num_workers=workers),
                )
            ]
        )
        for size, workers in ((1, 0), (64, 2))
    )
    np.testing.assert_allclose(one, many, atol=2e-6)


def test_dihedral_averaging_makes_a_probability_the_same_for_every_orientation(store, best):
    turned = MemoryStore(
        np.rot90(store.patches, 1, axes=(1, 2)), store.labels, [origin[0] for origin in store.origins]
    )

    def probabilities(store, tta):
        found = predict(store, entries_of(store), best, PredictionOptions(tta=tta, **CPU))
        return np.concatenate([entry["probs"] for entry in found])

    np.testing.assert_allclose(probabilities(store, True), probabilities(turned, True), atol=1e-5)
    assert np.abs(probabilities(store, False) - probabilities(turned, False)).max() > 1e-5


def test_a_quarantined_patch_has_no_probability_and_shifts_no_other(store, best):
    whole = predict(store, entries_of(store), best, PredictionOptions(**CPU))
    keep = [i for i in range(63) if i != 30]
    key = store.keys[30]
    missing = MemoryStore(
        store.patches[keep],
        store.labels[keep],
        [store.origins[i][0] for i in keep],
        keys=[store.keys[i] for i in keep],
        left_out=[{"key": key, "reason": "unreadable tile"}],
    )
    missing.origins = [store.origins[i] for i in keep]
    found = predict(missing, entries_of(store), best, PredictionOptions(**CPU))
    assert np.isnan(found[1]["probs"][2])
    assert found[1]["preds"][2] == -1
    for entry, expected in zip(found, whole, strict=True):
        known = ~np.isnan(entry["probs"])
        np.testing.assert_allclose(
            np.array(entry["probs"])[known], np.array(expected["probs"])[known], atol=1e-6
        )
        assert len(entry["probs"]) == 7


def test_a_patch_never_gets_the_probability_of_another(store, best):
    """An index made anew counts its patches from 0 as well: its keys are the store's, its places are not."""
    for changed in (lambda patches: patches[::-1], lambda patches: [(y, x + 1, t) for y, x, t in patches]):
        entries = entries_of(store)
        entries[4]["patches"] = changed(entries[4]["patches"])
        with pytest.raises(StoreError, match=r"has another patch under test_.*not built from this index"):
            predict(store, entries, best, PredictionOptions(**CPU))


def test_the_threshold_decides_what_is_called_tumour(store, best):
    for threshold, expected in ((0.0, 1), (1.0, 0)):
        found = predict(
            store, entries_of(store), best, PredictionOptions(prediction_threshold=threshold, **CPU)
        )
        assert {pred for entry in found for pred in entry["preds"]} == {expected}
    probability = found[0]["probs"][3]
    at_it = PredictionOptions(prediction_threshold=probability, **CPU)
    assert predict(store, entries_of(store), best, at_it)[0]["preds"][3] == 1


def test_a_store_of_another_level_or_patch_size_is_refused(store, best):
    slides = [origin[0] for origin in store.origins]
    other_level = MemoryStore(store.patches, store.labels, slides, level=5)
    other_size = MemoryStore(store.patches[:, :16, :16], store.labels, slides)
    for other, message in ((other_level, "level 4"), (other_size, "patch_size 32")):
        with pytest.raises(ModelError, match=message) as caught:
            predict(other, entries_of(other), best, PredictionOptions(**CPU))
        assert "\n" not in str(caught.value)


def test_a_store_of_another_index_is_refused(store, best):
    with pytest.raises(StoreError, match="not built from this index"):
        predict(store, entries_of(store)[1:], best, PredictionOptions(**CPU))


def test_without_test_slides_there_is_nothing_to_predict(store, best):
    assert predict(store, entries_of(store)[:3], best, PredictionOptions(**CPU)) == []

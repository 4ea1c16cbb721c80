"""Training and prediction on stores and an index that another program wrote, without a rebuild."""

import cv2
import h5py
import lmdb
import numpy as np
import pytest

from wsi_assets.learning import PredictionOptions, predict, train
from wsi_assets.patches import open_store
from wsi_assets_tests.learning.fakes import cohort, index_of, quick


def write(kind, path, cohort):
    if kind == "hdf5":
        with h5py.File(path, "w") as file:
            file["images"], file["labels"] = cohort.patches, cohort.labels
    elif kind == "fs":
        for key, patch, label in zip(cohort.keys, cohort.patches, cohort.labels, strict=True):
            folder = path / ("tumor" if label else "normal")
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{key}.png"), patch[:, :, ::-1])
    else:
        with lmdb.open(str(path), map_size=1 << 28) as environment, environment.begin(write=True) as view:
            # One patch could not be read by the program that wrote the store.
            for key, patch in [*zip(cohort.keys, cohort.patches, strict=True)][:-1]:
                view.put(key.encode(), cv2.imencode(f".{kind}", patch[:, :, ::-1])[1].tobytes())


@pytest.mark.parametrize("kind", ["png", "jpg", "hdf5", "fs"])
def test_a_store_of_another_program_is_trained_on_and_predicted(tmp_path, kind):
    patches = cohort(patients=8, test_patients=1)
    keys = ("slide_path", "label", "patches")
    index = {name: {key: entry[key] for key in keys} for name, entry in index_of(patches).items()}
    write(kind, tmp_path / "store", patches)
    with open_store(tmp_path / "store") as store:
        result = train(store, index, quick(max_epochs=2, lr=0.01), tmp_path / "run")
        options = PredictionOptions(device="cpu", num_workers=0)
        (entry,) = predict(store, index, result.best_path, options).values()
    assert result.best.val_auc > 0.9
    assert (result.card["level"], result.card["mpp"]) == (None, None)
    assert np.isnan(entry["probs"]).tolist() == [False] * 7 + [kind in ("png", "jpg")]

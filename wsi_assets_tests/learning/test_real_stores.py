"""Training on stores of every kind, with real tissue, and on stores that another program wrote."""

import json
import pickle

import cv2
import h5py
import lmdb
import numpy as np
import pytest

from wsi_assets.errors import StoreError
from wsi_assets.learning import PredictionOptions, predict, train
from wsi_assets.learning.data import locate
from wsi_assets.patches import STORE_NAMES, ExtractionOptions, build_store, open_store, plan_patches
from wsi_assets_tests.learning.made import cohort, quick, run


@pytest.fixture(scope="module")
def index(real_data):
    """The cohort's labeled patches as index entries, each patch cut into quarters."""
    folder = real_data / "cohort"
    quarters = [(0, 0), (0, 128), (128, 0), (128, 128)]
    return {
        slide: {
            "slide_path": str(folder / "images" / f"{slide}.tif"),
            "level": 0,
            "patch_size": 128,
            "mpp": 0.243,
            "patches": [(y + dy, x + dx, bool(label)) for y, x, label in rows for dy, dx in quarters],
        }
        for slide, rows in sorted(json.loads((folder / "truth.json").read_text()).items())
    }


@pytest.fixture(scope="module")
def stores(index, tmp_path_factory):
    made = []
    for backend, name in STORE_NAMES.items():
        path = tmp_path_factory.mktemp(backend) / name
        build_store(plan_patches(index, ExtractionOptions(codec="png", extraction_workers=1)), path, backend)
        made.append(open_store(path))
    return made


def test_stores_with_equal_pixels_train_the_same_model(index, stores, tmp_path):
    curves = set()
    for store in stores:
        fresh = pickle.loads(pickle.dumps(store))  # pickled as a path, as for another process
        folder = tmp_path / store.path.name
        result = train(fresh, index, quick(max_epochs=1, batch_size=64, num_workers=2), folder)
        curves.add(result.csv_path.read_text())
    assert len(curves) == 1
    sides = {row["patient"]: row["side"] for row in result.split.rows}
    assert result.split.unit == "patient"
    assert sides["test_073"] == "test"
    predictions = predict(stores[0], index, result.best_path, PredictionOptions(device="cpu", num_workers=2))
    assert {name: len(entry["probs"]) for name, entry in predictions.items()} == {
        name: len(entry["patches"]) for name, entry in index.items() if "test" in name
    }
    assert all(0 <= p <= 1 for entry in predictions.values() for p in entry["probs"])


def test_a_store_of_another_index_with_the_same_keys_is_refused(index, stores):
    """Every index numbers its patches from 0, so keys agree while coordinates differ."""
    for change in (lambda patches: patches[::-1], lambda patches: [(y, x + 1, t) for y, x, t in patches]):
        changed = {name: {**entry, "patches": change(entry["patches"])} for name, entry in index.items()}
        with pytest.raises(StoreError):
            locate(stores[0], changed)


def write(kind, path, patches):
    if kind == "hdf5":
        with h5py.File(path, "w") as file:
            file["images"], file["labels"] = patches.pixels, patches.labels
    elif kind == "fs":
        for key, pixels, label in zip(patches.keys, patches.pixels, patches.labels, strict=True):
            folder = path / ("tumor" if label else "normal")
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{key}.png"), pixels[:, :, ::-1])
    else:
        with lmdb.open(str(path), map_size=1 << 28) as environment, environment.begin(write=True) as view:
            # One patch could not be read by the program that wrote the store.
            for key, pixels in [*zip(patches.keys, patches.pixels, strict=True)][:-1]:
                view.put(key.encode(), cv2.imencode(f".{kind}", pixels[:, :, ::-1])[1].tobytes())


@pytest.mark.parametrize("kind", ["jpg", "hdf5", "fs"])
def test_a_store_of_another_program_is_trained_on_and_predicted(tmp_path, kind):
    patches = cohort(patients=8, test_patients=1)
    keys = ("slide_path", "label", "patches")
    index = {name: {key: entry[key] for key in keys} for name, entry in patches.index().items()}
    write(kind, tmp_path / "patches_lmdb", patches)
    result = run(patches, quick(max_epochs=2, lr=0.01), tmp_path, index)
    with patches.store(tmp_path) as store:
        options = PredictionOptions(device="cpu", num_workers=0)
        (entry,) = predict(store, index, result.best_path, options).values()
    assert result.best.val_auc > 0.9
    assert (result.card["level"], result.card["mpp"]) == (None, None)
    assert np.isnan(entry["probs"]).tolist() == [False] * 7 + [kind == "jpg"]

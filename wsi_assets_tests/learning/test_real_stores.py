"""Learning from stores of every kind, on real tissue."""

import json
import pickle

import pytest

from wsi_assets.learning import PredictionOptions, predict, train
from wsi_assets.patches import STORE_NAMES, ExtractionOptions, build_store, open_store, plan_patches
from wsi_assets_tests.learning.fakes import quick


@pytest.fixture(scope="module")
def index(real_data):
    """The cohort's labelled patches as index entries, each patch cut into quarters."""
    cohort = real_data / "cohort"
    quarters = [(0, 0), (0, 128), (128, 0), (128, 128)]
    return {
        slide: {
            "slide_path": str(cohort / "images" / f"{slide}.tif"),
            "level": 0,
            "patch_size": 128,
            "mpp": 0.243,
            "patches": [(y + dy, x + dx, bool(label)) for y, x, label in rows for dy, dx in quarters],
        }
        for slide, rows in sorted(json.loads((cohort / "truth.json").read_text()).items())
    }


@pytest.fixture(scope="module", params=list(STORE_NAMES))
def store(request, index, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / STORE_NAMES[request.param]
    build_store(
        plan_patches(index, ExtractionOptions(codec="png", extraction_workers=1)), path, request.param
    )
    return open_store(path)


def test_a_cohort_is_trained_and_predicted_from_any_store(store, index, tmp_path):
    fresh = pickle.loads(pickle.dumps(store))  # as a path, the way it reaches another process
    result = train(fresh, index, quick(max_epochs=1, batch_size=64, num_workers=2), tmp_path)
    sides = {row["patient"]: row["side"] for row in result.split.rows}
    assert result.split.unit == "patient"
    assert sides["test_073"] == "test"
    predictions = predict(fresh, index, result.best_path, PredictionOptions(device="cpu", num_workers=2))
    assert {name: len(entry["probs"]) for name, entry in predictions.items()} == {
        name: len(entry["patches"]) for name, entry in index.items() if "test" in name
    }
    assert all(0 <= p <= 1 for entry in predictions.values() for p in entry["probs"])


def test_equal_pixels_in_any_store_train_the_same_model(index, tmp_path):
    curves = set()
    for backend, name in STORE_NAMES.items():
        path = tmp_path / backend / name
        build_store(plan_patches(index, ExtractionOptions(codec="png", extraction_workers=1)), path, backend)
        options = quick(max_epochs=1, batch_size=64)
        curves.add(train(open_store(path), index, options, tmp_path / backend).csv_path.read_text())
    assert len(curves) == 1

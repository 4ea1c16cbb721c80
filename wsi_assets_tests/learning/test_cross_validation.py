import json

import numpy as np
import pytest

from wsi_assets.index import load_index
from wsi_assets.learning import cross_validate
from wsi_assets_tests.learning.fakes import cohort, index_of, quick


def test_every_slide_is_predicted_once_by_a_model_that_saw_none_of_its_patients(tmp_path):
    store = cohort(patients=9, per_patient=12, test_patients=1)
    options = quick(max_epochs=2, lr=0.01)
    found = cross_validate(store, index_of(store), options, tmp_path, folds=3)
    assert set(found.predictions) == {f"patient_{p:03d}_node_1" for p in range(9)}
    for fold, result in enumerate(found.results):
        held_out = {entry["label"] for entry in found.predictions.values() if entry["fold"] == fold}
        trained = {row["patient"] for row in result.split.rows if row["side"] != "test"}
        assert held_out
        assert not held_out & trained
    aucs = [row["roc_auc"] for row in found.folds]
    assert found.mean["roc_auc"] == pytest.approx(np.mean(aucs))
    assert found.spread["roc_auc"] == pytest.approx(np.std(aucs, ddof=1))
    assert load_index(tmp_path / "out_of_fold.pkl") == found.predictions
    assert json.loads((tmp_path / "cross_validation.json").read_text())["mean"] == found.mean

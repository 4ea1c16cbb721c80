import json

import numpy as np
import pytest

from wsi_assets.index import load_index
from wsi_assets.learning import cross_validate
from wsi_assets_tests.learning.fakes import cohort, index_of, quick


def test_every_slide_is_predicted_once_by_a_model_that_saw_none_of_its_patients(tmp_path):
    store = cohort(patients=9, per_patient=12, test_patients=1)
    options = quick(max_epochs=2, lr=0.01)
    predictions, summary = cross_validate(store, index_of(store), options, tmp_path, folds=3)
    assert set(predictions) == {f"patient_{p:03d}_node_1" for p in range(9)}
    for fold in range(3):
        held_out = {entry["label"] for entry in predictions.values() if entry["fold"] == fold}
        card = json.loads((tmp_path / f"fold_{fold}" / "checkpoints" / "best.json").read_text())
        trained = {row["patient"] for row in card["split"]["rows"] if row["side"] != "test"}
        assert held_out
        assert not held_out & trained
    aucs = [row["roc_auc"] for row in summary["folds"]]
    assert summary["mean"]["roc_auc"] == pytest.approx(np.mean(aucs))
    assert summary["spread"]["roc_auc"] == pytest.approx(np.std(aucs, ddof=1))
    assert load_index(tmp_path / "out_of_fold.pkl") == predictions
    assert json.loads((tmp_path / "cross_validation.json").read_text()) == summary

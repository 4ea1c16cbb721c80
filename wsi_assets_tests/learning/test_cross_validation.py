import json

import numpy as np
import pytest

from wsi_assets.errors import SlideIndexError
from wsi_assets.index import load_index
from wsi_assets.learning import cross_validate
from wsi_assets_tests.learning.made import cohort, quick


def test_every_slide_is_predicted_once_by_a_model_trained_on_other_patients(tmp_path):
    patches, options = cohort(patients=9, per_patient=12, test_patients=1), quick(max_epochs=2, lr=0.01)
    store = patches.store(tmp_path)
    predictions, summary = cross_validate(store, patches.index(), options, tmp_path, folds=3)
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
    assert json.loads((tmp_path / "folds.json").read_text()) == summary


def test_an_interrupted_cross_validation_resumes_in_its_fold(tmp_path):
    patches, options = cohort(patients=6), quick(max_epochs=1)
    index, store = patches.index(), patches.store(tmp_path)
    whole = cross_validate(store, index, options, tmp_path / "whole", folds=2)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(store, index, options, tmp_path, folds=2, progress=_stopped_in_the_second_fold)
    first = (tmp_path / "fold_0" / "predictions.pkl").stat()
    assert cross_validate(store, index, options, tmp_path, folds=2) == whole
    assert (tmp_path / "fold_0" / "predictions.pkl").stat().st_mtime_ns == first.st_mtime_ns


def _stopped_in_the_second_fold(done, total, what):
    if what.startswith("fold 2"):
        raise KeyboardInterrupt


def test_fewer_patients_than_folds_are_refused(tmp_path):
    patches = cohort(patients=3)
    with pytest.raises(SlideIndexError):
        cross_validate(patches.store(tmp_path), patches.index(), quick(), tmp_path, folds=4)

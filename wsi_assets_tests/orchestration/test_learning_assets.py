"""The detector's assets on a small cohort in memory: what Dagster shows and what MLflow is told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import numpy as np
import pytest
import torch

from wsi_assets.learning import load_model
from wsi_assets.orchestration.assets.learning import test_predictions as predictions_asset
from wsi_assets.orchestration.assets.learning import trained_model
from wsi_assets.orchestration.io_managers.models import ModelIOManager
from wsi_assets.orchestration.io_managers.plain_pickle import PlainPickleIOManager
from wsi_assets.orchestration.lineage import recorded_metadata
from wsi_assets.orchestration.partitions import LEVELS
from wsi_assets.orchestration.reporting import rounded
from wsi_assets.orchestration.resources.storage import Storage
from wsi_assets.orchestration.resources.tracking import ModelTracking
from wsi_assets_tests.learning import tiny
from wsi_assets_tests.learning.fakes import cohort, quick
from wsi_assets_tests.learning.test_prediction import entries_of

LEVEL = "4"
STORE = cohort(patients=6, test_patients=2)
PATTERN = r"^(.*?)(?:_node_\d+)?$"


@dg.asset(partitions_def=LEVELS, io_manager_key="memory")
def sampled_index():
    return [{**entry, "config": {"patient_pattern": PATTERN}} for entry in entries_of(STORE)]


@dg.asset(partitions_def=LEVELS, io_manager_key="memory")
def patch_store():
    return STORE


def materialize(folder, instance, tracking_uri=None):
    training = quick(max_epochs=2, save_interval=1).model_dump(exclude={"device", "num_workers"})
    here = {"device": "cpu", "num_workers": 0}
    storage = str(folder)
    return dg.materialize(
        [sampled_index, patch_store, trained_model, predictions_asset],
        instance=instance,
        partition_key=LEVEL,
        run_config={
            "ops": {
                "trained_model": {"config": {**training, **here}},
                "test_predictions": {"config": here},
            }
        },
        resources={
            "storage": Storage(storage_dir=storage),
            "tracking": ModelTracking(storage_dir=storage, tracking_uri=tracking_uri),
            "model_io": ModelIOManager(storage_dir=storage),
            "pickle_io": PlainPickleIOManager(storage_dir=storage),
            "memory": dg.mem_io_manager,
        },
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A level trained and predicted: its storage folder, metadata by asset, MLflow's client and run."""
    tiny.register()
    folder = tmp_path_factory.mktemp("storage")
    with dg.DagsterInstance.ephemeral() as instance:
        closed = STORE.closed
        assert materialize(folder, instance).success
        # An open store would keep its room on the disk when another takes its place.
        assert STORE.closed == closed + 2, "training and prediction each let go of the store"
        metadata = {
            asset: recorded_metadata(instance, asset, LEVEL)
            for asset in ("trained_model", "test_predictions")
        }
    client = ModelTracking(storage_dir=str(folder)).client()
    run = client.get_run(metadata["trained_model"]["mlflow_run_id"])
    return SimpleNamespace(folder=folder, client=client, run=run, **metadata)


def artifact(made, path, folder):
    return Path(made.client.download_artifacts(made.run.info.run_id, path, str(folder))).read_text()


def test_each_epoch_is_a_step_of_every_curve(made):
    for name in ("train_loss", "train_acc", "val_loss", "val_acc", "val_auc", "lr", "images_per_second"):
        history = made.client.get_metric_history(made.run.info.run_id, name)
        assert [metric.step for metric in history] == [1, 2], name


def test_parameters_and_counts_are_told(made):
    params = made.run.data.params
    assert params["model_name"] == "tiny"
    assert params["patch_size"] == "32"
    assert int(params["patches_train_tumor"]) + int(params["patches_val_tumor"]) == 24
    assert rounded(made.run.data.metrics["val_loss_best"]) == made.trained_model["val_loss"]
    assert made.run.info.status == "FINISHED"


def test_the_data_is_named_by_its_content(made):
    (data,) = made.run.inputs.dataset_inputs
    assert data.dataset.digest == STORE.info["digest"]
    assert json.loads(data.dataset.profile)["tumor"] == int(STORE.labels.sum())


def test_files_pictures_and_the_environment_are_kept(made, tmp_path):
    kept = {
        file.path
        for folder in (None, "pictures", "split", "environment")
        for file in made.client.list_artifacts(made.run.info.run_id, folder)
    }
    assert kept >= {
        "best.pt",
        "epoch_losses.csv",
        "pictures/curves.png",
        "pictures/confusion.png",
        "pictures/augmentation.png",
        "split/split.json",
        "split/split.csv",
        "environment/requirements.txt",
    }
    environment = json.loads(artifact(made, "environment/environment.json", tmp_path))
    assert environment["torch"] == torch.__version__
    assert re.search(r"^torch==\d", artifact(made, "environment/requirements.txt", tmp_path), re.MULTILINE)
    rows = json.loads(artifact(made, "split/split.json", tmp_path))["rows"]
    assert {row["patient"]: row["side"] for row in rows if row["side"] == "test"} == {
        "test_006": "test",
        "test_007": "test",
    }


def test_what_is_predicted_lands_in_the_run_of_the_training(made):
    assert made.run.data.metrics["test_slides"] == 2
    assert made.run.data.metrics["test_patches"] == 16
    assert made.test_predictions["mlflow_key"] == made.trained_model["mlflow_key"]


def test_the_threshold_of_the_model_stays_with_its_predictions(made):
    best = load_model(made.folder / "level_4" / "checkpoints" / "best.pt")
    assert made.test_predictions["validation_threshold"] == best.val_threshold


def test_dagster_shows_curves_confusion_and_augmentation_as_pictures(made):
    for name in ("curves", "confusion", "augmentation"):
        assert made.trained_model[name].startswith("!["), name
    assert made.run.info.run_id in made.trained_model["mlflow_run"]


def test_the_registered_model_predicts_what_ours_does(made):
    from mlflow import pyfunc

    (version,) = made.client.search_model_versions("name = 'wsi-level-4'")
    assert version.run_id == made.run.info.run_id
    assert version.tags["dataset_digest"] == STORE.info["digest"]
    served = pyfunc.load_model(made.client.get_model_version_download_uri("wsi-level-4", version.version))
    with torch.inference_mode():
        ours = load_model(made.folder / "level_4" / "checkpoints" / "best.pt").classifier()
        expected = ours(torch.from_numpy(STORE.patches)).numpy()
    np.testing.assert_allclose(served.predict(STORE.patches), expected, atol=1e-6)
    assert served.metadata.get_input_schema().inputs[0].shape == (-1, 32, 32, 3)
    with pytest.raises(Exception, match="float64 does not match expected dtype uint8"):
        served.predict(STORE.patches.astype(np.float64))


def test_mlflow_being_away_costs_no_training_and_everything_is_told_later(tmp_path):
    with dg.DagsterInstance.ephemeral() as instance:
        assert materialize(tmp_path, instance, tracking_uri="http://127.0.0.1:9").success
        training = recorded_metadata(instance, "trained_model", LEVEL)
        assert "mlflow_run" not in training
        assert training["mlflow_pending"]
    tracking = ModelTracking(storage_dir=str(tmp_path))
    assert tracking.deliver_pending(print) == 1
    client = tracking.client()
    (version,) = client.search_model_versions("name = 'wsi-level-4'")
    run = client.get_run(version.run_id)
    assert run.data.metrics["test_patches"] == 16
    assert rounded(run.data.metrics["train_loss"]) == training["train_loss"]
    assert (tmp_path / "level_4" / "checkpoints" / "best.pt").is_file()
    assert not (tmp_path / "level_4" / "mlflow_pending").exists()

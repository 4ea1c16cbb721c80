"""MLflow runs of trainings, and trainings while MLflow cannot be reached."""

from __future__ import annotations

import json
import socket

import pytest

from wsi_assets.errors import ModelError
from wsi_assets.orchestration.mlflow import MlflowResource, log_finished


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """MLflow exports the address that it is given, also to the tests after these."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


@pytest.fixture
def resource(tmp_path):
    return MlflowResource(storage_dir=str(tmp_path / "storage"), pages_url="http://lab:5001")


@pytest.fixture
def nowhere(tmp_path):
    """A server address where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return MlflowResource(storage_dir=str(tmp_path / "storage"), tracking_uri=f"http://127.0.0.1:{port}")


def report(folder):
    (folder / "pages" / "heatmaps").mkdir(parents=True)
    for name in ("report.html", "heatmaps/test_1.geojson", "heatmaps/test_1_likelihood_map.tif"):
        (folder / "pages" / name).write_text(name)
    return folder / "pages"


def test_parameters_epoch_metrics_and_evaluation_are_in_one_run(resource, tmp_path):
    warnings: list[str] = []
    with resource.training_run("4", {"lr": 0.1}, {"dagster_run_id": "abc"}, warnings.append) as run:
        run.metrics({"val_loss": 0.5, "val_auc": None, "lr": float("nan")}, step=1)
        run.metrics({"val_loss": 0.25}, step=2)
    page = report(tmp_path)
    address = resource.add_evaluation("4", {"test_roc_auc": 0.9, "test_froc": None}, page, warnings.append)
    client = resource.client().MlflowClient()
    found = client.get_run(run.run_id)
    assert warnings == []
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.1"}
    assert found.data.tags["dagster_run_id"] == "abc"
    assert {name for name in found.data.metrics if not name.startswith("system/")} == {
        "val_loss",
        "test_roc_auc",
    }
    assert [point.value for point in client.get_metric_history(run.run_id, "val_loss")] == [0.5, 0.25]
    assert run.url.startswith("http://lab:5001/")
    assert run.run_id in run.url
    assert address == f"{run.url}/artifacts/report/report.html"
    logged = [
        one.path
        for folder in ("report", "report/heatmaps")
        for one in client.list_artifacts(run.run_id, folder)
    ]
    assert logged == ["report/heatmaps", "report/report.html", "report/heatmaps/test_1.geojson"]


def test_a_training_that_fails_ends_its_run_as_failed(resource):
    with pytest.raises(ZeroDivisionError), resource.training_run("4", {}, {}, print) as run:
        _ = 1 / 0
    assert resource.client().MlflowClient().get_run(run.run_id).info.status == "FAILED"


def test_an_unreachable_server_gives_one_warning_and_the_training_goes_on(nowhere):
    warnings: list[str] = []
    with nowhere.training_run("4", {"lr": 0.1}, {}, warnings.append) as run:
        run.metrics({"val_loss": 0.5}, step=1)
        run.metrics({"val_loss": 0.4}, step=2)
    assert len(warnings) == 1
    assert "wsi-assets log --level 4" in warnings[0]
    assert run.url is None
    assert not nowhere.storage.mlflow_run("4").exists()


def test_comparisons_share_one_run_and_are_skipped_if_mlflow_is_unreachable(resource, nowhere, tmp_path):
    pages = report(tmp_path)
    first, again = (resource.add_comparison(pages, pytest.fail) for _ in range(2))
    assert first == again
    assert first.endswith("level_comparison/comparison.html")
    warnings: list[str] = []
    assert nowhere.add_comparison(pages, warnings.append) is None
    assert len(warnings) == 1


def test_a_level_without_a_model_cannot_be_logged(resource):
    with pytest.raises(ModelError):
        log_finished(resource, "4", print)


def test_metrics_of_a_model_that_was_not_logged_are_not_logged(resource, tmp_path):
    page = report(tmp_path)
    assert resource.add_evaluation("4", {"test_roc_auc": 0.9}, page, pytest.fail) is None
    path = resource.storage.mlflow_run("4")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"run_id": "x", "uri": "http://elsewhere", "page": None}))
    assert resource.add_evaluation("4", {"test_roc_auc": 0.9}, page, pytest.fail) is None

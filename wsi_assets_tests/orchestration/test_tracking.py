"""MLflow runs: found by our own key, told what is known, and owed what MLflow did not take."""

from __future__ import annotations

import socket
import time

import pytest

from wsi_assets.orchestration import mlflow_notes as notes
from wsi_assets.orchestration.resources.tracking import ModelTracking

TAGS = {"dagster_run_id": "abc"}


class FailingClient:
    """MLflow's client until no call is left; then the server is gone."""

    def __init__(self, client, left):
        self._client, self._left = client, left

    def __getattr__(self, name):
        method = getattr(self._client, name)

        def call(*arguments, **options):
            if not self._left:
                raise ConnectionError("the server is gone")
            self._left.pop()
            return method(*arguments, **options)

        return call


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return tmp_path_factory.mktemp("storage")


@pytest.fixture
def tracking(storage):
    return ModelTracking(storage_dir=str(storage))


@pytest.fixture
def nowhere(storage):
    """The same storage folder, and a server address where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return ModelTracking(storage_dir=str(storage), tracking_uri=f"http://127.0.0.1:{port}")


@pytest.fixture
def warnings():
    return []


def breaking_after(monkeypatch, calls):
    real, left = ModelTracking.client, [None] * calls
    monkeypatch.setattr(ModelTracking, "client", lambda self: FailingClient(real(self), left))


def told(tracking, run):
    """The run as MLflow has it now."""
    client = tracking.client()
    return client, client.get_run(run.run_id)


def train_a_little(run, tmp_path):
    run.tell(notes.parameters({"lr": 0.1}))
    run.tell(notes.metrics({"val_loss": 0.5, "val_auc": None, "lr": float("nan")}, step=1))
    run.tell(notes.metrics({"val_loss": 0.25}, step=2))
    (tmp_path / "losses.csv").write_text("epoch\n1\n2\n")
    run.tell(notes.file(tmp_path / "losses.csv", "losses.csv"), notes.file(b"{}", "split.json", "split"))
    run.tell(notes.dataset("patches", "0123abcd", {"store": "/here"}, {"tumor": 3}))


def assert_everything_is_there(tracking, run):
    client, found = told(tracking, run)
    assert found.data.params == {"lr": "0.1"}
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "val_loss")] == [
        (1, 0.5),
        (2, 0.25),
    ]
    assert "val_auc" not in found.data.metrics
    assert "lr" not in found.data.metrics
    assert [file.path for file in client.list_artifacts(run.run_id)] == ["losses.csv", "split"]
    assert [data.dataset.digest for data in found.inputs.dataset_inputs] == ["0123abcd"]
    assert found.info.status == "FINISHED"
    return found


def test_a_run_holds_what_it_was_told(tracking, tmp_path, warnings):
    with tracking.open_run("3", TAGS, warnings.append) as run:
        train_a_little(run, tmp_path)
    found = assert_everything_is_there(tracking, run)
    assert found.data.tags["dagster_run_id"] == "abc"
    assert run.run_id in run.url
    assert not run.owes
    assert warnings == []


def test_a_training_that_fails_leaves_a_failed_run(tracking, warnings):
    with pytest.raises(ValueError, match="diverged"), tracking.open_run("3", TAGS, warnings.append) as run:
        raise ValueError("diverged")
    assert told(tracking, run)[1].info.status == "FAILED"


def test_a_later_step_finds_the_run_by_its_key_and_leaves_its_status(tracking, warnings):
    with tracking.open_run("3", TAGS, warnings.append) as run:
        pass
    with tracking.resume_run("3", run.key, warnings.append) as resumed:
        resumed.tell(notes.metrics({"test_roc_auc": 0.75}))
    _, found = told(tracking, run)
    assert resumed.run_id == run.run_id
    assert found.data.metrics["test_roc_auc"] == 0.75
    assert found.info.status == "FINISHED"
    assert warnings == []


def test_a_run_deleted_in_mlflow_is_not_made_again(tracking, warnings):
    with tracking.open_run("3", TAGS, warnings.append) as run:
        pass
    tracking.client().delete_run(run.run_id)
    with tracking.resume_run("3", run.key, warnings.append) as resumed:
        resumed.tell(notes.metrics({"test_roc_auc": 0.75}))
    assert resumed.run_id is None
    assert not resumed.owes
    assert len(warnings) == 1


def test_with_no_server_a_training_is_kept_and_told_by_the_next_step(tracking, nowhere, tmp_path, warnings):
    started = time.monotonic()
    with nowhere.open_run("4", TAGS, warnings.append) as run:
        train_a_little(run, tmp_path)
    with nowhere.resume_run("4", run.key, warnings.append) as predicting:
        predicting.tell(notes.metrics({"test_patches": 7}))
    assert time.monotonic() - started < 30  # MLflow's own patience is four minutes a call
    assert run.run_id is None
    assert run.owes
    assert "cannot be reached" in warnings[0]
    (tmp_path / "losses.csv").unlink()  # as the finished training's folder is

    later = []
    with tracking.resume_run("4", run.key, later.append) as evaluating:
        evaluating.tell(notes.metrics({"test_roc_auc": 0.75}))
    found = assert_everything_is_there(tracking, evaluating)
    assert found.data.metrics["test_patches"] == 7
    assert found.data.metrics["test_roc_auc"] == 0.75
    assert found.data.tags["dagster_run_id"] == "abc"
    assert found.info.end_time - found.info.start_time < 30_000  # its own times, not those of the delivery
    assert not evaluating.pending.parent.exists()
    assert later == []


@pytest.mark.parametrize("calls", range(10))
def test_a_server_that_dies_at_any_moment_costs_nothing(tracking, tmp_path, warnings, monkeypatch, calls):
    with monkeypatch.context() as patch:
        breaking_after(patch, calls)
        with tracking.open_run("5", TAGS, warnings.append) as run:
            train_a_little(run, tmp_path)
    assert run.owes
    with tracking.resume_run("5", run.key, warnings.append) as resumed:
        pass
    assert_everything_is_there(tracking, resumed)
    assert not run.owes


def test_a_server_that_is_away_for_a_moment_is_told_before_the_training_ends(tracking, tmp_path, warnings):
    with tracking.open_run("5", TAGS, warnings.append) as run, pytest.MonkeyPatch.context() as patch:
        client = run._client
        patch.setattr(run, "_client", FailingClient(client, []))
        train_a_little(run, tmp_path)
    assert not run.owes
    assert_everything_is_there(tracking, run)
    assert len(warnings) == 1


def test_one_note_mlflow_refuses_does_not_stop_the_others_and_stays_owed(tracking, tmp_path, warnings):
    with tracking.open_run("6", TAGS, warnings.append) as run:
        run.tell(notes.metrics({"not / allowed ?!": 1.0}))
        train_a_little(run, tmp_path)
    assert_everything_is_there(tracking, run)
    assert run.owes
    assert "metrics" in warnings[0]
    assert tracking.deliver_pending(warnings.append) == 0  # all levels; still refused
    assert run.owes


def test_what_all_levels_owe_can_be_delivered_at_once(tracking, nowhere, tmp_path, warnings):
    for level in ("7", "8"):
        with nowhere.open_run(level, TAGS, warnings.append) as run:
            train_a_little(run, tmp_path)
    assert tracking.deliver_pending(warnings.append, "7") == 1
    assert tracking.deliver_pending(warnings.append, "7") == 0
    assert tracking.deliver_pending(warnings.append, "8") == 1
    assert not run.owes


def test_the_machine_is_measured_while_it_trains(tracking, warnings, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    with tracking.open_run("3", TAGS, warnings.append) as run:
        time.sleep(1)
    measured = told(tracking, run)[1].data.metrics
    assert 0 < measured["system/system_memory_usage_percentage"] <= 100

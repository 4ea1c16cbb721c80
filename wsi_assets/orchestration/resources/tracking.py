"""MLflow: one run a training, kept beside the Dagster run that made it.

A training outlives its bookkeeping: when MLflow cannot be reached this warns and the training goes on.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from wsi_assets.orchestration.layout import StorageLayout

EXPERIMENT = "wsi_assets"
LOCAL_UI = "http://127.0.0.1:5000"
"""Where ``wsi-assets ui`` serves the local MLflow pages."""


class TrackedRun:
    """One MLflow run; every call is best effort, what failed is listed in ``faults``.

    Attributes:
        run_id: MLflow's id, None when no run could be opened.
        url: the run's page.
        faults: one line for each call MLflow did not take.
    """

    def __init__(self, client: Any, run: Any, url: str | None, warn: Callable[[str], None]):
        self._client = client
        self._warn = warn
        self.run_id: str | None = run.info.run_id if run is not None else None
        self.url = url
        self.faults: list[str] = []

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        for name, value in parameters.items():
            self.attempt("log_param", name, str(value)[:500])

    def log_metrics(self, metrics: Mapping[str, float | None], step: int = 0) -> None:
        """Log the figures that could be computed; None and NaN are left out, never logged as 0."""
        for name, value in metrics.items():
            if value is not None and value == value:
                self.attempt("log_metric", name, float(value), step=step)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        self.attempt("log_artifact", str(path), folder)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self.attempt("set_tag", name, value)

    def finish(self, status: str) -> None:
        self.attempt("set_terminated", status)

    def attempt(self, method: str, *arguments: Any, **options: Any) -> None:
        """Call an MLflow client method on this run; a failure is recorded and warned of once."""
        if self.run_id is None:
            return
        try:
            getattr(self._client, method)(self.run_id, *arguments, **options)
        except Exception as error:  # whatever MLflow, its database or the network raise must not lose a model
            if not self.faults:
                self._warn(f"MLflow did not take {method} ({error}); the training goes on without it")
            self.faults.append(f"{method}: {error}")


class ModelTracking(dg.ConfigurableResource):
    """Opens MLflow runs in a server, or by default in ``mlflow.db`` under the storage folder."""

    storage_dir: str
    tracking_uri: str | None = None

    @property
    def uri(self) -> str:
        return self.tracking_uri or f"sqlite:///{StorageLayout(self.storage_dir).mlflow_database}"

    @contextlib.contextmanager
    def open_run(
        self, name: str, tags: Mapping[str, str], warn: Callable[[str], None]
    ) -> Iterator[TrackedRun]:
        """Start a run, and end it as FINISHED or FAILED."""
        run = self._start(name, tags, warn)
        try:
            yield run
        except BaseException:
            run.finish("FAILED")
            raise
        run.finish("FINISHED")

    def resume_run(self, run_id: str | None, warn: Callable[[str], None]) -> TrackedRun:
        """An earlier run, to add what was measured after the training; its status stays as it is."""
        if run_id is None:
            return TrackedRun(None, None, None, warn)
        try:
            client = self._client()
            run = client.get_run(run_id)
        except Exception as error:  # MLflow being away costs its entry, not the evaluation
            warn(f"MLflow cannot be reached ({error}); its run gets no test figures")
            return TrackedRun(None, None, None, warn)
        return TrackedRun(client, run, self._url(run), warn)

    def _start(self, name: str, tags: Mapping[str, str], warn: Callable[[str], None]) -> TrackedRun:
        try:
            client = self._client()
            found = client.get_experiment_by_name(EXPERIMENT)
            experiment = (
                found.experiment_id if found else client.create_experiment(EXPERIMENT, self._location())
            )
            run = client.create_run(experiment, run_name=name, tags=dict(tags))
        except Exception as error:  # a training must not wait for its bookkeeping
            warn(f"MLflow cannot be reached ({error}); the training is not recorded there")
            return TrackedRun(None, None, None, warn)
        return TrackedRun(client, run, self._url(run), warn)

    def _client(self) -> Any:
        from mlflow import MlflowClient

        # Creating the local database is no news to a user, and breaks into the progress bars.
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)

        if self.tracking_uri is None:
            StorageLayout(self.storage_dir).root.mkdir(parents=True, exist_ok=True)
        return MlflowClient(tracking_uri=self.uri)

    def _location(self) -> str | None:
        # A server knows its own artefact store; the local one lies beside its database.
        return None if self.tracking_uri else StorageLayout(self.storage_dir).mlflow_artifacts.as_uri()

    def _url(self, run: Any) -> str:
        base = self.uri if self.uri.startswith("http") else LOCAL_UI
        return f"{base.rstrip('/')}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"

"""MLflow: one run a training, kept beside the Dagster run that made it.

A training outlives its bookkeeping: when MLflow cannot be reached this warns, the training goes on, and what
MLflow should have been told is kept in the storage folder and delivered by the next training, prediction or
evaluation of the level that reaches it, or by :meth:`ModelTracking.deliver_pending`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from wsi_assets.orchestration import mlflow_notes as notes
from wsi_assets.orchestration.layout import StorageLayout
from wsi_assets.orchestration.mlflow_notes import Note, deliver
from wsi_assets.orchestration.mlflow_pending import (
    RunIdentity,
    forget,
    is_pending,
    keep,
    keep_only,
    pending_folders,
    read,
)
from wsi_assets.orchestration.partitions import LEVELS

Warn = Callable[[str], None]

EXPERIMENT = "wsi_assets"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Tells MLflow's pages that this is no language model, which they otherwise guess."""

SOURCE_TAGS = {"mlflow.source.name": "wsi-assets", "mlflow.source.type": "JOB"}
KEY_TAG = "wsi_assets.key"
LOCAL_UI = "http://127.0.0.1:5000"
"""Where ``wsi-assets ui`` serves the local MLflow pages."""

SYSTEM_METRICS_SECONDS = 5

CLIENT_SETTINGS = {
    # By default a server that is away is asked eight times over four minutes, for every single call.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # What a hospital computes is nobody else's business.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # The run's page is in the metadata; a line here would break into the progress bars.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""For MLflow's client in this process, where the user has not set them."""

QUIET = {
    "mlflow": logging.WARNING,
    "alembic": logging.WARNING,
    "mlflow.system_metrics": logging.CRITICAL,  # says again, from its thread, that MLflow is away
    "mlflow.store.db.utils": logging.CRITICAL,  # a page of traceback for what is raised, and warned of, too
}


class TrackedRun:
    """One MLflow run, told note by note; what MLflow does not take is kept in ``pending``.

    Attributes:
        key: our own name of the run, by which later steps find it.
        run_id: MLflow's id, None while MLflow has no such run.
        url: the run's page, None while MLflow has no such run.
        pending: folder of what MLflow has not taken; exists only if there is such.
    """

    def __init__(self, tracking: ModelTracking, identity: RunIdentity, level: str, warn: Warn):
        self.key = identity.key
        self.pending = StorageLayout(tracking.storage_dir).mlflow_pending(level) / identity.key
        self._tracking, self._identity, self._level, self._warn = tracking, identity, level, warn
        self._client = self._run = None
        self._taking, self._gone = False, False
        self._undelivered: list[Note] = []

    @property
    def run_id(self) -> str | None:
        return self._run.info.run_id if self._run else None

    @property
    def url(self) -> str | None:
        return self._tracking.url_of(self._run) if self._run else None

    @property
    def owes(self) -> bool:
        """Something is kept that MLflow has not taken."""
        return is_pending(self.pending)

    def find(self, *, create: bool) -> None:
        """Look the run up in MLflow, or begin it there, and deliver what the level's runs still owe."""
        if not self.key:  # the model was put here by hand
            self._gone = True
            return
        try:
            self._client = self._tracking.client()
            self._run = self._tracking.run_of(self._client, self._identity, create=create)
            self._tracking.deliver_pending(self._warn, self._level)
            # The run of this key may have been among them.
            self._run = self._run or self._tracking.run_of(self._client, self._identity, create=False)
        except Exception as error:  # a training must not wait for its bookkeeping
            self._warn(f"MLflow cannot be reached ({_line(error)}); this goes on without it")
            return
        self._taking = self._run is not None
        if not self._taking and not is_pending(self.pending):
            self._gone = True
            self._warn("MLflow no longer has the run of this model; its figures are not told there")

    def tell(self, *told: Note) -> None:
        """Deliver notes in order; what is not taken is kept. Never raises."""
        for note in () if self._gone else told:
            if self._taking:
                try:
                    deliver(self._client, self._run, note)
                    continue
                except Exception as error:  # whatever MLflow, its database or the network raise
                    self._warn(f"MLflow did not take {note.kind} ({_line(error)}); this goes on without it")
                    self._taking = self._still_there()
            self._undelivered.append(note)

    def close(self) -> None:
        """Keep what was not taken, and try once more to deliver it."""
        if self._undelivered:
            keep(self.pending, self._identity, self._undelivered)
            self._undelivered = []
            self._run = self._tracking.deliver(self.pending, self._warn) or self._run

    def _still_there(self) -> bool:
        """Tells a note refused from MLflow being away, for which every further note would wait."""
        try:
            self._client.get_run(self.run_id)
        except Exception:  # as above
            return False
        return True


class ModelTracking(dg.ConfigurableResource):
    """Opens MLflow runs in a server, or by default in ``mlflow.db`` under the storage folder."""

    storage_dir: str
    tracking_uri: str | None = None

    @property
    def uri(self) -> str:
        return self.tracking_uri or f"sqlite:///{StorageLayout(self.storage_dir).mlflow_database}"

    @contextlib.contextmanager
    def open_run(self, level: str, tags: Mapping[str, str], warn: Warn) -> Iterator[TrackedRun]:
        """Begin the run of a training, which also measures the machine; ends it as FINISHED or FAILED."""
        identity = RunIdentity(uuid.uuid4().hex, f"level_{level}", {"level": level, **tags}, _now())
        run = TrackedRun(self, identity, level, warn)
        run.find(create=True)
        with contextlib.closing(run):
            try:
                with self._system_metrics(run.run_id, warn):
                    yield run
            except BaseException:
                run.tell(notes.end("FAILED"))
                raise
            run.tell(notes.end("FINISHED"))

    @contextlib.contextmanager
    def resume_run(self, level: str, key: str | None, warn: Warn) -> Iterator[TrackedRun]:
        """The run of an earlier training, by its key, to add what was measured afterwards."""
        identity = RunIdentity(key or "", f"level_{level}", {"level": level}, _now())
        run = TrackedRun(self, identity, level, warn)
        run.find(create=False)
        with contextlib.closing(run):
            yield run

    def deliver_pending(self, warn: Warn, level: str | None = None) -> int:
        """Tell MLflow what it has not taken before, of one level or of all; how many runs that completed.

        Steps of one level follow each other, so each may do this for its own level; for all levels it is
        called when nothing else runs.
        """
        layout = StorageLayout(self.storage_dir)
        levels = LEVELS.get_partition_keys() if level is None else [level]
        folders = [folder for one in levels for folder in pending_folders(layout.mlflow_pending(one))]
        return sum(self.deliver(folder, warn) is not None for folder in folders)

    def deliver(self, folder: Path, warn: Warn) -> Any:
        """Deliver the notes kept in one folder and remove it: MLflow's run, or None if not all were taken."""
        identity, left = read(folder)
        refused: list[Note] = []
        try:
            client = self.client()
            run = self.run_of(client, identity, create=True)
            reason = None
            while left:
                try:
                    deliver(client, run, left[0])
                except Exception as error:  # whatever MLflow, its database or the network raise
                    client.get_run(run.info.run_id)  # raises too if MLflow is away
                    refused.append(left[0])
                    reason = error
                left.pop(0)
            if reason is None:
                forget(folder)
                return run
        except Exception as error:  # as above
            reason = error
        keep_only(folder, identity, [*refused, *left])
        warn(
            f"MLflow has not taken everything ({_line(reason)}): the rest is kept in {folder} and delivered "
            "by the next step of this level that reaches MLflow"
        )
        return None

    def client(self) -> Any:
        """MLflow's client, which gives up in time and tells nobody else."""
        for name, value in CLIENT_SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        # Creating the local database is no news to a user, and breaks into the progress bars.
        for name, level in QUIET.items():
            logging.getLogger(name).setLevel(level)
        if self.tracking_uri is None:
            StorageLayout(self.storage_dir).root.mkdir(parents=True, exist_ok=True)
        return MlflowClient(self.uri, os.environ.get("MLFLOW_REGISTRY_URI", self.uri))

    def run_of(self, client: Any, identity: RunIdentity, *, create: bool) -> Any:
        """MLflow's run with this key, created if asked; None if there is none."""
        found = client.get_experiment_by_name(EXPERIMENT)
        experiment = (
            found.experiment_id
            if found
            else client.create_experiment(EXPERIMENT, self._location(), EXPERIMENT_TAGS)
        )
        runs = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{identity.key}'", max_results=1)
        if runs or not create:
            return runs[0] if runs else None
        return client.create_run(
            experiment,
            start_time=identity.started,
            run_name=identity.name,
            tags={**identity.tags, **SOURCE_TAGS, KEY_TAG: identity.key},
        )

    def url_of(self, run: Any) -> str:
        base = self.uri if self.uri.startswith("http") else LOCAL_UI
        page = f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        return f"{base.rstrip('/')}/#/{page}?workflowType=machine_learning"

    @contextlib.contextmanager
    def _system_metrics(self, run_id: str | None, warn: Warn) -> Iterator[None]:
        """Processor, memory, disk, network and GPU into the run, every few seconds, from MLflow's thread."""
        with contextlib.ExitStack() as stack:
            try:
                from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

                if run_id is not None:
                    monitor = SystemMetricsMonitor(run_id, SYSTEM_METRICS_SECONDS, tracking_uri=self.uri)
                    monitor.start()
                    stack.callback(monitor.finish)
            except Exception as error:  # a machine that cannot be measured can train
                warn(f"The machine is not measured ({_line(error)})")
            yield

    def _location(self) -> str | None:
        # A server knows its own artefact store; the local one lies beside its database.
        return None if self.tracking_uri else StorageLayout(self.storage_dir).mlflow_artifacts.as_uri()


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def _now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)

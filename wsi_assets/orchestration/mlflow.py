"""MLflow: one run a training, with its parameters, the metrics of each epoch, its files and the model.

A training outlives its bookkeeping: when MLflow cannot be reached this warns once and the training goes on.
``wsi-assets log --level N`` logs a finished training from its files.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dagster as dg

from wsi_assets.errors import ModelError, one_line
from wsi_assets.files import digest, write_json
from wsi_assets.orchestration.paths import StoragePaths

Warn = Callable[[str], None]

EXPERIMENT = "wsi_assets"
MAX_PARAMETER_LENGTH = 500
"""Characters every MLflow store takes."""

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


class TrainingRun:
    """The MLflow run of one training; after the first failure it takes everything and logs nothing.

    Attributes:
        url: the run's page, None while there is no run.
    """

    def __init__(self, resource: MlflowResource, level: str, warn: Warn):
        self._resource, self._level, self._warn = resource, level, warn
        self._mlflow: Any = None
        self.run_id: str | None = None
        self.url: str | None = None

    def start(self, parameters: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Begin the run, which also measures the machine."""
        with self._away_is_a_warning():
            mlflow = self._resource.client()
            experiment = self._resource.experiment(mlflow)
            run = mlflow.start_run(
                experiment_id=experiment,
                run_name=f"level_{self._level}",
                tags={name: str(value) for name, value in {"level": self._level, **tags}.items()},
                log_system_metrics=True,
            )
            self._mlflow, self.run_id = mlflow, run.info.run_id
            self.url = self._resource.page(experiment, self.run_id)
            mlflow.log_params({name: str(value)[:MAX_PARAMETER_LENGTH] for name, value in parameters.items()})

    def metrics(self, values: Mapping[str, float | None], step: int | None = None) -> None:
        """Log metrics that could be computed; None and NaN are left out, never logged as 0."""
        known = {name: float(value) for name, value in values.items() if value is not None and value == value}
        self._do(lambda mlflow: mlflow.log_metrics(known, step=step))

    def tags(self, values: Mapping[str, Any]) -> None:
        self._do(lambda mlflow: mlflow.set_tags({name: str(value) for name, value in values.items()}))

    def file(self, path: Path, folder: str | None = None) -> None:
        self._do(lambda mlflow: mlflow.log_artifact(str(path), folder))

    def picture(self, image: bytes, name: str) -> None:
        """Log a PNG file among the run's pictures."""

        def log(mlflow: Any) -> None:
            import tempfile

            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / name
                path.write_bytes(image)
                mlflow.log_artifact(str(path), "pictures")

        self._do(log)

    def model(self, checkpoints: Path, patch_size: int) -> None:
        """Log ``best.pt`` as a model with its signature, and register it as ``wsi-level-N``."""
        from wsi_assets.orchestration.mlflow_pyfunc import log_model

        self._do(lambda mlflow: log_model(mlflow, checkpoints, f"wsi-level-{self._level}", patch_size))

    def end(self, status: str) -> None:
        self._do(lambda mlflow: mlflow.end_run(status))
        self._mlflow = None

    def _do(self, log: Callable[[Any], Any]) -> None:
        if self._mlflow is not None:
            with self._away_is_a_warning():
                log(self._mlflow)

    @contextlib.contextmanager
    def _away_is_a_warning(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever MLflow, its database or the network raise
            active, self._mlflow = self._mlflow, None
            if active is not None:
                with contextlib.suppress(Exception):  # ends what is known of the run here; the server is away
                    active.end_run("FAILED")
            self._warn(
                f"MLflow does not take this training ({one_line(error)[:300]}); it goes on. Log it later "
                f"with wsi-assets log --level {self._level}"
            )


class MlflowResource(dg.ConfigurableResource):
    """Logs to an MLflow server, or by default to ``mlflow.db`` in the storage folder.

    ``pages_url`` is where that file is shown, for links: the address of ``wsi-assets ui``'s MLflow.
    """

    storage_dir: str
    tracking_uri: str | None = None
    pages_url: str = "http://127.0.0.1:5000"

    @property
    def uri(self) -> str:
        return self.tracking_uri or f"sqlite:///{StoragePaths(self.storage_dir).mlflow_database}"

    def client(self) -> Any:
        """The ``mlflow`` module, set to this server."""
        for name, value in CLIENT_SETTINGS.items():
            os.environ.setdefault(name, value)
        import mlflow

        # Creating the local database is no news to a user, and breaks into the progress bars.
        for name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent", "mlflow.system_metrics"):
            logging.getLogger(name).setLevel(logging.ERROR)
        if self.tracking_uri is None:
            Path(self.storage_dir).mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(self.uri)
        return mlflow

    def experiment(self, mlflow: Any) -> str:
        """The id of the experiment, created when it is first needed."""
        # A server knows its own artefact store; the local one lies beside its database.
        location = None if self.tracking_uri else StoragePaths(self.storage_dir).mlflow_artifacts.as_uri()
        # An experiment keeps its place: that of a folder that was moved would write where it had been.
        for name in (EXPERIMENT, f"{EXPERIMENT} in {Path(self.storage_dir).name} {digest(location)[:6]}"):
            found = mlflow.get_experiment_by_name(name)
            if found is None:
                break
            if location in (None, found.artifact_location):
                return found.experiment_id
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return mlflow.create_experiment(name, location, tags)

    def page(self, experiment: str, run_id: str) -> str:
        base = self.uri if self.uri.startswith("http") else self.pages_url
        return f"{base.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"

    @contextlib.contextmanager
    def training_run(
        self, level: str, parameters: Mapping[str, Any], tags: Mapping[str, Any], warn: Warn
    ) -> Iterator[TrainingRun]:
        """The run of a training, ended as FINISHED or FAILED."""
        run = TrainingRun(self, level, warn)
        run.start(parameters, tags)
        try:
            yield run
        except BaseException:
            run.end("FAILED")
            raise
        run.end("FINISHED")

    def add_metrics(self, level: str, values: Mapping[str, float | None], warn: Warn) -> None:
        """Add what was measured after a training to the run of the level's model."""
        known = {name: float(value) for name, value in values.items() if value is not None}
        run_id = self.run_of(level)
        if run_id is None:
            return
        try:
            client = self.client().MlflowClient()
            for name, value in known.items():
                client.log_metric(run_id, name, value)
        except Exception as error:  # as above
            warn(f"MLflow does not take the test metrics ({one_line(error)[:300]}); this goes on")

    def run_of(self, level: str) -> str | None:
        """The MLflow run of the level's model, None if it has none."""
        try:
            plain = json.loads(StoragePaths(self.storage_dir).mlflow_run(level).read_text(encoding="utf-8"))
            return plain["run_id"] if plain["uri"] == self.uri else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep_run(self, level: str, run: TrainingRun) -> None:
        """Note which run is the level's; a training that was not logged leaves none."""
        path = StoragePaths(self.storage_dir).mlflow_run(level)
        if run.run_id is None:
            path.unlink(missing_ok=True)
        else:
            write_json(path, {"run_id": run.run_id, "uri": self.uri, "page": run.url})


def log_outcome(
    run: TrainingRun, folder: Path, card: Mapping[str, Any], pictures: Mapping[str, bytes] | None = None
) -> None:
    """Log what a finished training left in ``folder``: its split, files, pictures and the model."""
    split = card.get("split") or {}
    run.tags(
        {
            "dataset_digest": (card.get("provenance") or {}).get("data_digest"),
            "split_unit": split.get("unit"),
            "best_epoch": card.get("epoch"),
        }
    )
    # To compare runs by: of a curve MLflow's tables show the last value, not the best epoch's.
    run.metrics({f"{name}_best": card.get(name) for name in ("val_loss", "val_auc")})
    run.metrics({f"patches_{name}": count for name, count in (card.get("counts") or {}).items()})
    for name, image in (pictures or {}).items():
        run.picture(image, f"{name}.png")
    checkpoints = folder / "checkpoints"
    for file in (folder / "epoch_losses.csv", checkpoints / "best.pt", checkpoints / "best.json"):
        run.file(file)
    run.model(checkpoints, int(card["patch_size"]))


def log_finished(resource: MlflowResource, level: str, warn: Warn) -> str | None:
    """Log the finished training of a level from its files; returns the run's page, None if MLflow is away.

    Raises:
        ModelError: the level has no model.
    """
    folder = StoragePaths(resource.storage_dir).level_folder(level)
    card_path = folder / "checkpoints" / "best.json"
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the level has no finished training ({one_line(error)[:100]})",
            path=card_path,
            remedy=f"Train first: wsi-assets run --level {level} --upto trained_model",
        ) from error
    with resource.training_run(level, card.get("parameters", {}), {"logged": "from files"}, warn) as run:
        for row in _losses(folder / "epoch_losses.csv"):
            epoch = int(row.pop("epoch"))
            run.metrics({name: float(value) for name, value in row.items()}, step=epoch)
        log_outcome(run, folder, card)
        resource.keep_run(level, run)
        return run.url


def environment() -> dict[str, str]:
    """Versions that a training depends on, as tags."""
    return {f"version.{name}": version(name) for name in ("wsi-assets", "torch", "timm")}


def _losses(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    except OSError:
        return []

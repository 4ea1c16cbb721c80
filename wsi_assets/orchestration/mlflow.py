"""MLflow logging: one run per training, with parameters, metrics of each epoch, files and the model.

A failure of MLflow does not stop a training: it is reported in one warning, and the training goes on.
``wsi-assets log --level N`` logs a finished training later, from its files.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dagster as dg

from wsi_assets.errors import ModelError, one_line
from wsi_assets.files import digest, publish_folder, write_json
from wsi_assets.orchestration.evaluation_metadata import model_card, read_epochs
from wsi_assets.orchestration.settings import Settings
from wsi_assets.orchestration.storage import StorageResource
from wsi_assets.slides.resolution import name_of, option_of, words_of

Warn = Callable[[str], None]

EXPERIMENT = "wsi_assets"
MAX_PARAMETER_LENGTH = 500
"""Number of characters that every MLflow store accepts."""

CLIENT_SETTINGS = {
    # By default each call to an unreachable server is retried for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # Nothing about a hospital's work may leave its network.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A printed line would disturb the progress bars; the link to the run is in the metadata.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Environment variables for MLflow's client in this process; values set by the user are kept."""


class TrainingRun:
    """The MLflow run of one training; after a first failure of MLflow, all further calls do nothing.

    Attributes:
        run_id: id of the run; None if there is none.
        url: address of the page of the run; None if there is no run.
        note: contents of ``mlflow_run.json``, by which an evaluation finds the run.
    """

    def __init__(self, level: str, warn: Warn):
        self.level, self._warn, self._is_away = level, warn, False
        self.run_id: str | None = None
        self.url: str | None = None
        self.note: dict[str, Any] = {}

    def log(self, write: Callable[[Any], Any]) -> None:
        """Call ``write`` with the ``mlflow`` module; errors become one warning."""
        if self._is_away:
            return
        import mlflow

        try:
            write(mlflow)
        except Exception as error:  # whatever MLflow, its database or the network raise
            self._is_away = True
            with contextlib.suppress(Exception):  # ends the run in this process, even without a server
                mlflow.end_run("FAILED")
            self._warn(
                f"MLflow does not log this training ({one_line(error)[:300]}); it goes on. Log it later "
                f"with wsi-assets log {option_of(self.level)}"
            )

    def metrics(self, values: Mapping[str, float | None], step: int | None = None) -> None:
        """Log metrics that could be computed; None and NaN are left out, never logged as 0."""
        known = _known(values)
        self.log(lambda mlflow: mlflow.log_metrics(known, step=step))


class MlflowResource(dg.ConfigurableResource):
    """Logs to an MLflow server, or by default to ``mlflow.db`` in the storage folder.

    Attributes:
        storage_dir: the storage folder.
        tracking_uri: address of the server; None for ``mlflow.db``.
        pages_url: address at which ``wsi-assets ui`` serves the pages of ``mlflow.db``, for links.
    """

    storage_dir: str
    tracking_uri: str | None = None
    pages_url: str = "http://127.0.0.1:5000"

    @classmethod
    def of(cls, settings: Settings) -> MlflowResource:
        return cls(
            storage_dir=str(settings.storage_dir),
            tracking_uri=settings.tracking_uri,
            pages_url=settings.mlflow_url,
        )

    @property
    def storage(self) -> StorageResource:
        return StorageResource(storage_dir=self.storage_dir)

    @property
    def uri(self) -> str:
        return self.tracking_uri or f"sqlite:///{self.storage.mlflow_database}"

    def client(self) -> Any:
        """The ``mlflow`` module, configured for this server or database."""
        for name, value in CLIENT_SETTINGS.items():
            os.environ.setdefault(name, value)
        import mlflow

        # Messages about the creation of the local database would disturb the progress bars.
        for name in ("alembic", "mlflow.tracking.fluent", "mlflow.system_metrics"):
            logging.getLogger(name).setLevel(logging.ERROR)
        # On a full disk this logger prints tracebacks; the user gets one warning instead.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        if self.tracking_uri is None:
            self.storage.root.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(self.uri)
        return mlflow

    def experiment(self, mlflow: Any) -> str:
        """Id of the experiment, which is created on first use."""
        # A server has its own artifact store; local artifacts are stored beside the database.
        location = None if self.tracking_uri else self.storage.mlflow_artifacts.as_uri()
        name, found = EXPERIMENT, mlflow.get_experiment_by_name(EXPERIMENT)
        if found is not None and location not in (None, found.artifact_location):
            # An experiment keeps its artifact folder for ever. After the storage folder was moved, another
            # experiment is needed, or artifacts would be written to the old place.
            name = f"{EXPERIMENT} in {self.storage.root.name} {digest(location)[:6]}"
            found = mlflow.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        return mlflow.create_experiment(name, location, {"mlflow.experimentKind": "custom_model_development"})

    @contextlib.contextmanager
    def training_run(
        self, level: str, parameters: Mapping[str, Any], tags: Mapping[str, Any], warn: Warn
    ) -> Iterator[TrainingRun]:
        """Start a run and end it as FINISHED or FAILED; a finished one becomes the run of the level.

        Args:
            level: key of the level.
            parameters: parameters of the training.
            tags: further tags of the run.
            warn: is called with one line if MLflow fails.
        """
        run = TrainingRun(level, warn)
        run.log(lambda _: self._start(run, parameters, tags))
        try:
            yield run
        except BaseException:
            run.log(lambda mlflow: mlflow.end_run("FAILED"))
            raise
        run.log(lambda mlflow: mlflow.end_run("FINISHED"))
        note = self.storage.mlflow_run(level)
        if run.run_id is None:
            note.unlink(missing_ok=True)
        else:
            write_json(note, run.note)

    def champion(self, level: str) -> tuple[Path, str]:
        """Folder and version of the level's registered model with the alias ``champion``.

        The model is downloaded once, to ``champions`` in the storage folder.

        Raises:
            ModelError: MLflow cannot be reached, or no version of the registered model has the alias.
        """
        name = registered_name(level)
        try:
            mlflow = self.client()
            found = mlflow.MlflowClient().get_model_version_by_alias(name, "champion")
            copy = (
                self.storage.root
                / "champions"
                / f"{name}-{found.version}-{digest(self.uri, found.source)[:8]}"
            )
            if not copy.exists():
                with publish_folder(copy) as unfinished:
                    where = f"models:/{name}/{found.version}"
                    mlflow.artifacts.download_artifacts(artifact_uri=where, dst_path=str(unfinished))
            return next(copy.rglob("best.pt")).parent, str(found.version)
        except Exception as error:  # whatever MLflow, its database or the network raise
            raise ModelError(
                f"MLflow gives no champion of {words_of(level)} ({one_line(error)[:200] or 'no best.pt'})",
                remedy=f"Give a version of {name} the alias champion there, or set model=newest",
            ) from error

    def _start(self, run: TrainingRun, parameters: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Start the run, with system metrics, and log the parameters."""
        mlflow = self.client()
        experiment = self.experiment(mlflow)
        versions = {f"version.{name}": version(name) for name in ("wsi-assets", "torch", "timm")}
        started = mlflow.start_run(
            experiment_id=experiment,
            run_name=f"{words_of(run.level)}, {parameters.get('model_name', 'model')}",
            tags={name: str(value) for name, value in {"level": run.level, **versions, **tags}.items()},
            log_system_metrics=True,
        )
        run.run_id = started.info.run_id
        run.url = self._page(experiment, run.run_id)
        run.note = {"run_id": run.run_id, "experiment": experiment, "uri": self.uri, "page": run.url}
        mlflow.log_params({name: str(value)[:MAX_PARAMETER_LENGTH] for name, value in parameters.items()})

    def add_comparison(self, pages: Path, warn: Warn) -> str | None:
        """Log the folder ``pages`` to the run that holds the comparison of levels.

        Returns:
            address of the page in MLflow; None if MLflow fails.
        """
        try:
            mlflow = self.client()
            experiment = self.experiment(mlflow)
            found = mlflow.search_runs(
                [experiment], "tags.kind = 'level_comparison'", max_results=1, output_format="list"
            )
            known = {"run_id": found[0].info.run_id} if found else {"run_name": "all levels side by side"}
            with mlflow.start_run(
                experiment_id=experiment, tags={"kind": "level_comparison"}, **known
            ) as run:
                mlflow.log_artifacts(str(pages), "level_comparison")
        except Exception as error:  # whatever MLflow, its database or the network raise
            warn(f"MLflow does not log the comparison ({one_line(error)[:300]}); the run goes on")
            return None
        page = self._page(experiment, run.info.run_id)
        return f"{page}/artifacts/level_comparison/comparison.html"

    def _page(self, experiment: str, run_id: str) -> str:
        base = self.uri if self.uri.startswith("http") else self.pages_url
        return f"{base.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"

    def add_evaluation(
        self, level: str, values: Mapping[str, float | None], report: Path, warn: Warn
    ) -> str | None:
        """Add test metrics and the folder ``report`` to the MLflow run of the level's training.

        The large TIFF heatmaps are not uploaded.

        Returns:
            address of the report in MLflow; None if the training was not logged there or MLflow fails.
        """
        noted = self.storage.mlflow_note(level)
        if noted.get("uri") != self.uri:
            return None
        run_id = noted["run_id"]
        try:
            mlflow = self.client()
            mlflow.log_metrics(_known(values), run_id=run_id, model_id=noted.get("model_id"))
            for file in sorted(report.rglob("*")):
                if file.is_file() and file.suffix != ".tif":
                    place = Path("report") / file.relative_to(report).parent
                    mlflow.log_artifact(str(file), place.as_posix(), run_id=run_id)
        except Exception as error:  # as above
            warn(f"MLflow does not log the evaluation ({one_line(error)[:300]}); the run goes on")
            return None
        return f"{noted['page']}/artifacts/report/report.html"


def registered_name(level: str) -> str:
    """Name of the registered model of a level in MLflow, e.g. wsi-level-4 or wsi-10x."""
    return f"wsi-{name_of(level).replace('_', '-')}"


def runs_page(url: str, storage: StorageResource) -> str:
    """Address of the MLflow page of all trainings, or of its start page if there are none."""
    known = [note["experiment"] for level in storage.levels() if (note := storage.mlflow_note(level))]
    runs = f"/{known[0]}/runs?workflowType=machine_learning" if known else ""
    return f"{url}/#/experiments{runs}"


def log_outcome(
    run: TrainingRun, folder: Path, card: Mapping[str, Any], pictures: Mapping[str, bytes] | None = None
) -> None:
    """Log files, pictures and the model of a finished training.

    Args:
        folder: contains ``epoch_losses.csv`` and ``checkpoints/``.
        card: contents of ``best.json``.
        pictures: name -> bytes of a PNG file.
    """
    from wsi_assets.orchestration.mlflow_pyfunc import log_model

    checkpoints = folder / "checkpoints"
    what = f"{words_of(run.level)}, {(card.get('model') or {}).get('name', 'model')}, {card['patch_size']} px"
    tags = {
        "mlflow.runName": what,
        "dataset_digest": (card.get("provenance") or {}).get("data_digest"),
        "split_unit": (card.get("split") or {}).get("unit"),
        "best_epoch": card.get("epoch"),
    }
    # MLflow's tables show the last value of a curve; these metrics are of the best epoch.
    best = _known({f"{name}_best": card.get(name) for name in ("val_loss", "val_auc")})
    counts = _known({f"patches_{name}": count for name, count in (card.get("counts") or {}).items()})

    def files(mlflow: Any) -> None:
        mlflow.set_tags({name: str(value) for name, value in tags.items()})
        mlflow.log_metrics(counts)
        for name, image in (pictures or {}).items():
            mlflow.log_image(Image.open(io.BytesIO(image)), f"pictures/{name}.png")
        for file in (folder / "epoch_losses.csv", checkpoints / "best.pt", checkpoints / "best.json"):
            mlflow.log_artifact(str(file))
        described = f"Classifies patches as tumor or normal: {what}. " + ", ".join(
            f"{name} {value:.4g}" for name, value in best.items()
        )
        name = registered_name(run.level)
        run.note["model_id"] = log_model(mlflow, checkpoints, name, int(card["patch_size"]), described)
        mlflow.log_metrics(best, model_id=run.note["model_id"])

    from PIL import Image

    run.log(files)


def log_finished(resource: MlflowResource, level: str, warn: Warn) -> str | None:
    """Log the finished training of a level from its files.

    Returns:
        address of the page of the run; None if MLflow fails.

    Raises:
        ModelError: the level has no model, or its card is damaged.
    """
    folder = resource.storage.level_folder(level)
    card = model_card(folder / "checkpoints" / "best.pt")
    with resource.training_run(level, card.get("parameters", {}), {"logged": "from files"}, warn) as run:
        for row in read_epochs(folder / "epoch_losses.csv") or ():
            epoch = int(row.pop("epoch"))
            run.metrics(row, step=epoch)
        log_outcome(run, folder, card)
    return run.url


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None and value == value}

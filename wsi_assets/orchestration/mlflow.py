"""MLflow: one run a training, with its parameters, the metrics of each epoch, its files and the model.

A training outlives its bookkeeping: when MLflow cannot be reached this warns once and the training goes on.
``wsi-assets log --level N`` logs a finished training from its files.
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
        run_id, url: of the run and its page, None while there is no run.
        note: what the storage folder keeps of it, for what is measured later.
    """

    def __init__(self, level: str, warn: Warn):
        self.level, self._warn, self._is_away = level, warn, False
        self.run_id: str | None = None
        self.url: str | None = None
        self.note: dict[str, Any] = {}

    def log(self, write: Callable[[Any], Any]) -> None:
        """Do something with the ``mlflow`` module while this run is the active one."""
        if self._is_away:
            return
        import mlflow

        try:
            write(mlflow)
        except Exception as error:  # whatever MLflow, its database or the network raise
            self._is_away = True
            with contextlib.suppress(Exception):  # ends what is known of the run here; the server is away
                mlflow.end_run("FAILED")
            self._warn(
                f"MLflow does not take this training ({one_line(error)[:300]}); it goes on. Log it later "
                f"with wsi-assets log {option_of(self.level)}"
            )

    def metrics(self, values: Mapping[str, float | None], step: int | None = None) -> None:
        """Log metrics that could be computed; None and NaN are left out, never logged as 0."""
        known = _known(values)
        self.log(lambda mlflow: mlflow.log_metrics(known, step=step))


class MlflowResource(dg.ConfigurableResource):
    """Logs to an MLflow server, or by default to ``mlflow.db`` in the storage folder.

    ``pages_url`` is where that file is shown, for links: the address of ``wsi-assets ui``'s MLflow.
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
        """The ``mlflow`` module, set to this server."""
        for name, value in CLIENT_SETTINGS.items():
            os.environ.setdefault(name, value)
        import mlflow

        # Creating the local database is no news to a user, and breaks into the progress bars.
        for name in ("alembic", "mlflow.tracking.fluent", "mlflow.system_metrics"):
            logging.getLogger(name).setLevel(logging.ERROR)
        # What it logs of a full disk as tracebacks is one warning of ours.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        if self.tracking_uri is None:
            self.storage.root.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(self.uri)
        return mlflow

    def experiment(self, mlflow: Any) -> str:
        """The id of the experiment, created when it is first needed."""
        # A server knows its own artefact store; the local one lies beside its database.
        location = None if self.tracking_uri else self.storage.mlflow_artifacts.as_uri()
        name, found = EXPERIMENT, mlflow.get_experiment_by_name(EXPERIMENT)
        if found is not None and location not in (None, found.artifact_location):
            # An experiment keeps its place: that of a folder that was moved would write where it had been.
            name = f"{EXPERIMENT} in {self.storage.root.name} {digest(location)[:6]}"
            found = mlflow.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        return mlflow.create_experiment(name, location, {"mlflow.experimentKind": "custom_model_development"})

    @contextlib.contextmanager
    def training_run(
        self, level: str, parameters: Mapping[str, Any], tags: Mapping[str, Any], warn: Warn
    ) -> Iterator[TrainingRun]:
        """The run of a training, ended as FINISHED or FAILED; a finished one is noted as the level's."""
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
        """The folder of the model that has the alias champion, copied here once, and its version.

        Raises:
            ModelError: MLflow is away, or no version of the level's registered model has it.
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
        """Begin the run, which also measures the machine."""
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
        """Log the folder ``pages`` to the run of all comparisons; returns the address of the page there."""
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
            warn(f"MLflow does not take the comparison ({one_line(error)[:300]}); this goes on")
            return None
        page = self._page(experiment, run.info.run_id)
        return f"{page}/artifacts/level_comparison/comparison.html"

    def _page(self, experiment: str, run_id: str) -> str:
        base = self.uri if self.uri.startswith("http") else self.pages_url
        return f"{base.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"

    def add_evaluation(
        self, level: str, values: Mapping[str, float | None], report: Path, warn: Warn
    ) -> str | None:
        """Add test metrics and the folder ``report`` to the run and the model of the level, if it has them.

        ASAP's heatmaps stay in the storage. Returns the address of the page there.
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
            warn(f"MLflow does not take the evaluation ({one_line(error)[:300]}); this goes on")
            return None
        return f"{noted['page']}/artifacts/report/report.html"


def registered_name(level: str) -> str:
    """The name of a level's models in MLflow: wsi-level-4, wsi-10x."""
    return f"wsi-{name_of(level).replace('_', '-')}"


def runs_page(url: str, storage: StorageResource) -> str:
    """Where MLflow shows all trainings, or its experiments while nothing was trained."""
    known = [note["experiment"] for level in storage.levels() if (note := storage.mlflow_note(level))]
    runs = f"/{known[0]}/runs?workflowType=machine_learning" if known else ""
    return f"{url}/#/experiments{runs}"


def log_outcome(
    run: TrainingRun, folder: Path, card: Mapping[str, Any], pictures: Mapping[str, bytes] | None = None
) -> None:
    """Log what a finished training left in ``folder``: its split, files, pictures and the model."""
    from wsi_assets.orchestration.mlflow_pyfunc import log_model

    checkpoints = folder / "checkpoints"
    what = f"{words_of(run.level)}, {(card.get('model') or {}).get('name', 'model')}, {card['patch_size']} px"
    tags = {
        "mlflow.runName": what,
        "dataset_digest": (card.get("provenance") or {}).get("data_digest"),
        "split_unit": (card.get("split") or {}).get("unit"),
        "best_epoch": card.get("epoch"),
    }
    # To compare runs by: of a curve MLflow's tables show the last value, not the best epoch's.
    best = _known({f"{name}_best": card.get(name) for name in ("val_loss", "val_auc")})
    counts = _known({f"patches_{name}": count for name, count in (card.get("counts") or {}).items()})

    def files(mlflow: Any) -> None:
        mlflow.set_tags({name: str(value) for name, value in tags.items()})
        mlflow.log_metrics(counts)
        for name, image in (pictures or {}).items():
            mlflow.log_image(Image.open(io.BytesIO(image)), f"pictures/{name}.png")
        for file in (folder / "epoch_losses.csv", checkpoints / "best.pt", checkpoints / "best.json"):
            mlflow.log_artifact(str(file))
        described = f"Tumor or normal, of patches of {what}. " + ", ".join(
            f"{name} {value:.4g}" for name, value in best.items()
        )
        name = registered_name(run.level)
        run.note["model_id"] = log_model(mlflow, checkpoints, name, int(card["patch_size"]), described)
        mlflow.log_metrics(best, model_id=run.note["model_id"])

    from PIL import Image

    run.log(files)


def log_finished(resource: MlflowResource, level: str, warn: Warn) -> str | None:
    """Log the finished training of a level from its files; returns the run's page, None if MLflow is away.

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

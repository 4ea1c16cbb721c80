"""What an MLflow run is told, one note at a time, and how a note is delivered.

A note is plain values and at most one file, so that it can be delivered at once or kept and delivered later
with the time it was made. Delivering a note twice does no harm, but for a model, which is registered again.

Only ``MlflowClient`` is used: MLflow's fluent interface keeps its tracking address and its active run in
globals, which a process with several runs and threads cannot share. When to deliver, and what to do when
MLflow does not answer, is not known here.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MAX_PARAMETER_LENGTH = 500
"""Characters every MLflow store takes."""

DESCRIPTION_TAG = "mlflow.note.content"
"""MLflow shows its value, Markdown, at the head of a run's page."""


@dataclass(frozen=True)
class Note:
    """One thing to tell a run.

    Attributes:
        kind: a key of ``DELIVERIES``.
        content: plain values.
        file: where a file's content is, or the content itself.
    """

    kind: str
    content: dict[str, Any] = field(default_factory=dict)
    file: Path | bytes | None = None


def parameters(values: Mapping[str, Any]) -> Note:
    return Note("parameters", {name: str(value)[:MAX_PARAMETER_LENGTH] for name, value in values.items()})


def tags(values: Mapping[str, Any]) -> Note:
    return Note("tags", {name: str(value) for name, value in values.items()})


def metrics(values: Mapping[str, float | None], step: int = 0) -> Note:
    """Figures that could be computed; None and NaN are left out, never told as 0."""
    known = {name: float(value) for name, value in values.items() if value is not None and value == value}
    return Note("metrics", {"values": known, "step": step, "time": _now()})


def file(source: Path | bytes, name: str, folder: str | None = None) -> Note:
    """A file of the run's artifacts called ``name``."""
    return Note("file", {"name": name, "folder": folder}, source)


def dataset(name: str, digest: str, source: Mapping[str, Any], profile: Mapping[str, Any]) -> Note:
    """The data a run learned from.

    Args:
        digest: identifies the content, 36 characters at most.
        source: where it is; profile: counts.
    """
    content = {"name": name, "digest": digest, "source": dict(source), "profile": dict(profile)}
    return Note("dataset", content)


def model(checkpoint: Path, name: str, patch_size: int, version_tags: Mapping[str, Any]) -> Note:
    """A new version of the registered model ``name``, served as ``served_model`` says."""
    content = {
        "name": name,
        "patch_size": patch_size,
        "tags": {key: str(value) for key, value in version_tags.items()},
    }
    return Note("model", content, checkpoint)


def end(status: str) -> Note:
    """The run is over: FINISHED or FAILED."""
    return Note("end", {"status": status, "time": _now()})


def deliver(client: MlflowClient, run: Run, note: Note) -> None:
    """Tell ``run``; raises whatever MLflow, its database or the network raise."""
    DELIVERIES[note.kind](client, run, note)


def _parameters(client: MlflowClient, run: Run, note: Note) -> None:
    from mlflow.entities import Param

    client.log_batch(run.info.run_id, params=[Param(name, value) for name, value in note.content.items()])


def _tags(client: MlflowClient, run: Run, note: Note) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run.info.run_id, tags=[RunTag(name, value) for name, value in note.content.items()])


def _metrics(client: MlflowClient, run: Run, note: Note) -> None:
    from mlflow.entities import Metric

    when, step = note.content["time"], note.content["step"]
    told = [Metric(name, value, when, step) for name, value in note.content["values"].items()]
    client.log_batch(run.info.run_id, metrics=told)


def _file(client: MlflowClient, run: Run, note: Note) -> None:
    name = note.content["name"]
    if isinstance(note.file, Path) and note.file.name == name:
        client.log_artifact(run.info.run_id, str(note.file), note.content["folder"])
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / name
        copy.write_bytes(note.file if isinstance(note.file, bytes) else note.file.read_bytes())
        client.log_artifact(run.info.run_id, str(copy), note.content["folder"])


def _dataset(client: MlflowClient, run: Run, note: Note) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    learned_from = Dataset(
        name=note.content["name"],
        digest=note.content["digest"],
        source_type="wsi_assets",
        source=json.dumps(note.content["source"]),
        profile=json.dumps(note.content["profile"]),
    )
    client.log_inputs(
        run.info.run_id, [DatasetInput(learned_from, [InputTag("mlflow.data.context", "training")])]
    )


def _model(client: MlflowClient, run: Run, note: Note) -> None:
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    from wsi_assets.orchestration.served_model import save

    name, run_id = note.content["name"], run.info.run_id
    logged = client.create_logged_model(
        run.info.experiment_id, name=name, source_run_id=run_id, tags=note.content["tags"]
    )
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "model"
        save(note.file, saved, note.content["patch_size"], run_id=run_id, model_id=logged.model_id)
        client.log_model_artifacts(logged.model_id, str(saved))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Not models:/<id>, which MLflow's own database store looks up at its global address.
    client.create_model_version(
        name,
        source=logged.artifact_location,
        run_id=run_id,
        model_id=logged.model_id,
        tags=note.content["tags"],
        await_creation_for=0,
    )


def _end(client: MlflowClient, run: Run, note: Note) -> None:
    client.set_terminated(run.info.run_id, note.content["status"], note.content["time"])


def _now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


DELIVERIES = {
    "parameters": _parameters,
    "tags": _tags,
    "metrics": _metrics,
    "file": _file,
    "dataset": _dataset,
    "model": _model,
    "end": _end,
}

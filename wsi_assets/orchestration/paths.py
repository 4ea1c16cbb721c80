"""The one home of file names under the storage folder."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from wsi_assets.errors import StoreError
from wsi_assets.orchestration.artefact import Artefact

RECORD_SUFFIX = ".provenance.json"


class StoragePaths:
    """Paths of everything below one storage folder.

    Args:
        root: the storage folder.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def artefact(self, artefact: Artefact, partition: str | None = None) -> Path:
        """The file or folder of an asset's partition."""
        return self.root / artefact.path.format(slide=partition, level=partition)

    def record(self, artefact: Artefact, partition: str | None = None) -> Path:
        """Its provenance, beside it."""
        return record_of(self.artefact(artefact, partition))

    def is_there(self, artefact: Artefact, partition: str | None = None) -> bool:
        """Whether the artefact's files exist: somebody may have deleted or moved them."""
        path = self.artefact(artefact, partition)
        if path.name == STORE_POINTER:
            with contextlib.suppress(StoreError):
                return store_named_by(path).exists()
            return False
        return (path / artefact.main_file if artefact.main_file else path).exists()

    def slide_folder(self, slide_id: str) -> Path:
        return self.root / "slides" / slide_id

    def level_folder(self, level: int | str) -> Path:
        return self.root / f"level_{level}"

    def levels(self) -> list[str]:
        """Levels that have a folder, in order."""
        names = [path.name.removeprefix("level_") for path in self.root.glob("level_*") if path.is_dir()]
        return sorted((name for name in names if name.isdigit()), key=int)

    def training_folder(self, level: int | str) -> Path:
        """Where a training writes until it is complete, and resumes from when it was cut off."""
        return self.level_folder(level) / "training_in_progress"

    def report_folder(self, name: str) -> Path:
        """Where a report is written before it is published."""
        return self.root / f"{name}_in_progress"

    @property
    def parameters(self) -> Path:
        return self.root / "parameters.yaml"

    @property
    def dagster_home(self) -> Path:
        return self.root / "dagster_home"

    @property
    def mlflow_database(self) -> Path:
        return self.root / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        return self.root / "mlartifacts"

    def mlflow_run(self, level: int | str) -> Path:
        """Names the MLflow run of the level's model."""
        return self.level_folder(level) / "mlflow_run.json"


STORE_POINTER = "patch_store.json"
"""The file in a level's folder that names its store."""


def record_of(path: Path) -> Path:
    """The provenance file of an artefact at ``path``."""
    return path.with_name(path.name + RECORD_SUFFIX)


def store_named_by(pointer: Path) -> Path:
    """The patch store that ``patch_store.json`` names.

    Raises:
        StoreError: there is none.
    """
    try:
        return pointer.parent / json.loads(pointer.read_text(encoding="utf-8"))["store"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            "names no patch store", path=pointer, remedy="Materialize patch_store of this level"
        ) from error

"""The one home of file names under the storage folder."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from wsi_assets.errors import StoreError

LEVEL_ARTEFACTS = {
    "slide_index": "index_level_{level}.pkl",
    "sampled_index": "index_level_{level}_sampled.pkl",
    "patch_store": "patch_store.json",
    "trained_model": "checkpoints",
    "test_predictions": "slide_index_test.pkl",
    "evaluation": "report",
}
"""Level asset -> its file or folder.

The patch store has three possible places; ``patch_store.json`` names the one in use."""

_INSIDE = {"trained_model": "best.pt", "evaluation": "report.html"}
"""The file in a level asset's folder without which the folder is nothing."""


class StorageLayout:
    """Paths of every artefact below one storage folder.

    Args:
        root: the storage folder.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def slide_folder(self, slide_id: str) -> Path:
        return self.root / "slides" / slide_id

    def slide_artefact(self, asset: str, slide_id: str) -> Path:
        return self.slide_folder(slide_id) / f"{asset}.pkl"

    def level_folder(self, level: int | str) -> Path:
        return self.root / f"level_{int(level)}"

    def level_artefact(self, asset: str, level: int | str) -> Path:
        return self.level_folder(level) / LEVEL_ARTEFACTS[asset].format(level=int(level))

    def is_made(self, asset: str, level: int | str) -> bool:
        """Whether a level asset's files are there: somebody may have deleted or moved them."""
        artefact = self.level_artefact(asset, level)
        if asset == "patch_store":
            with contextlib.suppress(StoreError):
                return store_named_by(artefact).exists()
            return False
        return (artefact / _INSIDE[asset] if asset in _INSIDE else artefact).exists()

    def training_folder(self, level: int | str) -> Path:
        """Where a training writes until it is complete, and resumes from when it was cut off."""
        return self.level_folder(level) / "training_in_progress"

    def mlflow_pending(self, level: int | str) -> Path:
        """What MLflow has not taken of this level's trainings; exists only if there is such."""
        return self.level_folder(level) / "mlflow_pending"

    @property
    def dagster_home(self) -> Path:
        return self.root / "dagster_home"

    @property
    def mlflow_database(self) -> Path:
        return self.root / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        return self.root / "mlartifacts"


def store_named_by(pointer: Path) -> Path:
    """The store that the last build wrote, by the file that names it.

    Raises:
        StoreError: there is none.
    """
    try:
        return pointer.parent / json.loads(pointer.read_text())["store"]
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(
            "names no patch store", path=pointer, remedy="Materialize patch_store of this level"
        ) from error

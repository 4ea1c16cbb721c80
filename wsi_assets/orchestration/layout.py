"""The one home of file names under the storage folder."""

from __future__ import annotations

from pathlib import Path

LEVEL_ARTEFACTS = {
    "slide_index": "index_level_{level}.pkl",
    "sampled_index": "index_level_{level}_sampled.pkl",
    "patch_store": "patch_store.json",
    "trained_model": "checkpoints",
    "test_predictions": "slide_index_test.pkl",
    "evaluation": "report",
}
"""Level asset -> the file or folder that must exist for it to count as made.

The patch store has three possible places; ``patch_store.json`` names the one in use."""


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

"""Trained models: checkpoints and loss curve of a level, put in place when the training is complete."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from wsi_assets.errors import ModelError
from wsi_assets.files import publish_file, publish_folder, size_of
from wsi_assets.orchestration.layout import StorageLayout
from wsi_assets.orchestration.reporting import clear_failures

if TYPE_CHECKING:
    from wsi_assets.learning import TrainingResult


class ModelIOManager(dg.ConfigurableIOManager):
    """Publishes ``checkpoints/`` and ``epoch_losses.csv`` of a finished training into ``level_N``.

    A training in progress writes elsewhere, so a level keeps its old model until the new one is whole.
    Downstream gets the path of ``best.pt``; the weights are read where they are used.
    """

    storage_dir: str

    def handle_output(self, context: dg.OutputContext, obj: TrainingResult) -> None:
        layout = StorageLayout(self.storage_dir)
        level = context.asset_partition_key
        trained = obj.best_path.parent.parent
        target = layout.level_artefact("trained_model", level)
        with publish_file(target.parent / "epoch_losses.csv") as aside:
            shutil.copyfile(trained / "epoch_losses.csv", aside)
        with publish_folder(target) as aside:
            for checkpoint in sorted((trained / "checkpoints").glob("*.pt")):
                _link_or_copy(checkpoint, aside / checkpoint.name)
        shutil.rmtree(trained)
        checkpoints = sorted(target.glob("*.pt"))
        context.add_output_metadata(
            {
                "path": dg.MetadataValue.path(str(target / "best.pt")),
                "size": size_of(target),
                "count": len(checkpoints),
                "epoch_losses": dg.MetadataValue.path(str(target.parent / "epoch_losses.csv")),
            }
        )

    def load_input(self, context: dg.InputContext) -> Path:
        level = context.asset_partition_key
        best = StorageLayout(self.storage_dir).level_artefact("trained_model", level) / "best.pt"
        with clear_failures():
            if not best.is_file():
                raise ModelError(
                    "does not exist", path=best, remedy=f"Materialize trained_model of level {level}"
                )
        return best


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # file systems without hard links
        shutil.copyfile(source, target)

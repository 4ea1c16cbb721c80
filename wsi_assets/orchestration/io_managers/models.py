"""Trained models: checkpoints and loss curve of a level, put in place when the training is complete."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from wsi_assets.errors import ModelError
from wsi_assets.files import publish_file, publish_folder, size_of
from wsi_assets.orchestration.io_managers.partitioned import (
    folder_of,
    load_partitions,
    partition_to_write,
)
from wsi_assets.orchestration.layout import LEVEL_ARTEFACTS, StorageLayout
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
        trained = obj.best_path.parent.parent
        target = self._checkpoints(context, partition_to_write(context))
        with clear_failures(), publish_file(target.parent / "epoch_losses.csv") as aside:
            shutil.copyfile(trained / "epoch_losses.csv", aside)
        with clear_failures(), publish_folder(target) as aside:
            for file in sorted((trained / "checkpoints").iterdir()):
                _link_or_copy(file, aside / file.name)
        shutil.rmtree(trained)
        checkpoints = sorted(target.glob("*.pt"))
        context.add_output_metadata(
            {
                "path": dg.MetadataValue.path(str(target / "best.pt")),
                "size_bytes": size_of(target),
                "count": len(checkpoints),
                "epoch_losses": dg.MetadataValue.path(str(target.parent / "epoch_losses.csv")),
            }
        )

    def load_input(self, context: dg.InputContext) -> Path | dict[str, Path]:
        with clear_failures():
            return load_partitions(
                context, lambda level: self._checkpoints(context, level) / "best.pt", _found
            )

    def _checkpoints(self, context: dg.InputContext | dg.OutputContext, level: str | None) -> Path:
        return folder_of(StorageLayout(self.storage_dir), context, level) / LEVEL_ARTEFACTS["trained_model"]


def _found(best: Path) -> Path:
    if not best.is_file():
        raise ModelError("does not exist", path=best, remedy="Materialize the model that writes it")
    return best


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # file systems without hard links
        shutil.copyfile(source, target)

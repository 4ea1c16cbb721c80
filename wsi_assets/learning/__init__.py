"""Learning: split by patient, train a patch classifier, predict the test slides.

What belongs here: everything between a patch store and per-patch probabilities. What does not: reading
slides, deciding which patches exist (``index``), judging slides and lesions (``evaluation``), and any
knowledge of Dagster or MLflow: whoever runs a training hears of it through ``on_epoch`` and the result.

Names load on first use, so importing this package, or its option classes, costs neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_assets.learning.checkpoints import LoadedModel, load_model
    from wsi_assets.learning.options import PredictionOptions, TrainingOptions
    from wsi_assets.learning.pictures import augmentation_mosaic_png, confusion_png, curves_png
    from wsi_assets.learning.prediction import predict
    from wsi_assets.learning.records import EpochRecord, TrainingResult
    from wsi_assets.learning.split import Split, split_patches
    from wsi_assets.learning.training import train

_HOMES = {
    "EpochRecord": "records",
    "LoadedModel": "checkpoints",
    "PredictionOptions": "options",
    "Split": "split",
    "TrainingOptions": "options",
    "TrainingResult": "records",
    "augmentation_mosaic_png": "pictures",
    "confusion_png": "pictures",
    "curves_png": "pictures",
    "load_model": "checkpoints",
    "predict": "prediction",
    "split_patches": "split",
    "train": "training",
}

__all__ = [
    "EpochRecord",
    "LoadedModel",
    "PredictionOptions",
    "Split",
    "TrainingOptions",
    "TrainingResult",
    "augmentation_mosaic_png",
    "confusion_png",
    "curves_png",
    "load_model",
    "predict",
    "split_patches",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

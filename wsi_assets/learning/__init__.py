"""Learning: split by patient, train a patch classifier, predict the test slides.

What belongs here: everything between a patch store and per-patch probabilities. What does not: reading
slides, deciding which patches exist (``index``), judging slides and lesions (``evaluation``), and any
knowledge of Dagster or MLflow: whoever runs a training hears of it through ``on_epoch`` and the result.

Names load on first use, so importing this package, or its option classes, costs neither torch nor numpy.
"""

from __future__ import annotations

from wsi_assets.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "records": ("EpochRecord", "TrainingResult"),
        "checkpoints": ("LoadedModel", "load_model"),
        "options": ("PredictionOptions", "TrainingOptions"),
        "split": ("Split", "split_patches"),
        "pictures": ("augmentation_mosaic_png", "confusion_png", "curves_png"),
        "prediction": ("predict",),
        "training": ("train",),
    },
)

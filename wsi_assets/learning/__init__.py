"""Train a patch classifier, predict with it and cross-validate it.

Names are imported on first use, so importing this package or its options loads neither torch nor numpy.
"""

from __future__ import annotations

from wsi_assets.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "records": ("EpochRecord", "TrainingResult"),
        "checkpoints": ("LoadedModel", "load_model"),
        "options": (
            "CrossValidationOptions",
            "HardNegativeOptions",
            "PredictionOptions",
            "SlidePredictionOptions",
            "TrainingOptions",
        ),
        "pictures": ("augmentation_mosaic_png", "confusion_png", "curves_png"),
        "training": ("train",),
        "prediction": ("predict",),
        "slide_prediction": ("slide_grid", "slide_probabilities"),
        "cross_validation": ("cross_validate",),
        "hard_negatives": ("find_hard_negatives", "joined"),
    },
)

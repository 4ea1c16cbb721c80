"""The words the UI shows: groups in reading order, owners, pools."""

from __future__ import annotations

OWNERS = ["team:pathology-ai"]

GROUP_SLIDES = "a_slides"
GROUP_INDEX = "b_index"
GROUP_PATCHES = "c_patches"
GROUP_LEARNING = "d_learning"
GROUP_EVALUATION = "e_evaluation"

POOL_EXTRACTION = "extraction"
"""Decoding patches uses every core, so one store is built at a time."""

POOL_GPU = "gpu"
"""Training and prediction own the accelerator."""

LEVEL_PIPELINE = "level_pipeline"
SLIDE_REGIONS = "slide_regions"

LEVEL_ASSETS = (
    "slide_index",
    "sampled_index",
    "patch_store",
    "trained_model",
    "test_predictions",
    "evaluation",
)
"""In the order they are made; each needs at least the one before it."""

SLIDE_ASSETS = ("tissue_regions", "annotation_regions")

"""The words the UI shows: groups in reading order, owners, pools."""

from __future__ import annotations

OWNERS = ["team:pathology-ai"]

GROUP_SLIDES = "1_slides"
GROUP_INDEX = "2_index"
GROUP_PATCHES = "3_patches"
GROUP_LEARNING = "4_learning"
GROUP_EVALUATION = "5_evaluation"

POOL_EXTRACTION = "extraction"
"""Decoding patches uses every core, so one store is built at a time."""

POOL_GPU = "gpu"
"""Training and prediction own the accelerator."""

LEVEL_PIPELINE = "level_pipeline"
SLIDE_REGIONS = "slide_regions"
COMPARE_LEVELS = "compare_levels"
LEVEL_LINEAGE = "level_lineage"

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

LAUNCHED_BY = "wsi_assets/launched_by"
"""Run tag: the command, sensor or schedule that asked for the run."""

"""The settings of an evaluation; this module loads without numpy."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EvaluationOptions(BaseModel):
    """How predictions become metrics, detections and pictures.

    The defaults of the lesion settings are the CAMELYON16 challenge's; the detection settings follow the
    probability maps of NCRF (non-maximum suppression within 12 pixels of level 6, 187 um).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prediction_threshold: float = Field(
        0.5, ge=0, le=1, description="Tumor probability from which a patch is predicted tumor."
    )
    bootstrap_samples: int = Field(
        1000,
        ge=0,
        le=100_000,
        description="Resamples behind every 95 % interval; 0 leaves the intervals out.",
    )
    bootstrap_block: int = Field(
        4,
        ge=1,
        le=10_000,
        description="Side, in patches, of the square blocks resampled for the interval of a single slide.",
    )
    seed: int = Field(42, ge=0, description="Seed of everything drawn at random.")
    calibration_bins: int = Field(
        10, ge=2, le=100, description="Probability bins of the calibration curves and errors."
    )
    slide_top_fraction: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Share of a slide's patches, the most suspicious, whose mean is its score.",
    )
    detection_threshold: float = Field(
        0.25, ge=0, le=1, description="Smoothed probability from which a peak of the heatmap is a detection."
    )
    detection_smoothing_um: float = Field(
        30.0,
        ge=0,
        le=10_000,
        description="Standard deviation, in um, of the Gaussian that smooths the heatmap; 0 is none.",
    )
    detection_radius_um: float = Field(
        187.0,
        ge=0,
        le=10_000,
        description="Distance, in um, within which a higher peak suppresses a lower one.",
    )
    froc_mpp: float = Field(
        0.243,
        ge=0.05,
        le=20,
        description="Level-0 pixel size, in um, of the lesion definitions, and of slides without one.",
    )
    froc_level: int = Field(
        5, ge=0, le=9, description="Power of two by which the lesion mask is smaller than level 0."
    )
    heatmap_side: int = Field(
        900, ge=200, le=4000, description="Longest side, in pixels, of the slide's picture under a heatmap."
    )
    worst_patches: int = Field(
        12, ge=0, le=200, description="Worst false positives, and worst false negatives, shown in the report."
    )

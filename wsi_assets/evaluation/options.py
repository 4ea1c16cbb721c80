"""Options of an evaluation. This module does not import numpy."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EvaluationOptions(BaseModel):
    """How predictions become metrics, detections and pictures.

    The detection radius is that of NCRF (Li and Ping 2018): non-maximum suppression within 12 pixels of
    level 6, 187 um.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prediction_threshold: float = Field(
        0.5, ge=0, le=1, description="A patch with at least this tumor probability is predicted tumor."
    )
    bootstrap_samples: int = Field(
        1000,
        ge=0,
        le=10_000,
        description="Bootstrap samples of the patients for every 95 % interval; 0 for no intervals.",
    )
    seed: int = Field(42, ge=0, description="Seed of every random choice.")
    slide_top_fraction: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Share of a slide's patches, those of the highest probability, whose mean is its score.",
    )
    detection_threshold: float = Field(
        0.25, ge=0, le=1, description="Lowest smoothed probability of a peak that is a detection."
    )
    detection_smoothing_um: float = Field(
        30.0,
        ge=0,
        le=10_000,
        description="Standard deviation, in µm, of the Gaussian that smooths the heatmap; 0 for none.",
    )
    detection_radius_um: float = Field(
        187.0,
        ge=0,
        le=10_000,
        description="Distance, in µm, within which a higher peak suppresses a lower one.",
    )
    official_froc: bool = Field(
        False,
        description="Give the FROC score of the CAMELYON16 script, which assumes 0.243 µm per pixel, for any "
        "cohort; otherwise only if the pixel sizes of all slides are within 10 % of that.",
    )
    heatmap_side: int = Field(
        1200, ge=200, le=4000, description="Longest side, in pixels, of the slide's picture under a heatmap."
    )
    worst_patches: int = Field(
        12, ge=0, le=200, description="Worst false positives, and worst false negatives, shown in the report."
    )

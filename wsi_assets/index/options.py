"""The options of tissue detection, indexing and sampling.

Values and their bounds only: what they do is in :mod:`tissue`, :mod:`entries` and :mod:`sampling`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from wsi_assets.slides.naming import DEFAULT_PATIENT_PATTERN, DEFAULT_TEST_PATTERN


class TissueOptions(BaseModel):
    """How tissue is separated from glass."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    work_level: int = Field(
        default=7,
        ge=0,
        le=12,
        description="Level (downsample 2^level) at which tissue is found; smaller slides use a finer one.",
    )
    min_work_pixels: int = Field(
        default=256,
        ge=16,
        le=8192,
        description="Least long side of the tissue mask, pixels; a finer working level is taken to reach it.",
    )
    reject_pen: bool = Field(
        default=True,
        description="Leave blue and green pen ink out of tissue; switch off for stains of those colours.",
    )
    fill_holes: int = Field(
        default=64,
        ge=0,
        description="Holes in tissue up to this many working-level pixels count as tissue (fat, lumens).",
    )


LARGEST_PATCH = 4096
"""Side, in pixels, beyond which a patch is not one any more: a network's memory for it would be gigabytes."""


class IndexOptions(BaseModel):
    """Which patches of a slide are indexed, and how they are labelled."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    patch_size: int = Field(
        default=256,
        ge=8,
        le=LARGEST_PATCH,
        description="Side of a square patch, in pixels of the target level.",
    )
    stride: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Distance of patch corners, pixels of the target level; the patch size if not given.",
    )
    min_tissue: float = Field(
        default=0.2, ge=0.0, le=1.0, description="Least share of a patch's area that is tissue, 0 to 1."
    )
    label_rule: Literal["fraction", "center", "any"] = Field(
        default="any",
        description="A patch is tumor if it holds any tumor, if its center is tumor (center), or if its "
        "tumor share reaches tumor_threshold (fraction); under fraction, patches with less tumor are neither "
        "class and not trained on.",
    )
    tumor_threshold: float = Field(
        default=0.5,
        gt=0.0,
        le=1.0,
        description="Least tumor share of a tumor patch under the rule 'fraction', 0 to 1.",
    )
    level_tolerance: float = Field(
        default=0.01,
        ge=0.0,
        le=0.1,
        description="Of a magnification or pixel size: a level whose pixels are off by up to this share is "
        "read as it is; patches of other slides are averaged from the next finer level.",
    )
    patient_pattern: str = Field(
        default=DEFAULT_PATIENT_PATTERN,
        description="Regular expression whose first group, in a slide id, is the patient.",
    )
    test_pattern: str = Field(
        default=DEFAULT_TEST_PATTERN,
        description="Regular expression found, in any case, in the ids of test slides and of no others.",
    )


class SamplingOptions(BaseModel):
    """Which indexed patches are learnt from."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    normal_per_tumor: float | None = Field(
        default=20.0,
        ge=0.0,
        description="Normal patches kept for each tumor patch, over all training slides and spread equally "
        "over them; none keeps all of them.",
    )
    max_normal_per_slide: int | None = Field(
        default=None, ge=0, description="Most normal patches kept from one slide; no limit if not given."
    )
    val_size: float | None = Field(
        default=0.1,
        gt=0.0,
        le=0.5,
        description="Share of the patients that validates; their slides keep all patches. With none every "
        "slide but the test slides is sampled, and training splits the sampled patches.",
    )
    incomplete_slides: str | None = Field(
        default=None,
        description="File of slide ids whose tumor is not fully annotated, one a line, or 'camelyon16'; "
        "they give no normal patches.",
    )
    seed: int = Field(default=42, ge=0, description="Seed of every random choice.")

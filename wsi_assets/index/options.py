"""Options of tissue detection, indexing and sampling."""

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
        description="Leave blue and green pen ink out of tissue; switch off for stains of those colors.",
    )
    fill_holes: int = Field(
        default=64,
        ge=0,
        description="Holes in tissue up to this many working-level pixels count as tissue (fat, lumens).",
    )


MAX_PATCH_SIZE = 4096
"""Largest side of a patch, in pixels; for a larger one a network would need gigabytes of memory."""


class IndexOptions(BaseModel):
    """Which patches of a slide are indexed, and how they are labeled."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    patch_size: int = Field(
        default=256,
        ge=8,
        le=MAX_PATCH_SIZE,
        description="Side of a square patch, in pixels of the target level.",
    )
    stride: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Step of the patch grid, pixels of the target level; the patch size if not given.",
    )
    min_tissue: float = Field(
        default=0.2, ge=0.0, le=1.0, description="Least share of a patch's area that must be tissue, 0 to 1."
    )
    label_rule: Literal["fraction", "center", "any"] = Field(
        default="any",
        description="A patch is tumor if it holds any tumor (any), if its center is tumor (center), or if "
        "its tumor share reaches tumor_threshold (fraction); under fraction, patches with less tumor belong "
        "to neither class and are not trained on.",
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
        description="For a magnification or pixel size: a level whose pixel size differs by up to this share "
        "is read as it is; otherwise patches are averaged from the next finer level.",
    )
    patient_pattern: str = Field(
        default=DEFAULT_PATIENT_PATTERN,
        description="Regular expression whose first group, in a slide id, is the patient.",
    )
    test_pattern: str = Field(
        default=DEFAULT_TEST_PATTERN,
        description="Regular expression that is found in the ids of test slides; upper or lower case.",
    )


class SamplingOptions(BaseModel):
    """Which indexed patches are stored and learned from."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    normal_per_tumor: float | None = Field(
        default=20.0,
        ge=0.0,
        description="Normal patches kept for each tumor patch, counted over all training slides and spread "
        "equally over them; none keeps all.",
    )
    max_normal_per_slide: int | None = Field(
        default=None, ge=0, description="Most normal patches kept from one slide; no limit if not given."
    )
    val_size: float | None = Field(
        default=0.1,
        gt=0.0,
        le=0.5,
        description="Share of the patients used for validation; their slides keep all patches. With none, "
        "all slides except test slides are sampled, and training splits the sampled patches.",
    )
    incomplete_slides: str | None = Field(
        default=None,
        description="File with the ids of slides whose tumor is not fully annotated, one a line, or "
        "'camelyon16' for that cohort's list; these slides give no normal patches.",
    )
    seed: int = Field(default=42, ge=0, description="Seed of every random choice.")

"""Options of slides."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ScaleOptions(BaseModel):
    """The magnification of slides whose file does not state it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_mag: float = Field(
        default=40.0,
        ge=1.0,
        le=200.0,
        description="Magnification of level 0 of a slide whose file states neither objective power nor mpp.",
    )

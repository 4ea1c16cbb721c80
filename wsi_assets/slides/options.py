"""What a user may set about slides. Imports only pydantic, so that settings load fast."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ScaleOptions(BaseModel):
    """How a slide's magnification is known when its file does not say, or says it wrong."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_mag: float = Field(
        default=40.0,
        ge=1.0,
        le=200.0,
        description="Magnification of level 0 of a slide whose file tells neither objective power nor mpp.",
    )

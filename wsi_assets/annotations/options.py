"""Options: what the groups of annotations mean."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AnnotationOptions(BaseModel):
    """Roles of annotation groups; names are compared without regard to case or surrounding blanks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tumor_groups: list[str] = Field(
        default=["_0", "_1", "Tumor", "metastases", "metastasis"],
        description="Groups (ASAP) or classes (QuPath) whose annotations are tumor.",
    )
    exclusion_groups: list[str] = Field(
        default=["_2", "Exclusion", "negative", "normal"],
        description="Groups or classes whose annotations are cut out of the tumor.",
    )
    ungrouped: Literal["tumor", "ignore"] = Field(
        default="tumor", description="What an annotation in no group counts as."
    )
    unknown_group: Literal["ignore", "tumor", "error"] = Field(
        default="ignore",
        description="What an annotation of a group in neither list counts as; ignored ones are reported.",
    )

    @model_validator(mode="after")
    def _roles_are_distinct(self) -> AnnotationOptions:
        both = {fold(name) for name in self.tumor_groups} & {fold(name) for name in self.exclusion_groups}
        if both:
            raise ValueError(f"groups that are both tumor and exclusion: {', '.join(sorted(both))}")
        return self


def fold(group: str) -> str:
    """The form in which group names are compared."""
    return group.strip().casefold()

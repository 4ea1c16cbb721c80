"""Options of annotations: what their groups mean."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AnnotationOptions(BaseModel):
    """Roles of annotation groups; case and surrounding blanks of their names do not matter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tumor_groups: list[str] = Field(
        default=["_0", "_1", "Tumor", "metastases", "metastasis"],
        description="Groups (ASAP) or classes (QuPath) whose annotations are tumor.",
    )
    exclusion_groups: list[str] = Field(
        default=["_2", "Exclusion", "negative", "normal", "Not tumor", "Other"],
        description="Groups or classes whose annotations are cut out of the tumor.",
    )
    ignore_groups: list[str] = Field(
        default=["Ignore", "Exclude"],
        description="Groups or classes whose areas are neither tumor nor normal: no patch that reaches into "
        "one is in the index.",
    )
    ungrouped: Literal["auto", "tumor", "ignore"] = Field(
        default="auto",
        description="What an annotation in no group counts as; auto is tumor in a file without any group, "
        "and ignored, with a notice, in a file that has groups.",
    )
    frame: Literal["auto", "slide", "bounds"] = Field(
        default="auto",
        description="What GeoJSON coordinates count from: the slide's corner, or that of its scanned area "
        "(openslide.bounds), as QuPath writes them; auto refuses the file where the two differ. ASAP's XML "
        "always counts from the slide's.",
    )
    unknown_group: Literal["auto", "ignore", "tumor", "error"] = Field(
        default="auto",
        description="What an annotation of a group in no list counts as; auto ignores it, with a "
        "notice, beside annotations of known groups, and refuses a file that has none.",
    )

    @model_validator(mode="after")
    def _roles_are_distinct(self) -> AnnotationOptions:
        count = Counter(name for groups in self._groups.values() for name in {fold(one) for one in groups})
        if both := sorted(name for name in count if count[name] > 1):
            raise ValueError(f"groups of two roles, of tumor, exclusion and ignore: {', '.join(both)}")
        return self

    @property
    def _groups(self) -> dict[str, list[str]]:
        return {"tumor": self.tumor_groups, "exclusion": self.exclusion_groups, "ignore": self.ignore_groups}

    @cached_property
    def roles(self) -> dict[str, str]:
        """Folded name of each known group -> "tumor", "exclusion" or "ignore"."""
        return {fold(name): role for role, names in self._groups.items() for name in names}

    def known_role(self, groups: Sequence[str]) -> tuple[str, str] | None:
        """(role, group) of the first known group, None if none is known; a number at its end is ignored."""
        for group in groups:
            for name in (fold(group), without_number(fold(group))):
                if name in self.roles:
                    return self.roles[name], group
        return None


def fold(group: str) -> str:
    """The form in which group names are compared: lower case, American spelling, without the asterisk of
    QuPath's ``Ignore*``."""
    return group.strip().casefold().replace("tumour", "tumor").rstrip("*")


def without_number(group: str) -> str:
    """A folded group name without the number that programs append to make it unique: ``tumor_2``.

    Names that are a number only, such as CAMELYON's ``_2``, stay as they are.
    """
    return re.sub(r"(?<=\w)[ _-]+\d+$", "", group)

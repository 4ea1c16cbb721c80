"""A small, annotated cohort of synthetic H&E slides, so that the whole platform runs in minutes anywhere.

Belongs here: making slides and outlines. Does not: anything a real slide goes through. The files are what a
scanner and ASAP would write, and the other rooms treat them so.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_assets.demo.cohort import (
        DEMO_LEVEL,
        DEMO_PARAMETERS,
        DEMO_PATCH_SIZE,
        CohortSummary,
        DemoSlide,
        make_cohort,
    )

__all__ = [
    "DEMO_LEVEL",
    "DEMO_PARAMETERS",
    "DEMO_PATCH_SIZE",
    "CohortSummary",
    "DemoSlide",
    "make_cohort",
]


def __getattr__(name: str) -> Any:
    # Making slides needs opencv, shapely and tifffile; naming the room must not load them.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.cohort"), name)

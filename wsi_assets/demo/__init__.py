"""A small, annotated cohort of synthetic H&E slides, so that the whole platform runs in minutes anywhere.

Belongs here: making slides and outlines. Does not: anything a real slide goes through. The files are what a
scanner and ASAP would write, and the other rooms treat them so.
"""

from __future__ import annotations

from wsi_assets.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "cohort": (
            "DEMO_LEVEL",
            "DEMO_PARAMETERS",
            "DEMO_PATCH_SIZE",
            "CohortSummary",
            "DemoSlide",
            "make_cohort",
        ),
    },
)

"""A small, annotated cohort of synthetic H&E slides, so that the whole platform runs in minutes anywhere.

The files are what a scanner and ASAP would write, and everything else treats them so.
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
            "make_new_slide",
        ),
    },
)

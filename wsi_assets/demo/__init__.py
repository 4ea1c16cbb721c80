"""A small annotated cohort of synthetic H&E slides, on which the whole platform runs in a minute.

The files are like those that a scanner and ASAP write; no other code treats them specially.
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

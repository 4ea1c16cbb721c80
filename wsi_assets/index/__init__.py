"""From tissue and outlines to the slide index: which patches a slide has, how they are labelled and sampled.

Names are loaded when first used, so that importing the options costs neither numpy nor OpenCV.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "options": ("IndexOptions", "SamplingOptions", "TissueOptions"),
    "tissue": ("TissueRegions", "find_tissue"),
    "patch_grid": ("grid",),
    "coverage": ("box_fractions", "cell_areas"),
    "curation": ("Finding",),
    "pictures": ("counts_png", "overlay_jpeg", "overlay_png"),
    "labels": ("tumor_fractions",),
    "entries": ("Entry", "LevelIndex", "index_level", "index_slide"),
    "sampling": ("counts", "incomplete_slides", "sample_index", "slide_table"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value

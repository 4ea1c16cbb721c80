"""Find slide files, open them, read their pixels and know their scale.

What belongs here: whatever turns a path into pixels with a place, a scale and a mask of where there are none.
What does not: tissue, outlines, grids, patches.

Names load on first use, so that importing the room, or only its options, costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "naming": ("DEFAULT_PATIENT_PATTERN", "is_test_slide", "patient_of", "slide_id_of"),
    "listing": ("SlideFile", "SlideListing", "find_slides"),
    "fingerprints": ("fingerprint", "signature"),
    "options": ("ScaleOptions",),
    "region": ("Region",),
    "scale": ("Level", "Scale", "true_downsamples"),
    "reader": ("SlideReader", "open_slide"),
    "tiff_tiles": ("TileLevel", "TileSource", "open_tiles"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

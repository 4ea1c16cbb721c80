"""Find slide files, open them, read their pixels and know their scale.

What belongs here: whatever turns a path into pixels with a place, a scale and a mask of where there are none.
What does not: tissue, outlines, grids, patches.

Names load on first use, so that importing the room, or only its options, costs nothing.
"""

from __future__ import annotations

from wsi_assets.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "naming": (
            "DEFAULT_PATIENT_PATTERN",
            "folded",
            "is_test_slide",
            "patient_of",
            "patients_of",
            "slide_id_of",
        ),
        "listing": ("SlideFile", "SlideListing", "find_slides"),
        "fingerprints": ("fingerprint", "signature"),
        "options": ("ScaleOptions",),
        "region": ("Region",),
        "scale": ("Level", "Scale", "true_downsamples"),
        "reader": ("SlideReader", "open_slide"),
        "tiff_tiles": ("TileLevel", "TileSource", "open_tiles"),
    },
)

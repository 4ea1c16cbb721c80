"""Extract patches from slides into a store, and read them from it.

What belongs here: the plan, the extraction engine, codecs, and one contract over three kinds of store. What
does not: choosing patches, splitting them, learning from them.

Names load on first use, so that importing the room, or only its options, costs nothing.
"""

from __future__ import annotations

from wsi_assets.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "options": ("Backend", "Codec", "ExtractionOptions"),
        "plan": ("PatchPlan", "SlidePlan", "patch_key", "plan_patches"),
        "build": ("BuildReport", "build_store"),
        "store": ("STORE_NAMES", "PatchStore", "open_store"),
        "verify": ("VerifyReport", "verify_store"),
        "mosaic": ("mosaic_png",),
    },
)

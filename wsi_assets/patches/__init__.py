"""Extract patches from slides into a store, and read them from it."""

from __future__ import annotations

from wsi_assets.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "options": ("Backend", "Codec", "ExtractionOptions"),
        "plan": ("PatchPlan", "SlidePlan", "patch_key", "plan_patches"),
        "build": ("StagedStore", "build_store", "staged_store", "write_patches"),
        "store": ("STORE_NAMES", "PatchStore", "open_store"),
        "verify": ("VerifyReport", "verify_store"),
        "mosaic": ("mosaic_png",),
        "dask_executor": ("ClusterError", "DaskExecutor", "open_executor"),
    },
)

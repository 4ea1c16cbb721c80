"""From tissue and annotations to the slide index: the patches of each slide, their labels and sampling."""

from __future__ import annotations

from wsi_assets.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "options": ("IndexOptions", "SamplingOptions", "TissueOptions"),
        "tissue": ("TissueRegions", "find_tissue"),
        "patch_grid": ("grid",),
        "coverage": ("cell_areas", "tumor_fractions"),
        "pictures": ("counts_png", "overlay_jpeg"),
        "build": ("FolderIndex", "build_indices", "build_slide_index"),
        "entries": ("LevelIndex", "index_level", "index_slide"),
        "slide_index": (
            "Entry",
            "Index",
            "check_index",
            "classes",
            "is_test",
            "load_index",
            "partial_tumor",
            "save_index",
        ),
        "split": ("fold_slides", "split_slides"),
        "sampling": ("counts", "incomplete_slides", "sample_index", "slide_table", "unknown_incomplete"),
    },
)

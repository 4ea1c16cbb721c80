"""Find slide files, open them, read their pixels and know their scale."""

from __future__ import annotations

from wsi_assets.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "naming": (
            "DEFAULT_PATIENT_PATTERN",
            "DEFAULT_TEST_PATTERN",
            "is_test_slide",
            "normalize_id",
            "patient_of",
            "patients_of",
            "slide_id_of",
        ),
        "listing": ("SlideFile", "SlideListing", "existing_folder", "find_slides"),
        "fingerprints": ("annotation_version", "fingerprint", "signature"),
        "cohort": ("Cohort", "SlideRow", "read_cohort", "write_cohort"),
        "options": ("ScaleOptions",),
        "scale": ("Level", "Scale", "true_downsamples"),
        "reader": ("Region", "SlideReader", "open_slide"),
        "level_reader": ("LevelReader", "ReferenceReader"),
        "reduce": ("read_averaged", "reduce_mean"),
        "resolution": ("Place", "Resolution", "locate"),
        "tiff_tiles": ("TileLevel", "open_tiles"),
    },
)

"""Every curation check over the slides of a level's index."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_assets.index.slide_index import Index

CURATION = {
    "annotation_missing": "No slide is a tumor slide by its name and lacks an annotation.",
    "no_tumor_patches": "Every slide with an annotation gave at least one tumor patch at this level.",
    "annotation_outside": "No annotation reaches outside its slide: another slide's, or not level-0 pixels.",
    "annotation_off_tissue": "Annotations lie on tissue; those that do not may be shifted.",
    "tissue_share_out_of_range": "No slide is nearly all tissue or nearly none: a threshold that went wrong.",
    "tissue_mask_too_coarse": "Patches of every slide are more than a pixel of its tissue mask wide.",
    "mixed_magnifications": "All slides of the level have about the same magnification.",
    "duplicate_slides": "No slide is in the folder under two names.",
    "longer_word_holds_test": "No slide is a test slide by chance, as those of an intestine or a testis are.",
}
"""Check -> what is true when it passes."""


def curate(index: Index, load: Callable[[str], tuple[Any, Any]]) -> dict[str, list[tuple[str, str]]]:
    """Curation check -> (slide id, finding) over a level's slides, one slide's regions at a time.

    Args:
        load: slide id -> its ``TissueRegions`` and its ``TumorRegions`` or None, as plain values.
    """
    from dataclasses import replace

    import numpy as np

    from wsi_assets.annotations import TumorRegions
    from wsi_assets.index import TissueRegions, curation

    findings = [
        *curation.annotation_missing(
            (slide_id, entry["annotation_path"]) for slide_id, entry in index.items()
        ),
        *curation.no_tumor_patches(index),
        *curation.tissue_mask_too_coarse(index),
        *curation.mixed_magnifications(index),
        *curation.longer_word_holds_test(index),
    ]
    light = []
    for slide_id in index:
        plain, stored = load(slide_id)
        tissue = TissueRegions.from_plain(plain)
        pair = (tissue, None if stored is None else TumorRegions.from_plain(stored))
        findings += curation.annotation_outside([pair])
        findings += curation.annotation_off_tissue([pair])
        findings += curation.tissue_share_out_of_range([tissue])
        # Of a mask only whether it holds tissue matters from here on; ten thousand whole ones do not fit.
        light.append(replace(tissue, mask=np.full((1, 1), bool(tissue.mask.any()))))
    findings += curation.duplicate_slides(light)
    return {name: [(one.slide_id, one.message) for one in findings if one.check == name] for name in CURATION}

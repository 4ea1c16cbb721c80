"""What a careful lab would check before training: checks over the slides of a level's index.

Each gives (slide id, finding in one line) of the slides that fail it.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_assets.index.slide_index import is_test, resolution_of
from wsi_assets.slides.naming import DEFAULT_TEST_PATTERN
from wsi_assets.slides.resolution import words_of

if TYPE_CHECKING:
    from wsi_assets.annotations import TumorRegions
    from wsi_assets.index.slide_index import Entry, Index
    from wsi_assets.index.tissue import TissueRegions

Findings = Iterable[tuple[str, str]]

CURATION = {
    "name_contradicts_annotation": "A slide is named tumor if, and only if, tumor is annotated on it.",
    "no_tumor_patches": "Every slide with an annotation gave at least one tumor patch at this level.",
    "annotation_outside": "No annotation reaches outside its slide: another slide's, or not level-0 pixels.",
    "annotation_off_tissue": "Annotations lie on tissue; those that do not may be shifted.",
    "tissue_share_out_of_range": "No slide is nearly all tissue or nearly none: a threshold that went wrong.",
    "tissue_mask_too_coarse": "Patches of every slide are more than a pixel of its tissue mask wide.",
    "mixed_magnifications": "All slides of the level have about the same magnification.",
    "duplicate_slides": "No slide is in the folder under two names.",
    "longer_word_holds_test": "No slide is a test slide by chance, as those of an intestine or a testis are.",
}
"""Check, a function of this module -> what is true when it passes."""

MOST_OUTSIDE, LEAST_ON_TISSUE = 0.01, 0.5
"""Shares of the tumor's area."""
TISSUE_SHARES = (0.002, 0.98)
SAME_MAGNIFICATION = 0.1
"""Share of the level's median by which a magnification may be off."""
LEAST_ACROSS = 1.5
"""Mask pixels across a patch; a patch of 256 at level 0 has 2 with the usual working level, 7."""
_SQUARES = 4
"""Squares each way into which thumbnails are summed, which settles most pairs."""
_TUMOR = re.compile("tumou?r", re.IGNORECASE)
_NORMAL = re.compile(r"(?<![a-z])(normal|benign|healthy)(?![a-z])", re.IGNORECASE)
_TEST_MEANT = re.compile(r"(?<![a-z])test(?!is|es|ic)", re.IGNORECASE)


def curate(index: Index, load: Callable[[str], tuple[Any, Any]]) -> dict[str, list[tuple[str, str]]]:
    """Check -> its findings over a level's slides, one slide's regions at a time.

    Args:
        load: slide id -> its ``TissueRegions`` and its ``TumorRegions`` or None, as plain values.
    """
    from wsi_assets.annotations import TumorRegions
    from wsi_assets.index import TissueRegions

    of_index = (name_contradicts_annotation, no_tumor_patches, tissue_mask_too_coarse, mixed_magnifications)
    findings = {check.__name__: list(check(index)) for check in (*of_index, longer_word_holds_test)}
    of_slide = (annotation_outside, annotation_off_tissue, tissue_share_out_of_range)
    findings |= {check.__name__: [] for check in of_slide}
    light = []
    for slide_id in index:
        plain, stored = load(slide_id)
        tissue = TissueRegions.from_plain(plain)
        tumor = None if stored is None else TumorRegions.from_plain(stored)
        for check in of_slide:
            findings[check.__name__] += check(tissue, tumor)
        # Of a mask only whether it holds tissue matters from here on; ten thousand whole ones do not fit.
        light.append(replace(tissue, mask=np.full((1, 1), bool(tissue.mask.any())), picture=b""))
    findings["duplicate_slides"] = duplicate_slides(light)
    return {name: findings[name] for name in CURATION}


def name_contradicts_annotation(index: Index) -> Findings:
    """Slides whose id says tumor, or normal, their annotation otherwise, and the cohort's table nothing."""
    for slide_id, entry in index.items():
        annotated = entry["annotation_path"] is not None
        if entry.get("cohort_label") is None and (why := contradiction(slide_id, annotated)):
            yield slide_id, why


def contradiction(slide_id: str, annotated: bool) -> str | None:
    """In what a slide's name contradicts that it is annotated, or not; None if it does not."""
    if not annotated and _TUMOR.search(slide_id):
        return "a tumor slide by its name, without annotation"
    if annotated and _NORMAL.search(slide_id):
        return "a normal slide by its name, with an annotation"
    return None


def no_tumor_patches(index: Index) -> Findings:
    """Slides with an annotation, or named a tumor slide, without a single tumor patch in the index."""
    for slide_id, entry in index.items():
        expected = entry["annotation_path"] is not None or _is_named_tumor(slide_id, entry)
        if expected and not any(patch[2] for patch in entry["patches"]):
            most = max(entry["tumor_fraction"], default=0.0)
            yield (
                slide_id,
                f"none of {len(entry['patches'])} patches at {words_of(resolution_of(entry))} is tumor "
                f"(largest tumor share {most:.1%})",
            )


def tissue_mask_too_coarse(index: Index) -> Findings:
    """Slides whose patches are under ``LEAST_ACROSS`` pixels of the tissue mask wide."""
    for slide_id, entry in index.items():
        side = entry["patch_size"] * entry["downsample"]
        across = side / 2 ** entry["work_level"]
        if across < LEAST_ACROSS:
            fitting = max(int(side / LEAST_ACROSS).bit_length() - 1, 0)
            yield (
                slide_id,
                f"a patch of {entry['patch_size']} at {words_of(resolution_of(entry))} is {across:.2g} times "
                f"as wide as a pixel of the tissue mask, not {LEAST_ACROSS}: set work_level to {fitting}",
            )


def mixed_magnifications(index: Index) -> Findings:
    """Slides whose magnification is off the level's median by more than ``SAME_MAGNIFICATION`` of it."""
    usual = statistics.median_low(entry["magnification"] for entry in index.values()) if index else 1.0
    for slide_id, entry in index.items():
        if abs(entry["magnification"] / usual - 1) > SAME_MAGNIFICATION:
            yield (
                slide_id,
                f"magnification {entry['magnification']:.4g} at {words_of(resolution_of(entry))}, where the "
                f"median slide has {usual:.4g}",
            )


def longer_word_holds_test(index: Index) -> Findings:
    """Test slides that are so by a longer word only: in*test*ine and *test*is are organs.

    A ``test_pattern`` of the user's own, and a side that the cohort's table names, are taken as meant.
    """
    for slide_id, entry in index.items():
        named = entry.get("split") or entry["config"].get("test_pattern", "test") != DEFAULT_TEST_PATTERN
        if not named and is_test(slide_id, entry) and not _TEST_MEANT.search(slide_id):
            yield (
                slide_id,
                "is kept for testing because a longer word in its name holds 'test'; set test_pattern if it "
                "is to train",
            )


def annotation_outside(tissue: TissueRegions, tumor: TumorRegions | None) -> Findings:
    """A slide whose tumor lies outside the slide by more than ``MOST_OUTSIDE`` of its area."""
    import shapely

    if tumor is None or tumor.geometry.area == 0:
        return
    base = tissue.levels[0]
    inside = shapely.clip_by_rect(tumor.geometry, 0, 0, base.width, base.height).area
    outside = 1 - inside / tumor.geometry.area
    if outside > MOST_OUTSIDE:
        yield (
            tissue.slide_id,
            f"{outside:.0%} of the tumor area lies outside the {base.width} x {base.height} slide: is it "
            "another slide's annotation, or not in level-0 pixels?",
        )


def annotation_off_tissue(tissue: TissueRegions, tumor: TumorRegions | None) -> Findings:
    """A slide whose tumor lies on tissue by less than ``LEAST_ON_TISSUE`` of its area."""
    from wsi_assets.index.coverage import cell_areas

    if tumor is None or tumor.geometry.is_empty:
        return
    rows, columns = (np.arange(side + 1) * tissue.work_downsample for side in tissue.mask.shape)
    areas = cell_areas(tumor.geometry, rows, columns)
    share = float(areas[tissue.mask].sum() / max(areas.sum(), 1e-9))
    if share < LEAST_ON_TISSUE:
        yield (
            tissue.slide_id,
            f"only {share:.0%} of the tumor area lies on tissue: is the annotation shifted?",
        )


def tissue_share_out_of_range(tissue: TissueRegions, _: TumorRegions | None = None) -> Findings:
    """A slide with hardly any tissue, or hardly anything else."""
    low, high = TISSUE_SHARES
    if tissue.threshold is None:
        yield tissue.slide_id, "the slide holds no data"
    elif not low <= tissue.tissue_share <= high:
        yield (
            tissue.slide_id,
            f"tissue covers {tissue.tissue_share:.2%} of it, expected {low:.1%} to {high:.0%}",
        )


def duplicate_slides(slides: Sequence[TissueRegions], tolerance: float = 4.0) -> list[tuple[str, str]]:
    """The same slide under two names: the same file, or tissue of the same appearance.

    Two slides look the same if their tissue, shrunk to a few hundred spots, differs by less than
    ``tolerance`` gray levels on average; a copy compressed anew differs by under 1, two sections of one
    block by 10 and more. The later id is the finding.
    """
    slides = sorted(slides, key=lambda tissue: tissue.slide_id)
    findings: dict[str, str] = {}
    first_of: dict[str, str] = {}
    for tissue in slides:
        first = first_of.setdefault(tissue.fingerprint, tissue.slide_id)
        if first != tissue.slide_id:
            findings[tissue.slide_id] = f"is the same file as {first}"
    seen = [t for t in slides if t.thumbnail and t.mask.any() and t.slide_id not in findings]
    alike = [
        (seen[later].slide_id, f"looks the same as {seen[first].slide_id}")
        for first, later in _alike(seen, tolerance)
    ]
    return sorted([*findings.items(), *alike])


def _alike(slides: Sequence[TissueRegions], tolerance: float) -> Iterator[tuple[int, int]]:
    """Pairs of slides, ascending, whose thumbnails differ by less than the tolerance where they show tissue.

    Two thumbnails differ in all at least as much as the sums over their squares do, and those at least as
    much as the sums over all; most pairs end here. Equal thumbnails need sums no further apart than what
    their spots allow: the spans "sum, give or take a thumbnail's own allowance" of the two meet.
    """
    from wsi_assets.index.tissue import THUMBNAIL_SIDE

    thumbnails = np.frombuffer(b"".join(tissue.thumbnail for tissue in slides), np.uint8)
    thumbnails = thumbnails.reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3)
    side = THUMBNAIL_SIDE // _SQUARES
    squares = thumbnails.reshape(-1, _SQUARES, side, _SQUARES, side, 3).sum(axis=(2, 4), dtype=np.int32)
    squares = squares.reshape(len(slides), _SQUARES**2 * 3)
    shown = (thumbnails.min(axis=3) < 250).sum(axis=(1, 2))
    total, allowed = squares.sum(axis=1), tolerance * 3 * shown
    order = np.argsort(total - allowed, kind="stable")
    squares, allowed, total = squares[order], allowed[order], total[order]
    ends = np.searchsorted(total - allowed, total + allowed)
    for i, end in enumerate(ends):
        near = slice(i + 1, end)
        apart = np.abs(squares[near] - squares[i]).sum(axis=1)
        for j in np.flatnonzero(apart < allowed[near] + allowed[i]) + i + 1:
            pair = sorted((int(order[i]), int(order[j])))
            if _difference(*thumbnails[pair]) < tolerance:
                yield pair[0], pair[1]


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference, in gray levels, over the spots where either thumbnail shows tissue."""
    shown = (one.min(axis=2) < 250) | (other.min(axis=2) < 250)
    return float(np.abs(one.astype(np.int16) - other)[shown].mean()) if shown.any() else 255.0


def _is_named_tumor(slide_id: str, entry: Entry) -> bool:
    return _TUMOR.search(slide_id) is not None and entry.get("cohort_label") != "normal"

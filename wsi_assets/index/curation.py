"""Checks of a level's slides before training: names, annotations, tissue, magnification, duplicates.

Each check gives (slide id, finding in one line) of the slides that fail it.
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
    from wsi_assets.slides import SlideFile

Findings = Iterable[tuple[str, str]]

CURATION = {
    "name_contradicts_annotation": "A slide is named tumor if, and only if, tumor is annotated on it.",
    "no_tumor_patches": "Every slide with an annotation has at least one tumor patch at this level.",
    "annotation_outside": "Annotations lie inside their slide, so they are its own and in level-0 pixels.",
    "annotation_off_tissue": "Annotations lie on tissue; those that do not may be shifted.",
    "tissue_share_out_of_range": "No slide is almost all tissue or almost none, as after a wrong threshold.",
    "tissue_mask_too_coarse": "Patches of every slide are more than a pixel of its tissue mask wide.",
    "mixed_magnifications": "All slides of the level have about the same magnification.",
    "duplicate_slides": "No slide is in the folder under two names.",
    "longer_word_holds_test": "No slide of an intestine or a testis is a test slide by mistake.",
}
"""Name of a check, which is a function of this module -> what is true if it passes."""

MAX_OUTSIDE, MIN_ON_TISSUE = 0.01, 0.5
"""Largest share of the tumor area outside the slide, and smallest share on tissue."""
TISSUE_SHARES = (0.002, 0.98)
"""Plausible share of a slide that is tissue."""
SAME_MAGNIFICATION = 0.1
"""Largest deviation of a magnification from the level's median, as a share of it."""
MIN_MASK_PIXELS_PER_PATCH = 1.5
"""Least mask pixels across a patch; a patch of 256 at level 0 has 2 with the default working level 7."""
_SQUARES = 4
"""Thumbnails are summed over this many squares each way, which suffices to tell most pairs apart."""
_TUMOR = re.compile("tumou?r", re.IGNORECASE)
_NORMAL = re.compile(r"(?<![a-z])(normal|benign|healthy)(?![a-z])", re.IGNORECASE)
_TEST_MEANT = re.compile(r"(?<![a-z])test(?!is|es|ic)", re.IGNORECASE)


def curate(index: Index, load: Callable[[str], tuple[Any, Any]]) -> dict[str, list[tuple[str, str]]]:
    """Run all checks on a level's slides: name of a check -> [(slide id, finding)].

    The regions of one slide are in memory at a time.

    Args:
        load: slide id -> its ``TissueRegions``, and its ``TumorRegions`` or None, both as plain values.
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
        # Comparing slides only needs to know whether there is tissue; 10,000 masks would not fit in memory.
        light.append(replace(tissue, mask=np.full((1, 1), bool(tissue.mask.any())), picture=b""))
    findings["duplicate_slides"] = duplicate_slides(light)
    return {name: findings[name] for name in CURATION}


def name_contradicts_annotation(index: Index) -> Findings:
    """Slides whose id names them tumor or normal, against their annotation, without a label in cohort.csv."""
    for slide_id, entry in index.items():
        annotated = entry["annotation_path"] is not None
        if entry.get("cohort_label") is None and (why := contradiction(slide_id, annotated)):
            yield slide_id, why


def contradiction(slide_id: str, annotated: bool) -> str | None:
    """How the name of a slide contradicts that it has, or lacks, an annotation; None if it does not."""
    if not annotated and _TUMOR.search(slide_id):
        return "named as a tumor slide, without annotation"
    if annotated and _NORMAL.search(slide_id):
        return "named as a normal slide, with an annotation"
    return None


def name_contradiction(slide: SlideFile) -> str | None:
    """How the name of a slide contradicts its annotation, with a remedy; None if it does not.

    A slide that is labeled in the cohort table never does. Nor does one with a correction: what that leaves
    of the annotation is known once it is read, and then an asset check compares it with the name.
    """
    if slide.cohort_row.label or slide.correction_path:
        return None
    why = contradiction(slide.slide_id, slide.annotation_path is not None)
    return why and (
        f"{why}. Give its label (normal, tumor or unknown) in cohort.csv, or accept that its name is wrong "
        f"(run --accept {slide.slide_id})"
    )


def no_tumor_patches(index: Index) -> Findings:
    """Slides with an annotation, or named as tumor slides, without a tumor patch in the index."""
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
    """Slides whose patches are under ``MIN_MASK_PIXELS_PER_PATCH`` pixels of the tissue mask wide."""
    for slide_id, entry in index.items():
        side = entry["patch_size"] * entry["downsample"]
        across = side / 2 ** entry["work_level"]
        if across < MIN_MASK_PIXELS_PER_PATCH:
            fitting = max(int(side / MIN_MASK_PIXELS_PER_PATCH).bit_length() - 1, 0)
            yield (
                slide_id,
                f"a patch of {entry['patch_size']} at {words_of(resolution_of(entry))} is only {across:.2g} "
                f"pixels of the tissue mask wide: set work_level to {fitting}",
            )


def mixed_magnifications(index: Index) -> Findings:
    """Slides whose magnification differs from the level's median by more than ``SAME_MAGNIFICATION``."""
    usual = statistics.median_low(entry["magnification"] for entry in index.values()) if index else 1.0
    for slide_id, entry in index.items():
        if abs(entry["magnification"] / usual - 1) > SAME_MAGNIFICATION:
            yield (
                slide_id,
                f"magnification {entry['magnification']:.4g} at {words_of(resolution_of(entry))}, where the "
                f"median slide has {usual:.4g}",
            )


def longer_word_holds_test(index: Index) -> Findings:
    """Test slides whose names contain "test" only within a longer word, such as intestine or testis.

    Not checked if the user set ``test_pattern``, and for slides whose split is in the cohort table.
    """
    for slide_id, entry in index.items():
        named = entry.get("split") or entry["config"].get("test_pattern", "test") != DEFAULT_TEST_PATTERN
        if not named and is_test(slide_id, entry) and not _TEST_MEANT.search(slide_id):
            yield (
                slide_id,
                "is a test slide only because a longer word in its name contains 'test'; if it should train, "
                "set test_pattern",
            )


def annotation_outside(tissue: TissueRegions, tumor: TumorRegions | None) -> Findings:
    """A slide with more than ``MAX_OUTSIDE`` of its tumor area outside the slide."""
    import shapely

    if tumor is None or tumor.geometry.area == 0:
        return
    base = tissue.levels[0]
    inside = shapely.clip_by_rect(tumor.geometry, 0, 0, base.width, base.height).area
    outside = 1 - inside / tumor.geometry.area
    if outside > MAX_OUTSIDE:
        yield (
            tissue.slide_id,
            f"{outside:.0%} of the tumor area lies outside the {base.width} x {base.height} slide: is the "
            "annotation of another slide, or not in level-0 pixels?",
        )


def annotation_off_tissue(tissue: TissueRegions, tumor: TumorRegions | None) -> Findings:
    """A slide with less than ``MIN_ON_TISSUE`` of its tumor area on tissue."""
    from wsi_assets.index.coverage import cell_areas

    if tumor is None or tumor.geometry.is_empty:
        return
    rows, columns = (np.arange(side + 1) * tissue.work_downsample for side in tissue.mask.shape)
    areas = cell_areas(tumor.geometry, rows, columns)
    share = float(areas[tissue.mask].sum() / max(areas.sum(), 1e-9))
    if share < MIN_ON_TISSUE:
        yield (
            tissue.slide_id,
            f"only {share:.0%} of the tumor area lies on tissue: is the annotation shifted?",
        )


def tissue_share_out_of_range(tissue: TissueRegions, _: TumorRegions | None = None) -> Findings:
    """A slide with almost no tissue, or almost nothing else."""
    low, high = TISSUE_SHARES
    if tissue.threshold is None:
        yield tissue.slide_id, "the slide has no data"
    elif not low <= tissue.tissue_share <= high:
        yield (
            tissue.slide_id,
            f"tissue covers {tissue.tissue_share:.2%} of it, expected {low:.1%} to {high:.0%}",
        )


def duplicate_slides(slides: Sequence[TissueRegions], tolerance: float = 4.0) -> list[tuple[str, str]]:
    """Slides that are in the folder under two names: the same file, or the same tissue.

    Two slides show the same tissue if their thumbnails differ by less than ``tolerance`` gray levels on
    average over the pixels with tissue. A copy that was compressed again differs by less than 1, two sections
    of one block by 10 and more. The later id is reported.
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
        (seen[later].slide_id, f"shows the same tissue as {seen[first].slide_id}")
        for first, later in _alike(seen, tolerance)
    ]
    return sorted([*findings.items(), *alike])


def _alike(slides: Sequence[TissueRegions], tolerance: float) -> Iterator[tuple[int, int]]:
    """Pairs (first, later) of slides whose thumbnails differ by less than ``tolerance`` where they show
    tissue.

    Comparing all pairs of 10,000 thumbnails would take too long. Two thumbnails differ at least as much as
    their sums over squares, and these at least as much as their total sums, so pairs whose sums are too far
    apart are skipped. Each thumbnail allows a difference of ``tolerance`` for each of its pixels with tissue.
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
    """Mean difference, in gray levels, over the pixels where either thumbnail shows tissue."""
    shown = (one.min(axis=2) < 250) | (other.min(axis=2) < 250)
    return float(np.abs(one.astype(np.int16) - other)[shown].mean()) if shown.any() else 255.0


def _is_named_tumor(slide_id: str, entry: Entry) -> bool:
    return _TUMOR.search(slide_id) is not None and entry.get("cohort_label") != "normal"

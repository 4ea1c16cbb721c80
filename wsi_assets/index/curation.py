"""What a careful lab would check before training: checks over slides and index entries.

Each returns its findings, none when all is well.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import shapely

from wsi_assets.index.slide_index import Index, is_test
from wsi_assets.index.tissue import THUMBNAIL_SIDE
from wsi_assets.slides.naming import DEFAULT_TEST_PATTERN

if TYPE_CHECKING:
    from wsi_assets.annotations import TumorRegions
    from wsi_assets.index.tissue import TissueRegions

_SQUARES = 4
"""Squares each way into which thumbnails are summed, which settles most pairs."""
_TEST_MEANT = re.compile(r"(?<![a-z])test(?!is|es|ic)", re.IGNORECASE)
LEAST_ACROSS = 1.5
"""Mask pixels across a patch; a patch of 256 at level 0 has 2 with the usual working level, 7."""


class Finding(NamedTuple):
    """One finding: which check made it, on which slide, in one line."""

    check: str
    slide_id: str
    message: str


def annotation_missing(slides: Iterable[tuple[str, str | None]]) -> list[Finding]:
    """Tumor slides, by their id, that have no annotation.

    Args:
        slides: (slide id, annotation path or None).
    """
    return [
        Finding("annotation_missing", slide_id, "a tumor slide by its name, without annotation")
        for slide_id, annotation in sorted(slides, key=lambda pair: pair[0])
        if annotation is None and _is_named_tumor(slide_id)
    ]


def no_tumor_patches(index: Index) -> list[Finding]:
    """Slides with an annotation, or named a tumor slide, without a single tumor patch in the index."""
    findings = []
    for slide_id, entry in index.items():
        expected = entry["annotation_path"] is not None or _is_named_tumor(slide_id)
        if expected and not any(patch[2] for patch in entry["patches"]):
            most = max(entry["tumor_fraction"], default=0.0)
            message = (
                f"none of {len(entry['patches'])} patches at level {entry['level']} is tumor "
                f"(largest tumor share {most:.1%})"
            )
            findings.append(Finding("no_tumor_patches", slide_id, message))
    return findings


def annotation_outside(
    slides: Iterable[tuple[TissueRegions, TumorRegions | None]], tolerance: float = 0.01
) -> list[Finding]:
    """Slides whose tumor lies outside the slide by more than ``tolerance`` of its area, 0 to 1."""
    findings = []
    for tissue, tumor in slides:
        if tumor is None or tumor.geometry.area == 0:
            continue
        base = tissue.levels[0]
        inside = shapely.clip_by_rect(tumor.geometry, 0, 0, base.width, base.height).area
        outside = 1 - inside / tumor.geometry.area
        if outside > tolerance:
            message = (
                f"{outside:.0%} of the tumor area lies outside the {base.width} x {base.height} slide: "
                "is it another slide's annotation, or not in level-0 pixels?"
            )
            findings.append(Finding("annotation_outside", tissue.slide_id, message))
    return findings


def annotation_off_tissue(
    slides: Iterable[tuple[TissueRegions, TumorRegions | None]], least: float = 0.5
) -> list[Finding]:
    """Slides whose tumor area lies on tissue by less than ``least``, 0 to 1: a shifted annotation."""
    from wsi_assets.index.coverage import cell_areas

    findings = []
    for tissue, tumor in slides:
        if tumor is None or tumor.geometry.is_empty:
            continue
        rows, columns = (np.arange(side + 1) * tissue.work_downsample for side in tissue.mask.shape)
        areas = cell_areas(tumor.geometry, rows, columns)
        on_tissue = float(areas[tissue.mask].sum() / max(areas.sum(), 1e-9))
        if on_tissue < least:
            message = f"only {on_tissue:.0%} of the tumor area lies on tissue: is the annotation shifted?"
            findings.append(Finding("annotation_off_tissue", tissue.slide_id, message))
    return findings


def tissue_share_out_of_range(
    slides: Iterable[TissueRegions], low: float = 0.002, high: float = 0.98
) -> list[Finding]:
    """Slides with hardly any tissue, or hardly anything else; shares are 0 to 1."""
    findings = []
    for tissue in slides:
        if low <= tissue.tissue_share <= high:
            continue
        fault = (
            "the slide holds no data"
            if tissue.threshold is None
            else f"tissue covers {tissue.tissue_share:.2%} of it, expected {low:.1%} to {high:.0%}"
        )
        findings.append(Finding("tissue_share_out_of_range", tissue.slide_id, fault))
    return findings


def mixed_magnifications(index: Index, tolerance: float = 0.1) -> list[Finding]:
    """Slides whose magnification differs from the level's median by more than ``tolerance`` of it."""
    if not index:
        return []
    usual = statistics.median_low(entry["magnification"] for entry in index.values())
    return [
        Finding(
            "mixed_magnifications",
            slide_id,
            f"magnification {entry['magnification']:.4g} at level {entry['level']}, where the median slide "
            f"has {usual:.4g}",
        )
        for slide_id, entry in index.items()
        if abs(entry["magnification"] / usual - 1) > tolerance
    ]


def tissue_mask_too_coarse(index: Index) -> list[Finding]:
    """Slides whose patches are under ``LEAST_ACROSS`` pixels of the tissue mask wide, which hardly tells them
    apart."""
    findings = []
    for slide_id, entry in index.items():
        side = entry["patch_size"] * entry["downsample"]
        across = side / 2 ** entry["work_level"]
        if across < LEAST_ACROSS:
            fitting = max(int(np.log2(side / LEAST_ACROSS)), 0)
            message = (
                f"a patch of {entry['patch_size']} at level {entry['level']} is {across:.2g} times "
                f"as wide as a pixel of the tissue mask, expected {LEAST_ACROSS}: set work_level to {fitting}"
            )
            findings.append(Finding("tissue_mask_too_coarse", slide_id, message))
    return findings


def duplicate_slides(slides: Sequence[TissueRegions], tolerance: float = 4.0) -> list[Finding]:
    """The same slide under two names: the same file, or tissue of the same appearance.

    Two slides look the same if their tissue, shrunk to a few hundred spots, differs by less than
    ``tolerance`` gray levels on average; a copy compressed anew differs by under 1, two sections of one
    block by 10 and more. The later id is the finding.
    """
    slides = sorted(slides, key=lambda tissue: tissue.slide_id)
    findings = []
    first_of: dict[str, str] = {}
    for tissue in slides:
        first = first_of.setdefault(tissue.fingerprint, tissue.slide_id)
        if first != tissue.slide_id:
            findings.append(Finding("duplicate_slides", tissue.slide_id, f"is the same file as {first}"))
    known = {finding.slide_id for finding in findings}
    seen = [t for t in slides if t.thumbnail and t.mask.any() and t.slide_id not in known]
    if not seen:
        return findings
    thumbnails = np.stack(
        [np.frombuffer(t.thumbnail, np.uint8).reshape(THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3) for t in seen]
    )
    shown = (thumbnails.min(axis=3) < 250).sum(axis=(1, 2))
    # Two thumbnails differ in all at least as much as the sums over their squares do, and those at least as
    # much as the sums over all; most pairs end here. Equal thumbnails need sums no further apart than what
    # their spots allow: the spans "sum, give or take a thumbnail's own allowance" of the two meet.
    side = THUMBNAIL_SIDE // _SQUARES
    squares = thumbnails.reshape(-1, _SQUARES, side, _SQUARES, side, 3).sum(axis=(2, 4), dtype=np.int32)
    squares = squares.reshape(len(thumbnails), -1)
    total, allowed = squares.sum(axis=1), tolerance * 3 * shown
    order = np.argsort(total - allowed, kind="stable")
    squares, allowed, total = squares[order], allowed[order], total[order]
    ends = np.searchsorted(total - allowed, total + allowed)
    for i, end in enumerate(ends):
        near = slice(i + 1, end)
        apart = np.abs(squares[near] - squares[i]).sum(axis=1)
        for j in np.flatnonzero(apart < allowed[near] + allowed[i]) + i + 1:
            # Slides are sorted by id, which the earlier of two has.
            first, later = sorted((order[i], order[j]))
            if _difference(thumbnails[first], thumbnails[later]) < tolerance:
                findings.append(
                    Finding(
                        "duplicate_slides", seen[later].slide_id, f"looks the same as {seen[first].slide_id}"
                    )
                )
    return sorted(findings)


def longer_word_holds_test(index: Index) -> list[Finding]:
    """Test slides that are so by a longer word only: in*test*ine and *test*is are organs.

    A ``test_pattern`` of the user's own is taken as meant.
    """
    return [
        Finding(
            "longer_word_holds_test",
            slide_id,
            "is kept for testing because a longer word in its name holds 'test'; set test_pattern if it "
            "is to train",
        )
        for slide_id, entry in index.items()
        if entry["config"].get("test_pattern", DEFAULT_TEST_PATTERN) == DEFAULT_TEST_PATTERN
        and is_test(slide_id, entry)
        and not _TEST_MEANT.search(slide_id)
    ]


def _is_named_tumor(slide_id: str) -> bool:
    return re.search("tumou?r", slide_id, re.IGNORECASE) is not None


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference, in gray levels, over the spots where either thumbnail shows tissue."""
    shown = (one.min(axis=2) < 250) | (other.min(axis=2) < 250)
    return float(np.abs(one.astype(np.int16) - other)[shown].mean()) if shown.any() else 255.0

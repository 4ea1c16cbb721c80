"""One slide's health, without running anything: what opens, what is known of it, what is wrong."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wsi_assets.errors import WsiAssetsError
from wsi_assets.index.slide_regions import SlideOptions, read_tissue, read_tumor

if TYPE_CHECKING:
    from wsi_assets.slides import SlideFile

COLUMNS = {
    "slide": "slide_id",
    "format": "format",
    "size (px)": "size",
    "levels": "levels",
    "downsamples": "downsamples",
    "mag. (from)": "magnification",
    "mpp": "mpp",
    "tissue": "tissue",
    "annotations": "annotation",
}
"""Heading -> what of :class:`SlideHealth` stands below it."""

LEAST_FIRST = ("downsamples", "format", "tissue", "mpp", "mag. (from)", "size (px)")
"""Columns in the order in which a narrow terminal goes without them."""

_ALIKE = 0.7
"""Similarity from which two names are one with a slip of the pen."""


@dataclass
class SlideHealth:
    """One row of the ``doctor`` table, text as shown, and what is wrong with the slide, a line each."""

    slide_id: str
    format: str = "does not open"
    size: str = ""
    levels: str = ""
    downsamples: str = ""
    magnification: str = ""
    mpp: str = ""
    tissue: str = ""
    annotation: str = "none"
    problems: list[str] = field(default_factory=list)

    def cells(self, columns: Iterable[str]) -> list[str]:
        return [getattr(self, COLUMNS[column]) for column in columns]


def examine(slide: SlideFile) -> SlideHealth:
    """Open a slide, read its tissue and its annotation; every fault becomes a line, none is raised."""
    from wsi_assets.slides import open_slide

    health, tissue = SlideHealth(slide.slide_id), None
    try:
        with open_slide(slide.path) as reader:
            health.problems.extend(reader.notices)
            first, scale = reader.levels[0], reader.scale
            health.format = reader.vendor
            health.size = f"{first.width} x {first.height}"
            last = reader.levels[-1].index
            health.levels = f"0-{last}" if last else "0"
            health.downsamples = _downsamples([level.downsample for level in reader.levels])
            health.magnification = f"{scale.base_magnification:g} ({scale.magnification_source})"
            health.mpp = "unknown" if scale.mpp is None else f"{scale.mpp:.4g}"
        tissue = read_tissue(slide.slide_id, slide.path, SlideOptions())
        health.tissue = f"{tissue['tissue_share']:.1%}"
        if not tissue["tissue_share"]:
            health.problems.append("no tissue found")
    except WsiAssetsError as error:
        if health.size:
            health.format += ", does not read"
        health.problems.append(f"{error.fault}. {error.remedy or ''}".strip())
    try:
        if regions := read_tumor(slide.annotation_path, None, tissue):
            health.annotation = str(len(regions.audit))
            health.problems.extend(regions.notices)
    except WsiAssetsError as error:
        health.annotation = "damaged"
        health.problems.append(str(error))
    return health


def misnamed(slides: Iterable[SlideFile], notices: Iterable[str]) -> dict[str, list[str]]:
    """Notices of annotations without a slide, by the slide without an annotation that is likely meant.

    A name that differs in its numbers is another slide's: annotations of a whole cohort beside some of its
    slides are no mistake.
    """
    from wsi_assets.slides import normalize_id, slide_id_of
    from wsi_assets.slides.listing import WITHOUT_SLIDE

    without = {
        normalize_id(slide.slide_id): slide.slide_id for slide in slides if slide.annotation_path is None
    }
    found: dict[str, list[str]] = {}
    for notice in notices:
        if notice.startswith(WITHOUT_SLIDE):
            name = normalize_id(slide_id_of(notice.removeprefix(WITHOUT_SLIDE)))
            alike = [slide_id for slide_id in without if _numbers(slide_id) == _numbers(name)]
            for close in difflib.get_close_matches(name, alike, n=1, cutoff=_ALIKE):
                found.setdefault(without[close], []).append(notice)
    return found


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"[0-9]+", name)]


def _downsamples(downsamples: list[float]) -> str:
    """By how much each level is smaller than level 0; of many the first two and the last."""
    shown = [f"{downsample:g}" for downsample in downsamples]
    return f"{shown[0]}, {shown[1]} … {shown[-1]}" if len(shown) > 4 else ", ".join(shown)

"""Examine slides for ``wsi-assets doctor``: whether they open, their levels and scale, and their problems."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wsi_assets.errors import SlideIndexError, WsiAssetsError
from wsi_assets.index.curation import name_contradiction
from wsi_assets.index.options import TissueOptions
from wsi_assets.index.slide_regions import read_tumor
from wsi_assets.slides.naming import is_test_slide
from wsi_assets.slides.resolution import Resolution, locate

if TYPE_CHECKING:
    from wsi_assets.slides import Cohort, SlideFile, SlideReader

MAGNIFICATIONS = "40x, 20x, 10x, 5x from level"

COLUMNS = {
    "slide": "slide_id",
    "patient": "patient",
    "split": "side",
    "format": "format",
    "size (px)": "size",
    "levels": "levels",
    "downsamples": "downsamples",
    MAGNIFICATIONS: "magnifications",
    "mag. (from)": "magnification",
    "mpp": "mpp",
    "tissue": "tissue",
    "annotations": "annotation",
}
"""Heading of a column -> attribute of :class:`SlideHealth`."""

LEGEND = {
    "÷": "1 ÷ S means: level 1 is read, and S x S of its pixels are averaged to one",
    "-": "- means: the slide's pixels are larger than that, or their size is unknown",
}
"""Sign in the column of magnifications -> what it means."""

DROP_ORDER = (
    "downsamples",
    "format",
    "tissue",
    MAGNIFICATIONS,
    "mpp",
    "size (px)",
    "mag. (from)",
    "split",
    "patient",
)
"""Columns that a narrow terminal leaves out, the first one first."""


@dataclass
class SlideHealth:
    """A slide's row of the ``doctor`` table, as text, and its problems, one line each."""

    slide_id: str
    patient: str = ""
    side: str = ""
    format: str = "does not open"
    size: str = ""
    levels: str = ""
    downsamples: str = ""
    magnifications: str = ""
    magnification: str = ""
    mpp: str = ""
    tissue: str = ""
    annotation: str = "none"
    problems: list[str] = field(default_factory=list)

    def cells(self, columns: Iterable[str]) -> list[str]:
        return [getattr(self, COLUMNS[column]) for column in columns]


def examine(slide: SlideFile, accepted: Collection[str] = ()) -> SlideHealth:
    """Open a slide and read its tissue and annotation; every fault becomes one of its problems.

    Args:
        accepted: ids of slides whose names may contradict their annotations.
    """
    from wsi_assets.index.tissue import find_tissue
    from wsi_assets.slides import open_slide

    health, tissue = SlideHealth(slide.slide_id), {"bounds": None}
    try:
        with open_slide(slide.path, cohort_row=slide.cohort_row) as reader:
            health.problems.extend(reader.notices)
            first, scale = reader.levels[0], reader.scale
            health.format = reader.vendor
            health.size = f"{first.width} x {first.height}"
            last = reader.levels[-1].index
            health.levels = f"0-{last}" if last else "0"
            health.downsamples = _downsamples([level.downsample for level in reader.levels])
            health.magnifications = _magnifications(reader)
            health.magnification = f"{scale.base_magnification:g} ({scale.magnification_source})"
            health.mpp = "unknown" if scale.mpp is None else f"{scale.mpp:.4g}"
            tissue = find_tissue(reader, TissueOptions(), "").to_plain()
        health.tissue = f"{tissue['tissue_share']:.1%}"
        if not tissue["tissue_share"]:
            health.problems.append("no tissue found")
    except WsiAssetsError as error:
        if health.size:
            health.format += ", does not read"
        health.problems.append(f"{error.fault}. {error.remedy or ''}".strip())
    if slide.slide_id not in accepted and (why := name_contradiction(slide)):
        health.problems.append(why)
    try:
        if regions := read_tumor(slide, None, tissue):
            health.annotation = str(len(regions.audit))
            health.problems.extend(regions.notices)
    except WsiAssetsError as error:
        health.annotation = "damaged" if slide.annotation_path or slide.correction_path else "missing"
        health.problems.append(str(error))
    return health


def add_patients_and_sides(rows: Iterable[SlideHealth], cohort: Cohort) -> None:
    """Fill in each slide's side, and its patient if that differs from the slide id.

    Raises:
        ConfigError: the cohort table puts a patient on two sides.
    """
    rows = list(rows)
    patients = cohort.patients(row.slide_id for row in rows)
    sides = cohort.sides(patients)
    for row in rows:
        row.patient = patients[row.slide_id] if patients[row.slide_id] != row.slide_id else ""
        row.side = sides.get(row.slide_id) or ("test" if is_test_slide(row.slide_id) else "")


def _downsamples(downsamples: list[float]) -> str:
    """The downsample of each level; of more than four levels, those of the first two and the last."""
    shown = [f"{downsample:g}" for downsample in downsamples]
    return f"{shown[0]}, {shown[1]} … {shown[-1]}" if len(shown) > 4 else ", ".join(shown)


def _magnifications(reader: SlideReader) -> str:
    """The level from which patches of each magnification are read, and the step by which it is averaged."""
    shown = []
    for key in ("40x", "20x", "10x", "5x"):
        text = "-"
        with contextlib.suppress(SlideIndexError):
            found = locate(reader.levels, reader.scale, Resolution.parse(key))
            text = f"{found.level.index} ÷ {found.step:.3g}" if found.step != 1 else str(found.level.index)
        shown.append(text)
    return ", ".join(shown)

"""One slide's health, without running anything: what opens, what is known of it, what is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wsi_assets.errors import WsiAssetsError
from wsi_assets.orchestration.config import AnnotationConfig, TissueConfig

if TYPE_CHECKING:
    from wsi_assets.slides import SlideFile


@dataclass
class SlideHealth:
    """One row of the ``doctor`` table; text as shown."""

    slide_id: str
    opens: str = "no"
    size: str = ""
    levels: str = ""
    magnification: str = ""
    mpp: str = ""
    tissue: str = ""
    annotation: str = "none"
    problems: list[str] = field(default_factory=list)

    def cells(self) -> list[str]:
        return [
            self.slide_id,
            self.opens,
            self.size,
            self.levels,
            self.magnification,
            self.mpp,
            self.tissue,
            self.annotation,
            "; ".join(self.problems),
        ]


def examine(slide: SlideFile) -> SlideHealth:
    """Open a slide, read its tissue and its outline; every fault becomes a line, none is raised."""
    from wsi_assets.annotations import read_annotation
    from wsi_assets.index import find_tissue
    from wsi_assets.slides import open_slide

    health = SlideHealth(slide.slide_id)
    options = TissueConfig()
    try:
        with open_slide(slide.path, options) as reader:
            first, scale = reader.levels[0], reader.scale
            health.opens = f"yes ({reader.vendor})"
            health.size = f"{first.width} x {first.height}"
            health.levels = ", ".join(f"{level.downsample:g}" for level in reader.levels)
            health.magnification = f"{scale.base_magnification:g} ({scale.magnification_source})"
            health.mpp = "unknown" if scale.mpp is None else f"{scale.mpp:.4g}"
            tissue = find_tissue(reader, options, fingerprint="")
        health.tissue = f"{tissue.tissue_share:.1%}"
        if not tissue.tissue_share:
            health.problems.append("no tissue found")
    except WsiAssetsError as error:
        health.opens = health.opens if health.opens == "no" else "yes, but does not read"
        health.problems.append(f"{error.fault}. {error.remedy or ''}".strip())
    if slide.annotation_path is not None:
        try:
            regions = read_annotation(slide.annotation_path, AnnotationConfig())
            health.annotation = f"{len(regions.audit)} outline{'' if len(regions.audit) == 1 else 's'}"
            if regions.unknown_groups:
                health.problems.append(f"unknown groups {', '.join(regions.unknown_groups)}")
        except WsiAssetsError as error:
            health.annotation = "damaged"
            health.problems.append(str(error))
    return health

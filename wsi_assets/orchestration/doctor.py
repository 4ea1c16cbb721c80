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
    """One row of the ``doctor`` table, text as shown, and what is wrong with the slide, a line each."""

    slide_id: str
    format: str = "does not open"
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
            self.format,
            self.size,
            self.levels,
            self.magnification,
            self.mpp,
            self.tissue,
            self.annotation,
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
            health.format = reader.vendor
            health.size = f"{first.width} x {first.height}"
            health.levels = _levels([level.downsample for level in reader.levels])
            health.magnification = f"{scale.base_magnification:g} ({scale.magnification_source})"
            health.mpp = "unknown" if scale.mpp is None else f"{scale.mpp:.4g}"
            tissue = find_tissue(reader, options, fingerprint="")
        health.tissue = f"{tissue.tissue_share:.1%}"
        if not tissue.tissue_share:
            health.problems.append("no tissue found")
    except WsiAssetsError as error:
        if health.size:
            health.format += ", does not read"
        health.problems.append(f"{error.fault}. {error.remedy or ''}".strip())
    if slide.annotation_path is not None:
        try:
            regions = read_annotation(slide.annotation_path, AnnotationConfig())
            health.annotation = str(len(regions.audit))
            if regions.unknown_groups:
                health.problems.append(f"unknown groups {', '.join(regions.unknown_groups)}")
        except WsiAssetsError as error:
            health.annotation = "damaged"
            health.problems.append(str(error))
    return health


def _levels(downsamples: list[float]) -> str:
    """The true downsamples; a long run of halvings by its ends."""
    halved = downsamples == [2.0**k for k in range(len(downsamples))]
    if halved and len(downsamples) > 4:
        return f"1, 2 … {downsamples[-1]:g}"
    return ", ".join(f"{downsample:g}" for downsample in downsamples)

"""What is read of one slide, as plain functions of files and options: any process can run them, here or on a
cluster's worker. They write nothing and know neither partitions nor records.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_assets.orchestration.config import AnnotationConfig, TissueConfig


def read_tissue(path: Path, options: TissueConfig) -> tuple[str, dict[str, Any]]:
    """The slide's fingerprint, and its ``TissueRegions`` as plain values.

    Raises:
        SlideError: the slide does not open or read.
    """
    from wsi_assets.index import find_tissue
    from wsi_assets.slides import fingerprint, open_slide

    contents = fingerprint(path)
    with open_slide(path, options) as reader:
        return contents, find_tissue(reader, options, fingerprint=contents).to_plain()


@dataclass(frozen=True)
class Outlines:
    """What a slide's outline file says, and pictures of it.

    Attributes:
        contents: fingerprint of the outline file, None without one.
        regions: the ``TumorRegions`` as plain values, None without an outline file.
        area: of the tumour, pixels of level 0.
        audit: a row for every outline.
        overlay, large: JPEGs of the slide with its outlines, for the event log and for a file.
    """

    contents: str | None
    regions: dict[str, Any] | None
    area: float
    unknown_groups: list[str]
    audit: list[dict[str, Any]]
    overlay: bytes
    large: bytes


def read_outlines(
    path: Path, outline: Path | None, options: AnnotationConfig, tissue: dict[str, Any]
) -> Outlines:
    """Outlines of the slide at ``path``; ``tissue`` is its ``TissueRegions`` as plain values.

    Raises:
        AnnotationError: the outline file is damaged.
        SlideError: the slide does not open or read.
    """
    from wsi_assets.annotations import audit_table, read_annotation
    from wsi_assets.index import TissueRegions, overlay_jpeg
    from wsi_assets.slides import fingerprint, open_slide

    contents = None if outline is None else fingerprint(outline)
    found = TissueRegions.from_plain(tissue)
    regions = None if outline is None else read_annotation(outline, options, bounds=found.bounds)
    with open_slide(path) as reader:
        overlay = overlay_jpeg(reader, found, regions)
        large = overlay_jpeg(reader, found, regions, max_side=2400, max_bytes=2_000_000)
    return Outlines(
        contents,
        None if regions is None else regions.to_plain(),
        0.0 if regions is None else float(regions.geometry.area),
        [] if regions is None else list(regions.unknown_groups),
        [] if regions is None else audit_table(regions.audit),
        overlay,
        large,
    )

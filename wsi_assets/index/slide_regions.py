"""What is read of one slide: tissue and annotation, as functions that any process can run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_assets.index.options import TissueOptions
from wsi_assets.slides.options import ScaleOptions

if TYPE_CHECKING:
    from wsi_assets.annotations import AnnotationOptions


class SlideOptions(TissueOptions, ScaleOptions):
    """How a slide is read: its tissue and its scale."""


def read_tissue(path: Path, options: SlideOptions) -> tuple[str, dict[str, Any]]:
    """The slide's fingerprint, and its ``TissueRegions`` as plain values.

    Raises:
        SlideError: the slide does not open or read.
    """
    from wsi_assets.index.tissue import find_tissue
    from wsi_assets.slides import fingerprint, open_slide

    contents = fingerprint(path)
    with open_slide(path, options) as reader:
        return contents, find_tissue(reader, options, fingerprint=contents).to_plain()


@dataclass(frozen=True)
class SlideAnnotation:
    """What a slide's annotation file says, and pictures of it.

    Attributes:
        contents: fingerprint of the annotation file, None without one.
        regions: the ``TumorRegions`` as plain values, None without an annotation file.
        area: of the tumor, pixels of level 0.
        audit: a row for every annotation.
        overlay, large: JPEGs of the slide with its annotations, for a page and for a file.
    """

    contents: str | None
    regions: dict[str, Any] | None
    area: float
    unknown_groups: list[str]
    audit: list[dict[str, Any]]
    overlay: bytes
    large: bytes


def read_slide_annotation(
    path: Path, annotation: Path | None, options: AnnotationOptions, tissue: dict[str, Any]
) -> SlideAnnotation:
    """The annotation of the slide at ``path``; ``tissue`` is its ``TissueRegions`` as plain values.

    Raises:
        AnnotationError: the annotation file is damaged.
        SlideError: the slide does not open or read.
    """
    from wsi_assets.annotations import audit_table, read_annotation
    from wsi_assets.index.pictures import overlay_jpeg
    from wsi_assets.index.tissue import TissueRegions
    from wsi_assets.slides import fingerprint, open_slide

    contents = None if annotation is None else fingerprint(annotation)
    found = TissueRegions.from_plain(tissue)
    regions = None if annotation is None else read_annotation(annotation, options, bounds=found.bounds)
    with open_slide(path) as reader:
        overlay = overlay_jpeg(reader, found, regions)
        large = overlay_jpeg(reader, found, regions, max_side=2400, max_bytes=2_000_000)
    return SlideAnnotation(
        contents,
        None if regions is None else regions.to_plain(),
        0.0 if regions is None else float(regions.geometry.area),
        [] if regions is None else list(regions.unknown_groups),
        [] if regions is None else audit_table(regions.audit),
        overlay,
        large,
    )

"""What is read of one slide: tissue and annotation, as functions that any process can run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_assets.index.options import TissueOptions
from wsi_assets.slides.options import ScaleOptions

if TYPE_CHECKING:
    from wsi_assets.annotations import AnnotationOptions, TumorRegions


class SlideOptions(TissueOptions, ScaleOptions):
    """How a slide is read: its tissue and its scale."""


def read_tissue(slide_id: str, path: Path, options: SlideOptions) -> dict[str, Any]:
    """The slide's ``TissueRegions`` as plain values: compressed bits, so that memory follows the tissue.

    Raises:
        SlideError: the slide does not open or read.
    """
    from wsi_assets.index.tissue import find_tissue
    from wsi_assets.slides import fingerprint, open_slide

    contents = fingerprint(path)  # before it is read, so that a change meanwhile is seen as one
    with open_slide(path, options) as reader:
        tissue = find_tissue(reader, options, contents)
    return {**tissue.to_plain(), "slide_id": slide_id}


def read_tumor(
    annotation: Path | None, options: AnnotationOptions | None, tissue: dict[str, Any] | None
) -> TumorRegions | None:
    """The tumor of a slide, placed by the scanned area that its ``TissueRegions`` state; None without a file.

    Raises:
        AnnotationError: the annotation file is damaged.
    """
    from wsi_assets.annotations import read_annotation

    bounds = tissue and tissue["bounds"]
    return annotation and read_annotation(annotation, options, bounds=bounds and tuple(bounds))


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
    from wsi_assets.index.pictures import overlay_jpeg
    from wsi_assets.index.tissue import TissueRegions
    from wsi_assets.slides import fingerprint, open_slide

    contents = annotation and fingerprint(annotation)
    found = TissueRegions.from_plain(tissue)
    regions = read_tumor(annotation, options, tissue)
    with open_slide(path) as reader:
        overlay = overlay_jpeg(reader, found, regions)
        large = overlay_jpeg(reader, found, regions, max_side=2400, max_bytes=2_000_000)
    if regions is None:
        return SlideAnnotation(None, None, 0.0, [], [], overlay, large)
    plain, unknown = regions.to_plain(), list(regions.unknown_groups)
    area = float(regions.geometry.area)
    return SlideAnnotation(contents, plain, area, unknown, plain["audit"], overlay, large)

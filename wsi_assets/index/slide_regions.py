"""What is read of one slide: tissue and annotation, as functions that any process can run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_assets.index.options import TissueOptions
from wsi_assets.slides.options import ScaleOptions

if TYPE_CHECKING:
    from wsi_assets.annotations import AnnotationOptions, TumorRegions
    from wsi_assets.slides import SlideRow


class SlideOptions(TissueOptions, ScaleOptions):
    """How a slide is read: its tissue and its scale."""


def read_tissue(
    slide_id: str, path: Path, options: SlideOptions, said: SlideRow | None = None
) -> dict[str, Any]:
    """The slide's ``TissueRegions`` as plain values: compressed bits, so that memory follows the tissue.

    Args:
        said: what the cohort's table says of the slide; here its ``base_mag`` and ``mpp`` count.

    Raises:
        SlideError: the slide does not open or read.
    """
    from wsi_assets.index.tissue import find_tissue
    from wsi_assets.slides import fingerprint, open_slide

    contents = fingerprint(path)  # before it is read, so that a change meanwhile is seen as one
    with open_slide(path, options, said) as reader:
        tissue = find_tissue(reader, options, contents)
    return {**tissue.to_plain(), "slide_id": slide_id}


def read_tumor(
    annotation: Path | None,
    options: AnnotationOptions | None,
    tissue: dict[str, Any],
    said: SlideRow | None = None,
) -> TumorRegions | None:
    """The tumor of a slide, placed by the scanned area in its ``TissueRegions``; None without annotation.

    Args:
        said: what the cohort's table says of the slide; here its ``label`` counts.

    Raises:
        AnnotationError: the annotation file is damaged or not understood, and the cohort does not say that
            the slide is normal; or the two contradict each other.
    """
    from wsi_assets.annotations import read_annotation
    from wsi_assets.errors import AnnotationError

    label, bounds = said and said.label, tissue["bounds"]
    try:
        regions = annotation and read_annotation(annotation, options, bounds=bounds and tuple(bounds))
    except AnnotationError:
        if label != "normal":
            raise
        return None
    annotated = regions is not None and not regions.geometry.is_empty
    if label and annotated != (label == "tumor"):
        raise AnnotationError(
            f"has {'' if annotated else 'no '}annotated tumor, and the cohort's table calls it {label}",
            path=annotation or tissue["slide_path"],
            remedy="Annotate its tumor, or correct its label" if label == "tumor" else "Correct one of them",
        )
    return regions


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
    annotation: Path | None,
    options: AnnotationOptions,
    tissue: dict[str, Any],
    said: SlideRow | None = None,
) -> SlideAnnotation:
    """The annotation of a slide, and pictures of it; arguments and errors as of :func:`read_tumor`."""
    from wsi_assets.index.pictures import overlay_jpeg
    from wsi_assets.index.tissue import PICTURE_SIDE, TissueRegions
    from wsi_assets.slides import fingerprint

    contents = annotation and fingerprint(annotation, whole=True)
    found = TissueRegions.from_plain(tissue)
    regions = read_tumor(annotation, options, tissue, said)
    overlay = overlay_jpeg(found, regions)
    large = overlay_jpeg(found, regions, max_side=PICTURE_SIDE, max_bytes=None)
    if regions is None:
        return SlideAnnotation(contents, None, 0.0, [], [], overlay, large)
    plain, unknown = regions.to_plain(), list(regions.unknown_groups)
    area = float(regions.geometry.area)
    return SlideAnnotation(contents, plain, area, unknown, plain["audit"], overlay, large)

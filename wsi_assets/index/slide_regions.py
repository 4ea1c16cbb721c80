"""What is read of one slide: tissue and annotation, as functions that any process can run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_assets.index.options import TissueOptions
from wsi_assets.slides.cohort import NOTHING_SAID, SlideRow
from wsi_assets.slides.options import ScaleOptions

if TYPE_CHECKING:
    from wsi_assets.annotations import AnnotationOptions, TumorRegions
    from wsi_assets.slides import SlideFile


class SlideOptions(TissueOptions, ScaleOptions):
    """How a slide is read: its tissue and its scale."""


def read_tissue(
    slide_id: str, path: Path, options: SlideOptions, said: SlideRow = NOTHING_SAID
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
    slide: SlideFile, options: AnnotationOptions | None, tissue: dict[str, Any]
) -> TumorRegions | None:
    """The tumor of a slide, placed by the scanned area in its ``TissueRegions``; None of a slide without
    annotation and correction.

    A slide without annotation is corrected as one on which nothing is tumor.

    Raises:
        AnnotationError: the annotation file is damaged or not understood, and the cohort does not say that
            the slide is normal; its correction is; or annotation and cohort contradict each other.
    """
    from wsi_assets.annotations import read_annotation
    from wsi_assets.errors import AnnotationError

    label, bounds = slide.said.label, tissue["bounds"]
    bounds = bounds and tuple(bounds)
    annotation, correction = slide.annotation_path, slide.correction_path
    regions = None
    try:
        if annotation or correction:
            regions = read_annotation(annotation, options, correction=correction, bounds=bounds)
    except AnnotationError:
        if label != "normal":
            raise
        if correction:
            regions = read_annotation(None, options, correction=correction, bounds=bounds)
    annotated = regions is not None and not regions.geometry.is_empty
    if label in ("tumor", "normal") and annotated != (label == "tumor"):
        raise AnnotationError(
            f"has {'' if annotated else 'no '}annotated tumor, and the cohort's table calls it {label}",
            path=correction or annotation or slide.path,
            remedy="Annotate its tumor, or correct its label" if label == "tumor" else "Correct one of them",
        )
    return regions


def annotated_by(slide: SlideFile, regions: TumorRegions | None) -> Path | None:
    """The file that says where the slide's tumor is; None of a normal slide.

    A corrected slide is annotated if it has tumor.
    """
    if regions is None or (slide.correction_path and regions.geometry.is_empty):
        return None
    return slide.annotation_path or slide.correction_path


@dataclass(frozen=True)
class SlideAnnotation:
    """What a slide's annotation and its correction say, and pictures of it.

    Attributes:
        contents: version of what was read.
        regions: the ``TumorRegions`` as plain values, None without annotation and correction.
        annotated_by: the file of :func:`annotated_by`.
        area: of the tumor, pixels of level 0.
        notices: of the ``TumorRegions``.
        audit: a row for every annotation; ``changed_um2`` is ``changed`` where the pixel size is known.
        overlay, large: JPEGs of the slide with its annotations, for a page and for a file.
        geojson: the annotation for QuPath.
    """

    contents: str
    regions: dict[str, Any] | None
    annotated_by: Path | None
    area: float
    notices: list[str]
    unknown_groups: list[str]
    audit: list[dict[str, Any]]
    overlay: bytes
    large: bytes
    geojson: str


def read_slide_annotation(
    slide: SlideFile, options: AnnotationOptions, tissue: dict[str, Any]
) -> SlideAnnotation:
    """The annotation of a slide, and pictures of it; arguments and errors as of :func:`read_tumor`."""
    from wsi_assets.annotations import annotation_geojson
    from wsi_assets.index.pictures import overlay_jpeg
    from wsi_assets.index.tissue import PICTURE_SIDE, TissueRegions
    from wsi_assets.slides import annotation_version

    contents = annotation_version(slide)  # before it is read, so that a change meanwhile is seen as one
    found = TissueRegions.from_plain(tissue)
    regions = read_tumor(slide, options, tissue)
    plain, mpp, base = regions and regions.to_plain(), found.scale.mpp, found.levels[0]
    audit = [
        row
        | {"changed_um2": round(row["changed"] * mpp**2, 1) if mpp and row["changed"] is not None else None}
        for row in (plain["audit"] if plain else [])
    ]
    corner = tissue["bounds"][:2] if tissue["bounds"] and options.frame != "slide" else (0, 0)
    return SlideAnnotation(
        contents=contents,
        regions=plain,
        annotated_by=annotated_by(slide, regions),
        area=float(regions.geometry.area) if regions else 0.0,
        notices=list(regions.notices) if regions else [],
        unknown_groups=list(regions.unknown_groups) if regions else [],
        audit=audit,
        overlay=overlay_jpeg(found, regions),
        large=overlay_jpeg(found, regions, max_side=PICTURE_SIDE, max_bytes=None),
        geojson=annotation_geojson(regions, slide.slide_id, (base.width, base.height), corner),
    )

"""Read the tissue and the annotation of one slide; functions that worker processes can run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_assets.index.options import TissueOptions
from wsi_assets.slides.cohort import EMPTY_ROW, SlideRow
from wsi_assets.slides.options import ScaleOptions

if TYPE_CHECKING:
    from wsi_assets.annotations import AnnotationOptions, TumorRegions
    from wsi_assets.slides import SlideFile


class SlideOptions(TissueOptions, ScaleOptions):
    """Options of reading a slide: its tissue and its scale."""


def read_tissue(
    slide_id: str, path: Path, options: SlideOptions, cohort_row: SlideRow = EMPTY_ROW
) -> dict[str, Any]:
    """Find the tissue of a slide: its ``TissueRegions`` as plain values, with the mask compressed.

    Args:
        cohort_row: the slide's row of the cohort table, whose ``base_mag`` and ``mpp`` are used.

    Raises:
        SlideError: the slide does not open, or cannot be read.
    """
    from wsi_assets.index.tissue import find_tissue
    from wsi_assets.slides import fingerprint, open_slide

    contents = fingerprint(path)  # before reading, so that a change during it is detected later
    with open_slide(path, options, cohort_row) as reader:
        tissue = find_tissue(reader, options, contents)
    return {**tissue.to_plain(), "slide_id": slide_id}


def read_tumor(
    slide: SlideFile, options: AnnotationOptions | None, tissue: dict[str, Any]
) -> TumorRegions | None:
    """The tumor regions of a slide; None if it has neither annotation nor correction.

    Args:
        tissue: the slide's ``TissueRegions`` as plain values, for its scanned area.

    Raises:
        AnnotationError: the annotation or the correction is damaged or not understood, or contradicts the
            label in the cohort table. An annotation that is not understood is ignored if the table says that
            the slide is normal.
    """
    from wsi_assets.annotations import read_annotation
    from wsi_assets.errors import AnnotationError

    label, bounds = slide.cohort_row.label, tissue["bounds"]
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
            f"has {'' if annotated else 'no '}annotated tumor, but cohort.csv labels the slide {label}",
            path=correction or annotation or slide.path,
            remedy="Annotate its tumor, or correct its label" if label == "tumor" else "Correct one of them",
        )
    return regions


def annotated_by(slide: SlideFile, regions: TumorRegions | None) -> Path | None:
    """The file that says where the slide's tumor is; None for a normal slide.

    A slide whose correction leaves no tumor is normal.
    """
    if regions is None or (slide.correction_path and regions.geometry.is_empty):
        return None
    return slide.annotation_path or slide.correction_path


@dataclass(frozen=True)
class SlideAnnotation:
    """The annotation of a slide with its correction applied, and pictures of it.

    Attributes:
        contents: version of the annotation and correction files (:func:`annotation_version`).
        regions: the ``TumorRegions`` as plain values; None without annotation and correction.
        annotated_by: the file of :func:`annotated_by`.
        area: tumor area in square level-0 pixels.
        notices, unknown_groups: those of the ``TumorRegions``.
        audit: a row for every annotation; ``changed_um2`` is ``changed`` in um^2, None if mpp is unknown.
        overlay: small JPEG of the slide with its annotations.
    """

    contents: str
    regions: dict[str, Any] | None
    annotated_by: Path | None
    area: float
    notices: list[str]
    unknown_groups: list[str]
    audit: list[dict[str, Any]]
    overlay: bytes


def read_slide_annotation(
    slide: SlideFile, options: AnnotationOptions, tissue: dict[str, Any], folder: Path
) -> SlideAnnotation:
    """Read the annotation of a slide, draw it and export it; arguments and errors as of :func:`read_tumor`.

    Args:
        folder: where ``overlay.jpg``, a large picture of the slide with its annotations, and
            ``annotation.geojson``, the annotation for QuPath, are written.

    Raises:
        DiskError: the folder cannot be written.
    """
    from wsi_assets.annotations import annotation_geojson
    from wsi_assets.files import publish_file
    from wsi_assets.index.pictures import overlay_jpeg
    from wsi_assets.index.tissue import PICTURE_SIDE, TissueRegions
    from wsi_assets.slides import annotation_version

    contents = annotation_version(slide)  # before reading, so that a change during it is detected later
    found = TissueRegions.from_plain(tissue)
    regions = read_tumor(slide, options, tissue)
    plain, mpp, base = regions and regions.to_plain(), found.scale.mpp, found.levels[0]
    audit = [
        row
        | {"changed_um2": round(row["changed"] * mpp**2, 1) if mpp and row["changed"] is not None else None}
        for row in (plain["audit"] if plain else [])
    ]
    corner = tissue["bounds"][:2] if tissue["bounds"] and options.frame != "slide" else (0, 0)
    large = overlay_jpeg(found, regions, max_side=PICTURE_SIDE, max_bytes=None)
    geojson = annotation_geojson(regions, slide.slide_id, (base.width, base.height), corner)
    for name, content in (("overlay.jpg", large), ("annotation.geojson", geojson.encode())):
        with publish_file(folder / name) as unfinished:
            unfinished.write_bytes(content)
    return SlideAnnotation(
        contents=contents,
        regions=plain,
        annotated_by=annotated_by(slide, regions),
        area=float(regions.geometry.area) if regions else 0.0,
        notices=list(regions.notices) if regions else [],
        unknown_groups=list(regions.unknown_groups) if regions else [],
        audit=audit,
        overlay=overlay_jpeg(found, regions),
    )

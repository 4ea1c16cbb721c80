"""Read one annotation file into the tumor regions of a slide."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import shapely

from wsi_assets.annotations.annotation import MAX_JSON_BYTES, MAX_XML_BYTES, damaged, shown
from wsi_assets.annotations.options import AnnotationOptions
from wsi_assets.annotations.regions import TumorRegions, unite
from wsi_assets.annotations.repair import is_tangled
from wsi_assets.errors import AnnotationError
from wsi_assets.slides.naming import ANNOTATION_SUFFIXES


def read_annotation(path: str | PathLike[str], options: AnnotationOptions | None = None) -> TumorRegions:
    """Read the tumor regions of one slide from ASAP XML or GeoJSON.

    Args:
        path: a file ending in .xml, .geojson or .json, in any case.
        options: roles of the groups; CAMELYON's by default.

    Raises:
        AnnotationError: the file is missing, empty, truncated, foreign or hostile, has coordinates that are
            no place on a slide, or is not understood: none of its annotations encloses an area and is of a
            known group, or one is of an unknown group and ``options.unknown_group`` is "error".
    """
    path, options = Path(path), options or AnnotationOptions()
    _check_file(path)
    if path.suffix.lower() == ".xml":
        from wsi_assets.annotations.asap import read_asap

        annotations = read_asap(path)
    else:
        from wsi_assets.annotations.geojson import read_geojson

        annotations = read_geojson(path)
    if is_tangled([annotation for annotation in annotations if annotation.areal]):
        raise damaged(path, "has annotations whose edges cross too often to be drawn ones")
    try:
        regions = unite(annotations, options)
    except shapely.errors.GEOSException as error:
        raise damaged(path, f"has annotations that cannot be united ({error})") from error
    _check_understood(path, regions, options)
    return regions


def _check_understood(path: Path, regions: TumorRegions, options: AnnotationOptions) -> None:
    """Refuse annotations that do not say whether the slide holds tumor; it is neither class then."""
    known = any(row.role != "none" and row.action in ("kept", "repaired") for row in regions.audit)
    if regions.unknown_groups and (
        options.unknown_group == "error" or (options.unknown_group == "auto" and not known)
    ):
        names = ", ".join(shown(group) for group in regions.unknown_groups)
        raise AnnotationError(
            f"has annotations of groups that are neither tumor nor exclusion: {names}",
            path=path,
            remedy="Add them to tumor_groups or exclusion_groups, or set unknown_group to ignore",
        )
    ignored = any(row.action == "ignored" for row in regions.audit)
    meant = ignored and "ignore" in (options.ungrouped, options.unknown_group)
    if regions.audit and not known and not meant:
        kinds = ", ".join(sorted({row.shape_type for row in regions.audit}))
        raise AnnotationError(
            f"has {len(regions.audit)} annotations and none that encloses an area of a known group ({kinds})",
            path=path,
            remedy="Draw areas, or remove the file if the slide is normal",
        )


def _check_file(path: Path) -> None:
    if path.suffix.lower() not in ANNOTATION_SUFFIXES:
        raise damaged(
            path, f"is not an annotation format known here ({', '.join(sorted(ANNOTATION_SUFFIXES))})"
        )
    try:
        size = path.stat().st_size
    except OSError as error:
        raise damaged(path, f"cannot be read ({error.strerror or error})") from error
    if not path.is_file():
        raise damaged(path, "is not a file")
    if size == 0:
        raise damaged(path, "is empty")
    most = MAX_XML_BYTES if path.suffix.lower() == ".xml" else MAX_JSON_BYTES
    if size > most:
        raise damaged(path, f"has {size / 2**20:.0f} MB, more than any annotations need ({most // 2**20} MB)")

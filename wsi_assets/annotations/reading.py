"""Read the annotation file of a slide, and its correction file, into tumor regions."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import IO

import shapely

from wsi_assets.annotations.annotation import MAX_BYTES, MAX_POINTS, Annotation, damaged, quoted
from wsi_assets.annotations.options import AnnotationOptions
from wsi_assets.annotations.regions import TumorRegions, unite
from wsi_assets.annotations.repair import is_tangled
from wsi_assets.errors import AnnotationError
from wsi_assets.slides.naming import ANNOTATION_SUFFIXES


def read_annotation(
    path: str | PathLike[str] | None,
    options: AnnotationOptions | None = None,
    *,
    correction: str | PathLike[str] | None = None,
    bounds: tuple[int, int, int, int] | None = None,
) -> TumorRegions:
    """Read the tumor regions of one slide from ASAP XML or GeoJSON.

    Args:
        path: file that ends in .xml, .geojson or .json, upper or lower case, also compressed (.gz, .zip);
            None for a slide that has only a correction.
        options: roles of the groups; by default those of CAMELYON and QuPath.
        correction: a file of the same formats whose annotations add tumor, remove tumor or ignore areas,
            depending on their groups.
        bounds: (x, y, width, height) of the slide's scanned area in level-0 pixels; None for the whole slide.

    Raises:
        AnnotationError: the file is missing, empty, truncated, of another format or hostile; a coordinate is
            beyond any slide; or the file is not understood: none of its annotations encloses an area of a
            known group, one is of an unknown group and ``options.unknown_group`` is "error", or the origin of
            its coordinates is not known (``options.frame``).
    """
    options = options or AnnotationOptions()
    files = [None if one is None else Path(one) for one in (path, correction)]
    annotations, corrections = ([] if one is None else _read(one, options, bounds) for one in files)
    # The annotation is checked alone, then with its correction, to name the right file.
    for where, drawn in zip(files, (annotations, [*annotations, *corrections]), strict=True):
        if where and sum(one.points for one in drawn) > MAX_POINTS:
            raise damaged(where, f"has more than {MAX_POINTS:,} points")
        if where and is_tangled([one for one in drawn if one.areal]):
            raise damaged(where, "has annotations whose edges cross too often to have been drawn")
    try:
        regions = unite(annotations, options, corrections)
    except shapely.errors.GEOSException as error:
        raise damaged(files[1] or files[0], f"has annotations that cannot be united ({error})") from error
    if files[0]:
        _check_understood(files[0], regions, options)
    return regions


def _read(
    path: Path, options: AnnotationOptions, bounds: tuple[int, int, int, int] | None
) -> list[Annotation]:
    is_xml, data = _read_bytes(path)
    if is_xml:
        from wsi_assets.annotations.asap import read_asap

        return read_asap(path, data)
    from wsi_assets.annotations.geojson import read_geojson

    return _in_slide_frame(read_geojson(path, data, options), path, options, bounds)


def _read_bytes(path: Path) -> tuple[bool, bytes]:
    """(whether it is XML, its content) of an annotation file, decompressed if need be."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe could wait forever
            raise damaged(path, "is not a file")
        with _opened(path) as (name, stream):
            ending = Path(name).suffix.lower()
            if ending not in ANNOTATION_SUFFIXES:
                known = ", ".join(sorted(ANNOTATION_SUFFIXES))
                raise damaged(path, f"is not an annotation format known here ({known}, also in .gz or .zip)")
            data = stream.read(MAX_BYTES + 1)  # an archive of some kB can unpack to GB
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        fault = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise damaged(path, f"cannot be read ({fault})") from error
    if not data:
        raise damaged(path, "is empty")
    if len(data) > MAX_BYTES:
        raise damaged(path, f"has more than {MAX_BYTES // 2**20} MB, which no annotations need")
    return ending == ".xml", data


@contextmanager
def _opened(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, stream) of the annotation file, or of the one inside an archive."""
    if path.suffix.lower() == ".gz":
        with gzip.open(path) as stream:
            yield path.stem, stream
    elif path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if _is_annotation(Path(name))]
            if len(names) != 1:
                raise damaged(path, f"is an archive of {len(names)} annotation files, not of one")
            with archive.open(names[0]) as stream:
                yield names[0], stream
    else:
        with path.open("rb") as stream:
            yield path.name, stream


def _is_annotation(inside: Path) -> bool:
    hidden = inside.name.startswith(".") or "__MACOSX" in inside.parts
    return inside.suffix.lower() in ANNOTATION_SUFFIXES and not hidden


def _in_slide_frame(
    annotations: list[Annotation],
    path: Path,
    options: AnnotationOptions,
    bounds: tuple[int, int, int, int] | None,
) -> list[Annotation]:
    """Shift annotations from GeoJSON so that they count from the slide's corner.

    QuPath crops a slide that has bounds (MRXS, SCN, sparse TIFF) to them and counts from their corner; other
    programs count from the slide's corner. The file does not say which.
    """
    corner = (0, 0) if bounds is None else tuple(bounds[:2])
    if corner == (0, 0) or options.frame == "slide" or not annotations:
        return annotations
    if options.frame == "auto":
        raise AnnotationError(
            f"is of a slide whose scanned area begins at x {corner[0]}, y {corner[1]}, and does not say "
            "whether its coordinates count from there",
            path=path,
            remedy="Set frame to bounds if it is from QuPath, to slide if its coordinates count from the "
            "slide's corner",
        )
    return [
        replace(one, shell=one.shell + corner, holes=tuple(hole + corner for hole in one.holes))
        for one in annotations
    ]


def _check_understood(path: Path, regions: TumorRegions, options: AnnotationOptions) -> None:
    """Refuse a file that does not fully say where the slide holds tumor.

    A slide whose annotation is not fully understood is neither tumor nor normal until a person says so,
    because a wrong guess would be a wrong label that nobody notices. A refused file leaves its slide out;
    unknown annotations beside known ones are ignored and become notices.
    """
    rows = [row for row in regions.audit if row.changed is None]
    known = any(row.role != "none" and row.action in ("kept", "repaired") for row in rows)
    if regions.unknown_groups and (
        options.unknown_group == "error" or (options.unknown_group == "auto" and not known)
    ):
        names = ", ".join(quoted(group) for group in regions.unknown_groups)
        raise AnnotationError(
            f"has annotations of groups that are neither tumor nor exclusion: {names}",
            path=path,
            remedy="Add them to tumor_groups or exclusion_groups, or set unknown_group to ignore",
        )
    ignored = any(row.action == "ignored" for row in rows)
    meant = ignored and "ignore" in (options.ungrouped, options.unknown_group)
    if rows and not known and not meant:
        kinds = ", ".join(sorted({row.shape_type for row in rows}))
        raise AnnotationError(
            f"has {len(rows)} annotations and none that encloses an area of a known group ({kinds})",
            path=path,
            remedy="Draw areas, or remove the file if the slide is normal",
        )

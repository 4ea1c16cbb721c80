"""Outlines a pathologist drew, as repaired tumour geometry with an audit of every ring.

Belongs here: reading annotation files (ASAP XML, GeoJSON), roles of groups, repair, union and subtraction,
rasterising. Does not: pixels of slides, the patch grid, labels, pictures.

Geometry is shapely's, in (x, y) level-0 pixels: pixel (row r, column c) covers [c, c + 1) x [r, r + 1).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_assets.annotations.options import AnnotationOptions
    from wsi_assets.annotations.raster import rasterize
    from wsi_assets.annotations.reading import ANNOTATION_SUFFIXES, read_annotation
    from wsi_assets.annotations.regions import AuditRow, TumorRegions, audit_table

_HOMES = {
    "ANNOTATION_SUFFIXES": "reading",
    "AnnotationOptions": "options",
    "AuditRow": "regions",
    "TumorRegions": "regions",
    "audit_table": "regions",
    "rasterize": "raster",
    "read_annotation": "reading",
}

__all__ = [
    "ANNOTATION_SUFFIXES",
    "AnnotationOptions",
    "AuditRow",
    "TumorRegions",
    "audit_table",
    "rasterize",
    "read_annotation",
]


def __getattr__(name: str) -> Any:
    # Loading the options must not load shapely: definitions and the command line load only options.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

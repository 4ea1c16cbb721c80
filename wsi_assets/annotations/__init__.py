"""Read a pathologist's annotations as valid tumor geometry, with an audit of every annotation.

Geometry is shapely's, in (x, y) level-0 pixels: pixel (row r, column c) covers [c, c + 1) x [r, r + 1).
"""

from __future__ import annotations

from wsi_assets.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "reading": ("read_annotation",),
        "export": ("annotation_geojson",),
        "options": ("AnnotationOptions",),
        "regions": ("AuditRow", "TumorRegions"),
    },
)

"""Repair drawn annotations into valid areas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from shapely import MultiPolygon

from wsi_assets.annotations.annotation import Annotation

_TANGLE_BASE, _TANGLE_PER_EDGE = 100_000, 200
_STARTS = 4
"""Starting points along a ring from which its repair is tried; random rings of 14 points need no more."""


@dataclass(frozen=True)
class Repaired:
    """One annotation made valid; areas in square level-0 pixels.

    Attributes:
        area: the valid area, empty if the annotation was skipped.
        action: "kept", "repaired" or "skipped".
        area_raw: shoelace area of the rings as drawn, shell minus holes; the two lobes of a figure of eight
            cancel each other in it.
        note: what was wrong.
    """

    area: MultiPolygon
    action: str
    area_raw: float
    note: str


def repair(annotation: Annotation) -> Repaired:
    """Make an areal annotation valid without losing area that was drawn.

    By the non-zero winding rule, everything that the line encircles is inside. The even-odd rule, which
    ``make_valid`` follows by default, makes a hole wherever a hand-drawn line crosses itself, and
    ``buffer(0)`` drops one lobe of a bow-tie.
    """
    rings = [annotation.shell, *annotation.holes]
    raw = max(0.0, _shoelace(rings[0]) - sum(_shoelace(hole) for hole in rings[1:]))
    distinct = len(np.unique(annotation.shell, axis=0))
    if distinct < 3:
        return Repaired(MultiPolygon(), "skipped", raw, f"{distinct} distinct points")
    holes = [hole for hole in annotation.holes if len(np.unique(hole, axis=0)) >= 3]
    notes = []
    if len(holes) < len(annotation.holes):
        notes.append(f"{len(annotation.holes) - len(holes)} holes without area dropped")
    polygon = shapely.Polygon(annotation.shell, holes)
    if polygon.is_valid:
        return Repaired(MultiPolygon([polygon]), "kept", raw, ", ".join(notes))
    notes.insert(0, _reason(polygon))
    area = _nonzero_fill(annotation.shell)
    if holes:
        # Holes are repaired apart: repaired with the shell, a hole outside of it would become another shell.
        cut = shapely.union_all([_nonzero_fill(hole) for hole in holes])
        area = areal_parts(shapely.difference(area, cut))
    if area.is_empty:
        return Repaired(area, "skipped", raw, ", ".join([*notes, "encloses no area"]))
    return Repaired(area, "repaired", raw, ", ".join(notes))


def _nonzero_fill(ring: np.ndarray) -> MultiPolygon:
    """The area inside a ring (n, 2) by the non-zero winding rule."""
    # GEOS's repair can lose part of a ring that begins with a line drawn forth and back, but not of a ring
    # that has such a line further on. So several starting points are tried and the largest area is kept.
    rings = (np.roll(ring, -(len(ring) * i // _STARTS), axis=0) for i in range(_STARTS))
    tries = shapely.make_valid(
        [shapely.Polygon(one) for one in rings], method="structure", keep_collapsed=False
    )
    area = areal_parts(tries[np.argmax(shapely.area(tries))])
    # In about one of a thousand random rings parts touch along a line, which is invalid; a union joins them.
    return area if area.is_valid else areal_parts(shapely.union_all(shapely.get_parts(area)))


def areal_parts(geometry: shapely.Geometry) -> MultiPolygon:
    """The polygons of any geometry, without its lines and points."""
    parts = shapely.get_parts(geometry)
    while (shapely.get_type_id(parts) > 3).any():  # collections within collections
        parts = shapely.get_parts(parts)
    polygons = parts[(shapely.get_type_id(parts) == 3) & ~shapely.is_empty(parts)]
    return MultiPolygon(list(polygons))


def is_tangled(annotations: Sequence[Annotation]) -> bool:
    """Whether the edges of all annotations cross so often that uniting them could take hours.

    Counted are pairs of edges whose bounding boxes intersect. Drawn annotations have about 4 per edge, mostly
    neighbors; a scribble of n random edges has about n^2 / 2 in all.
    """
    rings = [
        ring for annotation in annotations for ring in (annotation.shell, *annotation.holes) if len(ring) > 1
    ]
    if not rings:
        return False
    edges = np.concatenate([np.stack([ring, np.roll(ring, -1, axis=0)], axis=1) for ring in rings])
    lines = shapely.linestrings(edges)
    tree = shapely.STRtree(lines)
    limit = _TANGLE_BASE + _TANGLE_PER_EDGE * len(lines)
    step = max(1, 4_000_000 // len(lines))
    meetings = 0
    for start in range(0, len(lines), step):
        meetings += tree.query(lines[start : start + step]).shape[1]
        if meetings > limit:
            return True
    return False


def _shoelace(ring: np.ndarray) -> float:
    """Area of a simple ring (n, 2) of either direction."""
    if len(ring) < 3:
        return 0.0
    x, y = (ring - ring[0]).T  # near the origin, where large coordinates lose no precision
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _reason(polygon: shapely.Polygon) -> str:
    """GEOS's reason without the coordinates, e.g. "self-intersection"."""
    return shapely.is_valid_reason(polygon).split("[")[0].strip().lower()

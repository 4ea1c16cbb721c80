"""Make the rings as drawn into valid areas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from shapely import MultiPolygon

from wsi_assets.annotations.annotation import Annotation

_TANGLE_BASE, _TANGLE_PER_EDGE = 100_000, 200
_STARTS = 4
"""Points, spread along a ring, from which its repair is tried; random rings of up to 14 need no more."""


@dataclass(frozen=True)
class Repaired:
    """One annotation made valid; areas in square level-0 pixels.

    Attributes:
        area: the valid area, empty when the annotation was skipped.
        action: "kept", "repaired" or "skipped".
        area_raw: by the shoelace formula, shell less holes, of the rings as drawn. The lobes of a
            figure of eight cancel in it.
        note: what was found.
    """

    area: MultiPolygon
    action: str
    area_raw: float
    note: str


def repair(annotation: Annotation) -> Repaired:
    """Make an areal annotation valid without losing area that was drawn.

    Inside is what the line winds round, any number of times and in either direction (the non-zero rule).
    Even-odd, which ``make_valid``'s default method follows, punches a hole wherever a hand-drawn line runs
    over itself, and ``buffer(0)`` drops one lobe of a bow-tie.
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
    area = _wound_round(annotation.shell)
    if holes:
        # Each by itself: repaired together, a hole beside its shell would come out as one more shell.
        cut = shapely.union_all([_wound_round(hole) for hole in holes])
        area = areal_parts(shapely.difference(area, cut))
    if area.is_empty:
        return Repaired(area, "skipped", raw, ", ".join([*notes, "encloses no area"]))
    return Repaired(area, "repaired", raw, ", ".join(notes))


def _wound_round(ring: np.ndarray) -> MultiPolygon:
    """What a ring (n, 2) winds round, by the non-zero rule."""
    # GEOS's non-zero repair can lose all or part of a ring that begins with a line there and back, but
    # nothing of one that has it further on.
    rings = (np.roll(ring, -(len(ring) * i // _STARTS), axis=0) for i in range(_STARTS))
    tries = shapely.make_valid(
        [shapely.Polygon(one) for one in rings], method="structure", keep_collapsed=False
    )
    area = areal_parts(tries[np.argmax(shapely.area(tries))])
    # In about one of a thousand random rings it leaves parts touching along a line. Even-odd repair would
    # punch a hole where three of them meet; a union does not.
    return area if area.is_valid else areal_parts(shapely.union_all(shapely.get_parts(area)))


def areal_parts(geometry: shapely.Geometry) -> MultiPolygon:
    """The polygons of any geometry, lines and points left out."""
    parts = shapely.get_parts(geometry)
    while (shapely.get_type_id(parts) > 3).any():  # collections within collections
        parts = shapely.get_parts(parts)
    polygons = parts[(shapely.get_type_id(parts) == 3) & ~shapely.is_empty(parts)]
    return MultiPolygon(list(polygons))


def is_tangled(annotations: Sequence[Annotation]) -> bool:
    """Whether the edges of all annotations together meet so often that overlaying them could take hours.

    Drawn annotations have about 4 meetings of bounding boxes per edge, mostly with neighbors; a scribble of
    n random edges has about n^2 / 2.
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
    """Enclosed area of a ring (n, 2) that does not cross itself, whatever its direction."""
    if len(ring) < 3:
        return 0.0
    x, y = (ring - ring[0]).T  # near the origin, so that large coordinates do not eat the precision
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _reason(polygon: shapely.Polygon) -> str:
    """GEOS's own reason without the place, e.g. "self-intersection"."""
    return shapely.is_valid_reason(polygon).split("[")[0].strip().lower()

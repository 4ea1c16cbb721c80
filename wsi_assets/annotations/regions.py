"""Tumor regions of one slide: annotations united by role, with an audit that adds up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import shapely
from shapely import MultiPolygon

from wsi_assets.annotations.annotation import Annotation
from wsi_assets.annotations.options import AnnotationOptions
from wsi_assets.annotations.repair import Repaired, areal_parts, repair
from wsi_assets.errors import AnnotationError

UNKNOWN_GROUP, NO_GROUP = "unknown group", "in no group"
"""Notes of audit rows."""


@dataclass(frozen=True)
class AuditRow:
    """What became of one annotation; areas in square level-0 pixels, to a tenth.

    Attributes:
        name: the annotation's own name.
        group: its group or class as written, "" when it has none.
        role: "tumor", "exclusion" or "none".
        shape_type: the file's own type, e.g. "Polygon", "Spline", "Dot".
        points: points of shell and holes as drawn.
        action: "kept", "repaired", "skipped" (no area), "ignored" (by its group), "not areal".
        area_raw: shoelace area of the rings as drawn.
        area_after: area once valid; 0 when it does not count.
        note: why, in words.
    """

    name: str
    group: str
    role: str
    shape_type: str
    points: int
    action: str
    area_raw: float
    area_after: float
    note: str


@dataclass(frozen=True)
class TumorRegions:
    """Tumor of one slide, in (x, y) level-0 pixels.

    Attributes:
        geometry: tumor annotations united, less the exclusions; valid, possibly empty.
        excluded: the exclusion annotations united, also where they lie outside any tumor; for pictures.
        audit: one row an annotation, in file order.
    """

    geometry: MultiPolygon
    excluded: MultiPolygon
    audit: tuple[AuditRow, ...]

    @property
    def unknown_groups(self) -> tuple[str, ...]:
        """Groups in neither list, sorted."""
        return tuple(sorted({row.group for row in self.audit if row.group and UNKNOWN_GROUP in row.note}))

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should know of the file, one line each: what is ignored, lost or assumed."""
        lines: dict[str, list[AuditRow]] = {}
        for row in self.audit:
            if row.action == "not areal":
                what = f"of type {row.shape_type}, which enclose no area"
            elif row.action == "skipped":
                what = "with too few points to enclose an area"
            elif row.action == "ignored":
                what = f"of the unknown group {row.group!r}, ignored" if row.group else "in no group, ignored"
            elif NO_GROUP in row.note and row.role == "tumor":
                what = "in no group, taken as tumor"
            else:
                continue
            lines.setdefault(what, []).append(row)
        return tuple(
            f"annotations {what}: {len(rows)} ({sum(row.area_raw for row in rows):,.0f} square pixels)"
            for what, rows in lines.items()
        )

    def to_plain(self) -> dict[str, Any]:
        """Plain types only: geometry as WKB, exact to the last bit."""
        return {
            "geometry": shapely.to_wkb(self.geometry),
            "excluded": shapely.to_wkb(self.excluded),
            "audit": [asdict(row) for row in self.audit],
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> TumorRegions:
        """Rebuild what :meth:`to_plain` gave.

        Raises:
            AnnotationError: it is something else.
        """
        try:
            geometry, excluded = (shapely.from_wkb(plain[name]) for name in ("geometry", "excluded"))
            if not all(isinstance(area, MultiPolygon) for area in (geometry, excluded)):
                raise TypeError("its areas are not polygons")
            return cls(geometry, excluded, tuple(AuditRow(**row) for row in plain["audit"]))
        except (KeyError, TypeError, ValueError, shapely.errors.ShapelyError) as error:
            raise AnnotationError(
                f"not the annotations of a slide ({error!r})", remedy="Materialize annotation_regions again"
            ) from error


def unite(annotations: Sequence[Annotation], options: AnnotationOptions) -> TumorRegions:
    """Repair the annotations, unite them by role, subtract the exclusions and account for every one.

    Tumor annotations that overlap or nest are united, so none punches a hole in another; holes come only from
    exclusions and from holes the file itself gives a polygon.
    """
    roles = _roles(annotations, options)
    repaired = [repair(annotation) if annotation.areal else None for annotation in annotations]

    def united(role: str) -> MultiPolygon:
        areas = [
            ring.area
            for ring, (its_role, _) in zip(repaired, roles, strict=True)
            if ring and its_role == role
        ]
        return areal_parts(shapely.union_all(areas))

    excluded = united("exclusion")
    return TumorRegions(
        geometry=areal_parts(shapely.difference(united("tumor"), excluded)),
        excluded=excluded,
        audit=tuple(_row(*of_one) for of_one in zip(annotations, roles, repaired, strict=True)),
    )


def _roles(annotations: Sequence[Annotation], options: AnnotationOptions) -> list[tuple[str, str]]:
    """(role, note) of each annotation: "tumor", "exclusion" or "none"."""
    by_default = {"auto": "none" if any(one.groups for one in annotations) else "tumor", "ignore": "none"}
    ungrouped = by_default.get(options.ungrouped, "tumor")
    unknown = "tumor" if options.unknown_group == "tumor" else "none"
    roles = []
    for one in annotations:
        role, group = options.known_role(one.groups) or (None, "")
        if role:
            roles.append((role, "" if group == one.groups[0] else f"by its group {group}"))
        else:
            roles.append((unknown, UNKNOWN_GROUP) if one.groups else (ungrouped, NO_GROUP))
    return roles


def _row(annotation: Annotation, role: tuple[str, str], ring: Repaired | None) -> AuditRow:
    ring = ring or Repaired(MultiPolygon(), "not areal", 0.0, "encloses no area by its type")
    spline = annotation.shape_type.strip().casefold() == "spline"
    notes = (role[1], ring.note, "spline taken as the polygon through its points" if spline else "")
    counts = role[0] != "none" or ring.action == "not areal"
    return AuditRow(
        name=annotation.name,
        group=annotation.groups[0] if annotation.groups else "",
        role=role[0],
        shape_type=annotation.shape_type,
        points=annotation.points,
        action=ring.action if counts else "ignored",
        area_raw=round(ring.area_raw, 1),
        area_after=round(float(ring.area.area), 1) if counts else 0.0,
        note=", ".join(filter(None, notes)),
    )

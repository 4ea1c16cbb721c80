"""Tumor regions of one slide: annotations united by role and corrected, with an audit of each annotation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import shapely
from shapely import MultiPolygon

from wsi_assets.annotations.annotation import Annotation
from wsi_assets.annotations.options import AnnotationOptions
from wsi_assets.annotations.repair import Repaired, areal_parts, repair
from wsi_assets.errors import AnnotationError

UNKNOWN_GROUP, NO_GROUP, NOT_DRAWN = "unknown group", "in no group", "not drawn by a person"
"""Notes of audit rows."""


@dataclass(frozen=True)
class AuditRow:
    """What was done with one annotation; areas in square level-0 pixels, to a tenth.

    Attributes:
        name: the annotation's name.
        group: its group or class as written, "" if it has none.
        role: "tumor", "exclusion", "ignore" or "none".
        shape_type: the type in the file, e.g. "Polygon", "Spline", "Dot".
        points: number of points of shell and holes as drawn.
        action: "kept"; "repaired"; "skipped" (it has no area); "ignored" (because of its group); "not areal";
            "copy" (it marks its file as an edited copy, which replaces the slide's annotation).
        area_raw: shoelace area of the rings as drawn.
        area_after: area after repair; 0 if the annotation does not count.
        note: the reason, in words.
        changed: for a correction, the area it adds to the tumor, removes from it, or ignores; for a "copy",
            the tumor area that was deleted in it. None for the annotation itself.
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
    changed: float | None = None


@dataclass(frozen=True)
class TumorRegions:
    """Tumor of one slide, in (x, y) level-0 pixels.

    Attributes:
        geometry: union of the tumor annotations without excluded and ignored areas; valid, possibly empty.
        excluded: union of the exclusion annotations, also outside any tumor; for pictures.
        audit: a row for each annotation, in file order; those of the correction last.
        ignored: union of the areas that are neither tumor nor normal.
    """

    geometry: MultiPolygon
    excluded: MultiPolygon
    audit: tuple[AuditRow, ...]
    ignored: MultiPolygon = field(default_factory=MultiPolygon)

    @property
    def unknown_groups(self) -> tuple[str, ...]:
        """Groups of the annotation file that no option lists, sorted."""
        rows = [row for row in self.audit if row.changed is None and UNKNOWN_GROUP in row.note]
        return tuple(sorted({row.group for row in rows if row.group}))

    @property
    def notices(self) -> tuple[str, ...]:
        """Lines on what was ignored, lost or assumed of the files."""
        lines: dict[str, list[AuditRow]] = {}
        for row in self.audit:
            if NOT_DRAWN in row.note:
                what = "that are predictions or detections, ignored"
            elif row.action == "not areal":
                what = f"of type {row.shape_type}, which enclose no area"
            elif row.action == "skipped":
                what = "with too few points to enclose an area"
            elif row.action == "ignored":
                what = f"of the unknown group {row.group!r}, ignored" if row.group else "in no group, ignored"
            elif NO_GROUP in row.note and row.role == "tumor":
                what = "in no group, taken as tumor"
            else:
                continue
            kind = "annotations" if row.changed is None else "corrections"
            lines.setdefault(f"{kind} {what}", []).append(row)
        return tuple(
            f"{what}: {len(rows)} ({sum(row.area_raw for row in rows):,.0f} square pixels)"
            for what, rows in lines.items()
        )

    def to_plain(self) -> dict[str, Any]:
        """The same as plain types; geometry as WKB, which is exact."""
        return {
            "geometry": shapely.to_wkb(self.geometry),
            "excluded": shapely.to_wkb(self.excluded),
            "ignored": shapely.to_wkb(self.ignored),
            "audit": [asdict(row) for row in self.audit],
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> TumorRegions:
        """The inverse of :meth:`to_plain`.

        Raises:
            AnnotationError: the values are something else.
        """
        try:
            areas = {name: shapely.from_wkb(plain[name]) for name in ("geometry", "excluded", "ignored")}
            if not all(isinstance(area, MultiPolygon) for area in areas.values()):
                raise TypeError("its areas are not polygons")
            return cls(**areas, audit=tuple(AuditRow(**row) for row in plain["audit"]))
        except (KeyError, TypeError, ValueError, shapely.errors.ShapelyError) as error:
            raise AnnotationError(
                f"not the annotations of a slide ({error!r})", remedy="Materialize annotation_regions again"
            ) from error


@dataclass(frozen=True)
class _Drawn:
    """An annotation with its role, a note on the role, and its repaired area (None if its type has none)."""

    annotation: Annotation
    role: str
    note: str
    repaired: Repaired | None

    @property
    def area(self) -> MultiPolygon:
        return self.repaired.area if self.repaired else MultiPolygon()


def unite(
    annotations: Sequence[Annotation], options: AnnotationOptions, corrections: Sequence[Annotation] = ()
) -> TumorRegions:
    """Repair annotations, unite them by role, subtract exclusions and apply corrections, with an audit.

    Overlapping or nested tumor annotations are united, so none makes a hole in another; holes come only from
    exclusions and from holes that the file gives a polygon.

    Corrections are applied by role, in any order of the file: they first add tumor, also over exclusions,
    then remove tumor; ignored areas are cut out last. Corrections with a "copy" among them replace the
    annotations.
    """
    drawn = _drawn(annotations, _roles(annotations, options))
    fixes = _drawn(corrections, [_role_of_correction(one, options) for one in corrections])
    cut = _united(drawn, "exclusion")
    before = areal_parts(shapely.difference(_united(drawn, "tumor"), cut))
    kept = [] if any(one.kind == "copy" for one in corrections) else drawn
    added, removed = _united(fixes, "tumor"), _united(fixes, "exclusion")
    whole = shapely.union(before, added) if kept else added
    ignored = _united([*kept, *fixes], "ignore")
    tumor_before, tumor_then = _area_within(before), _area_within(whole)
    changes = {
        "tumor": lambda area: area.area - tumor_before(area),
        "exclusion": tumor_then,
        "ignore": shapely.area,
        "copy": lambda _: shapely.difference(before, whole).area,
    }

    def changed(one: _Drawn) -> float:
        how = changes.get("copy" if one.annotation.kind == "copy" else one.role)
        return round(max(0.0, float(how(one.area))), 1) if how else 0.0

    if corrections:
        cut = shapely.union(shapely.difference(_united(kept, "exclusion"), added), removed)
    return TumorRegions(
        geometry=areal_parts(shapely.difference(shapely.difference(whole, removed), ignored)),
        excluded=areal_parts(cut),
        audit=(*map(_row, drawn), *(_row(one, changed(one)) for one in fixes)),
        ignored=ignored,
    )


def _area_within(region: MultiPolygon) -> Callable[[MultiPolygon], float]:
    """A function: geometry -> its area within ``region``; only nearby parts of the region are intersected."""
    parts = shapely.get_parts(region)
    tree = shapely.STRtree(parts)
    return lambda area: shapely.intersection(area, MultiPolygon(list(parts[tree.query(area)]))).area


def _drawn(annotations: Sequence[Annotation], roles: Sequence[tuple[str, str]]) -> list[_Drawn]:
    return [
        _Drawn(one, *role, repair(one) if one.areal else None)
        for one, role in zip(annotations, roles, strict=True)
    ]


def _united(drawn: Sequence[_Drawn], role: str) -> MultiPolygon:
    return areal_parts(shapely.union_all([one.area for one in drawn if one.role == role]))


def _roles(annotations: Sequence[Annotation], options: AnnotationOptions) -> list[tuple[str, str]]:
    """(role, note) of each annotation: "tumor", "exclusion", "ignore" or "none"."""
    by_default = {"auto": "none" if any(one.groups for one in annotations) else "tumor", "ignore": "none"}
    ungrouped = by_default.get(options.ungrouped, "tumor")
    unknown = "tumor" if options.unknown_group == "tumor" else "none"
    return [
        _known_role(one, options) or ((unknown, UNKNOWN_GROUP) if one.groups else (ungrouped, NO_GROUP))
        for one in annotations
    ]


def _role_of_correction(one: Annotation, options: AnnotationOptions) -> tuple[str, str]:
    """(role, note); a correction without a known class has the role "none"."""
    if one.kind == "copy":
        return "none", "an edited copy of the slide's annotation, which it replaces"
    if one.kind != "annotation":
        return "none", NOT_DRAWN
    return _known_role(one, options) or ("none", UNKNOWN_GROUP if one.groups else NO_GROUP)


def _known_role(one: Annotation, options: AnnotationOptions) -> tuple[str, str] | None:
    role, group = options.known_role(one.groups) or ("", "")
    return (role, "" if group == one.groups[0] else f"by its group {group}") if role else None


def _row(drawn: _Drawn, changed: float | None = None) -> AuditRow:
    annotation = drawn.annotation
    ring = drawn.repaired or Repaired(MultiPolygon(), "not areal", 0.0, "encloses no area by its type")
    spline = annotation.shape_type.strip().casefold() == "spline"
    notes = (drawn.note, ring.note, "spline taken as the polygon through its points" if spline else "")
    counts = drawn.role != "none" or ring.action == "not areal"
    action = ring.action if counts else "ignored"
    return AuditRow(
        name=annotation.name,
        group=annotation.groups[0] if annotation.groups else "",
        role=drawn.role,
        shape_type=annotation.shape_type,
        points=annotation.points,
        action="copy" if annotation.kind == "copy" and changed is not None else action,
        area_raw=round(ring.area_raw, 1),
        area_after=round(float(ring.area.area), 1) if counts else 0.0,
        note=", ".join(filter(None, notes)),
        changed=changed,
    )

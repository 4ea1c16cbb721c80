"""Read GeoJSON as QuPath and other tools write it: (x, y) in level-0 pixels, with the class as the group."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsi_assets.annotations.annotation import (
    MAX_DEPTH,
    Annotation,
    as_ring,
    clean_text,
    damaged,
    quoted,
)
from wsi_assets.annotations.options import AnnotationOptions

_AREAL = {"Polygon", "MultiPolygon"}
_NOT_AREAL = {"Point", "MultiPoint", "LineString", "MultiLineString"}
_GEOMETRIES = {*_AREAL, *_NOT_AREAL, "GeometryCollection"}

_CLASS_KEY = re.compile(
    "class(ification|name|label|id)?|annotationclass|labels?(name)?|category(name)?|group(name)?|terms?|tissuetype"
)
"""Names of the properties that hold a feature's class, reduced to their letters in lower case. The first that
holds one counts; then ``type``, as in TIAToolbox; then any property that names a known group, such as
``name``."""

_SHAPE = re.compile("annotation|(multi)?polygon|polyline|rectangle|ellipse|circle|point|line")
"""Values of ``type`` that name a shape instead of a class."""

PREDICTION = "Tumor probability"
"""Prefix of the names of predicted areas, which are written locked."""

COPY = "wsi_assets: annotation of"
"""Prefix of the name of the annotation around a whole slide, which marks a file as an exported annotation."""

_MAX_NAMES = 16
"""Most parts of a class name ("Tumor: Positive" has two); QuPath's have two or three."""


def read_geojson(path: Path, data: bytes, options: AnnotationOptions) -> list[Annotation]:
    """Read a FeatureCollection, a Feature, a geometry or a list of these; one annotation for each polygon.

    Args:
        path: the file, for messages.
        data: its content.
        options: the known groups.

    Raises:
        AnnotationError: the file is not JSON, not GeoJSON, truncated, or a coordinate is not a number.
    """
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise damaged(path, "nests values too deep") from error
    except ValueError as error:  # not JSON, not Unicode, or an integer of thousands of digits
        raise damaged(path, f"is not JSON, perhaps cut short ({error})") from error
    return list(_Reader(path, options).features(content, 0))


class _Reader:
    def __init__(self, path: Path, options: AnnotationOptions):
        self.path, self.options = path, options

    def features(self, value: Any, depth: int) -> Iterator[Annotation]:
        if depth > MAX_DEPTH:
            raise damaged(self.path, f"nests features more than {MAX_DEPTH} deep")
        if isinstance(value, list):
            for item in value:
                yield from self.features(item, depth + 1)
            return
        kind = value.get("type") if isinstance(value, dict) else None
        if kind == "FeatureCollection":
            yield from self.features(self._list(value.get("features"), "features"), depth + 1)
        elif kind == "Feature":
            properties = value.get("properties")
            properties = properties if isinstance(properties, dict) else {}
            name, groups = properties.get("name"), _groups(value, properties, self.options)
            name = name if isinstance(name, str) else str(value.get("id") or "")
            kind = _kind(value, properties, name)
            for one in self.geometry(value.get("geometry"), name, groups, depth + 1):
                yield replace(one, kind=kind)
        elif isinstance(kind, str) and kind in _GEOMETRIES:
            yield from self.geometry(value, "", (), depth + 1)
        else:
            raise damaged(self.path, "is not GeoJSON: it holds something that is no feature")

    def geometry(self, value: Any, name: str, groups: tuple[str, ...], depth: int) -> Iterator[Annotation]:
        kind = value.get("type") if isinstance(value, dict) else None
        if depth > MAX_DEPTH:
            raise damaged(self.path, f"nests geometries more than {MAX_DEPTH} deep")
        if value is None:  # GeoJSON allows a feature without a geometry
            yield Annotation(clean_text(name), groups, "no geometry", False, as_ring([], self.path, name))
        elif isinstance(kind, str) and kind in _AREAL:
            polygons = value.get("coordinates")
            polygons = [polygons] if kind == "Polygon" else self._list(polygons, "coordinates")
            for rings in polygons:
                shell, *holes = [self._ring(one, name) for one in self._list(rings, "coordinates") or [[]]]
                yield Annotation(clean_text(name), groups, kind, True, shell, tuple(holes))
        elif kind == "GeometryCollection":
            for member in self._list(value.get("geometries"), "geometries"):
                yield from self.geometry(member, name, groups, depth + 1)
        elif isinstance(kind, str) and kind in _NOT_AREAL:
            yield Annotation(clean_text(name), groups, kind, False, as_ring([], self.path, name))
        else:
            raise damaged(self.path, f"feature {quoted(name)} has a geometry of no known type")

    def _ring(self, value: Any, name: str) -> Any:
        positions = self._list(value, "coordinates")
        points = [self._position(position, name) for position in positions]
        if len(points) > 1 and points[0] == points[-1]:
            points.pop()
        return as_ring(points, self.path, name)

    def _position(self, value: Any, name: str) -> tuple[float, float]:
        if isinstance(value, list) and len(value) >= 2:
            x, y = value[:2]
            if type(x) in (int, float) and type(y) in (int, float):  # isinstance would accept a bool
                try:
                    return float(x), float(y)
                except OverflowError as error:
                    raise damaged(
                        self.path, f"annotation {quoted(name)} has a coordinate beyond any slide"
                    ) from error
        raise damaged(self.path, f"annotation {quoted(name)} has a point that is not a pair of numbers")

    def _list(self, value: Any, what: str) -> list:
        if not isinstance(value, list):
            raise damaged(self.path, f"is not GeoJSON: its {what} are not a list")
        return value


def _groups(feature: dict, properties: dict, options: AnnotationOptions) -> tuple[str, ...]:
    """The full class name, then the classes it is derived from: "Tumor: Positive", "Tumor".

    An unclassified object that QuPath detected (a cell, a tile) has its object type as its group, so that it
    does not count as a drawn annotation without a group.
    """
    named = {"".join(filter(str.isalpha, key.lower())): _names(value) for key, value in properties.items()}
    classes = [parts for key, parts in named.items() if parts and _CLASS_KEY.fullmatch(key)]
    written = named.get("type", [])
    classes += [] if _SHAPE.fullmatch(": ".join(written).lower()) else [written]
    classes += [parts for parts in named.values() if options.known_role(parts[:1])]
    parts = next(filter(None, classes), [])
    if not parts:
        kind = _object_type(feature, properties)
        return () if kind == "annotation" else (kind,)
    return tuple(": ".join(parts[:count]) for count in range(len(parts), 0, -1))


def _names(value: Any) -> list[str]:
    """The parts of a class name, given as text, a number, a list of these, or an object that holds one."""
    if isinstance(value, dict):
        value = next((value[key] for key in ("names", "name", "value", "label") if value.get(key)), None)
    items = value[:_MAX_NAMES] if isinstance(value, list) else [value]
    texts = [str(item) for item in items if isinstance(item, (str, int)) and not isinstance(item, bool)]
    return [part for text in texts for part in map(str.strip, clean_text(text).split(":")) if part]


def _kind(feature: dict, properties: dict, name: str) -> str:
    if name.startswith(COPY):
        return "copy"
    # A user accepts a predicted area by unlocking it.
    predicted = name.startswith(PREDICTION) and properties.get("isLocked") is True
    return "prediction" if predicted else _object_type(feature, properties)


def _object_type(feature: dict, properties: dict) -> str:
    """QuPath's object type, as versions from 0.4 on, 0.3 and older ones write it; else "annotation"."""
    for said in (properties.get("objectType"), properties.get("object_type")):
        if isinstance(said, str) and said.strip():
            return clean_text(said)
    before = re.fullmatch(r"(?:Path)?(\w+)Object", str(feature.get("id")).strip())
    return before[1].lower() if before else "annotation"

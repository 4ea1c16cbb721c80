"""Annotation files for the tests, written the way ASAP and QuPath write them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

Points = Sequence[tuple[float, float]]

SQUARE: Points = [(0, 0), (10, 0), (10, 10), (0, 10)]


def square(x: float, y: float, side: float) -> list[tuple[float, float]]:
    return [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]


def annotation(points: Points, group: str = "Tumor", kind: str = "Polygon", name: str = "a") -> str:
    coordinates = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(points))
    return (
        f'<Annotation Name="{name}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
        f"<Coordinates>{coordinates}</Coordinates></Annotation>"
    )


def asap(
    folder: Path, annotations: Iterable[str], groups: str = "", prolog: str = '<?xml version="1.0"?>'
) -> Path:
    path = folder / "slide.xml"
    path.write_text(
        f"{prolog}<ASAP_Annotations><Annotations>{''.join(annotations)}</Annotations>"
        f"<AnnotationGroups>{groups}</AnnotationGroups></ASAP_Annotations>",
        encoding="utf-8",
    )
    return path


def feature(
    geometry: str, coordinates: object, classification: object = None, name: str | None = None
) -> dict:
    properties: dict = {"objectType": "annotation"}
    if classification is not None:
        properties["classification"] = classification
    if name is not None:
        properties["name"] = name
    return {
        "type": "Feature",
        "id": "4f1c",
        "geometry": {"type": geometry, "coordinates": coordinates},
        "properties": properties,
    }


def closed(points: Points) -> list[list[float]]:
    return [list(point) for point in (*points, points[0])]


def geojson(folder: Path, value: object) -> Path:
    path = folder / "slide.geojson"
    path.write_text(json.dumps(value), encoding="utf-8")
    return path

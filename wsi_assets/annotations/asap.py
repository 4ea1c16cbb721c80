"""Read ASAP XML, as ASAP itself and the many programs that imitate it write it."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from wsi_assets.annotations.annotation import Annotation, as_ring, clean_text, damaged, quoted

NOT_AREAL = {"dot", "point", "pointset", "points", "line", "polyline", "linestring", "measurement", "arrow"}
"""Annotation types that enclose no area. Any other type, or none, is the polygon through its points."""

# A decimal comma is what ASAP writes under many European locales. Thousands separators are refused: "1,234"
# can only be 1.234 in these files.
_NUMBER = re.compile(r"\s*[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d{1,4})?\s*", re.ASCII)


def read_asap(path: Path, data: bytes) -> list[Annotation]:
    """Read the annotations of an ASAP file as drawn, in file order.

    Args:
        path: the file, for messages.
        data: its content.

    Raises:
        AnnotationError: the file is not XML, is truncated, holds a DTD or entities, or has a coordinate that
            is not a number; or its root is not ``<ASAP_Annotations>`` and it has no ``<Annotation>`` with
            ``<Coordinate>`` points.
    """
    try:
        root = fromstring(data, forbid_dtd=True)
    except DefusedXmlException as error:
        raise damaged(path, "declares a DTD or entities, which no annotation needs") from error
    except ParseError as error:
        raise damaged(path, f"is not well-formed XML, perhaps cut short ({error})") from error
    except (ValueError, LookupError) as error:  # encodings unknown to Python or to the parser
        raise damaged(path, f"is not readable XML ({error})") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # without the namespace that some programs add
    parents = {
        clean_text(one.get("Name", "")): clean_text(one.get("PartOfGroup", "")) for one in root.iter("Group")
    }
    drawn = [_annotation(element, parents, path) for element in root.iter("Annotation")]
    if root.tag != "ASAP_Annotations" and not any(one.points for one in drawn):
        raise damaged(path, f"has no <Annotation> with <Coordinate> points; its root is {quoted(root.tag)}")
    return drawn


def _annotation(element: Element, parents: dict[str, str], path: Path) -> Annotation:
    name, kind = element.get("Name", ""), element.get("Type", "")
    points = [_point(one, place, element, path) for place, one in enumerate(element.iter("Coordinate"))]
    ring = as_ring([point[1:] for point in sorted(points, key=lambda point: point[0])], path, name)
    if kind.strip().casefold() == "rectangle" and len(ring) == 2:  # two opposite corners
        (x0, y0), (x1, y1) = ring
        ring = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    groups = _lineage(clean_text(element.get("PartOfGroup", "")), parents)
    return Annotation(
        clean_text(name),
        groups,
        clean_text(kind) or "untyped",
        kind.strip().casefold() not in NOT_AREAL,
        ring,
    )


def _point(coordinate: Element, place: int, annotation: Element, path: Path) -> tuple[float, float, float]:
    """(order, x, y): the attribute ``Order`` decides, which is not always the order in the file."""
    order = coordinate.get("Order")
    return (
        place if order is None else _number(order, "Order", annotation, path),
        _number(coordinate.get("X"), "X", annotation, path),
        _number(coordinate.get("Y"), "Y", annotation, path),
    )


def _number(text: str | None, attribute: str, annotation: Element, path: Path) -> float:
    if text is None or not _NUMBER.fullmatch(text):
        held = "nothing" if text is None else quoted(text, 30)
        name = quoted(annotation.get("Name", ""))
        raise damaged(path, f"annotation {name} has a point whose {attribute} is {held}, not a finite number")
    return float(text.replace(",", "."))


def _lineage(group: str, parents: dict[str, str]) -> tuple[str, ...]:
    """The group and its parent groups, nearest first; a group that contains itself ends the list."""
    lineage: list[str] = []
    while group.strip() and group.strip().casefold() != "none" and group not in lineage:
        lineage.append(group)
        group = parents.get(group, "")
    return tuple(lineage)

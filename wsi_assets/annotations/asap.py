"""Read ASAP's XML, as ASAP itself and the many writers that imitate it make it."""

from __future__ import annotations

import re
from array import array
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import iterparse

from wsi_assets.annotations.annotation import (
    MAX_DEPTH,
    MAX_POINTS,
    Annotation,
    as_ring,
    damaged,
    label,
    shown,
)

NOT_AREAL = {"dot", "point", "pointset", "points", "line", "polyline", "linestring", "measurement", "arrow"}
"""Types of annotations that enclose no area. Any other, or none at all, is a polygon through its points."""

# A decimal comma is what ASAP writes under many European locales. Thousands separators are refused: "1,234"
# can only be 1.234 in these files.
_NUMBER = re.compile(r"\s*[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d{1,4})?\s*", re.ASCII)


def read_asap(path: Path, data: bytes) -> list[Annotation]:
    """Read the annotations of an ASAP file, in file order; every ring unrepaired.

    Args:
        path: the file, for messages.
        data: its bytes.

    Raises:
        AnnotationError: it is not XML, holds no ``<Annotation>`` with ``<Coordinate>`` points though it does
            not say that it is ASAP's, is truncated, holds a DTD or entities, nests too deep, or a coordinate
            is not a number.
    """
    try:
        return _annotations(path, BytesIO(data))
    except DefusedXmlException as error:
        raise damaged(path, "declares a DTD or entities, which no annotation needs") from error
    except ParseError as error:
        raise damaged(path, f"is not well-formed XML, perhaps cut short ({error})") from error
    except (ValueError, LookupError) as error:  # encodings unknown to Python or to the parser
        raise damaged(path, f"is not readable XML ({error})") from error


def _annotations(path: Path, source: BytesIO) -> list[Annotation]:
    drawn: list[Annotation] = []
    groups: list[str] = []
    parents: dict[str, str] = {}
    points = array("d")  # (order, x, y) of the annotation being read
    total = 0
    above: list[Element] = []
    root = ""
    # Elements are dropped as soon as they are read, so memory follows the points and not the markup.
    for event, element in iterparse(source, events=("start", "end"), forbid_dtd=True):
        if event == "start":
            element.tag = element.tag.rpartition("}")[2]  # whatever namespace a writer puts them in
            root = root or element.tag
            above.append(element)
            if len(above) > MAX_DEPTH:
                raise damaged(path, f"nests elements more than {MAX_DEPTH} deep")
            continue
        above.pop()
        if element.tag == "Coordinate":
            owner = next((one for one in above if one.tag == "Annotation"), None)
            if owner is not None:
                points.extend(_point(element, len(points) // 3, owner, path))
                total += 1
            if total > MAX_POINTS:
                raise damaged(path, f"has more than {MAX_POINTS:,} points")
        elif element.tag == "Annotation":
            name, kind = element.get("Name", ""), element.get("Type", "")
            ring = np.array(points).reshape(-1, 3)
            ring = as_ring(ring[np.argsort(ring[:, 0], kind="stable"), 1:], path, name)
            if kind.strip().casefold() == "rectangle" and len(ring) == 2:  # two opposite corners
                (x0, y0), (x1, y1) = ring
                ring = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
            areal = kind.strip().casefold() not in NOT_AREAL
            drawn.append(Annotation(label(name), (), label(kind) or "untyped", areal, ring))
            groups.append(label(element.get("PartOfGroup", "")))
            points = array("d")
        elif element.tag == "Group":
            parents[label(element.get("Name", ""))] = label(element.get("PartOfGroup", ""))
        if above:
            above[-1].remove(element)
    if not total and root != "ASAP_Annotations":
        raise damaged(path, f"has no <Annotation> with <Coordinate> points; its root is {shown(root)}")
    # Groups come after the annotations that are in them.
    return [
        replace(annotation, groups=_lineage(group, parents))
        for annotation, group in zip(drawn, groups, strict=True)
    ]


def _point(coordinate: Element, place: int, annotation: Element, path: Path) -> tuple[float, float, float]:
    """(order, x, y); points are in the order their ``Order`` gives, which is not always that of the file."""
    order = coordinate.get("Order")
    return (
        place if order is None else _number(order, "Order", annotation, path),
        _number(coordinate.get("X"), "X", annotation, path),
        _number(coordinate.get("Y"), "Y", annotation, path),
    )


def _number(text: str | None, attribute: str, annotation: Element, path: Path) -> float:
    if text is None or not _NUMBER.fullmatch(text):
        held = "nothing" if text is None else shown(text, 30)
        name = shown(annotation.get("Name", ""))
        raise damaged(path, f"annotation {name} has a point whose {attribute} is {held}, not a finite number")
    return float(text.replace(",", "."))


def _lineage(group: str, parents: dict[str, str]) -> tuple[str, ...]:
    """The group and the groups it is part of, nearest first; a group that contains itself ends the walk."""
    lineage: list[str] = []
    while group.strip() and group.strip().casefold() != "none" and group not in lineage:
        lineage.append(group)
        group = parents.get(group, "")
    return tuple(lineage)

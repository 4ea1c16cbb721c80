"""Write slide files like a scanner's, and annotation files like ASAP's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import tifffile
from shapely import Polygon

from wsi_assets.files import publish_file

MPP = 0.243
"""Micrometers per level-0 pixel, as in most CAMELYON slides (40x)."""

_TILE, _QUALITY, _LEVELS = 256, 90, 6


def write_slide(path: Path, pixels: np.ndarray) -> None:
    """Write level-0 pixels, uint8 (height, width, 3) RGB, as a pyramid of six levels, atomically.

    The file is a BigTIFF with JPEG tiles of 256 pixels in YCbCr. Each level is the average of 2 x 2 pixels of
    the one before; height and width must be multiples of 32, so that every level halves exactly.
    """
    per_cm = 1e4 / MPP
    with publish_file(path) as unfinished, tifffile.TiffWriter(unfinished, bigtiff=True) as tiff:
        for level in range(_LEVELS):
            tiff.write(
                pixels,
                photometric="rgb",
                tile=(_TILE, _TILE),
                compression="jpeg",
                compressionargs={"level": _QUALITY},
                resolution=(per_cm / 2**level, per_cm / 2**level),
                resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0,
                software="wsi_assets demo",
                metadata=None,
            )
            pixels = _halved(pixels)


def write_asap(path: Path, annotations: Iterable[tuple[str, Polygon]]) -> None:
    """Write (group, polygon) pairs as ASAP XML; polygons are (x, y) in level-0 pixels, without holes."""
    annotations = list(annotations)
    lines = ['<?xml version="1.0"?>', "<ASAP_Annotations>", "\t<Annotations>"]
    for number, (group, polygon) in enumerate(annotations):
        lines.append(
            f'\t\t<Annotation Name="Annotation {number}" Type="Polygon" '
            f'PartOfGroup={quoteattr(group)} Color="#F4FA58">'
        )
        lines.append("\t\t\t<Coordinates>")
        for order, (x, y) in enumerate(polygon.exterior.coords[:-1]):
            lines.append(f'\t\t\t\t<Coordinate Order="{order}" X="{x:.4f}" Y="{y:.4f}" />')
        lines += ["\t\t\t</Coordinates>", "\t\t</Annotation>"]
    lines += ["\t</Annotations>", "\t<AnnotationGroups>"]
    for group in dict.fromkeys(group for group, _ in annotations):
        lines.append(
            f'\t\t<Group Name={quoteattr(group)} PartOfGroup="None" Color="#00ff00"><Attributes /></Group>'
        )
    lines += ["\t</AnnotationGroups>", "</ASAP_Annotations>", ""]
    with publish_file(path) as unfinished:
        unfinished.write_text("\n".join(lines), encoding="utf-8")


def _halved(pixels: np.ndarray) -> np.ndarray:
    height, width, channels = pixels.shape
    blocks = pixels.reshape(height // 2, 2, width // 2, 2, channels)
    return ((blocks.sum(axis=(1, 3), dtype=np.uint16) + 2) // 4).astype(np.uint8)

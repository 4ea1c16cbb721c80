"""Annotations as a file has them, and the limits any file must keep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from wsi_assets.errors import AnnotationError, one_line

MAX_BYTES = 64 * 2**20
"""Ten times the largest real file known. JSON takes up to twenty times its size in memory."""

MAX_POINTS = 4_000_000
"""Points of all annotations of a file together."""

MAX_COORDINATE = 1e8
"""Level-0 pixels. The largest scanners make slides under 1e6 pixels wide; above 1e8 double precision and
the overlay algorithms start to lose area."""

MAX_DEPTH = 64
"""Nesting of elements; ASAP and QuPath files have 5 or 6."""


@dataclass(frozen=True)
class Annotation:
    """One drawn annotation, unrepaired.

    Attributes:
        name: the annotation's own name, often empty.
        groups: its group, then the group that one is part of, and so on; empty when it is in no group.
        shape_type: the type the file gives it, e.g. "Polygon", "Spline", "Dot", or "untyped".
        areal: whether that type encloses an area.
        shell: float64 (n, 2), (x, y) in level-0 pixels, not closed.
        holes: rings like ``shell``, to be cut out of it.
        kind: "annotation" if somebody drew it; "prediction", or the object type that QuPath gives it, such as
            "detection"; or "copy", by which the file is an edited copy of our export.
    """

    name: str
    groups: tuple[str, ...]
    shape_type: str
    areal: bool
    shell: np.ndarray
    holes: tuple[np.ndarray, ...] = ()
    kind: str = "annotation"

    @property
    def points(self) -> int:
        return len(self.shell) + sum(len(hole) for hole in self.holes)


def as_ring(points: ArrayLike, path: Path, name: str) -> np.ndarray:
    """The points as float64 (n, 2), refusing what cannot be a place on a slide.

    Raises:
        AnnotationError: a coordinate is NaN, infinite or beyond any slide.
    """
    ring = np.array(points, dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(ring).all():
        raise damaged(path, f"annotation {shown(name)} has a coordinate that is not a finite number")
    if len(ring) and np.abs(ring).max() > MAX_COORDINATE:
        raise damaged(
            path, f"annotation {shown(name)} has a coordinate of {np.abs(ring).max():.3g}, beyond any slide"
        )
    return ring


def label(text: str, limit: int = 200) -> str:
    """A name of the file as it can be stored and shown anywhere: valid Unicode, one line, never long."""
    return " ".join(text.encode("utf-8", "replace").decode().split())[:limit]


def shown(text: str, limit: int = 60) -> str:
    """Text of a file, quoted for a message: one line, never long."""
    text = label(one_line(text))
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def damaged(path: Path, fault: str) -> AnnotationError:
    """The error for a file that is damaged or not an annotation."""
    return AnnotationError(
        fault,
        path=path,
        remedy="Export it again from ASAP (XML) or QuPath (GeoJSON), or remove it",
    )

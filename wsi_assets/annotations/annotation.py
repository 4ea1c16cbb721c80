"""One annotation as its file holds it, and the limits on what a file may hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from wsi_assets.errors import AnnotationError, one_line

MAX_BYTES = 64 * 2**20
"""Largest file that is read: ten times the largest known. JSON takes up to 20 times its size in memory."""

MAX_POINTS = 4_000_000
"""Most points of all annotations of a file together."""

MAX_COORDINATE = 1e8
"""Level-0 pixels. The largest scanners make slides under 1e6 pixels wide; above 1e8 double precision and
the overlay algorithms start to lose area."""

MAX_DEPTH = 64
"""Nesting of elements; ASAP and QuPath files have 5 or 6."""


@dataclass(frozen=True)
class Annotation:
    """One annotation as drawn, before repair.

    Attributes:
        name: the annotation's name, often empty.
        groups: its group, that group's parent group, and so on; empty if it is in no group.
        shape_type: the type in the file, e.g. "Polygon", "Spline", "Dot", or "untyped".
        areal: whether that type encloses an area.
        shell: float64 (n, 2), (x, y) in level-0 pixels; the first point is not repeated at the end.
        holes: rings like ``shell`` that are cut out of it.
        kind: "annotation" if a person drew it; "prediction" or QuPath's object type, such as "detection", if
            a program made it; "copy" if it marks its file as an edited copy of an exported annotation.
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
    """The points as float64 (n, 2).

    Args:
        path, name: the file and the annotation, for messages.

    Raises:
        AnnotationError: a coordinate is NaN, infinite or beyond the size of any slide.
    """
    ring = np.array(points, dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(ring).all():
        raise damaged(path, f"annotation {quoted(name)} has a coordinate that is not a finite number")
    if len(ring) and np.abs(ring).max() > MAX_COORDINATE:
        raise damaged(
            path, f"annotation {quoted(name)} has a coordinate of {np.abs(ring).max():.3g}, beyond any slide"
        )
    return ring


def clean_text(text: str, limit: int = 200) -> str:
    """Text of a file, safe to store and to show: valid Unicode, one line, at most ``limit`` long."""
    return " ".join(text.encode("utf-8", "replace").decode().split())[:limit]


def quoted(text: str, limit: int = 60) -> str:
    """Text of a file in quotes, for a message: one line, at most ``limit`` long."""
    text = clean_text(one_line(text))
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def damaged(path: Path, fault: str) -> AnnotationError:
    """The error of a file that is damaged or holds something else."""
    return AnnotationError(
        fault,
        path=path,
        remedy="Export it again from ASAP (XML) or QuPath (GeoJSON), or remove it",
    )

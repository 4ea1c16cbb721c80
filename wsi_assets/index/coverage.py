"""Exact areas of a geometry inside the cells of a mesh.

Areas only: which share makes a tumor patch is decided in :mod:`labels`.

The method is the one font renderers use for exact anti-aliasing (after Raph Levien's font-rs, 2016), here on
any rectilinear mesh: every edge is cut at the mesh lines it crosses; each piece lies in one cell and adds the
signed area between itself and the cell's right side to that cell, and its signed height times the cell's
width to every cell to the right. Summed over closed rings this is the area of the geometry in each cell. The
work grows with the vertices, the crossings and the cells, never with their product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import shapely

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BAND = 1 << 21
"""Cells worked on at once, 16 MiB for each of a few arrays: memory does not grow with the slide."""


def cell_areas(
    geometry: shapely.Geometry, y_lines: NDArray[np.float64], x_lines: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Area of the geometry in each cell of a mesh: (len(y_lines) - 1, len(x_lines) - 1).

    Args:
        geometry: a valid Polygon or MultiPolygon, (x, y); other parts have no area.
        y_lines, x_lines: increasing, in the geometry's own units.
    """
    y_lines, x_lines = np.asarray(y_lines, float), np.asarray(x_lines, float)
    areas = np.zeros((max(len(y_lines) - 1, 0), max(len(x_lines) - 1, 0)))
    if not areas.size:
        return areas
    for polygon in shapely.get_parts(geometry):
        # Only the lines around this polygon: a slide has many small lesions.
        x0, y0, x1, y1 = polygon.bounds if not polygon.is_empty else (0, 0, -1, -1)
        top, bottom = _window(y_lines, y0, y1)
        left, right = _window(x_lines, x0, x1)
        if bottom <= top or right <= left or polygon.geom_type != "Polygon":
            continue
        edges = _edges(polygon)
        rows = max(_BAND // (right - left), 1)
        for first in range(top, bottom, rows):
            last = min(first + rows, bottom)
            areas[first:last, left:right] += _accumulate(
                edges, y_lines[first : last + 1], x_lines[left : right + 1]
            )
    return areas


def _window(lines: NDArray[np.float64], low: float, high: float) -> tuple[int, int]:
    """Indices of the cells between ``lines`` that the range touches, half-open."""
    first = max(int(np.searchsorted(lines, low, "right")) - 1, 0)
    return first, min(int(np.searchsorted(lines, high, "left")), len(lines) - 1)


def _edges(polygon: shapely.Polygon) -> NDArray[np.float64]:
    """Directed edges (n, 4) as (x0, y0, x1, y1): the shell counter-clockwise, holes clockwise."""
    edges = []
    for i, ring in enumerate(shapely.get_rings(polygon)):
        points = shapely.get_coordinates(ring)
        if shapely.is_ccw(ring) != (i == 0):
            points = points[::-1]
        edges.append(np.hstack([points[:-1], points[1:]]))
    return np.concatenate(edges)


def _accumulate(
    edges: NDArray[np.float64], y_lines: NDArray[np.float64], x_lines: NDArray[np.float64]
) -> NDArray[np.float64]:
    height, width = len(y_lines) - 1, len(x_lines) - 1
    x0, y0, x1, y1 = _cut(edges[edges[:, 1] != edges[:, 3]], y_lines, axis=1).T
    # After the cut every piece lies in one row; those above or below the mesh cover none of it.
    middle = (y0 + y1) / 2
    inside = (middle > y_lines[0]) & (middle < y_lines[-1])
    pieces = np.stack([x0, y0, x1, y1], axis=1)[inside]
    # Left of the mesh only a piece's height matters, right of it nothing does.
    pieces = _cut(pieces, x_lines, axis=0)
    x0, y0, x1, y1 = pieces.T
    x_mid = (x0 + x1) / 2
    keep = x_mid < x_lines[-1]
    x0, y0, x1, y1, x_mid = x0[keep], y0[keep], x1[keep], y1[keep], x_mid[keep]
    x_mid = np.maximum(x_mid, x_lines[0])
    rise = y1 - y0
    row = np.clip(np.searchsorted(y_lines, (y0 + y1) / 2, "right") - 1, 0, height - 1)
    column = np.clip(np.searchsorted(x_lines, x_mid, "right") - 1, 0, width - 1)
    flat = row * (width + 1) + column
    own = np.bincount(flat, rise * (x_lines[column + 1] - x_mid), minlength=height * (width + 1))
    passed = np.bincount(flat + 1, rise, minlength=height * (width + 1) + 1)
    own = own.reshape(height, width + 1)[:, :width]
    passed = np.cumsum(passed[: height * (width + 1)].reshape(height, width + 1)[:, :width], axis=1)
    # Counter-clockwise shells rise on their right side: the sum to the right of every edge is negative area.
    return -(own + passed * np.diff(x_lines))


def _cut(edges: NDArray[np.float64], lines: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Cut edges at every line they cross; ``axis`` 0 cuts at x, 1 at y. Order within an edge is kept."""
    start, end = edges[:, axis], edges[:, axis + 2]
    low = np.searchsorted(lines, np.minimum(start, end), "right")
    high = np.searchsorted(lines, np.maximum(start, end), "left")
    crossings = np.maximum(high - low, 0)
    if not crossings.any():
        return edges
    plain, crossing = edges[crossings == 0], edges[crossings > 0]
    low, crossings = low[crossings > 0], crossings[crossings > 0]
    start, end = crossing[:, axis], crossing[:, axis + 2]
    # Points of every crossing edge: its start, its crossings in order, its end.
    size = crossings + 2
    first = np.concatenate([[0], np.cumsum(size)[:-1]])
    owner = np.repeat(np.arange(len(crossing)), size)
    step = np.arange(size.sum()) - first[owner]
    at_end = step == size[owner] - 1
    up = end > start
    line = np.where(up[owner], low[owner] + step - 1, low[owner] + crossings[owner] - step)
    cut = lines[np.clip(line, 0, len(lines) - 1)]
    along = (cut - start[owner]) / (end - start)[owner]
    points = crossing[owner, :2] + along[:, None] * (crossing[owner, 2:] - crossing[owner, :2])
    points[:, axis] = cut
    points[step == 0] = crossing[:, :2]
    points[at_end] = crossing[:, 2:]
    follows = np.flatnonzero(~at_end)
    return np.concatenate([plain, np.hstack([points[follows], points[follows + 1]])])

"""Exact tumor shares of patches, and which patches are labeled tumor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import shapely
from shapely import affinity

from wsi_assets.index.patch_grid import box_lines, box_sums, clean

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BAND = 1 << 21
"""Cells worked on at a time, 16 MiB for each of a few arrays, so that memory does not grow with the slide."""


def to_level(geometry: shapely.Geometry, downsample: float) -> shapely.Geometry:
    """Scale a geometry from level-0 pixels to pixels of a level."""
    if downsample == 1:
        return geometry
    return affinity.scale(geometry, 1 / downsample, 1 / downsample, origin=(0, 0))


def tumor_fractions(
    geometry: shapely.Geometry, ys: NDArray[np.int64], xs: NDArray[np.int64], patch_size: int
) -> NDArray[np.float64]:
    """Share of each patch's area that is tumor, 0 to 1: (len(ys), len(xs)).

    Args:
        geometry: the tumor, (x, y) in pixels of the target level.
        ys, xs: top and left coordinates of the patches, in pixels of the target level.
    """
    areas = cell_areas(geometry, box_lines(ys, patch_size), box_lines(xs, patch_size))
    return clean(box_sums(areas, ys, xs, patch_size) / patch_size**2)


def is_tumor(
    rule: Literal["fraction", "center", "any"],
    threshold: float,
    fractions: NDArray[np.float64],
    geometry: shapely.Geometry,
    corners: NDArray[np.int64],
    patch_size: int,
) -> NDArray[np.bool_]:
    """Which patches are tumor, bool (n,), by one of three rules.

    ``fraction``: the patch's tumor share is at least ``threshold``. ``center``: its center point
    (y + size / 2, x + size / 2) lies inside the tumor or on its border. ``any``: some of it is tumor. Shares
    are rounded to nine decimals (less than a ten-thousandth of a pixel in a patch of 256), so a tumor border
    that only touches the side of a patch does not count.

    Args:
        fractions: (n,) tumor shares of the patches.
        geometry: the tumor, (x, y) in pixels of the target level.
        corners: (n, 2) top-left corners (y, x) of the patches, in pixels of the target level.
    """
    if rule == "fraction":
        return fractions >= threshold
    if rule == "any":
        return fractions > 0
    inside = fractions == 1
    # Only patches that the tumor border crosses need the test.
    crossed = np.flatnonzero((fractions > 0) & ~inside)
    centers = corners[crossed] + patch_size / 2
    shapely.prepare(geometry)
    inside[crossed] = shapely.intersects_xy(geometry, centers[:, 1], centers[:, 0])
    return inside


def cell_areas(
    geometry: shapely.Geometry, y_lines: NDArray[np.float64], x_lines: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Area of the geometry in each cell of a mesh: (len(y_lines) - 1, len(x_lines) - 1).

    This is the exact anti-aliasing of font renderers (after Raph Levien's font-rs, 2016), on any rectilinear
    mesh. Every edge is cut at the mesh lines that it crosses, so that each piece lies in one cell. To that
    cell it adds the signed area between itself and the cell's right side; to every cell to the right it adds
    its signed height times the cell's width. The sum over closed rings is the area in each cell. The time
    grows with the number of vertices, crossings and cells, but not with their product.

    Args:
        geometry: a valid Polygon or MultiPolygon, (x, y); other geometries have no area.
        y_lines, x_lines: coordinates of the mesh lines, increasing, in the units of the geometry.
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
    """(first, end) indices of the cells between ``lines`` that the range ``low`` to ``high`` touches."""
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
    # Every piece now lies in one row; those above or below the mesh cover none of it.
    middle = (y0 + y1) / 2
    inside = (middle > y_lines[0]) & (middle < y_lines[-1])
    pieces = np.stack([x0, y0, x1, y1], axis=1)[inside]
    # Of pieces left of the mesh only the height matters; pieces right of it do not count.
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
    # A counter-clockwise shell rises on its right side, so the summed area is negative.
    return -(own + passed * np.diff(x_lines))


def _cut(edges: NDArray[np.float64], lines: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Cut edges (n, 4) at every line they cross; ``axis`` 0 cuts at x, 1 at y. Pieces keep the direction."""
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

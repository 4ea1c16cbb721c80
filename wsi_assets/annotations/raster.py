"""Rasterize geometry into a mask of pixels."""

from __future__ import annotations

import numpy as np
import shapely


def rasterize(geometry: shapely.Geometry, height: int, width: int, downsample: float) -> np.ndarray:
    """Fill a valid areal geometry into a mask by the pixel-center rule.

    Pixel (row, column) is set if its center, level-0 point (x, y) = ((column + 0.5) * downsample,
    (row + 0.5) * downsample), lies inside. A center exactly on an edge belongs to one side only, so areas
    that share an edge never share a pixel. Fills that also paint the border line, such as OpenCV's, overshoot
    the area by 1 to 12 %, most on small lesions.

    Args:
        geometry: Polygon or MultiPolygon, (x, y) in level-0 pixels; parts outside the mask are cut off.
        height, width: size of the mask.
        downsample: level-0 pixels per pixel of the mask.

    Returns:
        bool (height, width).
    """
    mask = np.zeros((height, width), dtype=bool)
    if geometry.is_empty or not mask.size:
        return mask
    # Shifted so that pixel centers lie on whole numbers.
    left, top, right, bottom = np.array(geometry.bounds) / downsample - 0.5
    rows = slice(max(0, int(np.ceil(top))), min(height, int(np.floor(bottom)) + 1))
    columns = slice(max(0, int(np.ceil(left))), min(width, int(np.floor(right)) + 1))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return mask
    x0, y0, x1, y1 = (_edges(geometry) / downsample - 0.5).T
    # Row r crosses the edge when min(y) <= r < max(y): every crossing of a ring is then counted once.
    first = np.clip(np.ceil(np.minimum(y0, y1)), rows.start, rows.stop).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(y0, y1)), rows.start, rows.stop).astype(np.int64)
    crossings = last - first
    edge = np.repeat(np.arange(len(crossings)), crossings)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(crossings) - crossings, crossings) + first[edge]
    x = x0[edge] + (row - y0[edge]) * ((x1 - x0)[edge] / (y1 - y0)[edge])
    column = np.clip(np.ceil(x), columns.start, columns.stop).astype(np.int64)
    window_width = columns.stop - columns.start
    toggles = np.zeros((rows.stop - rows.start, window_width + 1), dtype=bool)
    where = (row - rows.start) * (window_width + 1) + column - columns.start
    # A valid geometry never covers a point twice, so inside is where an odd number of edges lies to the left.
    np.logical_xor.at(toggles.reshape(-1), where, True)
    np.logical_xor.accumulate(toggles, axis=1, out=toggles)
    mask[rows, columns] = toggles[:, :-1]
    return mask


def _edges(geometry: shapely.Geometry) -> np.ndarray:
    """All edges of all rings, float64 (n, 4): x0, y0, x1, y1."""
    rings = shapely.get_rings(shapely.get_parts(geometry))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    same = ring[1:] == ring[:-1]
    return np.hstack([points[:-1][same], points[1:][same]])

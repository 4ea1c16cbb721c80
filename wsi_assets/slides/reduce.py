"""Area averages that leave out pixels without data. Arrays in, arrays out."""

from __future__ import annotations

import math

import cv2
import numpy as np

_STRIP_PIXELS = 1 << 20
"""Pixels averaged at a time: their sums fit into 32 bits, and memory stays near that of the result."""


def cell_edges(first: int, last: int, step: float, limit: int) -> np.ndarray:
    """Where cells ``first`` to ``last`` (half-open) of ``step`` pixels begin and end along an axis, at most
    ``limit``: float (last - first + 1,)."""
    edges = np.arange(first, last + 1) * step
    whole = np.rint(edges)
    return np.clip(np.where(np.abs(edges - whole) < 1e-6, whole, edges), 0, limit)


def source_range(edges: np.ndarray, limit: int) -> tuple[int, int]:
    """The half-open range of source pixels that cells touch, at least one pixel."""
    start = min(int(edges[0]), limit - 1)
    return start, max(start + 1, math.ceil(edges[-1]))


def area_mean(
    pixels: np.ndarray, no_data: np.ndarray, rows: np.ndarray, cols: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Average pixels over cells; a pixel partly under a cell counts by that part.

    The color of a cell is the mean of its pixels with data. A cell without any has its middle pixel's color,
    and a cell of no area is white. A cell is no-data if at most half of its area has data.

    Args:
        pixels: uint8 (h, w, 3); at most 2^23 pixels, for sums of 32 bits.
        no_data: bool (h, w).
        rows, cols: float, ascending, the edges of r and of c cells in pixels of the array.

    Returns:
        uint8 (r, c, 3) and no-data bool (r, c).
    """
    area = np.outer(np.diff(rows), np.diff(cols))
    if _is_even(rows) and _is_even(cols) and not no_data.any():
        # The same average, several times as fast.
        means = cv2.resize(pixels, area.shape[::-1], interpolation=cv2.INTER_AREA)
        return means, np.zeros(area.shape, bool)
    colors = pixels[np.ix_(_middles(rows), _middles(cols))]
    known = area
    if no_data.any():
        valid = (~no_data).astype(np.uint8)
        known = _sums(valid, rows, cols)
        pixels = cv2.bitwise_and(pixels, pixels, mask=valid)
    seen = known > 1e-3
    if seen.any():
        means = _sums(pixels, rows, cols)[seen] / known[seen][:, None]
        colors[seen] = np.rint(means)
    colors[area <= 1e-6] = 255
    return colors, known <= area / 2


def reduce_mean(pixels: np.ndarray, no_data: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Average blocks of ``factor`` x ``factor`` pixels, at the far edges what there is of them.

    Args and returns as for :func:`area_mean`; the result is ceil(h / factor) x ceil(w / factor).
    """
    height, width = no_data.shape
    rows = math.ceil(height / factor)
    cols = cell_edges(0, math.ceil(width / factor), factor, width)
    strip = max(1, _STRIP_PIXELS // (width * factor))
    parts = []
    for first in range(0, rows, strip):
        edges = cell_edges(first, min(rows, first + strip), factor, height)
        part = slice(*source_range(edges, height))
        parts.append(area_mean(pixels[part], no_data[part], edges - part.start, cols))
    means, missing = zip(*parts, strict=True)
    return np.concatenate(means), np.concatenate(missing)


def _is_even(edges: np.ndarray) -> bool:
    """Whether all cells are of one whole number of pixels."""
    steps = np.diff(edges)
    return edges[0] == 0 and steps[0] >= 1 and steps[0].is_integer() and bool((steps == steps[0]).all())


def _middles(edges: np.ndarray) -> np.ndarray:
    return np.minimum((edges[:-1] + edges[1:]) / 2, max(0, math.ceil(edges[-1]) - 1)).astype(int)


def _sums(values: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Sums of uint8 (h, w) or (h, w, n) over cells, from a summed-area table."""
    table = cv2.integral(values, sdepth=cv2.CV_32S)
    return _between(_between(table, rows, axis=0), cols, axis=1)


def _between(table: np.ndarray, edges: np.ndarray, axis: int) -> np.ndarray:
    """Differences of running sums between edges; within a pixel a sum rises evenly."""
    whole = edges.astype(int)
    at = np.take(table, whole, axis)
    part = edges - whole
    if part.any():
        rise = np.take(table, np.minimum(whole + 1, table.shape[axis] - 1), axis) - at
        at = at + rise * part.reshape(-1, *[1] * (table.ndim - 1 - axis))
    return np.diff(at, axis=axis)

"""Reduce images by area averages, without the pixels that have no data."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np

from wsi_assets.slides.windows import Read

if TYPE_CHECKING:
    from scipy import sparse

_STRIP_PIXELS = 1 << 20
"""Pixels averaged at a time, which bounds memory."""
_BAND_PIXELS = 1 << 22
"""Pixels of a level that are read at a time for a patch, which bounds memory."""


def area_mean(
    pixels: np.ndarray, no_data: np.ndarray, size: tuple[int, int], whole: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Average an image over a grid of equal cells.

    The color of a cell is the mean of its pixels with data, or of all its pixels if none has data. A cell is
    no-data if at most half of its pixels have data.

    Args:
        pixels: uint8 (h, w, 3).
        no_data: bool (h, w).
        size: (rows, columns) of the grid.
        whole: (height, width) of the grid in pixels; where it reaches over the image, pixels do not count.

    Returns:
        uint8 (rows, columns, 3) and no-data bool (rows, columns).
    """
    height, width = no_data.shape
    if (height, width) == whole and not no_data.any():
        if height <= 2 * size[0]:  # which OpenCV is fastest at
            return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA), np.zeros(size, bool)
        return _rounded(_means(pixels, size)), np.zeros(size, bool)

    def framed(values: np.ndarray, outside: tuple[int, ...]) -> np.ndarray:
        far = (whole[0] - height, 0, whole[1] - width)
        return cv2.copyMakeBorder(values, 0, *far, cv2.BORDER_CONSTANT, value=outside)

    pixels, valid = framed(pixels, (255,) * 3), framed((~no_data).astype(np.uint8), (0,))
    inside = _means(framed(np.ones((height, width), np.uint8), (0,)), size)
    colors, known = _rounded(_means(pixels, size)), _means(valid, size)
    seen = known > 1e-4
    sums = _means(cv2.bitwise_and(pixels, pixels, mask=valid), size)
    colors[seen] = _rounded(sums[seen] / known[seen][:, None])
    return colors, known <= inside / 2 + 1e-6


def reduce_mean(pixels: np.ndarray, no_data: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Average blocks of ``factor`` x ``factor`` pixels; blocks at the right and bottom edge may be smaller.

    Arguments and results as of :func:`area_mean`; the result has ceil(h / factor) x ceil(w / factor) pixels.
    """
    height, width = no_data.shape
    cols = math.ceil(width / factor)
    rows = max(1, _STRIP_PIXELS // (width * factor))
    parts = []
    for top in range(0, height, rows * factor):
        part = slice(top, top + rows * factor)
        cells = min(rows, math.ceil((height - top) / factor)), cols
        parts.append(area_mean(pixels[part], no_data[part], cells, (cells[0] * factor, cols * factor)))
    means, missing = zip(*parts, strict=True)
    return np.concatenate(means), np.concatenate(missing)


def read_averaged(read: Read, y: int, x: int, size: int, step: float) -> tuple[np.ndarray, float]:
    """Read a patch whose pixels are each the exact area average of ``step`` x ``step`` pixels of a level.

    Args:
        read: reads windows of the level, also over its edges.
        y, x: top-left corner of the patch, in averaged pixels; it may lie within a pixel of the level.
        size: side of the patch, in averaged pixels.
        step: pixels of the level per averaged pixel, each way; need not be a whole number.

    Returns:
        uint8 (size, size, 3) RGB, perhaps a view of a cached tile; and the share of it that the slide lacks.
    """
    step = float(step)
    if step == 1:
        pixels, present = read(y, x, size, size)
        return pixels, 1 - np.count_nonzero(present) / size**2
    left, width, across = _cells(x, size, step)
    rows, parts, there, whole = max(1, int(_BAND_PIXELS / step / width)), [], 0, 0
    for first in range(0, size, rows):
        top, height, down = _cells(y + first, min(rows, size - first), step)
        pixels, present = read(top, left, height, width)
        there, whole = there + np.count_nonzero(present), whole + present.size
        if step.is_integer():
            parts.append(cv2.resize(pixels, (size, down.shape[0]), interpolation=cv2.INTER_AREA))
            continue
        lines = down @ pixels.reshape(height, -1).astype(np.float32)
        columns = cv2.transpose(lines.reshape(-1, width, 3)).reshape(width, -1)
        means = (across @ columns).reshape(size, -1, 3)
        parts.append(cv2.transpose(cv2.convertScaleAbs(means)))
    return np.concatenate(parts) if len(parts) > 1 else parts[0], 1 - there / whole


@lru_cache(1024)
def _cells(first: int, count: int, step: float) -> tuple[int, int, sparse.csr_array]:
    """First pixel, number of pixels, and share of each in the cells ``first`` and on, ``step`` wide each:
    (cells, pixels) float32."""
    from scipy import sparse  # which takes as long to import as all the rest a worker needs

    # To a millionth of a pixel, so that noise of floating point reads no row more.
    edges = np.round((first + np.arange(count + 1)) * step, 6)
    start = math.floor(edges[0])
    length = math.ceil(edges[-1]) - start
    low, high = edges[:-1, None] - start, edges[1:, None] - start
    at = np.floor(low).astype(np.int64) + np.arange(math.ceil(step) + 1)
    shares = np.maximum(np.minimum(at + 1, high) - np.maximum(at, low), 0) / (high - low)
    # Pixels beyond the last have no share.
    columns, ends = np.minimum(at, length - 1).ravel(), np.arange(count + 1) * at.shape[1]
    matrix = sparse.csr_array((shares.astype(np.float32).ravel(), columns, ends), shape=(count, length))
    matrix.eliminate_zeros()  # which would take a quarter of the time
    return start, length, matrix


def _means(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Means of uint8 over a grid of (rows, columns), float32."""
    rows, columns = size
    step = len(values) // rows
    if 1 < step < 256 and len(values) == rows * step:
        # Sums over rows first, which is several times as fast as leaving all to OpenCV.
        shape = values.shape
        values = values.reshape(rows, step, -1).sum(axis=1, dtype=np.uint16).reshape(rows, *shape[1:])
        values = values / np.float32(step)
    return cv2.resize(values.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.rint(values).astype(np.uint8)
